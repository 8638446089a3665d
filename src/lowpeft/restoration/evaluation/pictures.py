"""Pictures of a scene: the whole view and an enlarged patch by every method, with an error map; maps of disparity."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ...errors import DataError
from ..data import Example
from ..data.model import SIDES
from ..images import as_picture, eight_bit, make_folder, to_float, to_uint8, write_picture
from ..metrics import psnr
from ..words import words
from .disparity import AttendedDisparity
from .measure import by_bicubic

PATCH_PX, ENLARGE, MARGIN_PX, TEXT_PX = 48, 5, 12, 16
PANEL_PX, BAR_PX = 480, 14
"""Minimum width of a panel of disparity (views are enlarged by a whole factor), and height of the colour scale."""
CHARACTER_SHARE = 0.55
"""Mean width of the default font's characters, as a share of its size, with some slack."""
COLOURS = ("#440154", "#21918c", "#fde725")
"""Colours of the smallest, the middle and the largest disparity: three of Matplotlib's viridis."""
ERROR_GAIN = 4
"""Gain of the error map: black is no error, white is a mean error over the channels of 1/4 of the range or more."""


def draw_scene(
    path: Path, example: Example, results: Mapping[str, Tensor], *, scale: int, view: int = 0, errors: bool = True
) -> Path:
    """Draw one view of a scene: bicubic or the input, each method's result, the clean image, the last method's errors.

    The patch is where bicubic (at scale 1: the input) differs most from the clean image, so the choice favours no
    method.

    Args:
        path: File to write.
        example: The scene.
        results: Result for this view by method name, (3,H,W), 0..1 or uint8.
        scale: HR sides divided by LR sides.
        view: Number of the view, 0 for the left or only one.
        errors: True adds the mean absolute difference of the last method from HR, times `ERROR_GAIN`.

    Returns:
        `path`.

    Raises:
        DataError: The file cannot be written, or its suffix is not a known image format.
    """
    hr = example.hr[view]
    named = words(scale)
    baseline = eight_bit(by_bicubic(scale)(example)[view])
    images = {named.baseline: baseline, **{name: eight_bit(result) for name, result in results.items()}}
    panels = {f"{name}  {psnr(image, hr):.2f} dB": image for name, image in images.items()} | {named.clean: hr}
    if errors:
        last = list(images.values())[-1]
        panels[f"error x{ERROR_GAIN}"] = error_map(last, hr)
    which = f", {SIDES[view]} view" if len(example.hr) == 2 else ""
    note = (
        f"{example.name}{which}{f', x{scale}' * (scale > 1)}. PSNR of the whole view, RGB; patch: where "
        f"{named.baseline} is farthest from {named.clean}."
    )
    make_folder(path.parent)
    write_picture(_sheet(hr, panels, most_different(hr, baseline), note), path)
    return path


def error_map(image: Tensor, hr: Tensor) -> Tensor:
    """Return the mean absolute difference over the channels, times `ERROR_GAIN`, as a grey image: uint8 (1,H,W)."""
    difference = (to_float(image) - to_float(hr)).abs().mean(0, keepdim=True)
    return to_uint8(difference * ERROR_GAIN)


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


