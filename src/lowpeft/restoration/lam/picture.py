"""Picture of local attribution maps: the views with the patch outlined, and below them each network's maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..images import as_picture
from .attribution import Attribution, view_names, view_title

VIEW_PX, MARGIN_PX, TEXT_PX, LINE_PX = 480, 12, 14, 18
"""Layout sizes in px. Views are enlarged by a whole factor to at least `VIEW_PX` columns, so that titles fit."""
CHARACTER_PX = 7.4
"""Mean width in px of the default font's characters at `TEXT_PX`, with some slack."""
DIMMED = 0.45
"""Brightness factor of the grey view under a map, so that the colours stand out."""


def draw_attributions(
    columns: Mapping[str, Attribution], views: Sequence[Tensor], *, scale: int, notes: Sequence[str]
) -> Image.Image:
    """Draw attributions of one patch: a row with the views, and a row of maps for each network.

    A map is drawn as heat (black, red, yellow, white) over the grey view. Its strength is the square root of
    |attribution| divided by the largest |attribution| in the same map. If another view's map has larger values, the
    title gives the ratio, so that a faint map is not mistaken for a strong one.

    Args:
        columns: Attributions by network name.
        views: Views that were attributed, (3,H,W), 0..1.
        scale: HR pixels per LR pixel.
        notes: Paragraphs to write below the maps.
    """
    names = [view_title(name).removeprefix("the ") for name in view_names(len(views))] if len(views) > 1 else ["image"]
    rows = [list(zip(names, views, strict=True))]
    for network, attribution in columns.items():
        titles = [f"{network}, {name}{_remark(attribution, i)}" for i, name in enumerate(names)]
        rows.append(list(zip(titles, map(heat, views, attribution.maps), strict=True)))
    patch = next(iter(columns.values())).patch
    outlined = view_names(len(views)).index(patch.view)
    enlarge = -(-VIEW_PX // views[0].shape[-1])
    top, left, side = (px * enlarge / scale for px in (patch.y_px, patch.x_px, patch.side_px))
    corners = [round(px) for px in (left, top, left + side, top + side)]
    panels = [
        [_panel(title, image, enlarge, corners if i == outlined else None) for i, (title, image) in enumerate(row)]
        for row in rows
    ]
    return _sheet(panels, notes)


def _panel(title: str, image: Tensor, enlarge: int, outline: list[int] | None) -> Image.Image:
    """Draw an enlarged image (3,H,W) below its title, with an outline (left, top, right, bottom)."""
    picture = as_picture(image)
    picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
    if outline is not None:
        left, top, right, bottom = outline
        ImageDraw.Draw(picture).rectangle([left, top, max(left, right - 1), max(top, bottom - 1)], outline="cyan")
    panel = Image.new("RGB", (picture.width, LINE_PX + picture.height), "white")
    panel.paste(picture, (0, LINE_PX))
    ImageDraw.Draw(panel).text((0, 0), title, fill="black", font=ImageFont.load_default(TEXT_PX))
    return panel


def _sheet(rows: Sequence[Sequence[Image.Image]], notes: Sequence[str]) -> Image.Image:
    """Put panels of one size on a sheet, and the notes below them."""
    column_px, row_px = (px + MARGIN_PX for px in rows[0][0].size)
    width, top = MARGIN_PX + len(rows[0]) * column_px, MARGIN_PX + len(rows) * row_px
    lines = [line for note in notes for line in textwrap.wrap(note, int((width - 2 * MARGIN_PX) / CHARACTER_PX))]
    sheet = Image.new("RGB", (width, top + len(lines) * LINE_PX + MARGIN_PX), "white")
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            sheet.paste(panel, (MARGIN_PX + column * column_px, MARGIN_PX + row * row_px))
    for i, line in enumerate(lines):
        position = (MARGIN_PX, top + i * LINE_PX)
        ImageDraw.Draw(sheet).text(position, line, fill="dimgray", font=ImageFont.load_default(TEXT_PX))
    return sheet


def heat(view: Tensor, values: Tensor) -> Tensor:
    """Return a map (H,W) as heat over its view (3,H,W): (3,H,W), 0..1."""
    peak = values.abs().max()
    strength = (values.abs() / peak).sqrt() if peak else values.abs()
    colours = torch.stack([(3 * strength - channel).clamp(0, 1) for channel in range(3)])
    return DIMMED * view.mean(0) * (1 - strength) + colours * strength


def _remark(attribution: Attribution, index: int) -> str:
    """Return the part of a title that compares a map's peak with the largest peak of all views."""
    peaks = [m.abs().max().item() for m in attribution.maps]
    if not peaks[index]:
        return ": exactly 0"
    ratio = max(peaks) / peaks[index]
    return f" (largest is 1/{ratio:{'.3g' if ratio < 100 else ',.0f'}} of the other view's)" if ratio > 1 else ""
