"""A network of `benchmarks/which_networks.py`: how it is built, what it takes, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Size = tuple[int, int]


def one_tensor(images: Tensor) -> tuple[Any, ...]:
    """The images themselves, as most networks take them."""
    return (images,)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One small network.

    `build` makes it with random weights; `inputs` turns images N,`channels`,H,W into the arguments of its forward, and
    `px` is a size (H, W) that it takes, `fixed` where it takes no other. `pair` says that an image holds two views, the
    first one's channels first.
    """

    name: str
    source: str
    build: Callable[[], nn.Module] = field(repr=False)
    px: Size = (32, 48)
    channels: int = 3
    value_max: float = 1.0
    inputs: Callable[[Tensor], tuple[Any, ...]] = one_tensor
    pair: bool = False
    fixed: bool = False

    @property
    def plain(self) -> bool:
        """Whether it takes N,C,H,W tensors of up to four channels, in a size that lowpeft may try by itself."""
        return self.inputs is one_tensor and self.channels <= 4 and not self.fixed

    def network(self, seed: int = 7) -> nn.Module:
        """The network in eval mode, the same for the same seed; weights that its constructor leaves at zero are filled,
        so that every branch takes part."""
        torch.manual_seed(seed)
        network = self.build()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if parameter.is_floating_point() and not name.endswith("bias") and not parameter.any():
                    parameter.normal_(std=0.1)
        return network.eval()

    def images(self, count: int, px: Size | None = None, *, seed: int = 3) -> Tensor:
        """Random images, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return self.value_max * torch.rand(count, self.channels, *(px or self.px), generator=generator)

    @property
    def example(self) -> Any:
        """What `example=` is told: the tensor, or the tuple of arguments."""
        args = self.inputs(self.images(2))
        return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args


def leaves(output: Any) -> list[Tensor]:
    """Every tensor of floating point numbers in an output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    inner = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [t for each in inner for t in leaves(each)]


def run(module: nn.Module, args: tuple[Any, ...], *, take: str | None = None) -> Any:
    """The output, or its attribute `take`; networks that draw noise draw the same in every call, and those that write
    their input get a copy."""
    torch.manual_seed(1)
    output = module(*tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, args))
    return output if take is None else getattr(output, take)


@torch.no_grad()
def takes(row: Row, network: nn.Module, px: Size) -> bool:
    """Whether the network itself takes images of that size."""
    try:
        return bool(leaves(run(network, row.inputs(row.images(2, px)))))
    except Exception:  # noqa: BLE001  # whatever a network raises for a size that it does not take
        return False


def sizes(row: Row, network: nn.Module) -> list[Size]:
    """The row's size, and of the others those that the network takes: turned, square, four squares in a line (for
    small ones), whose number of positions is a square's too."""
    height, width = row.px
    side = min(row.px)
    others = dict.fromkeys([(width, height), (side, side)])
    others |= dict.fromkeys([(side, 4 * side), (4 * side, side)] if side <= 32 else [])
    return [row.px, *(px for px in others if px != row.px and takes(row, network, px))]
