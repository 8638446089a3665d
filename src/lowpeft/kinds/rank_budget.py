"""Training of AdaLoRA: importance of every rank, a shrinking budget that all layers share, and the regulariser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import PlanError
from .learning import TrainingPart


class RankBudget(TrainingPart):
    """Moves ranks between the layers after every optimiser step t of T, in the published order.

    Importance of every number p of A, E and B, for t < T − t_f, with its new value and the gradient of this step as the
    optimiser used it, so after clipping (a clipped step counts less); a number without gradient has I = 0:

        I = |p · ∂L/∂p|     Ī ← β1 Ī + (1 − β1) I     U ← β2 U + (1 − β2) |I − Ī|     e = Ī · U
        score of rank i = e(E_i) + mean over j of e(A_ij) + mean over j of e(B_ji)

    L includes the regulariser: `orthogonal` times the mean over all A and B of ‖A Aᵀ − 1‖ and ‖Bᵀ B − 1‖ (Frobenius
    norms, not squared). Budget, with b_0 the sum of the initial ranks of all layers and b_T the sum of `rank`:

        b(t) = b_0 for t ≤ t_i, else int(b_T + (b_0 − b_T) (1 − (t − t_i) / (T − t_f − t_i))³), at last b_T

    t_i and t_f are `warmup` and `final` in steps; shares of T are rounded down. For t_i < t ≤ T − t_f, each time
    `interval` divides t, and at t = T − t_f, E becomes zero in all ranks but the b(t) with the largest scores; of equal
    scores, those of the earlier layers stay, so exactly b(t) do. E gets gradients before that, so a rank can return.
    The ranks that the last mask drops are zero from then on, also in a later training. Layers whose E is frozen are
    left alone.
    """

    adapters: Mapping[str, Any]

    def __init__(self, adapters: Mapping[str, Any], steps: int) -> None:
        super().__init__(adapters, steps)
        self.moving = {site: a for site, a in adapters.items() if a.e.requires_grad}
        config = next(iter(adapters.values())).config
        self.config = config
        for name in ("warmup", "final", "interval", "betas", "orthogonal"):
            if len({getattr(a.config, name) for a in adapters.values()}) > 1:
                raise PlanError(f"adalora adapters that are trained together need the same {name}")
        first, final = (int(n * steps) if n < 1 else int(n) for n in (config.warmup, config.final))
        if first + final >= steps:
            raise PlanError(f"adalora adapter: warmup={first} and final={final} steps leave none of {steps} between")
        self.first, self.last = first, steps - final
        self.whole = sum(int(a.kept.sum()) for a in self.moving.values())
        self.moments = {
            f"{site}.{name}": (torch.zeros_like(p), torch.zeros_like(p))
            for site, adapter in self.moving.items()
            for name, p in adapter.named_parameters()
        }

    def penalty(self) -> Tensor | None:
        """Return the regulariser."""
        if not self.config.orthogonal:
            return None
        matrices = [m for a in self.adapters.values() for m in (a.a, a.b.T)]
        distances = [(m @ m.T - torch.eye(len(m), dtype=m.dtype, device=m.device)).norm() for m in matrices]
        penalty: Tensor = self.config.orthogonal * torch.stack(distances).mean()
        return penalty

    def budget(self, step: int) -> int:
        """Return the number of ranks that all layers together keep after this step."""
        target = min(self.whole, sum(a.config.rank for a in self.moving.values()))
        if step <= self.first:
            return self.whole
        left = 1 - min(1.0, (step - self.first) / (self.last - self.first))
        return int(target + (self.whole - target) * left**3)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Update the scores and drop the ranks beyond the budget; after the last mask, those dropped stay zero."""
        if not self.moving:
            return
        if step < self.last:
            self._observe()
        if step == self.last:
            for adapter, kept in self._best(self.budget(step)):
                adapter.kept.copy_(kept)
        if step >= self.last:
            for adapter in self.moving.values():
                adapter.e.mul_(adapter.kept)
        elif step > self.first and step % self.config.interval == 0:
            for adapter, kept in self._best(self.budget(step)):
                adapter.e.mul_(kept)

    def _observe(self) -> None:
        beta1, beta2 = self.config.betas
        for site, adapter in self.moving.items():
            for name, p in adapter.named_parameters():
                mean, spread = self.moments[f"{site}.{name}"]
                seen = torch.zeros_like(p) if p.grad is None else (p * p.grad).abs()
                mean.mul_(beta1).add_(seen, alpha=1 - beta1)
                spread.mul_(beta2).add_((seen - mean).abs(), alpha=1 - beta2)

    def _best(self, budget: int) -> list[tuple[Any, Tensor]]:
        """Return every adapter with a mask of its ranks that are among the best of all layers."""
        scores = torch.cat([self._scores(site) for site in self.moving])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True, stable=True)[:budget]] = True
        kept &= scores > -torch.inf  # those that an earlier training dropped stay so
        masks = torch.split(kept, [len(a.e) for a in self.moving.values()])
        return list(zip(self.moving.values(), masks, strict=True))

    def _scores(self, site: str) -> Tensor:
        a, e, b = (mean * spread for mean, spread in (self.moments[f"{site}.{name}"] for name in ("a", "e", "b")))
        return (e + a.mean(1) + b.mean(0)).masked_fill(~self.moving[site].kept, -torch.inf)

    def state(self) -> dict[str, Tensor]:
        """Return Ī and U of every number; the last mask is a buffer of the adapters."""
        return {
            f"{name}.{what}": tensor
            for name, both in self.moments.items()
            for what, tensor in zip(("importance", "uncertainty"), both, strict=True)
        }
