"""Training: the loop (`train`) and its parts."""

from __future__ import annotations

from ...core.attachment.record import is_adapted
from .checkpoint import checkpoints, last_step
from .events import Callback, Measured, Start, Step, StopTraining, Trained
from .loop import train
from .losses import image_loss
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
from .overlap import shared_scenes
from .parallel import Processes, connect
from .samples import crop_for, run_facts
from .schedule import learning_rate
from .sources import CropSource, MapStyle
from .trackers import TRACKERS, Trackers
from .validation import ValidationImages, validation

__all__ = [
    "NETWORK",
    "TRACKERS",
    "Callback",
    "CropSource",
    "MapStyle",
    "Measured",
    "Processes",
    "Start",
    "Step",
    "StopTraining",
    "Trackers",
    "Trained",
    "ValidationImages",
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
    "shared_scenes",
    "train",
    "trained_parameters",
    "validation",
]
