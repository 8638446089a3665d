"""The demo's picture: one scene whole, and its patch of most contrast enlarged, by every method."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone
from ..data import Pair
from ..images import bicubic_upscale, to_float, to_uint8
from ..inference import super_resolve
from ..metrics import psnr
from ..model import disabled

PATCH_PX, ENLARGE, MARGIN_PX, TEXT_PX = 48, 5, 12, 16


def draw_comparison(model: nn.Module, pair: Pair, backbone: Backbone, path: Path) -> Path:
    """Draw the left view of a scene: bicubic, frozen, adapted and HR.

    The patch is chosen by the HR image alone: where it varies most.

    Returns:
        `path`.
    """
    left, right = to_float(pair.lr_left), to_float(pair.lr_right)
    with disabled(model):
        frozen, _ = super_resolve(model, left, right, backbone=backbone)
    adapted, _ = super_resolve(model, left, right, backbone=backbone)
    hr = to_float(pair.hr_left)
    y, x = _most_contrast(hr)
    panels = [("bicubic", bicubic_upscale(left, backbone.scale)), ("frozen", frozen), ("adapted", adapted), ("HR", hr)]
    side = PATCH_PX * ENLARGE
    whole = _image(hr).resize((4 * side + 3 * MARGIN_PX, round((4 * side + 3 * MARGIN_PX) * hr.shape[1] / hr.shape[2])))
    width, top = whole.width + 2 * MARGIN_PX, whole.height + 2 * MARGIN_PX
    sheet = Image.new("RGB", (width, top + side + 4 * TEXT_PX + MARGIN_PX), "white")
    draw = ImageDraw.Draw(sheet)
    sheet.paste(whole, (MARGIN_PX, MARGIN_PX))
    ratio = whole.width / hr.shape[2]
    corners = [MARGIN_PX + round(v * ratio) for v in (x, y, x + PATCH_PX, y + PATCH_PX)]
    draw.rectangle(corners, outline="red", width=2)
    font = ImageFont.load_default(TEXT_PX)
    for i, (name, image) in enumerate(panels):
        column = MARGIN_PX + i * (side + MARGIN_PX)
        patch = image[:, y : y + PATCH_PX, x : x + PATCH_PX]
        sheet.paste(_image(patch).resize((side, side), Image.Resampling.NEAREST), (column, top))
        label = name if name == "HR" else f"{name}  {psnr(image, hr):.2f} dB"
        draw.text((column, top + side + 4), label, fill="black", font=font)
    note = f"{pair.name}, left view, x{backbone.scale}. PSNR of the whole view; patch: where the scene varies most."
    draw.text((MARGIN_PX, top + side + 2 * TEXT_PX), note, fill="gray", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _most_contrast(image: Tensor) -> tuple[int, int]:
    """Top and left of the patch whose pixels vary most."""
    mean = F.avg_pool2d(image[None], PATCH_PX, stride=4)
    variance = (F.avg_pool2d(image[None] ** 2, PATCH_PX, stride=4) - mean**2).sum((0, 1))
    index = int(torch.argmax(variance))
    return 4 * (index // variance.shape[1]), 4 * (index % variance.shape[1])


def _image(view: Tensor) -> Image.Image:
    return Image.fromarray(to_uint8(view).permute(1, 2, 0).contiguous().numpy())
