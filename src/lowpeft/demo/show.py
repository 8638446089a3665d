"""Pictures and the page of the demo: both views by every method, where attention looks, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..core.operations.state import summary
from ..restoration.data import Example
from ..restoration.data.model import SIDES
from ..restoration.evaluation import SAME_VIEW, AttendedDisparity, Comparison, attended_disparity, most_confident
from ..restoration.evaluation.page import TRUTH, view_parts
from ..restoration.evaluation.pictures import PATCH_PX, draw_disparity, draw_scene, most_different
from ..restoration.images import as_picture, bicubic_upscale, eight_bit, make_folder, to_float, write_picture
from ..restoration.inference.network import Views
from ..restoration.pages import Code, Heading, Part, Pictures, Table, Text, write_page
from .task import NOISE

ENLARGE = 3
TASK = (
    "Stereo super-resolution x{scale} of pairs from two cameras with Gaussian noise of {noise:.0f}/255. Frozen: a HAT "
    "of 0.48 M parameters that was pre-trained on clean single images. Adapted: the same with {parameters:,} trained "
    "parameters of the recipe parallax, which lets each view look at the other. Same view: the adapted network, with "
    "each view given twice in place of the pair."
)


class Shown(NamedTuple):
    """The scene that is shown.

    Attributes:
        example: The scene.
        results: Its HR views by method: `bicubic`, `frozen`, `adapted`, `same view`.
        disparity_px: True disparity of the left view in HR px, (H,W), if it is known.
    """

    example: Example
    results: dict[str, Views]
    disparity_px: Tensor | None


class Looks(NamedTuple):
    """Where attention looks for one pixel of the left view, in LR px.

    Attributes:
        row: Row of the pixel.
        column: Column of the pixel in the left view.
        attended: Column of the right view with the largest attention weight.
        weight: That weight, 0..1.
    """

    row: int
    column: int
    attended: float
    weight: float


def show(
    folder: Path,
    model: object,
    shown: Shown,
    comparison: Comparison,
    *,
    scale: int,
    claim: str,
    commands: list[str],
) -> Path:
    """Write the pictures of one scene and `index.html`, and return the path of the page.

    Args:
        folder: Folder to write to.
        model: The adapted model.
        shown: The scene that is shown, and its images.
        comparison: Figures of all scenes.
        scale: HR sides divided by LR sides.
        claim: What the other view gives, in words.
        commands: Command lines for the reader to copy.

    Raises:
        DataError: A file cannot be written.
    """
    example = shown.example
    views = {**shown.results, TRUTH: example.hr}
    results = tuple({name: eight_bit(each[i]) for name, each in views.items()} for i in range(len(SIDES)))
    pictures = make_folder(folder / "pictures")
    for side, images in zip(SIDES, results, strict=True):
        for name, image in images.items():
            write_picture(as_picture(image), pictures / f"{side}-{name.replace(' ', '-')}.png")
    for view, side in enumerate(SIDES):
        beside = {name: results[view][name] for name in ("frozen", SAME_VIEW, "adapted")}
        draw_scene(pictures / f"comparison-{side}.png", example, beside, scale=scale, view=view)
    found = most_confident(attended_disparity(model, *map(to_float, example.lr)))
    maps = _disparity(shown, found, scale)
    write_picture(draw_disparity(maps, note=_note(found)), pictures / "disparity.png")
    pixel = _pixel(example, found, scale)
    looks = _draw_looks(example, pixel, maps.get("true disparity"))
    write_picture(looks, pictures / "attention.png")
    errors = (SAME_VIEW, "adapted")
    parts: list[Part] = [
        Text(TASK.format(scale=scale, noise=NOISE * 255, parameters=summary(model).trainable)),
        Text(claim),
        Table(comparison.cells, "Mean of both views; the scenes were not used in training"),
        Heading(f"Scene {example.name}"),
        *view_parts(
            results[0], "Left view. Drag the line; choose other images above it.", ("frozen", "adapted"), errors=errors
        ),
        *view_parts(results[1], "Right view.", (SAME_VIEW, "adapted"), errors=errors),
        Heading("Where attention looks"),
        Pictures({"attention": looks}, _describe(pixel)),
        Pictures({"disparity": draw_disparity(maps)}, _note(found)),
        Heading("What next"),
        *map(Code, commands),
    ]
    return write_page(folder / "index.html", "lowpeft demo: a stereo network from a frozen single-image one", parts)


def _disparity(shown: Shown, found: AttendedDisparity, scale: int) -> dict[str, Tensor]:
    """Return the panels of the disparity picture: the attended and, if known, the true disparity, and the left view."""
    left, attended = {"left view": shown.example.lr[0]}, {"attended disparity": found.disparity_px[0]}
    if shown.disparity_px is None:
        return left | attended
    return attended | {"true disparity": F.avg_pool2d(shown.disparity_px[None], scale)[0] / scale} | left


def _pixel(example: Example, found: AttendedDisparity, scale: int) -> Looks:
    """Return where attention looks for the middle of the patch where bicubic is farthest from the truth."""
    top, left = most_different(example.hr[0], bicubic_upscale(example.lr[0], scale))
    px = min(PATCH_PX, *example.hr[0].shape[1:])
    row, column = (top + px // 2) // scale, (left + px // 2) // scale
    disparity, weight = (maps[0][row, column].item() for maps in (found.disparity_px, found.confidence))
    return Looks(row, column, column - disparity, weight)


def _draw_looks(example: Example, looks: Looks, true_disparity: Tensor | None) -> Image.Image:
    """Draw the pixel in the left view, and below it, in the right view, where attention looks and where it is."""
    views = [as_picture(view).resize((view.shape[-1] * ENLARGE, view.shape[-2] * ENLARGE)) for view in example.lr]
    sheet = Image.new("RGB", (views[0].width, 2 * views[0].height + 4), "white")
    marks = [(0, looks.column, "yellow"), (1, looks.attended, "red")]
    if true_disparity is not None:
        marks.append((1, looks.column - true_disparity[looks.row, looks.column].item(), "lime"))
    for view, image in enumerate(views):
        sheet.paste(image, (0, view * (image.height + 4)))
    draw = ImageDraw.Draw(sheet)
    for view, column, colour in marks:
        x, y = ENLARGE * (column + 0.5), ENLARGE * (looks.row + 0.5) + view * (views[0].height + 4)
        radius = 5 if colour == "lime" else 9
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    return sheet


def _describe(looks: Looks) -> str:
    return (
        f"Yellow: pixel ({looks.row}, {looks.column}) of the left view (row, column, in LR px), the middle of the "
        f"patch where bicubic is worst. Red: the position of the right view with the largest attention weight, "
        f"{looks.weight:.2f}. Green, in the built-in scenes: where that point is in truth."
    )


def _note(found: AttendedDisparity) -> str:
    return f"x_left - x_right of the position with the largest attention weight, in LR px, at {found.site}."
