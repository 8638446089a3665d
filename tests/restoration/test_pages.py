"""HTML pages: what is in the one file, and in a browser what is seen of it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lowpeft import DataError
from lowpeft.restoration import pages
from lowpeft.restoration.images import as_picture, read_image, to_float
from lowpeft.restoration.pages import Code, Heading, Pictures, Slider, Table, Text, write_page

A, B = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MARKUP = '<b class="x">&amp;</b></script>'
VOID = {"meta", "img", "input"}


class Read(HTMLParser):
    """A page as read: its elements with their attributes, the text of each, and its images by name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def written(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def images(self) -> dict[str | None, Tensor]:
        return {each["alt"]: decoded(each["src"] or "") for each in self.all("img")}


def decoded(uri: str) -> Tensor:
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    with Image.open(io.BytesIO(data)) as picture:
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


def test_a_page_is_one_file_that_needs_no_other(tmp_path: Path) -> None:
    parts = [Slider({"a": A, "b": B}), Table([["h"], ["1"]]), Code("lowpeft demo"), Text("text"), Heading("more")]
    path = write_page(tmp_path / "page.html", "Title", parts)
    page = Read(path)
    assert list(tmp_path.iterdir()) == [path]
    assert page.open == []
    assert page.written("title") == page.written("h1") == ["Title"]
    assert "src" not in {name for tag, attributes in page.elements for name in attributes if tag != "img"}
    assert "href" not in {name for _, attributes in page.elements for name in attributes}
    assert not re.search(r"https?:|\burl\(|@import|\bfetch\(", path.read_text(encoding="utf-8"))


def test_images_have_the_same_pixels(tmp_path: Path) -> None:
    images = {"uint8": A, "float": to_float(B), "Pillow": as_picture(B), "grey": as_picture(A[:1].expand(3, -1, -1))}
    images["grey"] = images["grey"].convert("L")
    page = Read(write_page(tmp_path / "page.html", "Images", [Pictures(images)]))
    shown = page.images()
    assert torch.equal(shown["uint8"], A)
    assert torch.equal(shown["float"], B)
    assert torch.equal(shown["Pillow"], B)
    assert torch.equal(shown["grey"], A[:1].expand(3, -1, -1))
    assert {(each["width"], each["height"]) for each in page.all("img")} == {("12", "8")}


def test_every_text_is_escaped(tmp_path: Path) -> None:
    parts = [
        Heading(MARKUP),
        Text(MARKUP),
        Code(MARKUP),
        Table([[MARKUP], ["1"]], MARKUP),
        Pictures({MARKUP: A}, MARKUP),
        Slider({MARKUP: A, "b": B}, MARKUP),
    ]
    page = Read(write_page(tmp_path / "page.html", MARKUP, parts))
    assert page.all("b") == []
    for tag, times in {"title": 1, "h1": 1, "h2": 1, "p": 1, "code": 1, "th": 1, "option": 2, "figcaption": 5}.items():
        assert page.written(tag).count(MARKUP) == times, tag
    assert [each["alt"] for each in page.all("img")] == [MARKUP, MARKUP, "b"]


@pytest.mark.parametrize(
    ("shown", "expected"), [(None, ["a", "b"]), (("c", "a"), ["c", "a"]), (("b", "b"), ["b", "b"])]
)
def test_a_slider_begins_with_the_images_asked_for(
    tmp_path: Path, shown: tuple[str, str] | None, expected: list[str]
) -> None:
    slider = Slider({"a": A, "b": B, "c": A}, shown=shown)
    page = Read(write_page(tmp_path / "page.html", "Slider", [slider]))
    chosen = [each["value"] for each in page.all("option") if "selected" in each]
    assert chosen == [expected[0], "", expected[1]]
    assert [each["type"] for each in page.all("input")] == ["range"]


@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        (Slider, [{"a": A}]),
        (Slider, [{"a": A, "b": B[:, 1:]}]),
        (Slider, [{"a": A, "b": B[None]}]),
        (Pictures, [{}]),
        (Pictures, [{"a": A[:2]}]),
        (Table, [[]]),
        (Table, [[[]]]),
        (Table, [[["a", "b"], ["1"]]]),
        (Table, [[["a"], [1.5]]]),
        (Slider, [[A, B]]),
        (Pictures, [{"a": "a.png"}]),
    ],
)
def test_parts_that_cannot_be_shown_are_refused(part: Any, arguments: list[Any]) -> None:
    with pytest.raises(DataError):
        part(*arguments)


