"""IPT: a plain transformer on the 16x16 grid of 3x3-pixel tokens of a 48x48 crop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ports.layouts import Layout, square_size
from .base import TOKENS, BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, mlp_added, noise
from .tokens import multihead_change

ENCODER, DECODER = "body.encoder.layers.{stage}", "body.decoder.layers.{stage}"


def _self_attention(block: Any, ports: Ports, x: Tensor, position: Tensor | None) -> Tensor:
    """Run the first part of both layers: x + attention(norm1 x)."""
    normed, size = block.norm1(x), square_size(x.shape[0])
    query = key = block.with_pos_embed(normed, position)
    attended = block.self_attn(query, key, normed)[0]
    if ports.wants(TOKENS):
        extras = ports.tokens(TOKENS, normed, Layout.LNC, size)
        attended = attended + multihead_change(block.self_attn, block.norm1, query, key, normed, extras)
    return attention_added(x, block.dropout1(attended), normed, ports, Layout.LNC, size)


def _mlp(block: Any, x: Tensor) -> Tensor:
    out: Tensor = block.linear2(block.dropout(block.activation(block.linear1(x))))
    return out


def encoder_forward(block: nn.Module, ports: Ports, src: Tensor, pos: Tensor | None = None) -> Tensor:
    """Run a layer of IPT's encoder: x + attention(norm1 x), then x + MLP(norm2 x).

    Args:
        block: TransformerEncoderLayer.
        ports: Adapters of the block.
        src: Tokens (L, N, C); taken as a square grid if L is a square number.
        pos: Position embedding that is added to queries and keys.

    Source: IPT (arXiv 2012.00364).
    """
    b: Any = block
    x = _self_attention(b, ports, src, pos)
    normed = b.norm2(x)
    return mlp_added(x, b.dropout2(_mlp(b, normed)), normed, ports, Layout.LNC, square_size(x.shape[0]))


def decoder_forward(
    block: nn.Module,
    ports: Ports,
    tgt: Tensor,
    memory: Tensor,
    pos: Tensor | None = None,
    query_pos: Tensor | None = None,
) -> Tensor:
    """Run a layer of IPT's decoder: self-attention as in the encoder, attention to the encoder's output, MLP.

    The ports of attention are those of self-attention; attention to the encoder's output has no ports.

    Args:
        block: TransformerDecoderLayer.
        ports: Adapters of the block.
        tgt: Tokens (L, N, C); taken as a square grid if L is a square number.
        memory: Output of the encoder, (L, N, C).
        pos: Position embedding that is added to the keys of the encoder's output.
        query_pos: Position embedding that is added to queries, and to the keys of self-attention.

    Source: IPT (arXiv 2012.00364).
    """
    b: Any = block
    x = _self_attention(b, ports, tgt, query_pos)
    query, key = b.with_pos_embed(b.norm2(x), query_pos), b.with_pos_embed(memory, pos)
    x = x + b.dropout2(b.multihead_attn(query=query, key=key, value=memory)[0])
    normed = b.norm3(x)
    return mlp_added(x, b.dropout3(_mlp(b, normed)), normed, ports, Layout.LNC, square_size(x.shape[0]))


def encoder_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of a 4x4 grid, and a position embedding."""
    weight: Any = block.get_parameter("linear2.weight")
    tokens, position = noise(weight, 2, 16, 2, weight.shape[0])
    return tokens, position


def decoder_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens of a 4x4 grid, a random encoder output, and the position embeddings of both."""
    weight: Any = block.get_parameter("linear2.weight")
    return tuple(noise(weight, 4, 16, 2, weight.shape[0]))


ENCODER_LAYER = BlockForward(
    name="ipt.encoder_layer", forward=encoder_forward, ports=BLOCK_PORTS | {TOKENS}, example=encoder_example
)
DECODER_LAYER = BlockForward(
    name="ipt.decoder_layer", forward=decoder_forward, ports=BLOCK_PORTS | {TOKENS}, example=decoder_example
)

IPT = register_family(
    Family(
        name="ipt",
        title="IPT",
        signature=(
            ("body.linear_encoding", "body.encoder.layers.*.self_attn", "body.decoder.layers.*.multihead_attn"),
        ),
        places=(
            *block_places(ENCODER, "linear2.weight", ENCODER_LAYER),
            *block_places(DECODER, "linear2.weight", DECODER_LAYER),
            Place(name="stage", path=ENCODER, channels="linear2.weight", layout=Layout.LNC, square=True),
        ),
        blocks=(ENCODER_LAYER, DECODER_LAYER),
        facts=lambda network: {
            "scale": network.scale[network.scale_idx],
            "value_range": (0.0, float(network.rgb_range)),
            "channels": 3,
            "fixed_px": network.patch_size,
        },
        source="arXiv 2012.00364",
    )
)
