"""Parts of a page. Each gives its HTML; `page.css` and `page.js` give that its look and its behaviour."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Protocol

import torch

from ... import tables
from ...errors import DataError, did_you_mean
from ...ports.layouts import Size
from ..images import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Image = torch.Tensor | Picture


def escaped(text: str) -> str:
    """Return a text for HTML.

    Raises:
        DataError: It is no text.
    """
    if not isinstance(text, str):
        raise DataError(f"a page shows text, not {text!r} ({type(text).__name__}): format it first")
    return escape(text.encode(errors="replace").decode())  # names of files may not be valid Unicode


class Part(Protocol):
    """Anything that `write_page` can put on a page."""

    def html(self) -> str:
        """Return the HTML of the part, with all text escaped."""


@dataclass(frozen=True)
class Heading:
    """Heading of a section; with `level=3` of a part of one."""

    text: str
    level: int = field(default=2, kw_only=True)

    def html(self) -> str:
        return f"<h{self.level}>{escaped(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Text:
    """Paragraph of plain text."""

    text: str

    def html(self) -> str:
        return f"<p>{escaped(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Command line, or several lines, with a button that copies it."""

    text: str

    def html(self) -> str:
        return (
            f'<div class="code"><pre><code>{escaped(self.text)}</code></pre><button type="button">Copy</button></div>'
        )


@dataclass(frozen=True)
class Table:
    """Table that is sorted by a click on a header; see `lowpeft.tables` for the columns that count as numbers.

    Attributes:
        cells: Rows of one length, the header first.
        caption: Text above the table.
        wrap: True breaks the lines of the last column, for sentences.

    Raises:
        DataError: There is no header, the rows differ in length, or a cell is no text.
    """

    cells: tables.Cells
    caption: str = ""
    wrap: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.cells, str) or not isinstance(self.cells, Sequence):
            raise DataError(f"the cells of a table must be a list of rows, not a {type(self.cells).__name__}")
        lengths = sorted({len(row) for row in self.cells})
        if len(lengths) != 1 or lengths == [0]:
            raise DataError(f"expected a table with a header and rows of one length, not rows of {lengths} cells")
        for row in self.cells:
            for cell in row:
                escaped(cell)

    def html(self) -> str:
        caption = f"<figcaption>{escaped(self.caption)}</figcaption>\n" if self.caption else ""
        kind = "table wrap" if self.wrap else "table"
        return f'<figure class="{kind}">\n{caption}<div class="scroller">{tables.html(self.cells)}</div>\n</figure>'


@dataclass(frozen=True, eq=False)
class Pictures:
    """One or more named images in a row, as far as they fit, and enlarged if they are small.

    Attributes:
        images: Images by name, of any sizes.
        caption: Text below them.

    Raises:
        DataError: There is no image, or one is not (3, H, W).
    """

    images: Mapping[str, Image]
    caption: str = ""

    def __post_init__(self) -> None:
        _sizes(self.images, least=1)

    def html(self) -> str:
        """Return the HTML of the part.

        Raises:
            DataError: An image contains other values, or is in a mode that PNG does not have.
        """
        return f'<figure class="pictures">\n<div class="row">\n{_figures(self.images)}\n</div>{_caption(self.caption)}'


