"""Writing a page: its parts, style and script in one file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ...errors import DataError
from ...storage import write_text
from .parts import Part, escaped

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy: a browser loads nothing for the page, neither from the network nor from the disk."""


def write_page(path: str | os.PathLike[str], title: str, parts: Iterable[Part]) -> Path:
    """Write a page as one HTML file, in one step. Its size is about 4/3 of its images as PNG.

    Args:
        path: Path of the file, `.html`.
        title: Heading of the page.
        parts: Parts of the page, from top to bottom.

    Returns:
        `path`.

    Raises:
        DataError: The title is no text, a part cannot be shown, or the file cannot be written; an existing file is
            unchanged.
    """
    if not isinstance(parts, Iterable):
        raise DataError(f"a page is made of a list of parts, not of one {type(parts).__name__}")
    path, parts = Path(path), list(parts)
    if wrong := [str(part) for part in parts if isinstance(part, type) or not hasattr(part, "html")]:
        raise DataError(f"these are no parts of a page: {', '.join(wrong)}; use Text, Table, Slider, …")
    page = "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title)}</title>\n<style>\n{_file('page.css')}</style>\n</head>\n<body>\n<main>",
            f"<h1>{escaped(title)}</h1>",
            *(part.html() for part in parts),
            f"</main>\n<script>\n{_file('page.js')}</script>\n</body>\n</html>\n",
        ]
    )
    try:
        return write_text(path, page)
    except (OSError, ValueError) as error:  # ValueError: the path is no name of a file
        raise DataError(f"cannot write the page {path}: {getattr(error, 'strerror', None) or error}") from error


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
