"""NAFSSR and CVHSSR (official code): stereo networks whose input has left and right view concatenated in the channels.

They run one block on each view and then mix the views themselves. Adapters go to the block, and so get one view at a
time. There is no place for adapters that mix views, because the two views are never neighbours in the batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .base import TOKENS, BlockForward, Family, Ports, block_places, register_family
from .nafnet import NAF_BLOCK, block_forward, example
from .swin import BLOCK_PORTS

BLOCK = "body.{block}.module.blk"


def chimb_forward(block: nn.Module, ports: Ports, inp: Tensor) -> Tensor:
    """Run CVHSSR's block: large-kernel and channel attention of gated features, then a gated MLP with a convolution.

    The block scales both branches' outputs by learned vectors (beta, gamma). All ports add before the scaling.

    Args:
        block: CHIMB.
        ports: Adapters of the block.
        inp: Features (N,C,H,W) of one view.

    Source: CVHSSR (arXiv 2304.06236).
    """

    def branch(b: Any, x: Tensor) -> Tensor:
        x = b.sg(b.conv2(b.conv1(x)))
        out: Tensor = b.conv3(b.sca2(x) * x + b.sca1(x))
        return out

    def mlp(b: Any, x: Tensor) -> Tensor:
        gate, value = b.conv5(b.conv4(x)).chunk(2, dim=1)
        out: Tensor = b.conv6(F.gelu(gate) * value)
        return out

    return block_forward(block, ports, inp, branch, mlp)


CHIMB = BlockForward(name="cvhssr.chimb", forward=chimb_forward, ports=BLOCK_PORTS, example=example)


def _facts(network: Any) -> dict[str, Any]:
    """Return the facts. A network for two views has twice the first convolution's input channels."""
    return {
        "scale": network.up_scale,
        "channels": network.intro.weight.shape[1] * (2 if network.dual else 1),
        "size_multiple": 1,
    }


NAFSSR = register_family(
    Family(
        name="nafssr",
        title="NAFSSR",
        signature=(("body.*.module.blk.sca", "body.*.module.blk.beta", "body.*.module.fusion.l_proj1", "intro", "up"),),
        places=block_places(BLOCK, "conv3.weight", NAF_BLOCK),
        facts=_facts,
        without={TOKENS: "NAFSSR attends between the views only, outside its blocks"},
        source="arXiv 2204.08714; six channels, left and right",
    )
)

CVHSSR = register_family(
    Family(
        name="cvhssr",
        title="CVHSSR",
        signature=(
            ("body.*.module.blk.sca1", "body.*.module.blk.conv6", "body.*.module.fusion.l_proj3", "intro", "up"),
        ),
        places=block_places(BLOCK, "conv3.weight", CHIMB),
        blocks=(CHIMB,),
        facts=_facts,
        without={TOKENS: "CVHSSR attends between the views, and inside its blocks not over tokens"},
        source="arXiv 2304.06236; six channels, left and right",
    )
)
