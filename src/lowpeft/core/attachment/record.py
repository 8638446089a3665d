"""The record of an adapted network, and functions that find the module with the record in a user's object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import nn

from ...errors import PlanError, did_you_mean
from ...kinds import Adapter
from ...ports.base import all_modules
from ...ports.facts import RECORD, Backbone, Facts, Making
from .slots import below, slots
from .switches import Switches
from .wrappers import network_in

if TYPE_CHECKING:
    from ...recipes import Recipe
    from ..observation.figures import Figures
    from ..observation.fingerprint import Fingerprint
    from ..planning.plan import Plan


Memory = Literal["keep", "rebuild", "checkpoint"]
"""What an optimised block keeps for backward; see `lowpeft.optimize`."""


@dataclass(frozen=True, kw_only=True)
class Optimised:
    """Changes that `lowpeft.optimize` made to a network's forwards.

    Attributes:
        memory: What blocks keep for backward.
        blocks: Paths of the modules that keep what `memory` says: blocks, or stages that run again in backward.
        fused: Mapping from path of each fused block to the name of its block forward.
        lean: Paths of the convolutions and batch norms that keep no input.
        relaid: Shape and, before, strides of the weights that were laid out channels last, by path.
        notes: Blocks that stayed as they are, with the reason.
    """

    memory: Memory
    blocks: frozenset[str]
    fused: Mapping[str, str]
    lean: frozenset[str]
    relaid: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.fused)} blocks fused"] if self.fused else []
        parts += [f"{len(self.blocks)} modules run again in backward"] if self.memory == "checkpoint" else []
        parts += [f"{len(self.lean)} layers keep no input while frozen"] if self.lean else []
        parts += [f"{len(self.relaid)} weights laid out channels last"] if self.relaid else []
        return f"optimised, memory={self.memory!r}: {', '.join(parts) or 'nothing to optimise here'}"


@dataclass
class Record:
    """State of an adapted network: its changes, its original flags, and its facts.

    Attributes:
        facts: Facts of the network.
        requires_grad: Paths of the base's parameters that required gradients before the first adapter was attached.
        training: Paths of the base's modules that were in training mode at that time.
        base: Fingerprint of the base at that time, or after the last merge.
        digests: Digest of every base tensor at the time of `base`, to detect later writes to the base.
        in_files: Description of the base in adapter files. It is slow to compute, so it is cached.
        plans: Plans by adapter name, in order of attachment.
        calibrated: Names of the adapters that have learned their start from data.
        forwards: Mapping from module path to the name of the block forward that replaces the module's forward, with or
            without adapters.
        optimised: What `lowpeft.optimize` changed; None without it.
        switches: Default setting of the adapters, and the gate between forwards and changes.
        making: How the network was made, for model cards; None if the adapters were attached to a bare module.
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
    optimised: Optimised | None = None
    switches: Switches = field(default_factory=Switches)
    making: Making | None = None

    @property
    def in_use(self) -> bool:
        """True if the network has adapters, replaced forwards or an optimisation."""
        return bool(self.plans or self.forwards or self.optimised)

    @property
    def views(self) -> int:
        """Number of views of a scene that the adapters mix; 1 for single images."""
        return max((plan.recipe.views for plan in self.plans.values()), default=1)


def module_of(model: object) -> nn.Module:
    """Return the module of a `Backbone`, or the model itself.

    Raises:
        PlanError: `model` is neither a `Backbone` nor a module.
    """
    inner = model.module if isinstance(model, Backbone) else model
    if not isinstance(inner, nn.Module):
        hint = "; pass the `.model` of a spandrel descriptor" if hasattr(model, "model") else ""
        raise PlanError(f"lowpeft takes a torch.nn.Module or a Backbone, not {type(model).__name__}{hint}")
    return inner


def root_of(model: object) -> nn.Module:
    """Return the module to adapt, from a module, a `Backbone`, a multi-view model, or a wrapper around one of these.

    Raises:
        PlanError: `model` is neither a `Backbone` nor a module.
    """
    return network_in(module_of(model))


def unwrap(model: object) -> nn.Module:
    """Return the module with the record; it may be inside wrappers, a multi-view model or a user's module.

    Raises:
        PlanError: `model` is not a module, has no adapters, or contains several adapted networks.
    """
    module = root_of(model)
    if RECORD in module.__dict__:
        return module
    holders = [m for _, m in all_modules(module) if RECORD in m.__dict__]
    if len(holders) != 1:
        what = "no adapters" if not holders else f"{len(holders)} adapted networks; pass one of them"
        raise PlanError(f"{type(model).__name__} has {what}")
    return holders[0]


def is_adapted(model: object) -> bool:
    """Return whether the model, or a network inside it, has adapters."""
    return bool(attached_names(model))


def has_record(model: object) -> bool:
    """Return whether the model, or a network inside it, has a record: of adapters, or of other forwards alone."""
    return any(RECORD in module.__dict__ for _, module in all_modules(root_of(model)))


def attached_names(model: object) -> list[str]:
    """Return the names of the attached adapters, in order of attachment; empty for a network without adapters."""
    return list(record_of(unwrap(model)).plans) if has_record(model) else []


def record_of(root: nn.Module) -> Record:
    """Return the record of an adapted root module."""
    record: Record = root.__dict__[RECORD]
    return record


def recipes_of(model: object) -> list[Recipe]:
    """Return the recipes of the attached adapters; empty for a network that is not adapted."""
    return [plan.recipe for plan in record_of(unwrap(model)).plans.values()] if has_record(model) else []


def check_name(root: nn.Module, name: str) -> None:
    """Raise if no attached adapter has this name.

    Raises:
        PlanError: No adapter has the name; the message lists the attached ones.
    """
    known = record_of(root).plans
    if name not in known:
        raise PlanError(f"no adapter named {name!r}; attached: {', '.join(known)}{did_you_mean(str(name), known)}")


def pieces(root: nn.Module, name: str | None = None) -> list[tuple[str, str, Adapter]]:
    """Return every adapter module as (adapter name, path of its module + key, adapter), in order of modules.

    Args:
        root: Adapted root module.
        name: Name of one adapter; None means all adapters.

    Raises:
        PlanError: No adapter has that name.
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


def uncalibrated(root: nn.Module) -> list[str]:
    """Return the names of trainable adapters that learn their start from data and have not been calibrated."""
    waiting = {
        name
        for name, _, piece in pieces(root)
        if piece.calibrator_class is not None and any(p.requires_grad for p in piece.parameters())
    }
    record = record_of(root)
    return [name for name in record.plans if name in waiting - record.calibrated]
