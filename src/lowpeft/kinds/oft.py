"""OFT: trained rotations of the inputs of a layer's weight, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import PlanError
from ..ports.attachment import Layer
from .base import at_least
from .matrices import MatrixAdapter, MatrixConfig


@dataclass(frozen=True, kw_only=True)
class OFTConfig(MatrixConfig):
    """Settings of orthogonal adapters on the weights of layers.

    Attributes:
        block: Most columns that are rotated together. The largest number up to it that divides the columns of a weight
            is used there. A weight for which this is 1 has nothing to rotate and raises; without a target it is left
            out.
        share: True for one rotation that all blocks of a layer share.
    """

    kind: ClassVar[str] = "oft"

    block: int = 32
    share: bool = False

    def check(self) -> None:
        """Raise if the block is below 2."""
        super().check()
        at_least(self, block=2)

    @property
    def sizes(self) -> tuple[str, Sequence[int]]:
        """The block, from 2 to 256."""
        return "block", range(2, 257)


class OFT(MatrixAdapter):
    """Adapted weight `W' = W Rᵀ` with R = (I − Q)(I + Q)⁻¹, a rotation, and Q skew (the exact Cayley form).

    W is taken as a matrix with one row per output channel. Its columns (the inputs of a group, each with its kernel)
    are cut into blocks of b columns, each with a Q of its own: `q` is (blocks, b · (b − 1) / 2), the entries above the
    diagonal of each Q, row by row, zero when new. With `share` there is one Q. The change is

        W (R − I)ᵀ        R − I = −2 Q (I + Q)⁻¹

    computed in float32 or wider; it is exactly zero when new. Lengths of the rows of W, and the angles between them, do
    not change.

    Trained parameters per layer: columns · (b − 1) / 2, or b · (b − 1) / 2 with `share`, for blocks of side b.

    Source: OFT (arXiv 2306.07280). The paper's bound on Q (COFT), and the scale and butterfly factors of BOFT (arXiv
    2311.06243) are not here.

    Raises:
        PlanError: No block of 2 or more columns, up to `block`, divides the columns of W.
    """

    kind = "oft"

    def __init__(self, layer: Layer, config: OFTConfig) -> None:
        super().__init__(layer, config)
        columns = self.layer.matrix_shape[1]
        self.block = next(b for b in range(min(config.block, columns), 0, -1) if columns % b == 0)
        if self.block == 1:
            raise PlanError(
                f"oft adapter: block {config.block} is below every divisor, from 2, of the {columns} columns of a "
                f"weight of shape {layer.shape(layer.main)}; raise it, or exclude the layer with a '!' pattern"
            )
        self.blocks = columns // self.block
        self.q = nn.Parameter(torch.zeros(1 if config.share else self.blocks, self.block * (self.block - 1) // 2))

    def turn(self) -> Tensor:
        """Return R − I of each block, (blocks, b, b), or (1, b, b) with `share`; float32 or wider."""
        q = self.q.to(torch.promote_types(self.q.dtype, torch.float32))
        row, column = torch.triu_indices(self.block, self.block, 1, device=q.device)
        upper = q.new_zeros(len(q), self.block, self.block)
        upper[:, row, column] = q
        skew = upper - upper.mT
        identity = torch.eye(self.block, dtype=q.dtype, device=q.device)
        # I + Q is invertible for every skew Q, so no check, for which the host would wait for the device, is needed.
        turn: Tensor = torch.linalg.solve_ex(identity + skew, -2 * skew, left=False).result
        return turn

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return W (R − I)ᵀ in the weight's shape."""
        name, turn = self.layer.main, self.turn()
        blocks = self.layer.rows(base[name]).to(turn.dtype).reshape(-1, self.blocks, self.block)
        change = torch.einsum("okj,kij->oki", blocks, turn.expand(self.blocks, -1, -1))
        return {name: self.layer.from_rows(change.flatten(1), name)}
