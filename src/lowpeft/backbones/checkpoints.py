"""Read checkpoint files and choose the state dict in them. Code in a file is never run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file

from ..checks import one_of
from ..errors import LowpeftError
from .file_kinds import checkpoint_format
from .weights import State, Weights, find_weights, outermost, same, unread_average

Choice = Literal["ema", "raw"]
ABOUT = "weights: "
RAW_ASKED = "weights='raw' (--raw-weights)"

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
MOST_NAMED = 20
"""Largest number of tensors that an error names."""
LEAST_BYTES = 4
"""Smallest number of bytes per value of a full-precision weight; weights with fewer were rounded."""

CODE = (
    r"GLOBAL (\S+) was not an allowed",
    r"unsupported GLOBAL (\S+) whose module",
    r"unrecognized function (.+)",
    r"(?:but )?got (<class .+>)",
    r"(\S+) must be imported to load",
)
"""Messages of PyTorch's weights-only reader for a pickle that needs code; group 1 is the name that it needs."""


def read_checkpoint(file: Path) -> tuple[Weights, ...]:
    """Return every state dict in a checkpoint that may be a network's.

    An average that is present but cannot be read comes last, as a `Weights` with an empty state dict.

    Args:
        file: Path of a safetensors or `torch.save` file, with any suffix.

    Raises:
        LowpeftError: The file does not exist, or is not a checkpoint of plain named tensors.
    """
    try:
        if file.is_dir():
            raise LowpeftError(f"no checkpoint file at {file}: it is a folder{_listed(file)}")
        if not file.is_file():
            raise LowpeftError(f"no checkpoint file at {file}")
        content = load_file(file) if checkpoint_format(file) == "safetensors" else _torch(file)
    except LowpeftError:
        raise
    except OSError as error:
        raise LowpeftError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # noqa: BLE001  (torch and safetensors raise many kinds)
        raise _unreadable(file, error) from None  # torch's own message advises to run the code in the file
    try:
        found = find_weights(content)
    except LowpeftError as error:
        raise LowpeftError(f"{file} is not a checkpoint that can be read: {error}") from error
    if not found:
        raise LowpeftError(f"{file} is not a checkpoint of a network: {_contents(content)}")
    if not any(weights.averaged for weights in found) and (place := unread_average(content)) is not None:
        return (*found, Weights(path=(place,), state={}, averaged=True))
    return found


def wanted(found: Sequence[Weights], choice: Choice, file: Path) -> list[Weights]:
    """Return the candidate state dicts for a choice: the averages if there are any and "ema" is chosen, else raw ones.

    Raises:
        LowpeftError: The choice is unknown, or raw weights were requested and the file contains only averages.
    """
    if problems := one_of("weights", choice, get_args(Choice)):
        raise LowpeftError(problems[0])
    averaged, raw = ([w for w in found if w.state and w.averaged is wish] for wish in (True, False))
    if choice == "raw" and not raw:
        raise LowpeftError(
            f"{RAW_ASKED} was requested, but {file} contains only averaged weights (EMA); leave it out to take these:",
            problems=[_line(w) for w in outermost(averaged)],
        )
    return averaged if averaged and choice == "ema" else raw


def _line(weights: Weights) -> str:
    return f"{weights.place}: {len(weights.state)} tensors"


def the_one(recognised: Sequence[Weights]) -> Weights:
    """Return the only network among state dicts, ignoring those inside another one and identical copies.

    Raises:
        LowpeftError: The state dicts differ.
    """
    first, *others = outermost(recognised)
    if any(not same(first.state, other.state) for other in others):
        raise LowpeftError(
            "it contains several networks; save the one to open in a separate file:",
            problems=[_line(w) for w in (first, *others)],
        )
    return first


def said(taken: Weights, found: Sequence[Weights]) -> tuple[str, ...]:
    """Return a note that says which weights were loaded; empty if the file has no averages."""
    others = [w for w in found if w.averaged is not taken.averaged]
    if not taken.averaged:
        why = {True: "as asked; averaged ones (EMA) are {}", False: "because the averaged ones (EMA) {} cannot be read"}
        return tuple(f"{ABOUT}the raw ones, {taken.place}, {why[bool(w.state)].format(w.place)}" for w in others[:1])
    raw = [w.place for w in others if w.state.keys() == taken.state.keys()]
    more = f"; {RAW_ASKED} takes the raw ones, {raw[0]}" if raw else ""
    return (f"{ABOUT}the averaged ones (EMA), {taken.place}{more}",)


