"""Picture of a scene: the whole view, and an enlarged patch by every method, with an error map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ..data import Example
from ..images import as_picture, bicubic_upscale, eight_bit, make_folder, to_float, to_uint8, write_picture
from ..metrics import psnr

PATCH_PX, ENLARGE, MARGIN_PX, TEXT_PX = 48, 5, 12, 16
ERROR_GAIN = 4
"""Gain of the error map: black is no error, white is a mean error over the channels of 1/4 of the range or more."""


def draw_scene(path: Path, example: Example, results: Mapping[str, Tensor], *, scale: int, errors: bool = True) -> Path:
    """Draw the left (or only) view of a scene: bicubic, each method's result, HR, and the last method's errors.

    The patch is where bicubic differs most from HR, so the choice favours no method.

    Args:
        path: File to write.
        example: The scene.
        results: Result for this view by method name, (3,H,W), 0..1 or uint8.
        scale: HR sides divided by LR sides.
        errors: True adds the mean absolute difference of the last method from HR, times `ERROR_GAIN`.

    Returns:
        `path`.

    Raises:
        DataError: The file cannot be written, or its suffix is not a known image format.
    """
    hr = example.hr[0]
    bicubic = bicubic_upscale(example.lr[0], scale)
    images = {"bicubic": bicubic, **{name: eight_bit(result) for name, result in results.items()}}
    panels = {f"{name}  {psnr(image, hr):.2f} dB": image for name, image in images.items()} | {"HR": hr}
    if errors:
        last = list(images.values())[-1]
        difference = (to_float(last) - to_float(hr)).abs().mean(0, keepdim=True).expand(3, -1, -1)
        panels[f"error x{ERROR_GAIN}"] = to_uint8(difference * ERROR_GAIN)
    view = ", left view" if len(example.hr) == 2 else ""
    note = f"{example.name}{view}, x{scale}. PSNR of the whole view, RGB; patch: where bicubic is farthest from HR."
    make_folder(path.parent)
    write_picture(_sheet(hr, panels, _most_wrong(bicubic, hr), note), path)
    return path


def _sheet(hr: Tensor, panels: Mapping[str, Tensor], corner: tuple[int, int], note: str) -> Image.Image:
    """Draw the whole HR view above the labelled panels, cut to the patch with this corner (top, left)."""
    (y, x), px = corner, min(PATCH_PX, *hr.shape[1:])
    side = PATCH_PX * ENLARGE
    across = len(panels) * (side + MARGIN_PX) - MARGIN_PX
    whole = as_picture(hr).resize((across, round(across * hr.shape[1] / hr.shape[2])))
    width, top = whole.width + 2 * MARGIN_PX, whole.height + 2 * MARGIN_PX
    sheet = Image.new("RGB", (width, top + side + 4 * TEXT_PX + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    sheet.paste(whole, (MARGIN_PX, MARGIN_PX))
    ratio = whole.width / hr.shape[2]
    corners = [MARGIN_PX + round(v * ratio) for v in (x, y, x + px, y + px)]
    draw.rectangle(corners, outline="red", width=2)
    font = ImageFont.load_default(TEXT_PX)
    for i, (label, image) in enumerate(panels.items()):
        column = MARGIN_PX + i * (side + MARGIN_PX)
        patch = image[:, y : y + px, x : x + px]
        sheet.paste(as_picture(patch).resize((side, side), Image.Resampling.NEAREST), (column, top))
        draw.text((column, top + side + 4), label, fill="black", font=font)
    draw.text((MARGIN_PX, top + side + 2 * TEXT_PX), note, fill="gray", font=font)
    return sheet


def _most_wrong(bicubic: Tensor, hr: Tensor) -> tuple[int, int]:
    """Return top and left of the patch where bicubic differs most from HR."""
    px = min(PATCH_PX, *hr.shape[1:])
    error = F.avg_pool2d((to_float(bicubic) - to_float(hr)).square()[None], px, stride=4).sum((0, 1))
    index = int(torch.argmax(error))
    return 4 * (index // error.shape[1]), 4 * (index % error.shape[1])
