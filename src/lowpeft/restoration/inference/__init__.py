"""Inference on whole images: value range, padding, strips, crops, self-ensemble, local pooling."""

from .memory import is_out_of_memory, peak_bytes
from .passes import IMAGE_PASSES, PAIR_PASSES, VIEW_PASSES, Pass
from .pooling import DEFAULT_WINDOW_PX, RATIO, local_pooling
from .reach import reach_px
from .tiling import CHUNK, Tiling, crop_starts, strips
from .whole import enhance

__all__ = [
    "CHUNK",
    "DEFAULT_WINDOW_PX",
    "IMAGE_PASSES",
    "PAIR_PASSES",
    "RATIO",
    "VIEW_PASSES",
    "Pass",
    "Tiling",
    "crop_starts",
    "enhance",
    "is_out_of_memory",
    "local_pooling",
    "peak_bytes",
    "reach_px",
    "strips",
]
