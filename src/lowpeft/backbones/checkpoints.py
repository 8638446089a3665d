"""Reading checkpoint files, of any form, and choosing the state dict in them. Code in a file is never run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file

from ..errors import LowpeftError, did_you_mean
from .file_kinds import checkpoint_format
from .weights import State, Weights, find_weights, outermost, same, unread_average

Choice = Literal["ema", "raw"]
ABOUT = "weights: "
RAW_ASKED = "weights='raw' (--raw-weights)"

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
MOST_NAMED = 20
"""Tensors that an error names."""
LEAST_BYTES = 4
"""Of a real number in a weight; shorter ones were rounded."""

CODE = (
    r"GLOBAL (\S+) was not an allowed",
    r"unsupported GLOBAL (\S+) whose module",
    r"unrecognized function (.+)",
    r"(?:but )?got (<class .+>)",
    r"(\S+) must be imported to load",
)
"""What PyTorch's reader of plain tensors says where a pickle asks for more than tensors; group 1 is what for."""


def read_checkpoint(file: Path) -> tuple[Weights, ...]:
    """Every state dict in a checkpoint that may be a network's; without tensors an average that cannot be read.

    Args:
        file: A file of safetensors or of `torch.save`, whatever its suffix.

    Raises:
        LowpeftError: There is no such file, or it is not a checkpoint of plain tensors by name.
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
        raise _unreadable(file, error) from None  # whose text advises to run the code
    try:
        found = find_weights(content)
    except LowpeftError as error:
        raise LowpeftError(f"{file} is not a checkpoint that can be read: {error}") from error
    if not found:
        raise LowpeftError(f"{file} is not a checkpoint of a network: {_held(content)}")
    if not any(weights.averaged for weights in found) and (place := unread_average(content)) is not None:
        return (*found, Weights(path=(place,), state={}, averaged=True))
    return found


def wanted(found: Sequence[Weights], choice: Choice, file: Path) -> list[Weights]:
    """Of all state dicts in a file those among which the network is sought: averages where there are any, or raw ones.

    Raises:
        LowpeftError: There is no such choice, or raw weights were asked for and there are averages alone.
    """
    if choice not in get_args(Choice):
        known = get_args(Choice)
        raise LowpeftError(f"weights must be 'ema' or 'raw', not {choice!r}{did_you_mean(str(choice), known)}")
    averaged, raw = ([w for w in found if w.state and w.averaged is wish] for wish in (True, False))
    if choice == "raw" and not raw:
        raise LowpeftError(
            f"weights='raw' was asked for, and {file} holds averaged weights (EMA) alone; open it without that:",
            problems=[f"{w.place}: {len(w.state)} tensors" for w in outermost(averaged)],
        )
    return averaged if averaged and choice == "ema" else raw


def the_one(recognised: Sequence[Weights]) -> Weights:
    """The one of several state dicts that are networks; those inside it, and copies of it, do not count.

    Raises:
        LowpeftError: They differ.
    """
    first, *others = outermost(recognised)
    if any(not same(first.state, other.state) for other in others):
        raise LowpeftError(
            "it holds several networks, and does not say which is meant; save that one in a file of its own:",
            problems=[f"{w.place}: {len(w.state)} tensors" for w in (first, *others)],
        )
    return first


def said(taken: Weights, found: Sequence[Weights]) -> tuple[str, ...]:
    """A note on which weights were taken; none where a file has no averages."""
    others = [w for w in found if w.averaged is not taken.averaged]
    if not taken.averaged:
        why = {True: "as asked; averaged ones (EMA) are {}", False: "because the averaged ones (EMA) {} cannot be read"}
        return tuple(f"{ABOUT}the raw ones, {taken.place}, {why[bool(w.state)].format(w.place)}" for w in others[:1])
    raw = [w.place for w in others if w.state.keys() == taken.state.keys()]
    more = f"; {RAW_ASKED} takes the raw ones, {raw[0]}" if raw else ""
    return (f"{ABOUT}the averaged ones (EMA), {taken.place}{more}",)


def which_weights(notes: Iterable[str]) -> str | None:
    """What `said`, among the notes of a network; None where its file has no averages."""
    return next((note.removeprefix(ABOUT) for note in notes if note.startswith(ABOUT)), None)


def in_full_precision(state: State, *, allow_half: bool) -> State:
    """The tensors as they are, or those of half precision and less as float32.

    Raises:
        LowpeftError: There are such tensors, and they are not allowed; or tensors that no network computes with.
    """
    if problems := list(islice(_no_weights(state), MOST_NAMED)):
        raise LowpeftError("its tensors are not the weights of a network that computes:", problems=problems)
    half = [key for key, t in state.items() if t.is_floating_point() and t.element_size() < LEAST_BYTES]
    if half and not allow_half:
        raise LowpeftError(
            f"it holds weights of half precision ({len(half)} of {len(state)} tensors, as {half[0]}: "
            f"{state[half[0]].dtype}): they were rounded, so an adapter made on them does not fit the "
            "original. Take the float32 file, or open this one as float32: load_backbone(path, allow_half=True), or "
            "--allow-half"
        )
    return state | {key: state[key].float() for key in half}


def _no_weights(state: State) -> Iterator[str]:
    """Tensors of complex numbers, weights of integers, and NaN; masks may hold -inf."""
    for key, tensor in state.items():
        if tensor.is_complex():
            yield f"{key} holds complex numbers ({tensor.dtype})"
        elif not tensor.is_floating_point():
            if key.endswith(("weight", "bias")):
                yield f"{key} holds integers ({tensor.dtype}): quantised weights have to be saved as real numbers"
        elif (wrong := tensor.isnan() | tensor.isposinf() if tensor.element_size() > 1 else tensor.isnan()).any():
            yield f"{key} holds NaN or infinity ({int(wrong.sum())} of {tensor.numel()} values)"


def _torch(file: Path) -> Any:
    # Not by its path: torch reads a file named .safetensors as such, whatever is in it.
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # old protocols, sparse tensors, quantised ones
        return torch.load(opened, map_location="cpu", weights_only=True)


def _unreadable(file: Path, error: Exception) -> LowpeftError:
    """The error for what torch or safetensors cannot read, in their words but for their advice."""
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    asked_for = next((found[1] for pattern in CODE if (found := re.search(pattern, reason))), None)
    if asked_for is not None:
        return LowpeftError(
            f"{file} is not a checkpoint of plain tensors: it is a pickle with code, which asks for "
            f"{asked_for[:100].strip('.')}. Where you trust it and have that code, convert it: "
            "content = torch.load(path, weights_only=False), find the state dict in it (of a network: "
            ".state_dict()), and torch.save(state_dict, 'network.pth')"
        )
    first = next((line for line in reason.splitlines() if line and "weights_only" not in line), "")
    return LowpeftError(
        f"{file} is not a checkpoint that can be read: it is damaged, cut off, or pickled in a newer form "
        f"({type(error).__name__}: {first[:200]}); fetch or save it again"
    )


def _held(content: object) -> str:
    """What is in a file in which no network was found."""
    if not isinstance(content, Mapping):
        return f"it holds no tensors by name, but a {type(content).__name__}"
    names = ", ".join(str(key)[:40] for key in islice(content, 8)) + ", …" * (len(content) > 8)
    inside = [key for key, value in content.items() if isinstance(value, Mapping)]
    if any(isinstance(value, torch.Tensor) for key in inside for value in content[key].values()):
        return f"it has state dicts under {names}, and nothing says that one is the network's: save that one by itself"
    return f"it holds no tensors by name, but: {names}" if names else "it holds no tensors by name: it is empty"


def _listed(folder: Path) -> str:
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES)
    return f" with {', '.join(files[:5])}" + ", …" * (len(files) > 5) if files else ""
