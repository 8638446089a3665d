"""What one does with an adapted model: count, read and load its adapters, switch them, merge them, check them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attach import adapted_tensor, original_class, slots
from .errors import AdapterError, PlanError, did_you_mean
from .facts import Facts
from .families import SLOT
from .injection import drop_merged, pieces
from .kinds import Adapter, RootPart, WeightAdapter
from .probe import copy_of, first_that_works
from .record import check_name, module_of, record_of, root_of, unwrap
from .views import MultiViewModel


def adapter_parameters(model: object, *, name: str | None = None) -> Iterator[tuple[str, nn.Parameter]]:
    """The adapters' parameters as (name, Parameter), with the names that `model.named_parameters()` gives them.

    All of them require gradients, unless you have frozen some: exactly what an optimiser should get.

    Args:
        model: An adapted model.
        name: Only those of this adapter.

    Raises:
        PlanError: The model holds no adapters, or none of that name.
    """
    wanted = {id(p) for _, _, piece in pieces(unwrap(model), name) for p in piece.parameters()}
    return ((path, p) for path, p in module_of(model).named_parameters() if id(p) in wanted)


def only_name(model: object, name: str | None) -> str:
    """The adapter that is meant: `name`, or the only one attached.

    Raises:
        PlanError: There is none of that name, or there are several and none was named.
    """
    root = unwrap(model)
    known = record_of(root).plans
    if name is None and len(known) == 1:
        return next(iter(known))
    if name is None:
        raise PlanError(f"several adapters are attached ({', '.join(known)}); say which with name=")
    check_name(root, name)
    return name


def _tensors(model: object, name: str) -> dict[str, Tensor]:
    """Every tensor of one adapter, buffers included, keyed by base path + kind + the adapter's own name for it."""
    return {
        f"{path}.{key}": tensor
        for _, path, piece in pieces(unwrap(model), name)
        for key, tensor in piece.state_dict(keep_vars=True).items()
    }


def adapter_state_dict(model: object, *, name: str | None = None) -> dict[str, Tensor]:
    """The tensors of one adapter and no others, detached, not copied.

    Args:
        model: An adapted model.
        name: Of the adapter; needed where several are attached.

    Returns:
        Keys are the base module's path, the kind, and the adapter's own parameter name:
        `layers.1.conv.stereo.beta`.

    Raises:
        PlanError: The model holds no adapters, or `name` does not say which.
    """
    return {k: v.detach() for k, v in _tensors(model, only_name(model, name)).items()}


