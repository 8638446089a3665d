"""Comparing a block of a user's network with the block forward that stands for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .adding import BlockPorts
from .attach import original_class
from .errors import PlanError
from .families import BlockForward, get_block
from .probe import twin_of

CLOSE = 1e-5
"""Relative difference to the original that a block forward which is not exact may have."""


def check_block(checked: set[tuple[object, ...]], path: str, module: nn.Module, name: str) -> None:
    """Refuse a block whose own forward is not the one that a block forward stands for.

    One block of each class (and of each setting of its plain attributes, such as the shift) is run both ways; a fork
    that changed the block (a mask also in unshifted blocks, say) would otherwise start from another network without a
    word.

    Args:
        checked: What has been compared already; written.
        path: Path of the block, for errors.
        module: The block.
        name: Name of the block forward.

    Raises:
        PlanError: The results differ by a bit, or, for a block forward that is only close, by more than `CLOSE`.
    """
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple))}
    key = (original_class(module), name, repr(sorted(plain.items())))
    if key not in checked:
        if problem := block_problem(module, get_block(name)):
            raise PlanError(f"{path} ({original_class(module).__module__}.{original_class(module).__name__}) {problem}")
        checked.add(key)


def block_problem(module: nn.Module, block: BlockForward) -> str | None:
    """The difference between a block's own forward and a block forward, as the end of a sentence; None for none."""
    twin, own_class = twin_of(module), original_class(module)
    advice = (
        f"the block forward {block.name}: this copy of the code has been changed. Name modules inside it with target= "
        "instead (target='**.mlp', say)"
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            arguments = block.example(twin)
            own = own_class.forward(twin, *(a.clone() if isinstance(a, Tensor) else a for a in arguments))
            ours = block.forward(twin, BlockPorts({}), *arguments)
    except Exception as error:  # noqa: BLE001  (whatever another copy of the code raises means: another block)
        return f"cannot be run as {advice} ({type(error).__name__}: {error})"
    (a, b) = (x[0] if isinstance(x, tuple) else x for x in (own, ours))
    same = torch.equal(a, b) if block.exact else torch.allclose(a, b, rtol=CLOSE, atol=CLOSE * float(a.abs().max()))
    return None if same else f"does not compute (largest difference {(a - b).abs().max():.3g}) what {advice}"
