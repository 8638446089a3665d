"""Which adapters act: for one block of code, or as the default of a model."""

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
    """Within the block these adapters act and no others, for this thread or async task alone.

    A forward gets the setting in force where it starts and keeps it to its end, also where checkpointing repeats parts
    of it during `backward`, in whatever block and thread that runs. Of blocks for one model inside each other the inner
    one counts. Tasks that are started within the block inherit it; new threads start with the model's default.

    Several adapters on one place add up, each from the frozen network: `{"rain": 0.3, "blur": 0.7}` is the mixture.

    Example:
        `with lowpeft.using(model, {"rain": 1.0, "blur": [0.0, 0.5]}): model(two_images)`

    Args:
        model: An adapted model.
        strengths: By adapter name; adapters that are not named are off. A number in 0..1, or a sequence or 1-dim tensor
            of such numbers, one for each image of the batch (with several views, for each scene). Adapters that add to
            features scale each image's; where one that changes weights acts, the network runs once for each group of
            images with equal strengths, which one graph (`torch.compile(fullgraph=True)`) cannot hold.

    Raises:
        PlanError: The model holds no adapter of a name, or a strength is not in 0..1; in a forward: the batch has not
            as many images as there are strengths.
    """
    switches = record_of(unwrap(model)).switches
    return _Using(switches, _setting(unwrap(model), strengths))


def disabled(model: object, *, name: str | None = None) -> AbstractContextManager[None]:
    """Within the block the network computes as if it had no adapters, bit for bit: `using(model, {})`.

    Args:
        model: An adapted model.
        name: Switch off only this adapter; the others stay as they are in force here.

    Raises:
        PlanError: The model holds no adapters, or none of that name.
    """
    root = unwrap(model)
    switches = record_of(root).switches
    if name is None:
        return _Using(switches, Setting({}))
    check_name(root, name)
    return _Using(switches, in_force(switches).without(name))


@one_at_a_time
def set_strength(model: object, strength: float, *, name: str | None = None) -> None:
    """Set how strongly adapters act where no block of `using` says otherwise: 0 is the frozen base, 1 the default.

    It is the model's, for all threads, and no part of the adapter file. Forwards that are under way keep what they
    started with.

    Args:
        model: An adapted model.
        strength: 0..1.
        name: Only this adapter.

    Raises:
        PlanError: The strength is outside 0..1, or there is no such adapter.
    """
    root = unwrap(model)
    number = _number(strength)
    if name is not None:
        check_name(root, name)
    switches = record_of(root).switches
    values = switches.default.values
    switches.default = Setting({n: number if name in (None, n) else s for n, s in values.items()})


class _Using:
    """A block in which a setting is in force; the same object may be entered by many threads and tasks."""

    def __init__(self, switches: Switches, setting: Setting) -> None:
        self.switches = switches
        self.setting = setting

    def __enter__(self) -> None:
        around = tuple(use for use in USING.get() if use.is_open)
        try:  # an interruption after this must not leave open a block that was never entered
            node = torch._C._current_autograd_node()
            USING.set((*around, Use(self.switches, self.setting, weakref.ref(self), home(), node)))
        except BaseException:
            USING.set(around)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Blocks may end in another order than they began, so that nothing is put back: this one is taken out.
        uses = list(USING.get())
        mine = [i for i, use in enumerate(uses) if use.owner() is self]
        if mine:
            del uses[mine[-1]]
        USING.set(tuple(use for use in uses if use.is_open))


def _setting(root: Any, strengths: Mapping[str, object]) -> Setting:
    if not isinstance(strengths, Mapping):
        raise PlanError(f'using takes a table of strengths by adapter name, such as {{"name": 1.0}}, not {strengths!r}')
    for name in strengths:
        check_name(root, name)
    # In the order of attachment, whatever that of the table, so that sums are rounded alike.
    values = {name: _strength(strengths[name]) for name in record_of(root).plans if name in strengths}
    counts = sorted({len(v) for v in values.values() if isinstance(v, tuple)})
    if len(counts) > 1:
        raise PlanError(f"strengths by image must be for one batch, not for {' and '.join(map(str, counts))} images")
    return Setting(values)


def _strength(value: object) -> float | tuple[float, ...]:
    """A number in 0..1, or one for each image."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise PlanError("a strength that requires a gradient would get none here: detach it")
    plain = value.tolist() if hasattr(value, "tolist") else value  # tensors, and arrays and numbers of NumPy
    if not isinstance(plain, (list, tuple)):
        return _number(plain)
    if not plain:
        raise PlanError("strengths by image must be one number for each image, and there are none")
    return tuple(_number(n.item() if hasattr(n, "item") else n) for n in plain)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise PlanError(f"strength must be a number in 0..1, or in a list of one for each image, not {value!r}")
    return float(value)
