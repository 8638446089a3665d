"""The state dicts in what a checkpoint holds, and which of them are running averages (EMA).

A key of a dict and a prefix of names are one thing here: `{"state_dict": {"model.conv.weight": …}}` has a state dict
under `state_dict`, one under `state_dict.model`, and so on. Names are read by their words: all words of `net_g` or
`generator_state_dict` say "the network", so what is below is looked at; `ema` in `params_ema` says "an average".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import LowpeftError

State = dict[str, Tensor]

MOST_LEVELS = 8
"""Of dicts in dicts, and of prefixes; what is deeper is not looked at."""
MOST_ENTRIES = 200_000
"""Of all dicts together, optimizers left out; the largest known networks have a few thousand."""
MOST_PLACES = 64
"""Where a network may be."""

NETWORK_WORDS = frozenset(
    "params param parameters state dict statedict weights weight model models net network module g gen "  # noqa: SIM905
    "generator netg backbone orig mod ddp sr restorer".split()
)
AVERAGED_WORDS = frozenset({"ema", "averaged", "average", "avg", "swa"})
RAW_WORDS = frozenset({"online", "current"})
"""Say, below or beside an average, that these are the weights of the last step."""
OTHER_WORDS = frozenset(
    "optimizer optimizers optim opt scheduler schedulers scaler d dis disc discriminator netd "  # noqa: SIM905
    "loss losses criterion decay".split()
)
"""What is no network of images to images, even as an average."""

LIT_EMA = frozenset({"decay", "num_updates"})
"""What LitEma, of latent diffusion and taming transformers, keeps beside tensors whose names have lost their dots."""
BUFFERS = frozenset("attn_mask mask running_mean running_var mean std".split())  # noqa: SIM905
"""Last names of tensors of real numbers that are no parameters in the networks of this field."""
NAMELESS = "shadow_params"
"""Under which diffusers' EMAModel and torch_ema keep a list of tensors, in the order of `parameters()`."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One state dict in a checkpoint.

    Attributes:
        path: Keys and prefixes under which it is; empty for a bare state dict.
        state: Its tensors by name.
        averaged: It is a running average.
        nameless: Why its tensors have no names; None if they have.
    """

    path: tuple[str, ...]
    state: State
    averaged: bool
    nameless: str | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"under {'.'.join(self.path)}" if self.path else "at the top"


def find_weights(content: object) -> tuple[Weights, ...]:
    """Every state dict that may be the network's, from the outside to the inside; none in what is no dict.

    Tensors of other networks beside it (a discriminator, a loss) are left out.

    Raises:
        LowpeftError: The content is too large to be a checkpoint.
    """
    tree = _tree(content, iter(range(MOST_ENTRIES)), ()) if isinstance(content, Mapping) else {}
    found: list[Weights] = []
    layer: list[tuple[tuple[str, ...], dict[str, Any], bool | None]] = [((), tree, False)]
    for _ in range(MOST_LEVELS + 1):
        below = []
        for path, node, averaged in layer:
            children = dict(_inner(node, averaged))
            others = {name for name, (_, is_average) in children.items() if is_average != averaged}
            state = {k: t for k, t in node.items() if isinstance(t, Tensor) and k.partition(".")[0] not in others}
            if averaged is not None and any(tensor.ndim for tensor in state.values()):
                found.append(Weights(path=path, state=state, averaged=averaged))
            below += [((*path, name), child, is_average) for name, (child, is_average) in children.items()]
        layer = below
        if len(found) + len(layer) > MOST_PLACES:
            raise LowpeftError(f"a network might be in more than {MOST_PLACES} places of it")
    raw = [weights for weights in found if not weights.averaged]
    return tuple(named for weights in found for named in _named(weights, raw))


def unread_average(content: Mapping[Any, Any]) -> str | None:
    """Where a checkpoint in which no average was found seems to have one all the same; None if nowhere.

    That is a dict or list which is named as an average, and holds no settings (a decay): tensors, dicts, None, nothing.
    Optimizers are looked at too, since some keep the average.
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
    """Those that are not inside another of them."""
    paths = {weights.path for weights in found}
    return [w for w in found if not any(w.path[:length] in paths for length in range(len(w.path)))]