def most_different(image: Tensor, *others: Tensor) -> tuple[int, int]:
    """Return top and left of the patch of `PATCH_PX` where an image differs most from others of its size."""
    px = min(PATCH_PX, *image.shape[1:])
    one = to_float(image)
    squares = torch.stack([(to_float(other) - one).square().sum(0) for other in others]).sum(0)
    error = F.avg_pool2d(squares[None, None], px, stride=4)[0, 0]
    index = int(torch.argmax(error))
    return 4 * (index // error.shape[1]), 4 * (index % error.shape[1])


def draw_disparity(
    panels: Mapping[str, Tensor], *, range_px: tuple[float, float] | None = None, note: str = ""
) -> Image.Image:
    """Draw maps of disparity in colours, beside images, with one scale in px for all maps.

    Args:
        panels: Panels of one size by title, two in a row: maps (H,W) in px, NaN where unknown (drawn grey); or images
            (3,H,W), 0..1 or uint8. At least one map with a known value.
        range_px: Smallest and largest disparity of the scale. None for the range of all maps without the lowest and
            the highest 2 % of their values, rounded to whole px, so that stray matches do not set the scale.
        note: Text below the scale.

    Raises:
        DataError: There is no map with a known value, or the panels differ in size.
    """
    sizes = {tuple(panel.shape[-2:]) for panel in panels.values()}
    maps = [panel.float() for panel in panels.values() if panel.dim() == 2]
    known = torch.cat([m[~m.isnan()] for m in maps]) if maps else torch.empty(0)
    if len(sizes) > 1 or not known.numel():
        raise DataError(f"expected maps and images of one size, and a known disparity; sizes: {sorted(sizes)}")
    low, high = range_px or _usual_range(known)
    height, width = sizes.pop()
    enlarge, columns = -(-PANEL_PX // width), min(2, len(panels))
    column_px, row_px = width * enlarge + MARGIN_PX, height * enlarge + MARGIN_PX + TEXT_PX + 4
    rows = -(-len(panels) // columns)
    sheet_px, font = MARGIN_PX + columns * column_px, ImageFont.load_default(TEXT_PX)
    lines = textwrap.wrap(note, int((sheet_px - 2 * MARGIN_PX) / (TEXT_PX * CHARACTER_SHARE)))
    top = MARGIN_PX + rows * row_px
    sheet = Image.new("RGB", (sheet_px, top + BAR_PX + (len(lines) + 2) * (TEXT_PX + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, panel) in enumerate(panels.items()):
        x, y = MARGIN_PX + i % columns * column_px, MARGIN_PX + i // columns * row_px
        image = as_picture(panel) if panel.dim() == 3 else _coloured(panel.float(), low, high)
        draw.text((x, y), title, fill="black", font=font)
        resized = image.resize((width * enlarge, height * enlarge), Image.Resampling.NEAREST)
        sheet.paste(resized, (x, y + TEXT_PX + 4))
    length = sheet_px - 2 * MARGIN_PX
    sheet.paste(_coloured(torch.linspace(low, high, length).expand(BAR_PX, -1), low, high), (MARGIN_PX, top))
    below, above = " and less" * bool((known < low).any()), " and more" * bool((known > high).any())
    for share, anchor, beyond in ((0.0, "la", below), (0.5, "ma", ""), (1.0, "ra", above)):
        position = (MARGIN_PX + share * length, top + BAR_PX + 4)
        draw.text(position, f"{low + share * (high - low):g} px{beyond}", fill="black", font=font, anchor=anchor)
    for i, line in enumerate(lines, start=1):
        draw.text((MARGIN_PX, top + BAR_PX + 4 + i * (TEXT_PX + 4)), line, fill="gray", font=font)
    return sheet


def _usual_range(values: Tensor) -> tuple[float, float]:
    """Return the range of the values without the lowest and the highest 2 %, in whole px and at least 1 px wide."""
    ordered = values.sort().values
    cut = len(ordered) // 50
    low, high = math.floor(ordered[cut].item()), math.ceil(ordered[-1 - cut].item())
    return float(low), float(max(high, low + 1))


def _coloured(values: Tensor, low: float, high: float) -> Image.Image:
    """Return a map (H,W) in the colours of the scale; unknown values are grey."""
    unknown = values.isnan()
    share = ((values.nan_to_num(low) - low) / (high - low)).clamp(0, 1)
    smallest, middle, largest = COLOURS
    grey = as_picture(to_uint8(share.expand(3, -1, -1))).convert("L")
    picture = ImageOps.colorize(grey, black=smallest, white=largest, mid=middle)
    picture.paste("gray", mask=as_picture(unknown.to(torch.uint8).mul(255).expand(3, -1, -1)).convert("L"))
    return picture


def draw_attended(example: Example, found: AttendedDisparity) -> Image.Image:
    """Draw where a stereo model looks: both LR views above the attended disparity of one site, of both views."""
    views = {f"{side} view": view for side, view in zip(SIDES, example.lr, strict=True)}
    maps = {
        f"{side}: attended disparity, weight {confidence.mean():.2f}": disparity
        for side, disparity, confidence in zip(SIDES, found.disparity_px, found.confidence, strict=True)
    }
    note = (
        f"{example.name}: x_left - x_right of the position with the largest attention weight, in LR px, at "
        f"{found.site}. Weight: mean over the view, 0 to 1."
    )
    return draw_disparity({**views, **maps}, note=note)
