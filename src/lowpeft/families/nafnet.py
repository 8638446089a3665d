"""NAFNet (official code, BasicSR forks, spandrel), and KBNet's small network, which has the same structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..ports.layouts import Layout
from .base import TOKENS, BlockForward, Family, Place, Ports, added, block_places, register_family
from .swin import BLOCK_PORTS, noise


def _contribution(ports: Ports, branch: Tensor, normed: Tensor, x: Tensor, names: tuple[str, str, str]) -> Tensor:
    """Return a branch's output plus the deltas of its ports, which read its output, and its input after/before norm."""
    features = dict(zip(names, (branch, normed, x), strict=True))
    return added(branch, ports, Layout.NCHW, (x.shape[2], x.shape[3]), features)


def _gated_mlp(block: Any, normed: Tensor) -> Tensor:
    out: Tensor = block.conv5(block.sg(block.conv4(normed)))
    return out


def block_forward(
    block: Any,
    ports: Ports,
    inp: Tensor,
    branch: Callable[[Any, Tensor], Tensor],
    mlp: Callable[[Any, Tensor], Tensor] = _gated_mlp,
) -> Tensor:
    """Run both halves of a block: x + beta · branch(norm1 x), then x + gamma · MLP(norm2 x).

    Args:
        block: Block with `norm1`, `norm2`, `dropout1`, `dropout2`, `beta` and `gamma`.
        ports: Adapters of the block.
        inp: Features (N,C,H,W).
        branch: Function from the block and the features after `norm1` to the first branch's output, before `beta`.
        mlp: Function from the block and the features after `norm2` to the second branch's output, before `gamma`.
    """
    normed = block.norm1(inp)
    names = ("attention", "parallel_attention", "parallel_attention_raw")
    contribution = block.dropout1(_contribution(ports, branch(block, normed), normed, inp, names))
    x = inp + contribution * block.beta
    normed = block.norm2(x)
    out = mlp(block, normed)
    contribution = block.dropout2(_contribution(ports, out, normed, x, ("mlp", "parallel", "parallel_raw")))
    result: Tensor = x + contribution * block.gamma
    return result


def naf_forward(block: nn.Module, ports: Ports, inp: Tensor) -> Tensor:
    """Run NAFNet's block: a gated convolution with channel attention, then a gated MLP of 1x1 convolutions.

    The block scales both branches' outputs by learned vectors (beta, gamma). All ports add before the scaling.

    Args:
        block: NAFBlock.
        ports: Adapters of the block.
        inp: Features (N,C,H,W).

    Source: NAFNet (arXiv 2204.04676).
    """

    def branch(b: Any, x: Tensor) -> Tensor:
        x = b.sg(b.conv2(b.conv1(x)))
        out: Tensor = b.conv3(x * b.sca(x))
        return out

    return block_forward(block, ports, inp, branch)


def kb_forward(block: nn.Module, ports: Ports, inp: Tensor) -> Tensor:
    """Run KBNet's small block: kernel basis attention times convolution times channel attention, then NAFNet's MLP.

    The block scales both branches' outputs by learned vectors (beta, gamma). All ports add before the scaling.

    Args:
        block: KBBlock_s.
        ports: Adapters of the block.
        inp: Features (N,C,H,W).

    Source: KBNet (arXiv 2303.02881).
    """

    def branch(b: Any, x: Tensor) -> Tensor:
        channels, beside = b.sca(x), b.conv11(x)
        coefficients = b.conv2(x) * b.attgamma + b.conv211(x)
        features = b.conv21(b.conv1(x))
        attended = b.KBA(features, coefficients, b.k, b.g, b.b, b.w) * b.ga1 + features
        out: Tensor = b.conv3(attended * beside * channels)
        return out

    return block_forward(block, ports, inp, branch)


def example(block: nn.Module) -> tuple[Tensor]:
    """Return a random feature map."""
    weight = block.get_parameter("conv3.weight")
    return (noise(weight, 1, weight.shape[0], 6, 8),)


NAF_BLOCK = BlockForward(name="nafnet.block", forward=naf_forward, ports=BLOCK_PORTS, example=example)
KB_BLOCK = BlockForward(name="kbnet.block", forward=kb_forward, ports=BLOCK_PORTS, example=example)


def _places(block: BlockForward) -> tuple[Place, ...]:
    """Return places for the blocks and stages of the U-shape, from the finest resolution down and up again."""
    levels = ("encoders.{stage}", "middle_blks", "decoders.{stage}")
    blocks = [p for level in levels for p in block_places(f"{level}.{{block}}", "conv3.weight", block)]
    stages = [Place(name="stage", path=p, channels="0.conv3.weight", layout=Layout.NCHW) for p in levels]
    return (*blocks, *stages)


def _facts(network: Any) -> dict[str, Any]:
    return {"scale": 1, "channels": network.intro.weight.shape[1], "size_multiple": network.padder_size}


NAFNET = register_family(
    Family(
        name="nafnet",
        title="NAFNet",
        signature=(("middle_blks.*.sca", "middle_blks.*.beta", "intro", "ending", "!middle_blks.*.attgamma"),),
        places=_places(NAF_BLOCK),
        blocks=(NAF_BLOCK,),
        facts=_facts,
        without={TOKENS: "NAFNet has no attention over tokens"},
        source="arXiv 2204.04676",
    )
)

KBNET = register_family(
    Family(
        name="kbnet",
        title="KBNet-s",
        signature=(("middle_blks.*.sca", "middle_blks.*.attgamma", "intro", "ending"),),
        places=_places(KB_BLOCK),
        blocks=(KB_BLOCK,),
        facts=_facts,
        without={TOKENS: "KBNet-s has no attention over tokens"},
        source="arXiv 2303.02881",
    )
)
