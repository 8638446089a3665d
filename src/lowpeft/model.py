"""What one does with an adapted model: count, read and load its adapters, switch them, merge them, check them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attach import original_class
from .errors import AdapterError, PlanError, did_you_mean
from .facts import Facts
from .injection import pieces
from .record import check_name, module_of, record_of, unwrap


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