@pytest.mark.parametrize("wrong", [lambda path: ["text"], lambda path: [Text(None)], lambda path: [Code(1)]])
def test_what_is_no_part_or_no_text_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(DataError):
        write_page(tmp_path / "page.html", "Title", wrong(tmp_path))
    with pytest.raises(DataError):
        write_page(tmp_path / "page.html", 3, [])
    assert not list(tmp_path.iterdir())


def test_a_slider_shows_two_images_at_first() -> None:
    with pytest.raises(DataError, match="not 1"):
        Slider({"a": A, "b": B}, shown=("a",))


def test_a_name_that_no_image_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'adapted'"):
        Slider({"frozen": A, "adapted": B}, shown=("frozen", "adaptd"))


@pytest.mark.parametrize("image", [torch.full((3, 4, 4), float("nan")), Image.new("F", (4, 4))], ids=["nan", "mode F"])
def test_an_image_that_cannot_be_shown_is_named_and_nothing_is_written(tmp_path: Path, image: Any) -> None:
    path = write_page(tmp_path / "page.html", "Before", [])
    before = path.read_bytes()
    with pytest.raises(DataError, match="'odd'"):
        write_page(path, "After", [Text("text"), Pictures({"odd": image})])
    assert path.read_bytes() == before


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_page(tmp_path / "missing" / "page.html", "Title", [])


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = (pages.__doc__ or "").split("```python\n")[1].split("```")[0]
    names = {name: getattr(pages, name) for name in pages.__all__}
    exec(example, {**names, "left_images": [A] * 5, "right_images": [B] * 5, "true_disparity": A, "attended": B})
    assert len(Read(tmp_path / "comparison.html").all("img")) == 12


# --- In a browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

# The slider's images alone, in the corner of the window.
ALONE = """<style>body, figure { margin: 0 !important } h1, .js .controls, .js .line, p { display: none }</style>
<script>
const [left, size, right] = document.querySelectorAll("select");
const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
set(size, "8");
"""
BY_RANGE = 'set(document.querySelector("input"), 75);'
BY_POINTER = """
Element.prototype.setPointerCapture = () => {};
Element.prototype.hasPointerCapture = () => true;
for (const [name, x] of [["pointerdown", 90], ["pointermove", 24]]) {
  document.querySelector(".stage").dispatchEvent(new PointerEvent(name, { clientX: x, clientY: 10 }));
}"""


def browser(page: Path, script: str, *options: str) -> str:
    """Opens a page with more at its end in headless Chromium, and returns what that prints."""
    page.write_text(page.read_text(encoding="utf-8") + script + "</script>", encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--window-size=600,500", "--force-device-scale-factor=1"]
    command += ["--force-color-profile=srgb", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(
    ("script", "cut", "images"),
    [
        ("", 6, (A, B)),
        (BY_RANGE, 9, (A, B)),
        (BY_POINTER, 3, (A, B)),
        ('set(left, "c");', 6, (A.flip(2), B)),
        ('set(left, "b");', 6, (B, B)),
    ],
    ids=["at first", "range", "pointer", "another image", "the same image"],
)
def test_what_is_seen_of_a_slider(tmp_path: Path, script: str, cut: int, images: tuple[Tensor, Tensor]) -> None:
    """The left image up to the line, the right one from there on, every pixel 8 by 8 pixels of the screen."""
    page = write_page(tmp_path / "page.html", "Slider", [Slider({"a": A, "b": B, "c": A.flip(2)})])
    browser(page, ALONE + script, f"--screenshot={tmp_path / 'seen.png'}")
    both = torch.cat([images[0][:, :, :cut], images[1][:, :, cut:]], 2)
    seen = read_image(tmp_path / "seen.png")
    assert torch.equal(seen[:, :64, :96], both.repeat_interleave(8, 1).repeat_interleave(8, 2))


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize(
    ("clicks", "expected"),
    [
        ([1], ["9", "27.1 ± 0.1", "1,044", "inf", "–"]),
        ([1, 1], ["inf", "1,044", "27.1 ± 0.1", "9", "–"]),
        ([1, 0], ["27.1 ± 0.1", "–", "9", "1,044", "inf"]),
    ],
)
def test_tables_are_sorted(tmp_path: Path, clicks: list[int], expected: list[str]) -> None:
    rows = [["b", "1,044"], ["a10", "9"], ["a9", "–"], ["c", "inf"], ["a", "27.1 ± 0.1"]]
    page = write_page(tmp_path / "page.html", "Table", [Table([["scene", "dB"], *rows])])
    clicking = "".join(f'document.querySelectorAll("th button")[{column}].click();' for column in clicks)
    dumped = browser(page, f"<script>{clicking}", "--dump-dom")
    assert re.findall(r'<td class="number">(.*?)</td>', dumped) == expected
