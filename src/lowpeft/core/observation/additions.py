"""Which modules' outputs are added to other features, as those of attention and MLPs in residual blocks?"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from .examples import Example

CARRIES = frozenset(
    "view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze clone contiguous roll slice select "  # noqa: SIM905
    "expand alias detach mul mul_ div constant_pad_nd cat stack split split_with_sizes unbind _to_copy native_dropout "
    "dropout lift_fresh as_strided copy_ index".split()
)
"""Operations that move, scale or join values; their results are still traced to the module."""


class _Additions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dispatch mode that traces the outputs of chosen modules until they are added to other tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins: Any = WeakTensorKeyDictionary()
        self.added: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        origins = [self.origins.get(t, frozenset()) for t in tree_leaves(args) if isinstance(t, Tensor)]
        out = func(*args, **(kwargs or {}))
        if not any(origins):
            return out
        if name in ("add", "add_") and len(origins) == 2:
            self.added |= origins[0] ^ origins[1]
            if name == "add_":
                self.origins.pop(args[0], None)
        elif name in CARRIES and not _is_gate(name, args):
            for t in tree_leaves(out):
                if isinstance(t, Tensor):
                    self.origins[t] = frozenset().union(*origins)
        return out


def _is_gate(name: str, args: Any) -> bool:
    """Return whether a product has two tensors, neither a parameter or a 0-D scale: one of them may be a gate."""
    if name.removesuffix("_") not in ("mul", "div"):
        return False
    factors = [t for t in args if isinstance(t, Tensor)]
    return len(factors) == 2 and not any(isinstance(t, nn.Parameter) or t.dim() == 0 for t in factors)


def find_additions(root: nn.Module, example: Example, paths: Iterable[str]) -> set[str]:
    """Find the modules whose output is added to other features, possibly after operations in `CARRIES`.

    Args:
        root: The network.
        example: Arguments of the network.
        paths: Paths of the modules to test.
    """
    mode = _Additions()

    def mark(path: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor = next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)
        if tensor is not None:
            mode.origins[tensor] = frozenset({path})

    with contextlib.ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(root.get_submodule(path).register_forward_hook(functools.partial(mark, path)))
        hooks.enter_context(mode)
        example.call(root)
    return mode.added
