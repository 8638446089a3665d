"""Opening pre-trained checkpoints: what a network is, beside its module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from .errors import LowpeftError
from .families import recognise


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pre-trained network and its facts.

    Attributes:
        module: The trainable network, in eval mode. Never an inference wrapper.
        architecture: Its name, as the checkpoint reader calls it.
        family: lowpeft's family, None where there is none (then its stages are found by running it).
        scale: Output sides over input sides.
        value_range: Lowest and highest value of images in and out.
        size_multiple: Sides that the network takes without padding are multiples of this.
        channels: Of input images, without the further maps that some networks take (DRUNet's noise level).
    """

    module: nn.Module
    architecture: str
    family: str | None
    scale: int
    value_range: tuple[float, float]
    size_multiple: int
    channels: int

    @property
    def parameters(self) -> int:
        """How many parameters the network has."""
        return sum(p.numel() for p in self.module.parameters())


def load_backbone(path: str | Path) -> Backbone:
    """Open a checkpoint file (.pth, .pt, .safetensors) of any architecture that spandrel recognises.

    Args:
        path: Of the file.

    Returns:
        The network, ready to be adapted: `.module` is a plain trainable module on the CPU in eval mode.

    Raises:
        LowpeftError: No such file, spandrel is not installed, the file cannot be read as plain tensors, or its
            architecture is not recognised.
    """
    file = Path(path)
    if not file.is_file():
        raise LowpeftError(f"no checkpoint file at {file}")
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError as error:
        raise LowpeftError("opening public checkpoints needs spandrel: pip install 'lowpeft[spandrel]'") from error
    state = _read(file)
    try:
        descriptor = ModelLoader(device="cpu").load_from_state_dict(state)
    except Exception as error:  # spandrel passes on whatever building a network from wrong tensors raises
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise LowpeftError(f"{file} is not a checkpoint that spandrel can open: {reason}") from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise LowpeftError(f"{file} holds a {descriptor.architecture.name}, which does not map one image to one image")
    module = descriptor.model.eval()
    found = recognise(module)
    requirements = descriptor.size_requirements
    return Backbone(
        module=module,
        architecture=descriptor.architecture.name,
        family=found.family.name if found else None,
        scale=descriptor.scale,
        value_range=(0.0, float(module.rgb_range) if found and found.family.rgb_range else 1.0),
        size_multiple=requirements.multiple_of,
        channels=descriptor.input_channels,
    )


def _read(file: Path) -> dict[str, Any]:
    """The tensors of a checkpoint; code in a file is never run."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not what it should be
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise LowpeftError(
            f"{file} is not a checkpoint of plain tensors: {reason}. If you trust where it is from, load it "
            "yourself and save its state dict as .safetensors"
        ) from error
    if not isinstance(state, dict):
        raise LowpeftError(f"{file} is not a checkpoint: it holds a {type(state).__name__}, not a state dict")
    return state
