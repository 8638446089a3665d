"""Search for the state dicts in a checkpoint's content, and detection of running averages (EMA) among them.

Dict keys and name prefixes are treated alike: `{"state_dict": {"model.conv.weight": …}}` has a state dict under
`state_dict`, another under `state_dict.model`, and so on. Names are split into words. All words of `net_g` or
`generator_state_dict` mean "the network", so the search goes on below; `ema` in `params_ema` means "an average".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import LowpeftError

State = dict[str, Tensor]

MOST_LEVELS = 8
"""Largest depth of nested dicts and of prefixes that is searched."""
MOST_ENTRIES = 50_000
"""Largest number of entries in all dicts together, optimizers excluded; known networks have a few thousand."""
MOST_EXPANDED_BYTES = 2**20
"""Of a tensor that shows a value of its file several times."""
MOST_PLACES = 64
"""Largest number of places that may contain a network."""

NETWORK_WORDS = frozenset(
    "params param parameters state dict statedict weights weight model models net network module g gen "  # noqa: SIM905
    "generator netg backbone orig mod ddp sr restorer".split()
)
AVERAGED_WORDS = frozenset({"ema", "averaged", "average", "avg", "swa"})
RAW_WORDS = frozenset({"online", "current"})
"""Words that, below or beside an average, mean the weights of the last step."""
OTHER_WORDS = frozenset(
    "optimizer optimizers optim opt scheduler schedulers scaler d dis disc discriminator netd "  # noqa: SIM905
    "loss losses criterion decay".split()
)
"""Words for content that is not an image-to-image network, even as an average."""

LIT_EMA = frozenset({"decay", "num_updates"})
"""Keys that LitEma (latent diffusion, taming transformers) stores beside its tensors, whose names have no dots."""
BUFFERS = frozenset("attn_mask mask running_mean running_var mean std".split())  # noqa: SIM905
"""Last parts of the names of floating-point tensors that are buffers in the networks of this field."""
NAMELESS = "shadow_params"
"""Key under which diffusers' EMAModel and torch_ema store a list of tensors, in the order of `parameters()`."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One state dict in a checkpoint.

    Attributes:
        path: Keys and prefixes that lead to it; empty for a state dict at the top level.
        state: Tensors by name.
        averaged: True for a running average.
        nameless: Reason why the tensors have no names; None if they have names.
    """

    path: tuple[str, ...]
    state: State
    averaged: bool
    nameless: str | None = None

    @property
    def place(self) -> str:
        """Location in the file, in words: "under params_ema" or "at the top"."""
        return f"under {'.'.join(self.path)}" if self.path else "at the top"


def find_weights(content: object) -> tuple[Weights, ...]:
    """Return every state dict that may be the network's, outermost first; empty if the content is not a dict.

    Tensors of other networks beside it (a discriminator, a loss) are left out.

    Raises:
        LowpeftError: The content has too many entries or places to be a checkpoint, or a sparse, quantised, nested or
            meta tensor.
    """
    tree = _tree(content, iter(range(MOST_ENTRIES)), ()) if isinstance(content, Mapping) else {}
    found = sorted(islice(_search((), tree, False), MOST_PLACES + 1), key=lambda weights: len(weights.path))
    if len(found) > MOST_PLACES:
        raise LowpeftError(f"more than {MOST_PLACES} places in it may contain a network")
    raw = [weights for weights in found if not weights.averaged]
    return tuple(named for weights in found for named in _named(weights, raw))


def _search(path: tuple[str, ...], node: dict[str, Any], averaged: bool | None) -> Iterator[Weights]:
    """Yield the state dicts of a node and below it; `averaged` None means that only averages below it count."""
    children = dict(_children(node, averaged))
    others = {name for name, (_, is_average) in children.items() if is_average != averaged}
    state = {k: t for k, t in node.items() if isinstance(t, Tensor) and k.partition(".")[0] not in others}
    if averaged is not None and any(tensor.ndim for tensor in state.values()):
        yield Weights(path=path, state=state, averaged=averaged)
    for name, (child, is_average) in children.items() if len(path) < MOST_LEVELS else ():
        yield from _search((*path, name), child, is_average)


def unread_average(content: Mapping[Any, Any]) -> str | None:
    """Return the place of an average that `find_weights` could not read; None if there is no sign of one.

    Such a place is a dict or list that is named as an average and contains only tensors, dicts, lists or None, or
    nothing; settings such as a decay exclude it. Optimizers are searched too, since some store the average.
    """
    layer: list[tuple[str, Any]] = [("", content)]
    budget = iter(range(MOST_ENTRIES))
    for _ in range(MOST_LEVELS):
        below = []
        for place, node in layer:
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                if next(budget, None) is None:
                    return None
                if isinstance(value, Mapping | list | tuple):
                    here = f"{place}.{str(key)[:100]}".removeprefix(".")
                    if _is_average(str(key)) and _like_weights(value):
                        return here
                    below.append((here, value))
        layer = below
    return None


def _like_weights(value: Mapping[Any, Any] | Sequence[Any]) -> bool:
    items = list(value.values() if isinstance(value, Mapping) else value)
    counters = bool(items) and all(isinstance(item, Tensor) and not item.ndim for item in items)
    return not counters and all(isinstance(item, Tensor | Mapping | list | tuple | None) for item in items)


def outermost(found: Sequence[Weights]) -> list[Weights]:
    """Return the state dicts that are not inside another one."""
    paths = {weights.path for weights in found}
    return [w for w in found if not any(w.path[:length] in paths for length in range(len(w.path)))]


def _tree(content: Mapping[Any, Any], budget: Iterator[int], above: tuple[int, ...]) -> dict[str, Any]:
    """Copy nested dicts of named tensors into new dicts; a dict inside itself is left out."""
    tree: dict[str, Any] = {}
    above = (*above, id(content))
    for key, value in content.items():
        if next(budget, None) is None:
            raise LowpeftError(f"it has more than {MOST_ENTRIES:,} entries, far more than a network")
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            if not_dense := _not_dense(value):
                raise LowpeftError(f"{key[:100]!r} is a {not_dense} tensor; save weights as dense tensors")
            tree[key] = value
            continue
        if isinstance(value, list | tuple) and _is_average(key):
            value = {str(number): item for number, item in enumerate(value)}
        if (
            isinstance(value, Mapping)
            and id(value) not in above
            and len(above) <= MOST_LEVELS
            and OTHER_WORDS.isdisjoint(_words(key))
        ):
            inner = _tree(value, budget, above)
            tree |= {key: inner} if inner else {}
    return tree


def _not_dense(tensor: Tensor) -> str | None:
    """Return the kind of a tensor that is not dense; None for a dense one."""
    kinds = {"nested": tensor.is_nested, "quantised": tensor.is_quantized, "meta": tensor.is_meta}
    kinds |= {"sparse": tensor.layout is not torch.strided}
    if (found := next((kind for kind, is_so in kinds.items() if is_so), None)) is not None:
        return found
    # Broadcast from few values, a tensor of any size has a small file; a network of its shape would be built.
    held = tensor.untyped_storage().nbytes()
    return "broadcast" if tensor.numel() * tensor.element_size() > max(held, MOST_EXPANDED_BYTES) else None


def _words(name: str) -> set[str]:
    """Split a name into lower-case words: `state_dict_ema` has three, `netG` and `modelEMA` have two."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _is_average(name: str) -> bool:
    return name == NAMELESS or not AVERAGED_WORDS.isdisjoint(_words(name))


