"""Switching adapters on and off: within a `with` block, or as the default of a model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ...errors import PlanError
from ..attachment.changes import one_at_a_time
from ..attachment.record import check_name, record_of, unwrap
from ..attachment.running import USING, Use, home, in_force
from ..attachment.settings import Setting
from ..attachment.switches import Switches


def using(model: object, strengths: Mapping[str, float | Sequence[float] | Tensor]) -> AbstractContextManager[None]:
    """Switch on these adapters, and no others, within a `with` block, for this thread or async task only.

    A forward pass uses the setting that is in force when it starts, until it ends. It also does so where checkpointing
    repeats parts of it during `backward`, in any block and any thread. If blocks for one model are nested, the
    innermost counts. Tasks started within the block inherit its setting; new threads start with the model's default.

    Several adapters on one site add up, each computed from the frozen network: `{"rain": 0.3, "blur": 0.7}` mixes two.

    Example:
        `with lowpeft.using(model, {"rain": 1.0, "blur": [0.0, 0.5]}): model(two_images)`

    Args:
        model: An adapted model.
        strengths: Strengths by adapter name; adapters that are not named are off. A strength is a number in 0..1, or a
            sequence or 1-dim tensor of n such numbers for a batch of n images (or n scenes of several views). Feature
            adapters scale what they add to each image. If an adapter that changes weights (or sees windows) has
            strengths by image, the network runs once for each group of images with equal strengths. One graph
            (`torch.compile(fullgraph=True)`) cannot do that.

    Raises:
        PlanError: The model has no adapters, a name belongs to no attached adapter, or a strength is not in 0..1. In a
            forward pass: the number of images in the batch is not the number of strengths.
    """
    switches = record_of(unwrap(model)).switches
    return _Using(switches, _setting(unwrap(model), strengths))


def disabled(model: object, *, name: str | None = None) -> AbstractContextManager[None]:
    """Switch off all adapters within a `with` block, as `using(model, {})`: the output is the base's, bit for bit.

    Args:
        model: An adapted model.
        name: Name of the only adapter to switch off; the others keep their current strengths. None means all.

    Raises:
        PlanError: The model has no adapters, or none of that name.
    """
    root = unwrap(model)
    switches = record_of(root).switches
    if name is None:
        return _Using(switches, Setting({}))
    check_name(root, name)
    return _Using(switches, in_force(switches).without(name))


@one_at_a_time
def set_strength(model: object, strength: float, *, name: str | None = None) -> None:
    """Set the default strength of adapters, which applies outside `using` blocks.

    It applies to the model in all threads and is not saved in adapter files. Forward passes that are running keep the
    strengths that they started with.

    Args:
        model: An adapted model.
        strength: Factor of what adapters add, 0..1: 0 gives the frozen base, 1 is the initial value.
        name: Name of one adapter; None means all adapters.

    Raises:
        PlanError: The strength is outside 0..1, or no adapter has that name.
    """
    root = unwrap(model)
    number = _number(strength)
    if name is not None:
        check_name(root, name)
    switches = record_of(root).switches
    values = switches.default.values
    switches.default = Setting({n: number if name in (None, n) else s for n, s in values.items()})


class _Using:
    """Context manager that puts a setting in force; many threads and tasks may enter the same object."""

    def __init__(self, switches: Switches, setting: Setting) -> None:
        self.switches = switches
        self.setting = setting

    def __enter__(self) -> None:
        around = tuple(use for use in USING.get() if use.is_open)
        try:  # after an interruption here `__exit__` is not called, so this block must not stay open
            node = torch._C._current_autograd_node()
            USING.set((*around, Use(self.switches, self.setting, weakref.ref(self), home(), node)))
        except BaseException:
            USING.set(around)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Blocks may end in another order than they began, so remove this block's entry; do not restore the old tuple.
        uses = list(USING.get())
        mine = [i for i, use in enumerate(uses) if use.owner() is self]
        if mine:
            del uses[mine[-1]]
        USING.set(tuple(use for use in uses if use.is_open))


def _setting(root: Any, strengths: Mapping[str, object]) -> Setting:
    if not isinstance(strengths, Mapping):
        raise PlanError(f'using takes a dict of strengths by adapter name, such as {{"name": 1.0}}, not {strengths!r}')
    for name in strengths:
        check_name(root, name)
    # Order of attachment, not of `strengths`: sums are then rounded the same for every order of the argument.
    values = {name: _strength(strengths[name]) for name in record_of(root).plans if name in strengths}
    counts = sorted({len(v) for v in values.values() if isinstance(v, tuple)})
    if len(counts) > 1:
        raise PlanError(f"all strengths by image must have the same length, not {' and '.join(map(str, counts))}")
    return Setting(values)


def _strength(value: object) -> float | tuple[float, ...]:
    """Check a strength; return it as a float in 0..1, or as a tuple of these with one for each image."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise PlanError("a strength that requires a gradient would not get one in `using`: detach it")
    plain = value.tolist() if hasattr(value, "tolist") else value  # tensors, and arrays and numbers of NumPy
    if not isinstance(plain, (list, tuple)):
        return _number(plain)
    if not plain:
        raise PlanError("strengths by image must have one number per image, and this sequence is empty")
    return tuple(_number(n.item() if hasattr(n, "item") else n) for n in plain)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise PlanError(
            f"a strength must be a number in 0..1, or a sequence of one such number per image, not {value!r}"
        )
    return float(value)
