"""timm's Swin Transformer v1 and v2, which return features, not images."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ports.layouts import Layout
from .base import BlockForward, Family, Place, Ports, block_places, register_family
from .swin import BLOCK_PORTS, attention_added, mlp_added, noise

STAGES = ("layers.{stage}", "layers_{stage}")
"""Paths of the stages; the second with `features_only=True`, where the network returns a list of stage features."""


def v1_forward(block: nn.Module, ports: Ports, x: Tensor) -> Tensor:
    """Run timm's Swin block: x + attention(norm1 x), then x + MLP(norm2 x), on (N,H,W,C).

    Args:
        block: SwinTransformerBlock.
        ports: Adapters of the block. Those of the MLP get (N,L,C) with L = H·W.
        x: Features (N,H,W,C).

    Source: Swin Transformer (arXiv 2103.14030).
    """
    b: Any = block
    size, normed = (x.shape[1], x.shape[2]), b.norm1(x)
    out = attention_added(x, b.drop_path1(b._attn(normed)), normed, ports, Layout.NHWC, size)
    tokens = out.reshape(x.shape[0], -1, x.shape[3])
    normed = b.norm2(tokens)
    out = mlp_added(tokens, b.drop_path2(b.mlp(normed)), normed, ports, Layout.NLC, size)
    return out.reshape(x.shape)


def v2_forward(block: nn.Module, ports: Ports, x: Tensor) -> Tensor:
    """Run timm's Swin v2 block: x + norm1(attention x), then x + norm2(MLP x), on (N,H,W,C).

    The branches' outputs are those of the norms. Attention and MLP read the residual stream without a norm, so the
    ports `parallel` and `parallel_raw` are the same, and so are `parallel_attention` and `parallel_attention_raw`.

    Args:
        block: SwinTransformerV2Block.
        ports: Adapters of the block. Those of the MLP get (N,L,C) with L = H·W.
        x: Features (N,H,W,C).

    Source: Swin Transformer v2 (arXiv 2111.09883).
    """
    b: Any = block
    size = (x.shape[1], x.shape[2])
    out = attention_added(x, b.drop_path1(b.norm1(b._attn(x))), x, ports, Layout.NHWC, size)
    tokens = out.reshape(x.shape[0], -1, x.shape[3])
    out = mlp_added(tokens, b.drop_path2(b.norm2(b.mlp(tokens))), tokens, ports, Layout.NLC, size)
    return out.reshape(x.shape)


def example(block: nn.Module) -> tuple[Tensor]:
    """Return random features of 2x2 windows, or of the one size for which a block stores its mask."""
    b: Any = block
    height, width = (2 * side for side in b.window_size) if b.attn_mask is None else b.input_resolution
    return (noise(b.norm1.weight, 1, height, width, b.norm1.weight.shape[0]),)


def _places(block: BlockForward) -> tuple[Place, ...]:
    """Return places for the blocks' ports and the stages' outputs; the shortcuts are inside the blocks."""
    blocks = [p for stage in STAGES for p in block_places(f"{stage}.blocks.{{block}}", "norm1.weight", block)]
    stages = [Place(name="stage", path=p, channels="blocks.0.norm1.weight", layout=Layout.NHWC) for p in STAGES]
    return (*blocks, *stages)


def _signature(part: str) -> tuple[tuple[str, ...], ...]:
    """Return signatures of networks whose attention has a part, without and with `features_only=True`."""
    return tuple(
        (f"{stages}.blocks.*.attn.{part}", f"{stages}.downsample", "patch_embed.proj")
        for stages in ("layers.*", "layers_*")
    )


V1_BLOCK = BlockForward(name="timm_swin.block", forward=v1_forward, ports=BLOCK_PORTS, example=example)
V2_BLOCK = BlockForward(name="timm_swin_v2.block", forward=v2_forward, ports=BLOCK_PORTS, example=example)


def _feature_facts(network: Any) -> dict[str, Any]:
    embed = network.patch_embed
    size = embed.img_size if getattr(embed, "strict_img_size", False) else None
    fixed = {"fixed_px": size[0]} if size is not None and size[0] == size[1] else {}
    return fixed | {
        "scale": None,
        "channels": network.patch_embed.proj.weight.shape[1],
        "size_multiple": network.patch_embed.patch_size[0],
        "notes": ("scale: none, because the network gives features",),
    }


TIMM_SWIN = register_family(
    Family(
        name="timm_swin",
        title="Swin Transformer v1 (timm)",
        signature=_signature("relative_position_bias_table"),
        places=_places(V1_BLOCK),
        blocks=(V1_BLOCK,),
        facts=_feature_facts,
        source="arXiv 2103.14030; the timm package",
    )
)

TIMM_SWIN_V2 = register_family(
    Family(
        name="timm_swin_v2",
        title="Swin Transformer v2 (timm)",
        signature=_signature("cpb_mlp"),
        places=_places(V2_BLOCK),
        blocks=(V2_BLOCK,),
        facts=_feature_facts,
        source="arXiv 2111.09883; the timm package",
    )
)
