"""EDT (lowpeft's own code, with the authors' names)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ports.layouts import Layout
from .base import BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, mlp_added, noise

GROUP = "body.layers.{stage}.residual_group"
BLOCK = GROUP + ".blocks.{block}"


def block_forward(
    block: nn.Module,
    ports: Ports,
    x: Tensor,
    x_size: tuple[int, int],
    masks: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Run EDT's block: x + attention(norm1 x), then x + MLP(norm2 x). Its adapters get (N,H,W,C).

    Args:
        block: Block of `lowpeft.backbones.networks.EDT`.
        ports: Adapters of the block.
        x: Tokens (N,L,C) with L = H·W.
        x_size: Height and width (H, W), multiples of the windows' sides.
        masks: Masks of the shifted wide and tall windows; None to use the block's own, for its own size.

    Source: EDT (arXiv 2112.10175).
    """
    b: Any = block
    x = x.view(x.shape[0], *x_size, -1)  # `len(x)` would fix the batch size of an exported network
    normed = b.norm1(x)
    x = attention_added(x, b.attend(normed, masks), normed, ports, Layout.NHWC, x_size)
    normed = b.norm2(x)
    return mlp_added(x, b.mlp(normed), normed, ports, Layout.NHWC, x_size).flatten(1, 2)


def example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of side x 2·side for the window's longer side, their size, and random masks."""
    b: Any = block
    weight, side = b.norm1.weight, max(b.windows[0])
    size, length = (side, 2 * side), b.windows[0][0] * b.windows[0][1]
    count = size[0] * size[1] // length
    tokens = noise(weight, 1, size[0] * size[1], weight.shape[0])
    return tokens, size, (noise(weight, count, length, length), noise(weight, count, length, length))


BLOCK_FORWARD = BlockForward(name="edt.block", forward=block_forward, ports=BLOCK_PORTS, example=example)

EDT = register_family(
    Family(
        name="edt",
        title="EDT",
        signature=(
            ("body.layers.*.residual_group.blocks.*.attns.*.lepe", "body.layers.*.residual_group.blocks.*.proj"),
        ),
        places=(
            *block_places(BLOCK, "norm1.weight", BLOCK_FORWARD),
            # EDT's groups have no convolution: the shortcut is added to residual_group's tokens.
            Place(name="stage", path=GROUP, channels="blocks.0.norm1.weight", layout=Layout.NLC),
        ),
        blocks=(BLOCK_FORWARD,),
        facts=lambda network: {
            "scale": max(map(network.scale, network.config.tasks)),
            "channels": 3,
            "size_multiple": network.size_multiple,
            "tasks": network.config.tasks if len(network.config.tasks) > 1 else (),
        },
        source="arXiv 2112.10175",
    )
)