def tensor_problems(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """All that keeps `given` from being loaded into `wanted`, as lines for people."""
    problems = [f"missing: {k}" for k in wanted if k not in given]
    problems += [f"unknown: {k}{did_you_mean(k, wanted, most=1)}" for k in given if k not in wanted]
    for key, tensor in given.items():
        if key not in wanted:
            continue
        if not isinstance(tensor, Tensor):
            problems.append(f"{key} is a {type(tensor).__name__}, not a tensor")
        elif tensor.shape != wanted[key].shape:
            problems.append(f"{key} has shape {tuple(tensor.shape)}, the model needs {tuple(wanted[key].shape)}")
        elif tensor.is_floating_point() != wanted[key].is_floating_point():
            problems.append(f"{key} is {tensor.dtype}, the model needs {wanted[key].dtype}")
        elif not torch.isfinite(tensor).all():
            problems.append(f"{key} holds NaN or infinity")
    return problems


def load_adapter_state_dict(model: object, state: Mapping[str, Tensor], *, name: str | None = None) -> None:
    """Copy tensors into an attached adapter; strict both ways.

    Args:
        model: An adapted model.
        state: As `adapter_state_dict` gives it.
        name: Of the adapter; needed where several are attached.

    Raises:
        AdapterError: Missing or unknown keys, wrong shapes, NaN or infinity; all are listed and nothing is loaded.
        PlanError: The model holds no adapters, or `name` does not say which.
    """
    chosen = only_name(model, name)
    wanted = _tensors(model, chosen)
    problems = tensor_problems(wanted, state)
    if problems:
        raise AdapterError(f"these tensors do not fit the adapter {chosen!r}:", problems=problems)
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(state[key])


# --- summary ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of an adapted model; printing it gives a table per stage.

    Attributes:
        model: Class name of the network.
        total: Every parameter, adapters included.
        trainable: Those that require gradients.
        by_kind: The adapters' parameters by kind.
        adapter_bytes: Size of the adapters' tensors.
        facts: Facts of the network.
        stages: (adapter, stage or None, kind, sites, parameters) rows.
    """

    model: str
    total: int
    trainable: int
    by_kind: dict[str, int]
    adapter_bytes: int
    facts: Facts
    stages: tuple[tuple[str, int | None, str, int, int], ...]

    @property
    def frozen(self) -> int:
        """Parameters that do not require gradients."""
        return self.total - self.trainable

    def __str__(self) -> str:
        base = self.total - sum(self.by_kind.values())
        heading = (
            f"{self.model}: {self.trainable:,} trainable, {self.frozen:,} frozen "
            f"({100 * self.trainable / max(1, base):.2f} % of the base), adapters {self.adapter_bytes / 1e6:.2f} MB"
        )
        lines = [
            heading,
            str(self.facts),
            *(f"  {note}" for note in self.facts.notes),
            f"{'adapter':<12}  {'stage':>5}  {'kind':<10}  {'sites':>5}  {'parameters':>12}",
        ]
        lines += [
            f"{adapter:<12}  {'-' if stage is None else stage:>5}  {kind:<10}  {sites:>5}  {parameters:>12,}"
            for adapter, stage, kind, sites, parameters in self.stages
        ]
        return "\n".join(lines)


def summary(model: object) -> Summary:
    """Count an adapted model.

    Raises:
        PlanError: The model holds no adapters.
    """
    root = unwrap(model)
    rows: dict[tuple[str, int | None, str], list[int]] = {}
    for name, plan in record_of(root).plans.items():
        for site in plan.sites:
            row = rows.setdefault((name, site.stage, site.config.kind), [0, 0])
            row[0] += 1
            row[1] += site.parameters
    by_kind: dict[str, int] = {}
    for (_, _, kind), (_, count) in rows.items():
        by_kind[kind] = by_kind.get(kind, 0) + count
    tensors = [t for _, _, piece in pieces(root) for t in piece.state_dict().values()]
    return Summary(
        model=original_class(root).__name__,
        total=sum(p.numel() for p in root.parameters()),
        trainable=sum(p.numel() for p in root.parameters() if p.requires_grad),
        by_kind=by_kind,
        adapter_bytes=sum(t.numel() * t.element_size() for t in tensors),
        facts=record_of(root).facts,
        stages=tuple((*key, sites, count) for key, (sites, count) in rows.items()),
    )


# --- switching -------------------------------------------------------------------------------------------------------


@contextmanager
def disabled(model: object, *, name: str | None = None) -> Iterator[None]:
    """Within the block the adapters add nothing: the model is its frozen base, bit for bit.

    The switch is on the model, so it counts for every thread that uses it.

    Args:
        model: An adapted model.
        name: Switch off only this adapter.

    Raises:
        PlanError: The model holds no adapters, or none of that name.
    """
    chosen = [piece for _, _, piece in pieces(unwrap(model), name)]
    before = [piece.enabled for piece in chosen]
    try:
        for piece in chosen:
            piece.enabled = False
        yield
    finally:
        for piece, enabled in zip(chosen, before, strict=True):
            piece.enabled = enabled


def set_strength(model: object, strength: float, *, name: str | None = None) -> None:
    """Scale what the adapters add: 0 is the frozen base, 1 the adapted network.

    Several adapters on one site add up, so `set_strength(m, 0.3, name="a")` and `set_strength(m, 0.7, name="b")` give
    exactly the mixture. The strength is a switch of this model, and no part of the adapter file.

    Args:
        model: An adapted model.
        strength: 0..1.
        name: Only this adapter.

    Raises:
        PlanError: The strength is outside 0..1, or there is no such adapter.
    """
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0.0 <= strength <= 1.0:
        raise PlanError(f"strength must be a number in 0..1, not {strength!r}")
    for _, _, piece in pieces(unwrap(model), name):
        piece.strength = float(strength)


# --- merging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What `merge` did.

    Attributes:
        merged: Paths of the adapters that are now part of the base's weights.
        kept: Paths of the adapters that cannot be merged, and stay attached.
        difference: Largest absolute difference between a merged weight and base + change, both in float64.
    """

    merged: tuple[str, ...]
    kept: tuple[str, ...]
    difference: float

    def __str__(self) -> str:
        text = f"{len(self.merged)} adapters merged, largest rounding difference of a weight {self.difference:.3g}"
        if self.kept:
            text += f"; {len(self.kept)} are not linear in a weight and stay attached: {', '.join(self.kept[:3])}"
            text += ", …" if len(self.kept) > 3 else ""
        return text


def merge(model: object, *, name: str | None = None) -> MergeReport:
    """Fold the adapters that are linear in a weight (LoRA, full) into the base, with their strength, and remove them.

    This is the one call that writes the base. An adapter with pieces that cannot be merged keeps those; one that is
    merged whole is gone.

    Args:
        model: An adapted model.
        name: Only this adapter.

    Returns:
        What was merged, what was not, and the rounding difference.

    Raises:
        PlanError: Nothing can be merged, or a change is not finite; the model is as it was.
    """
    root = unwrap(model)
    found = pieces(root, name)
    linear: set[Adapter] = {p for _, _, p in found if isinstance(p, WeightAdapter) and p.active}
    kept = tuple(path for _, path, p in found if p not in linear and not _goes_with(p, linear))
    if not linear:
        raise PlanError(
            f"nothing can be merged: {len(kept)} adapters do not change a weight, or are disabled ({kept[0]}, …)"
        )
    shared = _shared_weights(root)
    writes: list[tuple[nn.Parameter, Tensor]] = []
    difference = 0.0
    for path, module, slot in slots(root):
        here = [p for p in slot.pieces() if isinstance(p, WeightAdapter) and p in linear]
        for tensor in dict.fromkeys(t for p in here for t in p.attachment.tensors):
            weight = cast(nn.Parameter, module._parameters[tensor])
            adapters = [p for p in here if tensor in p.attachment.tensors]
            if weight in shared:
                raise PlanError(f"{path}.{tensor} is shared by several modules, so a change at one cannot be merged")
            with torch.no_grad():
                new = adapted_tensor(module, tensor, adapters)
                exact = adapted_tensor(module, tensor, adapters, exact=True)
            if not torch.isfinite(new).all():
                raise PlanError(f"merging into {path}.{tensor} would give NaN or infinity; nothing was merged")
            difference = max(difference, (new.double() - exact).abs().max().item())
            writes.append((weight, new))
    with torch.no_grad():
        for weight, new in writes:
            weight.copy_(new)
    drop_merged(root, linear)
    return MergeReport(merged=tuple(path for _, path, p in found if p in linear), kept=kept, difference=difference)


def _goes_with(part: Adapter, merged: set[Adapter]) -> bool:
    """Whether a piece is a shared part of which every site is merged."""
    return isinstance(part, RootPart) and not part.acts and any(p.kind == part.kind for p in merged)


def _shared_weights(root: nn.Module) -> set[nn.Parameter]:
    """Parameters that more than one module holds."""
    holders = Counter(p for m in root.modules() for p in m._parameters.values() if p is not None)
    return {p for p, count in holders.items() if count > 1}


def check_trainable(model: object, *example: Tensor) -> None:
    """Run one step's forward and backward in training mode and refuse trainable tensors that get no gradient.

    That happens on a copy, as in training, checkpointing included. The adapters' values are random there, because a new
    adapter's zeros stop the gradient of the layers before them.

    Args:
        model: An adapted model, or any module with trainable parameters.
        example: Inputs for one call. Without any, random images of a size that the network takes.

    Raises:
        PlanError: Naming every trainable tensor whose gradient is missing or not finite, and those whose gradient is
            zero everywhere, unless their kind says that it must be.
    """
    module = module_of(model)
    if not any(p.requires_grad for p in module.parameters()):
        raise PlanError("no parameter of the model requires a gradient")
    inputs = tuple(x.clone() for x in example) or _inputs_for(module)
    copy = copy_of(module).train()
    generator = torch.Generator().manual_seed(0)
    trainable = {n: p for n, p in copy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.grad = None
            if SLOT in name.split("."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        loss = sum((_weighted(t, generator) for t in _float_tensors(copy(*inputs))), start=torch.zeros(()))
        if isinstance(loss, Tensor) and loss.requires_grad:
            torch.autograd.backward(loss)
    expected = {
        id(getattr(piece.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]))
        for piece in copy.modules()
        if isinstance(piece, Adapter)
        for n in piece.zero_gradients
    }
    missing = [problem for n, p in trainable.items() if (problem := _gradient_problem(n, p, id(p) in expected))]
    if missing:
        raise PlanError(f"{len(missing)} of {len(trainable)} trainable tensors cannot be trained:", problems=missing)


def _inputs_for(module: nn.Module) -> tuple[Tensor, ...]:
    batch = first_that_works(root_of(module), lambda twin, x: (x, twin(x))[0])
    if isinstance(module, MultiViewModel):
        return tuple(batch[i % len(batch)][None] for i in range(module.views))
    return (batch,)


def _gradient_problem(name: str, parameter: nn.Parameter, may_be_zero: bool) -> str | None:
    if parameter.grad is None:
        return f"{name}: the output does not depend on it"
    if not torch.isfinite(parameter.grad).all():
        return f"{name}: its gradient is not finite"
    if not parameter.grad.any() and not may_be_zero:
        return f"{name}: its gradient is zero everywhere"
    return None


def _float_tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [t for v in values for t in _float_tensors(v)]


def _weighted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A random projection, so that no gradient cancels by symmetry."""
    return (tensor.float() * torch.randn(tensor.shape, generator=generator).to(tensor.device)).sum()