def which_weights(notes: Iterable[str]) -> str | None:
    """Find the note that `said` made among a network's notes; None if its file has no averages."""
    return next((note.removeprefix(ABOUT) for note in notes if note.startswith(ABOUT)), None)


def in_full_precision(state: State, *, allow_half: bool) -> State:
    """Return the state dict with tensors of half precision or less converted to float32.

    Raises:
        LowpeftError: There are such tensors and `allow_half` is False; or tensors are complex, NaN, +inf or integer
            weights.
    """
    if problems := list(islice(_not_weights(state), MOST_NAMED)):
        raise LowpeftError("some of its tensors cannot be the weights of a network:", problems=problems)
    half = [key for key, t in state.items() if t.is_floating_point() and t.element_size() < LEAST_BYTES]
    if half and not allow_half:
        raise LowpeftError(
            f"{len(half)} of its {len(state)} tensors are in half precision (e.g. {half[0]}: {state[half[0]].dtype}). "
            "They were rounded, so an adapter made on them does not fit the original. Use the float32 file, or open "
            "this one as float32 with allow_half=True (--allow-half)"
        )
    return state | {key: state[key].float() for key in half}


def _not_weights(state: State) -> Iterator[str]:
    """Yield a line for each complex tensor, integer weight, and tensor with NaN or +inf; masks may contain -inf."""
    for key, tensor in state.items():
        if tensor.is_complex():
            yield f"{key} contains complex numbers ({tensor.dtype})"
        elif not tensor.is_floating_point():
            if key.endswith(("weight", "bias")):
                yield f"{key} contains integers ({tensor.dtype}); save quantised weights as floating-point numbers"
        elif (wrong := tensor.isnan() | tensor.isposinf() if tensor.element_size() > 1 else tensor.isnan()).any():
            yield f"{key} contains NaN or infinity ({int(wrong.sum())} of {tensor.numel()} values)"


def _torch(file: Path) -> Any:
    # Pass the open file, not its path: torch reads any file named .safetensors as safetensors.
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about old protocols, sparse and quantised tensors
        return torch.load(opened, map_location="cpu", weights_only=True)


def _unreadable(file: Path, error: Exception) -> LowpeftError:
    """Build the error for a file that torch or safetensors cannot read, with their reason but not their advice."""
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    code = next((match[1] for pattern in CODE if (match := re.search(pattern, reason))), None)
    if code is not None:
        return LowpeftError(
            f"{file} is not a checkpoint of plain tensors: it is a pickle that needs the code of "
            f"{code[:100].strip('.')}. If you trust it and have that code, convert it: content = torch.load(path, "
            "weights_only=False), find the state dict in it (of a network: .state_dict()), and "
            "torch.save(state_dict, 'network.pth')"
        )
    first = next((line for line in reason.splitlines() if line and "weights_only" not in line), "")
    return LowpeftError(
        f"{file} is not a checkpoint that can be read: it is damaged, truncated, or pickled in a newer format "
        f"({type(error).__name__}: {first[:200]}); download or save it again"
    )


def _contents(content: object) -> str:
    """Describe the content of a file in which no network was found."""
    if not isinstance(content, Mapping):
        return f"it contains a {type(content).__name__}, not named tensors"
    names = ", ".join(str(key)[:40] for key in islice(content, 8)) + ", …" * (len(content) > 8)
    inside = [value for value in content.values() if isinstance(value, Mapping)]
    if any(isinstance(value, torch.Tensor) for each in inside for value in each.values()):
        return f"it has state dicts under {names}, and none is marked as the network's; save that one alone"
    return f"it contains no named tensors, but: {names}" if names else "it is empty"


def _listed(folder: Path) -> str:
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES)
    return f" with {', '.join(files[:5])}" + ", …" * (len(files) > 5) if files else ""