@dataclass(frozen=True, eq=False)
class Slider:
    """Images of one scene on top of one another; a line that the reader drags divides two of them.

    The reader chooses the two, and the enlargement. The line follows mouse, touch and arrow keys.

    Attributes:
        images: Two or more images of one size, by name.
        caption: Text below them.
        shown: Names of the images that are shown left and right of the line at first; None means the first two.

    Raises:
        DataError: There are fewer than two images, they differ in size, one is not (3, H, W), or `shown` is not
            two names of images.
    """

    images: Mapping[str, Image]
    caption: str = ""
    shown: tuple[str, str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sizes = _sizes(self.images, least=2)
        if len(set(sizes.values())) != 1:
            listed = [f"{name}: {width}x{height} px" for name, (height, width) in sizes.items()]
            raise DataError("the images of a slider must have one size", problems=listed)
        if self.shown is not None and len(self.shown) != 2:
            raise DataError(f"a slider shows two images at first, not {len(self.shown)}")
        for name in self.shown or ():
            if name not in self.images:
                known = f"{did_you_mean(name, self.images)}; images: {', '.join(self.images)}"
                raise DataError(f"the slider cannot show {name!r}, because no image has this name{known}")

    def html(self) -> str:
        """Return the HTML of the part.

        Raises:
            DataError: An image contains other values, or is in a mode that PNG does not have.
        """
        names = list(self.images)
        left, right = self.shown or names[:2]
        images = {name: name for name in names}
        enlargements = {"": "to fit"} | {str(factor): f"{factor}×" for factor in (1, 2, 3, 4, 6, 8)}
        return (
            '<figure class="slider">\n<div class="controls">\n'
            f"<label>◂{_select('Image left of the line', images, left)}</label>\n"
            f"<label>Size{_select('Size', enlargements, '')}</label>\n"
            f"<label>{_select('Image right of the line', images, right)}▸</label>\n</div>\n"
            f'<div class="view"><div class="scroller"><div class="stage">\n{_figures(self.images)}\n'
            '</div></div><span class="line"></span></div>\n'
            '<input type="range" min="0" max="100" step="0.5" value="50" aria-label="Line between the two images">'
            f"{_caption(self.caption)}"
        )


def _sizes(images: Mapping[str, Image], *, least: int) -> dict[str, Size]:
    """Return height and width of each image; raise DataError if there are fewer, or one is not (3, H, W)."""
    if not isinstance(images, Mapping):
        raise DataError(f"expected images by name, not a {type(images).__name__}")
    if len(images) < least:
        raise DataError(f"expected {least} or more images, not {len(images)}")
    sizes = {}
    for name, image in images.items():
        if not isinstance(image, torch.Tensor) and hasattr(image, "save"):
            sizes[name] = (image.height, image.width)
        elif isinstance(image, torch.Tensor) and image.ndim == 3 and image.shape[0] in (1, 3) and image.numel():
            sizes[name] = (image.shape[1], image.shape[2])
        else:
            found = f"shape {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
            raise DataError(
                f"image {name!r}: expected a tensor (3, H, W) or (1, H, W), or an image of Pillow, not {found}"
            )
    return sizes


def _figures(images: Mapping[str, Image]) -> str:
    """Return each image with its name below it. The names stay for readers without scripts."""
    return "\n".join(
        f"<figure>{_image(name, image)}<figcaption>{escaped(name)}</figcaption></figure>"
        for name, image in images.items()
    )


def _image(name: str, image: Image) -> str:
    """Return an image as an element that contains its pixels."""
    buffer = io.BytesIO()
    try:
        picture = as_picture(image) if isinstance(image, torch.Tensor) else image
        picture.save(buffer, format="PNG")
    except DataError as error:
        raise DataError(f"image {name!r} cannot be shown: {error}") from error
    except (OSError, ValueError) as error:  # a mode of Pillow that PNG does not have, or no pixels
        raise DataError(f"image {name!r} cannot be shown: {error}; convert it to RGB") from error
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{escaped(name)}" width="{picture.width}" height="{picture.height}" draggable="false" '
        f'src="data:image/png;base64,{data}">'
    )


def _caption(text: str) -> str:
    return f"\n<figcaption>{escaped(text)}</figcaption>\n</figure>" if text else "\n</figure>"


def _select(label: str, options: Mapping[str, str], chosen: str) -> str:
    """Return a drop-down list of options, given as texts by value."""
    items = "".join(
        f'<option value="{escaped(value)}"{" selected" * (value == chosen)}>{escaped(text)}</option>'
        for value, text in options.items()
    )
    return f'<select aria-label="{label}">{items}</select>'
