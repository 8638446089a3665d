"""AdaptIR: local, frequency and channel branches in parallel with the MLP of every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from ..errors import PlanError
from ..ports.capture import captured
from ..ports.layouts import Features
from .amplitude_phase import AmplitudePhase
from .base import FeatureAdapter, FeatureConfig, at_least

AmplitudeBias = Literal["smooth", "paper"]

KERNEL = 3
LEAST_HIDDEN = 8


@dataclass(frozen=True, kw_only=True)
class AdaptIRConfig(FeatureConfig):
    """Settings of AdaptIR modules in every block. The authors' IPT has the defaults.

    Attributes:
        reduction: Divisor of the channels: C // reduction hidden channels, at least 8 (the authors: 24 for IPT, 14 for
            EDT).
        hidden: Number of hidden channels, in place of the reduction's.
        gate_reduction: Divisor of the hidden channels in the gate of the local branch (the authors: 8 for IPT, 4 for
            EDT).
        amplitude_bias: How a bias is added to the amplitude |F| of a frequency. `paper`: b·F/|F|, whose gradient is of
            the size of b/|F|, without a limit. `smooth`: b·F/√(|F|² + 1e-6), with the limit 1000·b and equal for larger
            amplitudes. Both are equal, and zero, in a new adapter.
        phase_scale: True to train a factor of the phase (the paper). Any factor but 1 depends on where the image
            begins, and jumps at a phase of π. False leaves it out.
    """

    kind: ClassVar[str] = "adaptir"

    reduction: int = 24
    hidden: int | None = None
    gate_reduction: int = 8
    amplitude_bias: AmplitudeBias = "smooth"
    phase_scale: bool = True

    def check(self) -> None:
        """Raise if a number is below 1 or the sort of amplitude bias is unknown."""
        at_least(self, reduction=1, gate_reduction=1, **({} if self.hidden is None else {"hidden": 1}))
        if problems := checks.one_of("amplitude_bias", self.amplitude_bias, get_args(AmplitudeBias)):
            raise PlanError(f"adaptir adapter: {problems[0]}")

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The hidden channels, from 1."""
        return "hidden", range(1, 1025)

    @property
    def places(self) -> tuple[str, ...]:
        """Place in parallel with the MLP."""
        return ("parallel",)


class AdaptIR(FeatureAdapter):
    """`up(c · (α·l + β·g))` with a local branch l, a global one g and a channel branch c of `z = norm(down x)`.

    `down` maps C -> h. `norm` is a BatchNorm. l is a depthwise 3x3 convolution whose kernels are a product of two
    matrices of rank r = h // 2. g is that of `AmplitudePhase`. c is an MLP (h -> h // 2 -> h) of an average of z, with
    weights from a softmax over all positions. The gates α = σ(MLP(mean of g)), for each channel, through
    m = h // gate_reduction channels, and β = σ(linear(l)), for each position, come from the other branch; both are 1/2
    when new. `up` maps back to C, without a bias, and starts at zero, so that a new adapter adds nothing.

    Trained parameters per site: 2·C·h + 12·h + 3·h·r + 10·r + 2·h·m + m + 2, with h = `hidden`, r = max(1, h // 2) and
    m = max(1, h // `gate_reduction`).

    That is 29,069 at C = 576 with the defaults (IPT), and 4,817 at C = 180 with reduction = 14 and gate_reduction = 4
    (EDT). Without the phase's factor it is h fewer. The saved file also has the BatchNorm's statistics.

    The norm cancels the bias of `down` in training, the softmax that of `attend`. Every part but l sees the whole map,
    so images cannot be cut into strips.

    Source: AdaptIR (arXiv 2312.08881), read as the authors' code. There all modules of a network start as copies of
    one; here each has its own random start. The authors' amplitude bias is `amplitude_bias = "paper"`.

    Raises:
        PlanError: In training, there is one position in all, which has no statistics.
    """

    kind = "adaptir"
    needs_rows = True
    row_local = False
    whole_image = True
    zero_gradients = frozenset({"down.bias", "attend.bias"})

    def __init__(self, channels: int, config: AdaptIRConfig) -> None:
        super().__init__()
        hidden = config.hidden or max(LEAST_HIDDEN, channels // config.reduction)
        half, gate = max(1, hidden // 2), max(1, hidden // config.gate_reduction)
        self.down = nn.Linear(channels, hidden)
        self.norm = nn.BatchNorm2d(hidden)
        self.kernel_a = nn.Parameter(torch.empty(hidden, half))
        self.kernel_b = nn.Parameter(torch.empty(half, KERNEL**2))
        self.kernel_bias = nn.Parameter(torch.zeros(hidden))
        self.frequencies = AmplitudePhase(
            hidden, smooth=config.amplitude_bias == "smooth", phase_scale=config.phase_scale
        )
        self.attend = nn.Linear(hidden, 1)
        self.channel = nn.Sequential(nn.Linear(hidden, half), nn.GELU(), nn.Linear(half, hidden))
        self.local_gate = nn.Sequential(nn.Linear(hidden, gate), nn.GELU(), nn.Linear(gate, hidden))
        self.global_gate = nn.Linear(hidden, 1)
        self.up = nn.Linear(hidden, channels, bias=False)
        for factor in (self.kernel_a, self.kernel_b):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        with torch.no_grad():
            for layer in (self.local_gate[2], self.global_gate, self.up):
                for parameter in layer.parameters():
                    parameter.zero_()

    def delta(self, features: Features) -> Tensor:
        """Return the mix of the three branches."""
        x = features.rows
        if self._learns_statistics and x.shape[:3].numel() == 1:
            raise PlanError(
                "an adaptir adapter norms its features over the batch, and one map of 1x1 positions has no spread: "
                "train with a larger batch or larger images"
            )
        z = self._normed(self.down(x).movedim(3, 1))
        kernel = (self.kernel_a @ self.kernel_b).view(-1, 1, KERNEL, KERNEL)
        near = F.conv2d(z, kernel, self.kernel_bias, padding=KERNEL // 2, groups=z.shape[1]).movedim(1, -1)
        far = self.frequencies(z).movedim(1, -1)
        positions = z.movedim(1, -1).flatten(1, 2)
        attention = self.attend(positions).softmax(1)
        channel = self.channel((attention * positions).sum(1))[:, None, None]
        alpha = self.local_gate(far.mean((1, 2))).sigmoid()[:, None, None]
        beta = self.global_gate(near).sigmoid()
        return features.from_rows(self.up(channel * (alpha * near + beta * far)))

    @property
    def _learns_statistics(self) -> bool:
        return self.training and self.norm.weight.requires_grad

    def _normed(self, x: Tensor) -> Tensor:
        """Return the BatchNorm of maps (N,h,H,W); its statistics change only while its own parameters are trained."""
        norm = self.norm
        if not self._learns_statistics:
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        if captured() or torch._C._current_autograd_node() is None:  # else checkpointing repeats a forward
            self._count(x.detach().to(norm.weight.dtype))
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    @torch.no_grad()
    def _count(self, x: Tensor) -> None:
        """Move the statistics towards those of a batch, but to no value that is not finite (e.g. of an overflow)."""
        norm: Any = self.norm
        for running, new in ((norm.running_mean, x.mean((0, 2, 3))), (norm.running_var, x.var((0, 2, 3)))):
            moved = running.lerp(new, norm.momentum)
            running.copy_(torch.where(moved.isfinite(), moved, running))
        norm.num_batches_tracked += 1
