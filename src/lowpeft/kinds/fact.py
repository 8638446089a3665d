"""FacT: the changes of all layers as one tensor, in factors that all layers share and a small core for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import is_number, one_of
from ..errors import PlanError
from ..ports.attachment import Layer
from ..ports.autocast import without_autocast
from .base import RootPart, at_least
from .matrices import MatrixAdapter, MatrixConfig
from .slices import slices_of

Form = Literal["tt", "tk"]


@dataclass(frozen=True, kw_only=True)
class FacTConfig(MatrixConfig):
    """Settings of factor tuning of the weights of layers.

    Attributes:
        form: `tt` (tensor train) gives each layer matrices of its own between the shared factors. `tk` (Tucker) gives
            it numbers of its own, which mix the matrices of a core that is shared too.
        rank: Rank of the change of each square slice of a weight.
        scale: Factor of the change.
    """

    kind: ClassVar[str] = "fact"

    form: Form = "tt"
    rank: int = 8
    scale: float = 1.0

    def check(self) -> None:
        """Raise if the form is unknown, the rank below 1, or the scale not positive."""
        super().check()
        at_least(self, rank=1)
        problems = one_of("form", self.form, get_args(Form))
        if not is_number(self.scale, above=0):
            problems.append(f"scale must be a positive number, not {self.scale!r}")
        if problems:
            raise PlanError("fact adapter:", problems=problems)

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The rank, from 1."""
        return "rank", range(1, 1025)


class FacTFactors(RootPart):
    """Trained factors that all layers share: U (rank, w) and V (w, rank) for each width w, and G, the core of `tk`.

    G is (rank, rank, rank), one for each width. V starts at zero, U uniform in ±1 / √w, G Xavier-uniform.

    Trained parameters: for each width w, 2 · w · rank, and with `tk` also rank³.
    """

    kind = "fact"

    def __init__(self, shape: tuple[int, ...], config: FacTConfig) -> None:
        super().__init__()
        for width in shape:
            u = torch.empty(config.rank, width).uniform_(-(width**-0.5), width**-0.5)
            self.register_parameter(f"u_{width}", nn.Parameter(u))
            self.register_parameter(f"v_{width}", nn.Parameter(torch.zeros(width, config.rank)))
            if config.form == "tk":
                g = nn.init.xavier_uniform_(torch.empty(config.rank, config.rank, config.rank))
                self.register_parameter(f"g_{width}", nn.Parameter(g))

    @classmethod
    def shape_for(cls, config: FacTConfig, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        """Return the widths of the slices of all layers, each once, the smallest first."""
        layers = [site.select(config.rows) for site in sites if isinstance(site, Layer)]
        return tuple(sorted({slices_of(layer, cls.kind, config.rank).width for layer in layers}))

    def factor(self, name: str, width: int) -> Tensor:
        """Return the factor `u`, `v` or `g` of a width."""
        return self.get_parameter(f"{name}_{width}")


class FacT(MatrixAdapter):
    """Adapted weight `W + ΔW`, where each square slice i of ΔW is `s · V Σᵢ U`, with U and V shared by all layers.

    W is taken as a matrix of outputs and inputs, (out, in), for each position of a convolution's kernel, and cut into
    squares of width w, the smaller side: below each other if there are more outputs, else beside each other. The order
    of slices is that of rows and columns, the kernel's positions last. A layer uses the factors of its own width. With
    `tt` it has `sigma`, (slices, rank, rank), uniform in ±1 / √rank when new; with `tk` it has `p`, (slices, rank),
    Xavier-uniform, and Σᵢ is the transpose of Σₜ p[i, t] · G[:, :, t]. V is zero when new, so the first step moves V
    alone, and all other tensors from the second on.

    Trained parameters per layer: slices · rank², or slices · rank with `tk`. The shared factors of each width w add
    2 · w · rank, with `tk` also rank³.

    Source: FacT (arXiv 2212.03145), which has a plain transformer with one width, and no convolutions: kernel positions
    and factors per width are ours. Its code for `tk` mixes up the slices of the MLP's layers; this is its equation. The
    code's dropout between U and Σ is not here: a changed weight has no features of that rank.

    Raises:
        PlanError: A side of W is 1 or not a multiple of the other (a depthwise convolution), or below the rank.
    """

    kind = "fact"
    root_part_class = FacTFactors

    def __init__(self, layer: Layer, config: FacTConfig) -> None:
        super().__init__(layer, config)
        self.slices, self.scale = slices_of(self.layer, self.kind, config.rank), config.scale
        if config.form == "tt":
            bound = config.rank**-0.5
            sigma = torch.empty(self.slices.total, config.rank, config.rank).uniform_(-bound, bound)
            self.sigma = nn.Parameter(sigma)
        else:
            self.p = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.slices.total, config.rank)))

    def _factor(self, name: str) -> Tensor:
        shared: FacTFactors = self.root_part
        return shared.factor(name, self.slices.width)

    def cores(self) -> Tensor:
        """Return Σ of each slice, (slices, rank, rank)."""
        if "sigma" in self._parameters:
            return self.sigma
        g = self._factor("g")
        return (self.p @ g.permute(2, 1, 0).flatten(1)).reshape(-1, *g.shape[1:])

    def _right(self) -> Tensor:
        """Return Σ U of each row of slices, (slices below, rank, columns)."""
        product = self.cores() @ self._factor("u")
        slices = product.reshape(*self.slices[:3], *product.shape[1:])
        return slices.permute(0, 3, 1, 4, 2).flatten(2)

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return s · V Σ U in the weight's shape."""
        product = (self.scale * self._factor("v")) @ self._right()
        return {self.layer.main: self.layer.from_rows(product.flatten(0, 1), self.layer.main)}

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return Σ U and s · V, or U and s · V Σ; None for convolutions with slices below each other.

        None, too, for transposed weights and parts of rows.
        """
        below, _, positions, _ = self.slices
        if self.layer.transposed or self.layer.chosen or (below > 1 and positions > 1):
            return None
        u, v = self._factor("u"), self.scale * self._factor("v")
        with without_autocast(u.device.type):
            return (self._right()[0], v) if below == 1 else (u, (v @ self.cores()).flatten(0, 1))