def _children(node: dict[str, Any], averaged: bool | None) -> Iterator[tuple[str, tuple[dict[str, Any], bool | None]]]:
    """Yield each key or prefix of a node, the dict below it, and whether that is an average (as for `_search`)."""
    below: dict[str, dict[str, Any]] = {}
    for key, value in node.items():
        name, dot, rest = key.partition(".")
        if isinstance(value, dict):
            below.setdefault(key, {}).update(value)
        elif dot:
            below.setdefault(name, {})[rest] = value
    below = {name: inner for name, inner in below.items() if OTHER_WORDS.isdisjoint(_words(name))}
    told = _told_by_what_is_beside(node, below)
    for name, inner in below.items():
        words = _words(name)
        if name in told:
            yield name, (inner, told[name])
        elif _is_average(name):
            yield name, (inner, True)
        elif (words and words <= NETWORK_WORDS | RAW_WORDS) or len(below) == 1:
            yield name, (inner, averaged and not words & RAW_WORDS)
        elif isinstance(node.get(name), dict) or "n_averaged" in inner:
            yield name, (inner, None)


def _told_by_what_is_beside(node: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, bool]:
    """Map keys to True (average) or False (raw) where the trainer's format overrides the words of the name."""
    told = {}
    if "n_averaged" in node:  # torch.optim.swa_utils.AveragedModel
        told["module"] = True
    if "current_model_state" in below:  # Lightning's WeightAveraging puts the average in the usual place
        told["state_dict"] = True
    if "state_dict" in below and "steps" in below.get("ema_state_dict", {}):  # MMEngine's EMAHook swaps the two
        told |= {"state_dict": True, "ema_state_dict": False}
    return told


def _named(weights: Weights, raw: Sequence[Weights]) -> Iterator[Weights]:
    """Yield an average whose tensors have lost their names, once for each raw state dict that gives the names back.

    Other state dicts are yielded unchanged. LitEma's names are those of the raw weights without dots. A list is in the
    order of the raw weights, and is matched only if these have the same number of floating-point tensors with the same
    shapes. Tensors that are not averaged (buffers) are taken from the raw weights.
    """
    if weights.averaged and all(key.isdecimal() for key in weights.state):
        nameless, names_in = "they are a list of tensors without names (EMAModel)", _names_in_order
    elif weights.averaged and weights.state.keys() >= LIT_EMA:
        nameless, names_in = "their names have lost their dots (LitEma)", _names_without_dots
    else:
        yield weights
        return
    shadow = {key: tensor for key, tensor in weights.state.items() if key not in LIT_EMA}
    known = False
    for each in raw:
        names = names_in(shadow, each.state)
        if names and all(shadow[key].shape == each.state[name].shape for key, name in names.items()):
            yield replace(weights, state=each.state | {name: shadow[key] for key, name in names.items()})
            known = True
    if not known:
        yield replace(weights, nameless=nameless)


def _names_in_order(shadow: State, raw: State) -> dict[str, str]:
    real = [name for name, tensor in raw.items() if tensor.is_floating_point()]
    for names in (real, [name for name in real if name.rpartition(".")[2] not in BUFFERS]):
        if len(names) == len(shadow):
            return dict(zip(shadow, names, strict=True))
    return {}


def _names_without_dots(shadow: State, raw: State) -> dict[str, str]:
    full = {name.replace(".", ""): name for name in raw}
    return {key: full[key] for key in shadow} if len(full) == len(raw) and shadow.keys() <= full.keys() else {}


def same(a: State, b: State) -> bool:
    """Return whether two state dicts have the same names with the same values and dtypes."""
    return a.keys() == b.keys() and all(t.dtype == b[key].dtype and torch.equal(t, b[key]) for key, t in a.items())
