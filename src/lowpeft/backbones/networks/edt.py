"""EDT: an encoder-decoder transformer for super-resolution, denoising and deraining.

Written from the architecture (arXiv 2112.10175) with the state-dict keys of the authors' checkpoints, so that these
load. Each task has a convolutional head and tail, U-Net-like with skips; all tasks share the transformer body. Task
names are the authors': `sr_x2`, `sr_x3`, `sr_x4`, `dn_g15`, `dn_g25`, `dn_g50` (noise level in 0..255), `dr_L`, `dr_H`
(light and heavy rain).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.padding import pad_to_multiple
from ...errors import LowpeftError
from .edt_config import EDTConfig
from .edt_parts import Body, make_head, make_tail

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K in 0..1; subtracted from the input and added to the output."""


class EDT(nn.Module):
    """EDT, for one task or several.

    The input is an RGB batch N,3,H,W in 0..1 of any size; sides are padded to a multiple of `size_multiple` and the
    output is cropped. For one task of scale s, the output is N,3,sH,sW. For several tasks, the input is a sequence with
    one batch per task, or one batch for all, and the output is a list. Linear weights are initialised from a truncated
    normal distribution with a standard deviation of 0.02.

    Attributes:
        config: Shape of the network.
    """

    mean: Tensor

    def __init__(self, config: EDTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EDTConfig()
        for task in config.tasks:
            self.add_module(f"head_{task}", make_head(task, config.features, config.dim))
        self.body = Body(config)
        for task in config.tasks:
            self.add_module(f"tail_{task}", make_tail(task, config.features, config.dim, direct=config.direct))
        self.apply(_initialise)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    @property
    def size_multiple(self) -> int:
        """Multiple of sides, in pixels, that needs no padding: 24, or 96 with denoising or deraining."""
        return max(map(self._multiple, self.config.tasks))

    @staticmethod
    def scale(task: str) -> int:
        """Return a task's output sides divided by input sides."""
        return int(task[-1]) if task.startswith("sr_") else 1

    def _multiple(self, task: str) -> int:
        return max(self.config.window) * (1 if task.startswith("sr_") else 4)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> EDT:
        """Build the network of a checkpoint and load its weights; masks in it are dropped and computed anew.

        Raises:
            LowpeftError: `EDTConfig.from_state_dict` raises; or tensors are missing, unknown or of the wrong shape.
        """
        config = EDTConfig.from_state_dict(state)
        with torch.device("meta"):
            listed = cls(config).state_dict()
        wanted = {k: v.shape for k, v in listed.items() if "attn_mask" not in k}
        given = {k: v.shape for k, v in state.items() if "attn_mask" not in k}
        problems = [f"missing: {k}" for k in wanted if k not in given]
        problems += [f"unknown: {k}" for k in given if k not in wanted]
        wrong = [k for k in wanted if given.get(k, wanted[k]) != wanted[k]]
        problems += [f"{k} has shape {tuple(given[k])}, the network needs {tuple(wanted[k])}" for k in wrong]
        if problems:
            raise LowpeftError("the tensors are like those of an EDT, but do not fit:", problems=problems)
        network = cls(config)
        network.load_state_dict({k: state[k] for k in wanted}, strict=False)
        return network

    def forward(self, images: Tensor | Sequence[Tensor]) -> Any:
        """Restore images; see the class for the shapes of input and output.

        Raises:
            LowpeftError: The number of batches differs from the number of tasks, or one is not N,3,H,W.
        """
        tasks = self.config.tasks
        if isinstance(images, Tensor):
            results = [self._restore(task, images) for task in tasks]
            return results[0] if len(tasks) == 1 else results
        if len(images) != len(tasks):
            raise LowpeftError(f"this EDT needs one batch for each task ({', '.join(tasks)}), and got {len(images)}")
        return [self._restore(task, image) for task, image in zip(tasks, images, strict=True)]

    def _restore(self, task: str, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3:
            raise LowpeftError(f"EDT takes RGB images N,3,H,W, not {tuple(image.shape)}")
        head, tail = (self.get_submodule(f"{part}_{task}") for part in ("head", "tail"))
        scale = self.scale(task)
        height, width = image.shape[-2:]
        x = pad_to_multiple(image - self.mean, self._multiple(task))
        features, skips = head(x)
        out = tail(self.body(features), skips)
        if scale > 1:
            x = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        restored: Tensor = (out + x)[..., : height * scale, : width * scale] + self.mean
        return restored


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
