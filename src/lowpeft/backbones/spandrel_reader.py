"""Build networks from state dicts with spandrel, and explain why where that fails."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from spandrel import MAIN_REGISTRY, ImageModelDescriptor, ModelTiling
from torch import Tensor

from ..errors import LowpeftError, did_you_mean
from .bounded import SPARE, bounded
from .weights import State

BLOCK = "layers.0.residual_group.blocks.0.attn.relative_position_index"
MASKED_BLOCK = re.compile(r"(layers\.\d+\.residual_group\.blocks\.\d*[13579])\.attn\.relative_position_index")
WINDOWS_PER_SIDE = 8
"""Windows per side of the image for masks if the file has none; e.g. 8 windows of 8 px are 64 px, as published."""


def is_known(state: State) -> bool:
    """Return whether spandrel recognises the state dict's architecture."""
    return _architecture(state) is not None


def load(state: State) -> ImageModelDescriptor[Any]:
    """Build the network of a bare state dict; return it with spandrel's facts about it.

    Raises:
        LowpeftError: spandrel does not recognise it (the message names the nearest architecture), its tensors do not
            fit the architecture, it does not map one image to one image, or it cannot run on images of its channels.
    """
    architecture = _architecture(state)
    if architecture is None:
        raise nearest([state])
    try:
        with bounded(state):
            if architecture.name in ("SwinIR", "Swin2SR"):
                state = with_masks(state)
            descriptor = architecture.load(state)
    except LowpeftError:
        raise
    except Exception as error:  # spandrel does not catch what building a network from wrong tensors raises
        problems = _tensor_problems(str(error), state) or [f"{type(error).__name__}: {_first_line(error)}"]
        raise LowpeftError(
            f"its names are those of {architecture.name}, but its tensors do not fit:", problems=problems
        ) from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise LowpeftError(f"it is a {architecture.name}, which does not map one image to one image")
    if architecture.name == "SPAN" and descriptor.input_channels != 3 and descriptor.model.is_norm:
        raise LowpeftError(
            f"it is a SPAN for images of {descriptor.input_channels} channels that subtracts the mean of three colours "
            "from them (norm=True), so it cannot run: train it with norm=False, which stores the tensor no_norm"
        )
    return descriptor


def _architecture(state: State) -> Any:
    """Return the first of spandrel's architectures that recognises the state dict; None if none does."""
    supports = MAIN_REGISTRY.architectures("detection")
    return next((support.architecture for support in supports if support.detect(state)), None)


MINUS_ONE_TO_ONE = (-1.0, 1.0)
NOISE = 15 / 255
"""Noise level that spandrel passes to networks that take one."""

CALLS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "DRUNet": lambda network: {"maps": (NOISE,)},
    "DnCNN": lambda network: {"maps": (NOISE,)} if network.mode == "FDnCNN" else {},
    "FBCNN": lambda network: {"output": 0},
    "GFPGAN": lambda network: {
        "output": 0,
        "fixed_px": 2**network.log_size,
        "value_range": MINUS_ONE_TO_ONE,
        "notes": ("value_range: -1..1, as GFPGAN's authors run it; spandrel's own call gives it 0..1",),
    },
    "IPT": lambda network: {
        "notes": ("fixed_px: lowpeft's crops overlap otherwise than those of spandrel's own call, see docs/backbones",)
    },
    "MixDehazeNet": lambda network: {"output_range": MINUS_ONE_TO_ONE},
    "MMRealSR": lambda network: {"output": 0},
    "RestoreFormer": lambda network: {"output": 0, "value_range": MINUS_ONE_TO_ONE},
    "RetinexFormer": lambda network: {
        "notes": ("strips: spandrel's own call runs the odd and even columns of images of 3000 px by themselves",)
    },
}
"""Functions, by spandrel's architecture id, that return facts: what `call_fn` does besides calling the network."""


def facts_of(descriptor: ImageModelDescriptor[Any]) -> dict[str, Any]:
    """Return the facts that spandrel knows about a network, as fields of `lowpeft.ports.facts.Facts` by name.

    Facts that lowpeft's family of the network knows are not included.

    Raises:
        LowpeftError: spandrel runs this network with a `call_fn` that lowpeft does not know.
    """
    name, sizes = descriptor.architecture.id, descriptor.size_requirements
    if name not in CALLS and descriptor._call_fn.__module__ != ImageModelDescriptor.__module__:
        raise LowpeftError(
            f"spandrel runs a {descriptor.architecture.name} through its own function (call_fn), which lowpeft does "
            "not know; pass a module that maps images to images, and its facts, to lowpeft.describe(module, …)"
        )
    return {
        "scale": descriptor.scale,
        "channels": descriptor.input_channels,
        "size_multiple": sizes.multiple_of,
        "min_px": max(1, sizes.minimum),
        "square": sizes.square,
        "strips": descriptor.tiling is ModelTiling.SUPPORTED,
        **CALLS.get(name, lambda network: {})(descriptor.model),
    }


