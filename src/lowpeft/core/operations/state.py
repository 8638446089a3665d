"""Reading and writing the state of adapters: names, parameters, state dicts, and the summary of an adapted model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ... import tables
from ...errors import PlanError
from ...ports.base import original_class
from ...ports.facts import Facts
from ...tables import NOTHING
from ..attachment.changes import Undo, change, one_at_a_time
from ..attachment.record import attached_names, check_name, module_of, pieces, record_of, uncalibrated, unwrap
from ..attachment.specialise import facets_of
from .new_adapters import check_tensors, check_values, copy_tensors, tensors_of


def list_adapters(model: object) -> list[str]:
    """Return the names of the attached adapters, in order of attachment; empty for a network without adapters.

    Raises:
        PlanError: `model` is not a network.
    """
    return attached_names(model)


@one_at_a_time
def adapter_parameters(model: object, *, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the adapters' parameters as (name, Parameter), named as in `model.named_parameters()`.

    Pass these to the optimiser. All of them require gradients, unless you have frozen some.

    Args:
        model: An adapted model.
        name: Name of one adapter; None means all adapters.

    Raises:
        PlanError: The model has no adapters, or none of that name.
    """
    wanted = {id(p) for _, _, piece in pieces(unwrap(model), name) for p in piece.parameters()}
    return iter([(path, p) for path, p in module_of(model).named_parameters() if id(p) in wanted])


def only_name(model: object, name: str | None) -> str:
    """Return `name`, or for None the name of the only attached adapter.

    Raises:
        PlanError: No adapter has that name, or `name` is None and several are attached.
    """
    root = unwrap(model)
    known = record_of(root).plans
    if not known:
        raise PlanError(f"{original_class(root).__name__} has no adapters")
    if name is None and len(known) == 1:
        return next(iter(known))
    if name is None:
        raise PlanError(f"several adapters are attached ({', '.join(known)}); choose one with name=")
    check_name(root, name)
    return name


def _tensors(model: object, name: str) -> dict[str, Tensor]:
    return tensors_of((path, piece) for _, path, piece in pieces(unwrap(model), name))


@one_at_a_time
def adapter_state_dict(model: object, *, name: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of one adapter, and no others: detached, not copied.

    Args:
        model: An adapted model.
        name: Name of the adapter; required if several are attached.

    Returns:
        Mapping from tensor name to tensor. A name is the base module's path, the kind, and the adapter's own
        parameter name: `layers.1.conv.stereo.beta`.

    Raises:
        PlanError: The model has no adapters, none of that name, or several and `name` is None.
    """
    return {k: v.detach() for k, v in _tensors(model, only_name(model, name)).items()}


@one_at_a_time
def load_adapter_state_dict(model: object, state: Mapping[str, Tensor], *, name: str | None = None) -> None:
    """Copy tensors into an attached adapter: all of them or none, with no forward pass running meanwhile.

    Args:
        model: An adapted model.
        state: Tensors by name, as returned by `adapter_state_dict`. The keys must match exactly.
        name: Name of the adapter; required if several are attached.

    Raises:
        AdapterError: Missing or unknown keys, wrong shapes, NaN or infinity. All are listed and nothing is loaded.
        PlanError: The model has no adapters, none of that name, or several and `name` is None.
    """
    root = unwrap(model)
    chosen = only_name(model, name)
    wanted = _tensors(model, chosen)
    check_tensors(wanted, state, f"the adapter {chosen!r}")

    def fill(undo: Undo) -> None:
        undo.keep(wanted.values())
        copy_tensors(wanted, state)
        check_values((path, piece) for _, path, piece in pieces(root, chosen))

    change(root, fill)


# --- summary ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Parameter counts of an adapted model; prints as a table with one row per adapter, stage and kind.

    Attributes:
        model: Class name of the network.
        total: Number of parameters, adapters included.
        trainable: Number of parameters that require gradients.
        by_kind: Number of adapter parameters by kind.
        adapter_bytes: Size of the adapters' tensors in bytes.
        facts: Facts of the network.
        stages: Rows (adapter, stage or None, kind, sites, parameters).
        settings: Settings of each adapter's kinds, as text.
        optimised: What `lowpeft.optimize` changed, as text; None without it.
        notes: Notes of the adapters' plans, each after its adapter's name: places that were skipped, assumptions,
            differences between this base and the base of an adapter file, and that it has not been calibrated.
    """

    model: str
    total: int
    trainable: int
    by_kind: dict[str, int]
    adapter_bytes: int
    facts: Facts
    stages: tuple[tuple[str, int | None, str, int, int], ...]
    settings: tuple[str, ...] = ()
    optimised: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def frozen(self) -> int:
        """Number of parameters that do not require gradients."""
        return self.total - self.trainable

    def __str__(self) -> str:
        base = self.total - sum(self.by_kind.values())
        heading = (
            f"{self.model}: {self.trainable:,} trainable, {self.frozen:,} frozen "
            f"({100 * self.trainable / max(1, base):.2f} % of the base), adapters {self.adapter_bytes / 1e6:.2f} MB"
        )
        lines = [heading, str(self.facts), *(f"  {note}" for note in (*self.facts.notes, *self.notes)), *self.settings]
        lines += [self.optimised] if self.optimised else []
        cells = [["adapter", "stage", "kind", "sites", "parameters"]]
        for adapter, stage, kind, sites, parameters in self.stages:
            cells.append([adapter, NOTHING if stage is None else str(stage), kind, str(sites), f"{parameters:,}"])
        return "\n".join([*lines, tables.text(cells)])


UNCALIBRATED = "its start is not learned from data; train does that, or lowpeft.calibrate before your own training"


def _optimised(root: nn.Module) -> str | None:
    """Return what `optimize` changed, as text; layers whose weight an adapter changes by now do not count."""
    found = record_of(root).optimised
    if found is None:
        return None
    lean = frozenset(path for path in found.lean if facets_of(root.get_submodule(path)).lean)
    return str(replace(found, lean=lean))


@one_at_a_time
def summary(model: object) -> Summary:
    """Count the parameters of an adapted model.

    Raises:
        PlanError: The model has no adapters.
    """
    root = unwrap(model)
    sites: Counter[tuple[str, int | None, str]] = Counter()
    parameters: Counter[tuple[str, int | None, str]] = Counter()
    by_kind: Counter[str] = Counter()
    for name, plan in record_of(root).plans.items():
        for site in plan.sites:
            row = (name, site.stage, site.config.kind)
            sites[row] += 1
            parameters[row] += site.parameters
            by_kind[site.config.kind] += site.parameters
    tensors = [t for _, _, piece in pieces(root) for t in piece.state_dict().values()]
    return Summary(
        model=original_class(root).__name__,
        total=sum(p.numel() for p in root.parameters()),
        trainable=sum(p.numel() for p in root.parameters() if p.requires_grad),
        by_kind=dict(by_kind),
        adapter_bytes=sum(t.numel() * t.element_size() for t in tensors),
        facts=record_of(root).facts,
        stages=tuple((*row, count, parameters[row]) for row, count in sites.items()),
        settings=tuple(
            f"{name}, {config.kind}: {config.settings}"
            for name, plan in record_of(root).plans.items()
            for config in plan.recipe.adapters
            if config.settings
        ),
        optimised=_optimised(root),
        notes=tuple(f"{name}: {note}" for name, plan in record_of(root).plans.items() for note in plan.notes)
        + tuple(f"{name}: not calibrated: {UNCALIBRATED}" for name in uncalibrated(root))
        + (() if (optimised := record_of(root).optimised) is None else optimised.notes),
    )
