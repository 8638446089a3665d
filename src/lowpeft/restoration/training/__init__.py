"""Training: the loop (`train`) and its parts."""

from __future__ import annotations

from ...core.attachment.record import is_adapted
from .checkpoint import checkpoints, last_step
from .loop import Step, Trained, train
from .models import (
    NETWORK,
    build_model,
    check_folder,
    reinitialise,
    save_merged,
    save_network,
    save_product,
    trained_parameters,
)
from .parallel import Processes, connect
from .samples import CropSource, crop_for, run_facts
from .schedule import image_loss, learning_rate
from .validation import validation

__all__ = [
    "NETWORK",
    "CropSource",
    "Processes",
    "Step",
    "Trained",
    "build_model",
    "check_folder",
    "checkpoints",
    "connect",
    "crop_for",
    "image_loss",
    "is_adapted",
    "last_step",
    "learning_rate",
    "reinitialise",
    "run_facts",
    "save_merged",
    "save_network",
    "save_product",
    "train",
    "trained_parameters",
    "validation",
]
