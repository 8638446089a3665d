"""Merging adapters into the weights of the base."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...kinds import Adapter, RootPart, WeightAdapter
from ...ports.base import original_class
from ..attachment.adding import adapted_tensor, base_of
from ..attachment.changes import Undo, change, one_at_a_time
from ..attachment.record import attached_names, pieces, record_of, unwrap
from ..attachment.running import forget, in_force
from ..attachment.settings import is_off
from ..attachment.slots import Acting, Slot, acting_in, slots
from ..observation.examples import Example
from ..observation.merged_output import OutputComparison
from .injection import drop_merged


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """Result of `merge`.

    Attributes:
        merged: Paths of the adapters that are now part of the base's weights.
        kept: Paths of the adapters that stay attached, because they are off or cannot be merged.
        difference: Largest absolute difference between a merged weight and base + change, both in float64.
        output_difference: Largest difference between the network's outputs before and after merging for an example, as
            a fraction of the output's largest value; None if no example ran.
    """

    merged: tuple[str, ...]
    kept: tuple[str, ...]
    difference: float
    output_difference: float | None = None

    def __str__(self) -> str:
        text = f"{len(self.merged)} adapters merged, largest rounding difference of a weight {self.difference:.3g}, "
        if self.output_difference is None:
            text += "outputs not compared (no example ran; give one with example=)"
        else:
            text += f"of the output {self.output_difference:.3g} of its largest value"
        if self.kept:
            text += f"; {len(self.kept)} stay attached, not linear in a weight or off: {', '.join(self.kept[:3])}"
            text += ", …" if len(self.kept) > 3 else ""
        return text


@one_at_a_time
def merge(model: object, *, name: str | None = None, example: Any = None) -> MergeReport:
    """Merge weight adapters (LoRA, DoRA, SSF, VeRA, full, …) into the base at their current strengths; remove them.

    This is the only call that writes the base. It runs while no forward pass is running; after an interruption the
    model is either unchanged or fully merged. Adapters that are off stay attached. If only some parts of an adapter can
    be merged, the other parts stay attached under its name.

    Args:
        model: An adapted model.
        name: Name of one adapter; None means all adapters.
        example: Arguments of one call of the network; see `adapt`. Copies of the network run on it before and after
            merging. By default they run on random images.

    Returns:
        Paths of merged and kept adapters, and the differences in weights and output.

    Raises:
        PlanError: The output of the merged network differs from that of the adapted one (e.g. because the network
            recomputes a weight whenever it runs). Or nothing can be merged, a change is not finite, another adapter
            depends on a weight that would be written, a weight is shared by several modules, strengths are given by
            image, or a root part sets them for every input. The model is unchanged.
    """
    root = unwrap(model)
    before, switches = attached_names(root), record_of(root).switches
    given = None if example is None else Example.of(example)
    report = change(root, lambda undo: _merge(root, name, given, undo))
    forget(switches, set(before) - set(attached_names(root)))
    return report


def merged_copy(model: nn.Module) -> nn.Module:
    """Return a copy of an adapted model's network with all its adapters merged; the model is unchanged.

    Raises:
        PlanError: Some adapters cannot be merged, or are off; or as for `merge`.
    """
    merged = copy.deepcopy(unwrap(model))
    report = merge(merged)
    if report.kept:
        raise PlanError(f"the adapters cannot all be merged into the network: {report}")
    return merged


def _merge(root: nn.Module, name: str | None, example: Example | None, undo: Undo) -> MergeReport:
    strengths = in_force(record_of(root).switches).values
    chosen = pieces(root, name)
    if not chosen:
        raise PlanError(f"{original_class(root).__name__} has no adapters")
    on = {p for owner, _, p in pieces(root) if not is_off(strengths.get(owner))}
    linear: set[Adapter] = {p for _, _, p in chosen if isinstance(p, WeightAdapter) and p in on}
    by_image = sorted({n for n, _, p in chosen if p in linear and isinstance(strengths[n], Tensor)})
    if by_image:
        raise PlanError(f"{', '.join(by_image)} has strengths by image here, so its change of the weights is not fixed")
    routers = sorted({p.kind for p in on if isinstance(p, RootPart) and p.routes})
    if routers:
        raise PlanError(
            f"a {routers[0]} part sets the strengths of other adapters anew for every input, so their changes of the "
            "weights are not fixed: disable or restore it first"
        )
    if not linear:
        others = sorted({p.kind for _, _, p in chosen if not isinstance(p, WeightAdapter)})
        off = sorted({n for n, _, p in chosen if isinstance(p, WeightAdapter)})
        reasons = [f"{', '.join(others)} adapters add to features"] if others else []
        reasons += [f"switched off: {', '.join(off)}"] if off else []
        raise PlanError(
            f"nothing can be merged ({' and '.join(reasons)}): only adapters of weights that are on can be merged"
        )
    shared = _shared_weights(root)
    writes: list[tuple[nn.Parameter, Tensor]] = []
    difference = 0.0
    for path, module, slot in slots(root):
        here: list[Acting[WeightAdapter]] = [a for a in acting_in(slot, WeightAdapter) if a.adapter in linear]
        for tensor in dict.fromkeys(t for a in here for t in a.adapter.attachment.tensors):
            weight = cast(nn.Parameter, module._parameters[tensor])
            adapters = [a for a in here if tensor in a.adapter.attachment.tensors]
            if weight in shared:
                raise PlanError(f"{path}.{tensor} is shared by several modules, so a change for one cannot be merged")
            with torch.no_grad():
                new = adapted_tensor(module, tensor, adapters)
                exact = adapted_tensor(module, tensor, adapters, exact=True)
            if not torch.isfinite(new).all():
                raise PlanError(f"merging into {path}.{tensor} would give NaN or infinity, so nothing was merged")
            difference = max(difference, (new.double() - exact).abs().max().item())
            writes.append((weight, new))
        _refuse_dependent(path, module, slot, linear, dict(writes))
    compare = OutputComparison(root, example)
    undo.keep(weight for weight, _ in writes)
    with torch.no_grad():
        for weight, new in writes:
            weight.copy_(new)
    drop_merged(root, linear, undo)
    attached = {p for _, _, p in pieces(root)}
    return MergeReport(
        merged=tuple(path for _, path, p in chosen if p in linear),
        kept=tuple(path for _, path, p in chosen if p in attached),
        difference=difference,
        output_difference=compare.difference(root),
    )


def _refuse_dependent(
    path: str, module: nn.Module, slot: Slot, merged: set[Adapter], new: dict[nn.Parameter, Tensor]
) -> None:
    """Raise if merging would alter the change of an adapter that stays and depends on the weight (DoRA, SSF)."""
    for other_name, other in ((n, p) for n, group in slot.named_children() for p in group.children()):
        if not isinstance(other, WeightAdapter) or other in merged:
            continue
        base = base_of(module, other)
        after = {n: new.get(cast(nn.Parameter, module._parameters[n]), t) for n, t in base.items()}
        with torch.no_grad():
            changes = other.change(base), other.change(after)
        if any(not torch.allclose(a, changes[1][n], rtol=1e-4, atol=1e-6) for n, a in changes[0].items()):
            raise PlanError(
                f"the {other.kind} adapter {other_name!r} on {path} depends on the weight into which another "
                "adapter would be merged: merge both together, or restore one first"
            )


def _shared_weights(root: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that belong to more than one module."""
    holders = Counter(p for m in root.modules() for p in m._parameters.values() if p is not None)
    return {p for p, count in holders.items() if count > 1}
