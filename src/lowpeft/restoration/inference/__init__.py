"""Inference on whole images: value range, padding, strips, crops, self-ensemble, local pooling."""

from .memory import is_out_of_memory, peak_bytes
from .pooling import DEFAULT_WINDOW_PX, local_pooling
from .reach import reach_px, strips_remark
from .tiling import Tiling
from .whole import enhance

__all__ = [
    "DEFAULT_WINDOW_PX",
    "Tiling",
    "enhance",
    "is_out_of_memory",
    "local_pooling",
    "peak_bytes",
    "reach_px",
    "strips_remark",
]
