"""The record of an adapted network, and the ways from what a user holds to the module that carries it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from ...errors import PlanError, did_you_mean
from ...kinds import Adapter
from ...ports.facts import RECORD, Backbone, Facts
from .slots import below, slots
from .switches import Switches
from .wrappers import network_in

if TYPE_CHECKING:
    from ..observation.figures import Figures
    from ..observation.fingerprint import Fingerprint
    from ..planning.plan import Plan


@dataclass
class Record:
    """What was changed on a network, what it was before, and its facts.

    Attributes:
        facts: Of the network.
        requires_grad: Paths of the base's parameters that required gradients before.
        training: Paths of the base's modules that were in training mode before.
        base: Fingerprint of the base when the first adapter was attached.
        digests: Digest of every base tensor at that time, so that a base that was written since is noticed.
        in_files: The base as adapter files describe it, which takes a while and is kept once one was saved.
        plans: Plans by adapter name, in the order of attachment.
        calibrated: Names of the adapters that have learned their start from data.
        forwards: Block forwards that replace a module's own one, with or without adapters: name by path.
        switches: Which adapters act, and the gate between forwards and changes.
    """

    facts: Facts
    requires_grad: frozenset[str]
    training: frozenset[str]
    base: Fingerprint
    digests: dict[str, str]
    in_files: tuple[Fingerprint, Figures | None] | None = None
    plans: dict[str, Plan] = field(default_factory=dict)
    calibrated: set[str] = field(default_factory=set)
    forwards: dict[str, str] = field(default_factory=dict)
    switches: Switches = field(default_factory=Switches)

    @property
    def views(self) -> int:
        """How many views of a scene the adapters mix."""
        return max((plan.recipe.views for plan in self.plans.values()), default=1)


def module_of(model: object) -> nn.Module:
    """The module that is called: a `Backbone`'s, or the model itself.

    Raises:
        PlanError: `model` is neither.
    """
    inner = model.module if isinstance(model, Backbone) else model
    if not isinstance(inner, nn.Module):
        hint = "; a spandrel descriptor holds the trainable network in `.model`" if hasattr(model, "model") else ""
        raise PlanError(f"lowpeft takes a torch.nn.Module or a Backbone, not {type(model).__name__}{hint}")
    return inner


def root_of(model: object) -> nn.Module:
    """The module to adapt, from a module, a `Backbone`, a multi-view model, or what wraps one of these.

    Raises:
        PlanError: `model` is none of these.
    """
    return network_in(module_of(model))


def unwrap(model: object) -> nn.Module:
    """The module that carries the record: in wrappers, a multi-view model, or a module of the user's own.

    Raises:
        PlanError: `model` is no module, or holds no adapters.
    """
    module = root_of(model)
    if RECORD in module.__dict__:
        return module
    holders = [m for m in module.modules() if RECORD in m.__dict__]
    if len(holders) != 1:
        found = "no adapters" if not holders else f"{len(holders)} adapted networks; pass one of them"
        raise PlanError(f"{type(model).__name__} holds {found}")
    return holders[0]


def is_adapted(model: object) -> bool:
    """Whether the model, or a network inside it, carries adapters."""
    return any(RECORD in module.__dict__ for module in root_of(model).modules())


def attached_names(model: object) -> list[str]:
    """The names of the attached adapters, in the order in which they were attached; empty for a bare network."""
    return list(record_of(unwrap(model)).plans) if is_adapted(model) else []


def record_of(root: nn.Module) -> Record:
    """The record of an adapted root module."""
    record: Record = root.__dict__[RECORD]
    return record


def check_name(root: nn.Module, name: str) -> None:
    """Refuse a name that no attached adapter has.

    Raises:
        PlanError: Saying which are attached.
    """
    known = record_of(root).plans
    if name not in known:
        raise PlanError(f"no adapter named {name!r}; attached: {', '.join(known)}{did_you_mean(str(name), known)}")


def pieces(root: nn.Module, name: str | None = None) -> list[tuple[str, str, Adapter]]:
    """Every adapter module as (adapter name, path of its module + key, adapter), in the order of the modules.

    Args:
        root: An adapted root.
        name: Only those of this adapter.

    Raises:
        PlanError: There is no adapter of that name.
    """
    if name is not None:
        check_name(root, name)
    return [
        (group_name, below(path, key), piece)
        for path, _, slot in slots(root)
        for group_name, group in slot.named_children()
        if name in (None, group_name)
        for key, piece in group.named_children()
        if isinstance(piece, Adapter)
    ]
