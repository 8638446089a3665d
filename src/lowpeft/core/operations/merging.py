"""Folding adapters into the weights of the base."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...errors import PlanError
from ...kinds import Adapter, RootPart, WeightAdapter
from ..attachment.adding import adapted_tensor, base_of
from ..attachment.changes import Undo, change, one_at_a_time
from ..attachment.record import attached_names, pieces, record_of, unwrap
from ..attachment.running import forget, in_force
from ..attachment.settings import is_off
from ..attachment.slots import Acting, Slot, acting_in, slots
from ..observation.examples import Example
from ..observation.merged_output import Comparison
from .injection import drop_merged


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What `merge` did.

    Attributes:
        merged: Paths of the adapters that are now part of the base's weights.
        kept: Paths of the adapters that cannot be merged, and stay attached.
        difference: Largest absolute difference between a merged weight and base + change, both in float64.
        output_difference: Largest difference that merging made to the network's output for an example, as a share of
            the output's largest value; None where the network ran on no example.
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
    """Fold the adapters that change weights (LoRA, DoRA, SSF, VeRA, full, …) into the base, with their strength here.

    They are removed; adapters that are off are left as they are. This is the one call that writes the base, between two
    forwards; after an interruption the model is as before or as after. An adapter with pieces that cannot be merged
    keeps those; one that is merged whole is gone.

    Args:
        model: An adapted model.
        name: Only this adapter.
        example: What the network is called with, where that is not one N,C,H,W tensor, in the form that `adapt` takes.
            Copies of the network are run on it, before and after; without it, on random images.

    Returns:
        What was merged, what was not, and what it made of weights and of the output.

    Raises:
        PlanError: The merged network gives another output than the adapted one (it computes such a weight anew when it
            runs, say). Or nothing can be merged, a change is not finite, another adapter depends on the weight that
            would be written, strengths are given by image, or a part sets them anew for every input. The model is
            unchanged.
    """
    root = unwrap(model)
    before, switches = attached_names(root), record_of(root).switches
    given = None if example is None else Example.of(example)
    report = change(root, lambda undo: _merge(root, name, given, undo))
    forget(switches, set(before) - set(attached_names(root)))
    return report


def _merge(root: nn.Module, name: str | None, example: Example | None, undo: Undo) -> MergeReport:
    switches = record_of(root).switches
    strengths = in_force(switches).values
    found = pieces(root, name)
    on = {p for owner, _, p in pieces(root) if not is_off(strengths.get(owner))}
    linear: set[Adapter] = {p for _, _, p in found if isinstance(p, WeightAdapter) and p in on}
    kept = tuple(path for _, path, p in found if p not in linear and not _goes_with(p, linear))
    by_image = sorted({n for n, _, p in found if p in linear and isinstance(strengths[n], Tensor)})
    if by_image:
        raise PlanError(f"{', '.join(by_image)} has strengths by image here, which are no fixed part of the weights")
    routers = sorted({p.kind for p in on if isinstance(p, RootPart) and p.routes})
    if routers:
        raise PlanError(
            f"a {routers[0]} part sets the strengths of other adapters anew for every input, so their changes are no "
            "fixed part of the weights: disable or restore it first"
        )
    if not linear:
        raise PlanError(
            f"nothing can be merged: {len(kept)} adapters do not change a weight, or are disabled ({kept[0]}, …)"
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
                raise PlanError(f"{path}.{tensor} is shared by several modules, so a change at one cannot be merged")
            with torch.no_grad():
                new = adapted_tensor(module, tensor, adapters)
                exact = adapted_tensor(module, tensor, adapters, exact=True)
            if not torch.isfinite(new).all():
                raise PlanError(f"merging into {path}.{tensor} would give NaN or infinity; nothing was merged")
            difference = max(difference, (new.double() - exact).abs().max().item())
            writes.append((weight, new))
        _refuse_dependent(path, module, slot, linear, dict(writes))
    compare = Comparison(root, example)
    undo.keep(weight for weight, _ in writes)
    with torch.no_grad():
        for weight, new in writes:
            weight.copy_(new)
    merged = tuple(path for _, path, p in found if p in linear)
    drop_merged(root, linear)
    return MergeReport(merged=merged, kept=kept, difference=difference, output_difference=compare.difference(root))


def _refuse_dependent(
    path: str, module: nn.Module, slot: Slot, merged: set[Adapter], new: dict[nn.Parameter, Tensor]
) -> None:
    """Refuse to merge under another adapter whose change depends on the weight (DoRA, SSF): it would change with it."""
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


def _goes_with(part: Adapter, merged: set[Adapter]) -> bool:
    """Whether a piece is a shared part of which every site is merged."""
    return isinstance(part, RootPart) and not part.acts and any(p.kind == part.kind for p in merged)


def _shared_weights(root: nn.Module) -> set[nn.Parameter]:
    """Parameters that more than one module holds."""
    holders = Counter(p for m in root.modules() for p in m._parameters.values() if p is not None)
    return {p for p, count in holders.items() if count > 1}
