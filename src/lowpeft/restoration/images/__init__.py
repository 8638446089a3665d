"""Images: files, 8-bit and float values, and MATLAB's bicubic resizing.

An image is a tensor (3, H, W), RGB, or (1, H, W), grey; uint8 0..255 or float 0..1. Only files need Pillow.
"""

from .colours import as_tensor, check_channels
from .deep import check_white_level
from .files import (
    IMAGE_SUFFIXES,
    as_picture,
    make_folder,
    read_image,
    write_image,
    write_picture,
)
from .headers import ImageHeader, image_header, image_size
from .levels import depth_remark
from .resizing import Border, bicubic_upscale, matlab_downscale, matlab_halve, mod_crop
from .values import check_values, eight_bit, to_float, to_uint8

__all__ = [
    "IMAGE_SUFFIXES",
    "Border",
    "ImageHeader",
    "as_picture",
    "as_tensor",
    "bicubic_upscale",
    "check_channels",
    "check_values",
    "check_white_level",
    "depth_remark",
    "eight_bit",
    "image_header",
    "image_size",
    "make_folder",
    "matlab_downscale",
    "matlab_halve",
    "mod_crop",
    "read_image",
    "to_float",
    "to_uint8",
    "write_image",
    "write_picture",
]
