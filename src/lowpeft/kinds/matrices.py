"""What kinds that change weights as matrices have in common: where they go, their ranks, and parts of fused weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..checks import is_number
from ..errors import PlanError
from ..ports.attachment import Layer
from .base import LayersConfig, WeightAdapter, at_least

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class MatrixConfig(LayersConfig):
    """Base class of the configs of kinds that change the weights of layers as matrices.

    Attributes:
        rows: Parts of projections to change, e.g. "q,v"; all else stays frozen. A layer named `qkv`, `to_kv`, `q_proj`
            and the like has the parts of its name, in that order and of equal size, and nn.MultiheadAttention has q, k,
            v. Without a target, layers that have none of the parts are left out. None means all rows.
    """

    rows: str | None = None

    def check(self) -> None:
        """Raise if `rows` is not a list of q, k and v."""
        if self.rows is not None and not re.fullmatch(r"\s*[qkv]\s*(,\s*[qkv]\s*)*", str(self.rows)):
            raise PlanError(
                f'{self.kind} adapter: rows must be parts of a fused projection like "q,v", not {self.rows!r}'
            )


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(MatrixConfig):
    """Base class of the configs of low-rank kinds.

    Attributes:
        rank: Rank of the change. A rank larger than a target weight allows raises; it is never reduced silently.
            Without a target, smaller weights are left out.
        alpha: Scale of the low-rank product, which is multiplied by alpha / rank. None means factor 1.
    """

    MOST: ClassVar[int] = 4096

    rank: int = 4
    alpha: float | None = None

    def check(self) -> None:
        """Raise if the rank is below 1 or alpha is not positive."""
        super().check()
        at_least(self, rank=1)
        if self.alpha is not None and not is_number(self.alpha, above=0):
            raise PlanError(f"{self.kind} adapter: alpha must be a positive number, not {self.alpha!r}")

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The rank, from 1."""
        return "rank", range(1, self.MOST + 1)

    @property
    def scale(self) -> float:
        """Factor of the low-rank product."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def settings(self) -> str:
        """Settings as text, with the scale that alpha gives."""
        return super().settings + (f" (scale {self.scale:.3g})" if self.alpha is not None else "")

    def resized(self, value: float) -> Self:
        """Return the config at another rank, with alpha changed so that the scale stays."""
        return self.at_scale_of(super().resized(value))

    def at_scale_of(self, other: Self) -> Self:
        """Return another config with alpha changed so that it has this one's scale."""
        if self.alpha is None:
            return other
        unscaled = replace(other, alpha=self.alpha)
        return replace(unscaled, alpha=self.alpha * self.scale / unscaled.scale)


class MatrixAdapter(WeightAdapter):
    """Base class of adapters that change a weight as a matrix; built as `cls(layer, config)`.

    Attributes:
        layer: The layer, limited to the rows that the config chooses: use its `matrix_shape`, `rows` and `from_rows`.
        tables: True if the kind also fits tables that a pattern names: the weight of an Embedding, or a bare parameter
            such as `relative_position_bias_table`.
    """

    tables: ClassVar[bool] = False

    def __init__(self, layer: Layer, config: MatrixConfig) -> None:
        super().__init__()
        self.layer = layer.select(config.rows)

    @classmethod
    def groups(cls, module: nn.Module) -> Groups:
        """Return the weight of a Linear or convolution, or the input projections of nn.MultiheadAttention."""
        return matrix_groups(module)

    @classmethod
    def named_groups(cls, module: nn.Module) -> Groups:
        """Return the tables of a module, for kinds that fit them."""
        return table_groups(module) if cls.tables else ()

    def sides(self, rank: int) -> tuple[int, int]:
        """Return the rows and columns of the weight, for a change of this rank.

        Raises:
            PlanError: The rank is larger than the weight allows; the message gives the largest possible one.
        """
        sides = self.layer.matrix_shape
        if rank > min(sides):
            raise PlanError(
                f"{self.kind} adapter: rank {rank} is above {min(sides)}, the largest for a weight of shape "
                f"{self.layer.shape(self.layer.main)}; lower the rank or exclude the layer with a '!' pattern"
            )
        return sides


def matrix_groups(module: nn.Module) -> Groups:
    """Return the weights that are matrices: of a Linear, a convolution or an nn.MultiheadAttention."""
    if isinstance(module, (nn.Linear, _ConvNd)):
        return (("weight",),)
    if isinstance(module, nn.MultiheadAttention):
        # One fused projection, or three if keys or values have a different width.
        fused = module.in_proj_weight is not None
        return (("in_proj_weight",),) if fused else (("q_proj_weight",), ("k_proj_weight",), ("v_proj_weight",))
    return ()


def table_groups(module: nn.Module) -> Groups:
    """Return the tables of a module: the weight of an nn.Embedding, other parameters of two or more dimensions."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return (("weight",),)
    known = {name for group in matrix_groups(module) for name in group}
    tables = (n for n, p in module.named_parameters(recurse=False) if p.dim() > 1 and p.is_floating_point())
    return tuple((name,) for name in tables if name not in known)


# --- rows of outputs -------------------------------------------------------------------------------------------------


def output_groups(module: nn.Module) -> Groups:
    """Return the matrices of a layer together with its bias, as one group: what makes its outputs."""
    names = tuple(name for group in matrix_groups(module) for name in group)
    bias = "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias"
    if not names:
        return ()
    return ((*names, bias),) if module._parameters.get(bias) is not None else (names,)


def weights_of(layer: Layer) -> tuple[str, ...]:
    """Return the names of the parameters of a layer without the bias; nn.MultiheadAttention may have three."""
    return tuple(name for name in layer.names if not name.endswith("bias"))


def outputs_of(layer: Layer) -> list[int]:
    """Return the number of outputs of each weight; those of chosen parts only, if a layer is limited to parts."""
    return [layer.matrix_shape[0], *(layer.shape(name)[0] for name in weights_of(layer)[1:])]


def scaled_rows(
    layer: Layer, base: Mapping[str, Tensor], scale: Tensor, shift: Tensor | None = None
) -> dict[str, Tensor]:
    """Return scale · row for each output's row of the weights, and scale · b + shift for the bias.

    Args:
        layer: Layer whose outputs are, one after the other, those of its weights.
        base: Weights and bias.
        scale: One number per output.
        shift: One number per output; None for zero.
    """
    parts = zip(weights_of(layer), torch.split(scale, outputs_of(layer)), strict=True)
    changes = {name: layer.from_rows(part[:, None] * layer.rows(base[name]), name) for name, part in parts}
    for name in layer.names[len(changes) :]:
        change = scale[:, None] * layer.rows(base[name])
        changes[name] = layer.from_rows(change if shift is None else change + shift[:, None], name)
    return changes