def with_masks(state: State) -> State:
    """Return the state dict of a SwinIR or Swin2SR with new masks, which depend only on the training image's size.

    Masks in the file give that size if they are for a square image; otherwise 8 windows per side are assumed. If the
    file has no masks, they are assumed to have been removed: every published network shifts the windows of its odd
    blocks (1, 3, 5, …).
    """
    from .networks.edt_parts import shift_mask

    window = math.isqrt(state[BLOCK].shape[0])
    masks = [key for key in state if key.endswith(".attn_mask")]
    side = math.isqrt(len(state[masks[0]])) if masks else 0
    if not masks or side**2 != len(state[masks[0]]):
        side = WINDOWS_PER_SIDE
    if side**2 * window**4 > SPARE:
        raise LowpeftError(
            f"its windows of {window} px need masks of {side**2 * window**4:,} values, far more than it has"
        )
    mask = shift_mask((side * window,) * 2, (window, window), like=state[BLOCK].float())
    blocks = [found[1] for key in state if (found := MASKED_BLOCK.fullmatch(key))]
    rest = {key: tensor for key, tensor in state.items() if key not in masks}
    return rest | {f"{block}.attn_mask": mask for block in blocks}


def _tensor_problems(message: str, state: State) -> list[str]:
    """Return one line for each tensor that PyTorch's message about a state dict names."""
    problems = re.findall(r"size mismatch for .*", message)
    for words, label in (("Missing key", "missing"), ("Unexpected key", "unknown")):
        for part in re.findall(rf"{words}\(s\) in state_dict: (.*?)\.\s*(?:\n|$)", message):
            problems += [f"{label}: {key}" for key in re.findall(r'"([^"]+)"', part)]
    if not problems and (key := re.fullmatch(r"'([^']+)'", message)):  # of a KeyError
        problems = [f"missing: {key[1]}{did_you_mean(key[1], state, most=1)}"]
    return problems


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


MOST_COMPARED = 20_000
"""Largest number of names that a missing one is compared with; more would take minutes."""


class _KeyRecorder(dict[str, Tensor]):
    """A state dict that claims to have every key and records those that were tested.

    spandrel's conditions stop at the first missing key, so an honest answer would hide the keys after it.
    """

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.tested: dict[str, None] = {}

    def __contains__(self, key: object) -> bool:
        self.tested[str(key)] = None
        return True


_OWN = (
    "files are opened only for known architectures; a network of your own is adapted in Python: "
    "lowpeft.adapt(module, …)"
)


def nearest(states: Sequence[State]) -> LowpeftError:
    """Build the error for state dicts that no architecture recognises.

    It names the architecture of which the largest fraction of the tested keys is present, and the missing keys.
    """
    best: tuple[float, int, str, State, list[str]] = (0.0, 0, "", states[0], [])
    for state in states:
        for support in MAIN_REGISTRY.architectures("detection"):
            recorder = _KeyRecorder(state)
            try:
                support.detect(recorder)
            except (KeyError, AttributeError, IndexError, ValueError):
                continue  # this architecture reads tensors that are missing, so it is not near
            missing = [key for key in recorder.tested if key not in state]
            present = len(recorder.tested) - len(missing)
            row = (present / max(1, len(recorder.tested)), present, support.architecture.name, state, missing)
            best = max(best, row, key=lambda r: r[:2])
    _, present, name, state, missing = best
    some = f"{len(state)} tensors" + f" ({', '.join(list(state)[:3])}, …)" * bool(state)
    if not present:
        return LowpeftError(
            f"no architecture that spandrel or lowpeft knows has names like those of its {some}; {_OWN}"
        )
    known = state if len(state) <= MOST_COMPARED else ()
    return LowpeftError(
        f"no architecture that spandrel or lowpeft knows has its {some}; {_OWN}; the nearest is {name}, of which "
        f"it has {present} of the keys that identify it, but not these:",
        problems=[f"missing: {key}{did_you_mean(key, known, most=1)}" for key in missing],
    )