def _tree(content: Mapping[Any, Any], budget: Iterator[int], above: tuple[int, ...]) -> dict[str, Any]:
    """The tensors by name in dicts by name, as new dicts; a dict inside itself is left out."""
    tree: dict[str, Any] = {}
    above = (*above, id(content))
    for key, value in content.items():
        if next(budget, None) is None:
            raise LowpeftError(f"it holds more than {MOST_ENTRIES:,} entries, and no network has so many")
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            if (kind := _odd_kind(value)) is not None:
                raise LowpeftError(f"{key[:100]!r} is a {kind} tensor, and weights are dense ones: save it as such")
            tree[key] = value
            continue
        if isinstance(value, list | tuple) and _is_average(key):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping) and id(value) not in above and len(above) <= MOST_LEVELS and not _is_other(key):
            inner = _tree(value, budget, above)
            tree |= {key: inner} if inner else {}
    return tree


def _odd_kind(tensor: Tensor) -> str | None:
    """What a tensor is that no dense weights can be read from; None for all others."""
    kinds = {"nested": tensor.is_nested, "quantised": tensor.is_quantized, "meta": tensor.is_meta}
    kinds |= {"sparse": tensor.layout is not torch.strided}
    return next((kind for kind, is_so in kinds.items() if is_so), None)


def _words(name: str) -> set[str]:
    """In small letters: `state_dict_ema` has three, `netG` and `modelEMA` have two."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _is_average(name: str) -> bool:
    return name == NAMELESS or not AVERAGED_WORDS.isdisjoint(_words(name))


def _is_other(name: str) -> bool:
    return not OTHER_WORDS.isdisjoint(_words(name))


def _inner(node: dict[str, Any], averaged: bool | None) -> Iterator[tuple[str, tuple[dict[str, Any], bool | None]]]:
    """What stands below each key and prefix, and whether it is an average; None where only an average inside counts."""
    below: dict[str, dict[str, Any]] = {}
    for key, value in node.items():
        name, dot, rest = key.partition(".")
        if isinstance(value, dict):
            below.setdefault(key, {}).update(value)
        elif dot:
            below.setdefault(name, {})[rest] = value
    below = {name: inner for name, inner in below.items() if not _is_other(name)}
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
    """Names that are averages, or are none, whatever they say; from the sources of the trainers."""
    told = {}
    if "n_averaged" in node:  # torch.optim.swa_utils.AveragedModel
        told["module"] = True
    if "current_model_state" in below:  # Lightning's WeightAveraging puts the average in the usual place
        told["state_dict"] = True
    if "state_dict" in below and "steps" in below.get("ema_state_dict", {}):  # MMEngine's EMAHook swaps the two
        told |= {"state_dict": True, "ema_state_dict": False}
    return told


def _named(weights: Weights, raw: Sequence[Weights]) -> Iterator[Weights]:
    """An average whose tensors have lost their names, with those of each raw state dict beside it that has them.

    LitEma's names are those of the raw weights without dots. A list is in the order of the raw weights, if these have
    as many tensors of real numbers, each of the same shape. What is not averaged (buffers) is taken from the raw ones.
    """
    if weights.averaged and all(key.isdecimal() for key in weights.state):
        why, names_in = "they are a list of tensors without names (EMAModel)", _names_in_order
    elif weights.averaged and weights.state.keys() >= LIT_EMA:
        why, names_in = "their names have lost their dots (LitEma)", _names_without_dots
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
        yield replace(weights, nameless=why)


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
    """Whether two state dicts have the same names with the same values."""
    return a.keys() == b.keys() and all(t.dtype == b[key].dtype and torch.equal(t, b[key]) for key, t in a.items())
