"""Shapes of EDT: the published ones, and those read from a checkpoint's keys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...checks import one_of, whole
from ...errors import LowpeftError

SIZES: dict[str, tuple[int, int, int, int]] = {
    "T": (8, 60, 4, 6),
    "S": (16, 120, 5, 6),
    "B": (32, 180, 6, 6),
    "L": (64, 240, 12, 8),
}
"""Mapping from a published size to its features of the head, channels of the body, groups and attention heads."""

BLOCKS_PER_GROUP = 6
TASKS = ("sr_x2", "sr_x3", "sr_x4", "dn_g15", "dn_g25", "dn_g50", "dr_L", "dr_H")


@dataclass(frozen=True, kw_only=True)
class EDTConfig:
    """Shape of an EDT; the defaults are EDT-B for x4.

    Attributes:
        tasks: Task names in the order of inputs and outputs: scales, then noise levels, then rain levels.
        features: Channels of the head's first convolution; the next two levels have 2 and 4 times as many.
        dim: Channels of the body; half of them are attended in each of two window shapes.
        depths: Number of blocks in each group.
        heads: Number of attention heads in each half of the channels.
        mlp_ratio: Hidden channels of the MLP divided by `dim`.
        direct: True if the tail upsamples in one sub-pixel convolution (EDT-T), False if in steps of x2.
        window: Height and width of the first half's windows; the second half's are transposed.
        image_px: Side of the square features whose masks are in the state dict, as in the authors' files. Features have
            the image's sides; for denoising and deraining, a quarter of them.
    """

    tasks: tuple[str, ...] = ("sr_x4",)
    features: int = 32
    dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    heads: int = 6
    mlp_ratio: int = 2
    direct: bool = False
    window: tuple[int, int] = (6, 24)
    image_px: int = 48

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            LowpeftError: The values do not fit together; problems are listed.
        """
        numbers = [(name, getattr(self, name)) for name in ("features", "dim", "heads", "mlp_ratio", "image_px")]
        numbers += [(name, value) for name in ("depths", "window") for value in getattr(self, name)]
        problems = [problem for name, value in numbers for problem in whole(name, value, least=1)]
        if not self.depths:
            problems.append("depths must have at least one group")
        if not problems:  # so they can be compared
            problems = self._contradictions()
        if problems:
            raise LowpeftError("this EDT cannot be built:", problems=problems)

    def _contradictions(self) -> list[str]:
        problems = [problem for task in self.tasks for problem in one_of("a task", task, TASKS)]
        # A state dict does not contain the order of its tasks, so only one order is allowed.
        if not problems and (not self.tasks or self.tasks != tuple(t for t in TASKS if t in self.tasks)):
            problems.append(
                f"tasks must be some of {', '.join(TASKS)}, each once and in this order, not {self.tasks!r}"
            )
        if self.dim % (2 * self.heads):
            problems.append(f"dim {self.dim} cannot be split into two halves of {self.heads} heads each")
        if self.image_px % max(self.window) or max(self.window) % min(self.window):
            problems.append(f"image_px {self.image_px} must be a multiple of the windows' sides {self.window}")
        return problems

    @classmethod
    def published(cls, size: str, tasks: Sequence[str] = ("sr_x4",)) -> EDTConfig:
        """Return the configuration of EDT-T, -S, -B or -L.

        Raises:
            LowpeftError: The size or a task is unknown.
        """
        if problems := one_of("size", size.upper(), SIZES):
            raise LowpeftError(problems[0])
        features, dim, groups, heads = SIZES[size.upper()]
        return cls(
            tasks=tuple(tasks),
            features=features,
            dim=dim,
            depths=(BLOCKS_PER_GROUP,) * groups,
            heads=heads,
            direct=size.upper() == "T" and len(tasks) == 1,  # the authors' EDT-T for several scales uses steps
        )

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> EDTConfig:
        """Read the shape from a checkpoint's keys and tensor shapes.

        A checkpoint does not contain the number of heads: it is taken from the published size with the same `dim`.

        Raises:
            LowpeftError: Tensors that every EDT has are missing, or `dim` is not that of a published size.
        """
        tasks = tuple(t for t in TASKS if any(k.startswith(f"head_{t}.") for k in state))
        needed = ["body.norm.weight", "body.layers.0.residual_group.blocks.0.mlp.fc1.weight"]
        needed += [f"head_{t}.0.weight" for t in tasks[:1]]
        missing = [k for k in needed if k not in state]
        if missing or not tasks:
            what = ", ".join(missing) or f"a head for one of the tasks {', '.join(TASKS)}"
            raise LowpeftError(f"the tensors are like those of an EDT, but these are missing: {what}")
        dim, hidden, features = ((*state[k].shape, 0)[0] for k in needed)  # 0 for a scalar, which has no shape
        heads = {d: h for _, d, _, h in SIZES.values()}
        if dim not in heads:
            raise LowpeftError(
                f"this EDT has {dim} channels, unlike the published ones ({', '.join(map(str, heads))}), so its number "
                "of heads is unknown: build lowpeft.backbones.networks.EDT(EDTConfig(…)) and load the state dict there"
            )
        counts: dict[int, int] = {}
        for key in state:
            if match := re.match(r"body\.layers\.(\d{1,3})\.residual_group\.blocks\.(\d{1,3})\.", key):
                group, block = map(int, match.groups())
                counts[group] = max(counts.get(group, 0), block + 1)
        sr = [t for t in tasks if t.startswith("sr_")]
        return cls(
            tasks=tasks,
            features=features,
            dim=dim,
            # A missing group counts as 1 block, so that its tensors are reported as missing.
            depths=tuple(counts.get(g, 1) for g in range(max(counts) + 1)),
            heads=heads[dim],
            mlp_ratio=max(1, hidden // dim),
            direct=bool(sr) and f"tail_{sr[0]}.3.weight" not in state,
        )
