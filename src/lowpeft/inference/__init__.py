"""Running networks on whole images by the facts of their backbone: value range, padding, strips, crops, ensemble."""

from .memory import is_out_of_memory, peak_bytes
from .network import run
from .passes import IMAGE_PASSES, PAIR_PASSES, Pass
from .pooling import DEFAULT_WINDOW_PX, RATIO, local_pooling
from .reach import reach_px
from .tiling import CHUNK, Tiling, crop_starts, strips
from .whole import super_resolve

__all__ = [
    "CHUNK",
    "DEFAULT_WINDOW_PX",
    "IMAGE_PASSES",
    "PAIR_PASSES",
    "RATIO",
    "Pass",
    "Tiling",
    "crop_starts",
    "is_out_of_memory",
    "local_pooling",
    "peak_bytes",
    "reach_px",
    "run",
    "strips",
    "super_resolve",
]
