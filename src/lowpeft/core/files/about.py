"""What the author of an adapter says of it for those who look for one: licence, base, data, results, a picture.

Nothing checks it, apart from its form; `lowpeft info` shows it apart from what is checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...checks import is_number, is_whole
from ...errors import AdapterError

PICTURE = "picture"
"""Name of the picture in an adapter folder, without its suffix."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
PICTURE_NAMES = tuple(f"{PICTURE}{suffix}" for suffix in PICTURES)
PICTURE_STARTS = rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP"
"""Pattern of the first bytes of a picture."""
MOST_PICTURE_BYTES = 5 * 2**20
MOST_TEXT = 1_000
"""Characters of one text."""
MOST_ITEMS = 100
"""Of data sets, of results, and of the methods and columns of a result."""


@dataclass(frozen=True)
class BaseFile:
    """A file of weights on the Hub.

    Attributes:
        repo_id: The repository, `owner/name`.
        path: Path of the file in it.
        revision: Commit, tag or branch; None for the default branch.
    """

    repo_id: str
    path: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Means that were measured on one set of images.

    Attributes:
        data: Name of the images.
        degraded: How their degraded or LR images were made.
        protocol: What was compared.
        means: Means by method ("input", "bicubic", "frozen", "adapted") and column.
        scenes: Number of images or pairs; None if that is not known.
        verdict: Sentence on what the adapter gains over the frozen network; empty if there is none.
        adapter: SHA-256 of the tensors of the adapter that was measured; None if that is not known.
    """

    data: str
    degraded: str
    protocol: str
    means: Mapping[str, Mapping[str, float]]
    scenes: int | None = None
    verdict: str = ""
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.scenes is not None and not is_whole(self.scenes, least=1):
            raise AdapterError(f"the scenes of a result are counted, not {self.scenes!r:.100}")
        if not isinstance(self.means, Mapping) or not all(isinstance(each, Mapping) for each in self.means.values()):
            raise AdapterError(f"the means of a result are tables of tables, not {self.means!r:.100}")
        texts = [self.data, self.degraded, self.protocol, *self.means, *filter(None, (self.adapter, self.verdict))]
        texts += [column for means in self.means.values() for column in means]
        if not all(_is_text(text) for text in texts):
            raise AdapterError(f"a result names its data, method and columns by texts of 1 to {MOST_TEXT:,} characters")
        if max(len(self.means), *(len(means) for means in self.means.values()), 0) > MOST_ITEMS:
            raise AdapterError(f"a result has at most {MOST_ITEMS} methods and {MOST_ITEMS} columns")
        if not all(is_figure(value) for means in self.means.values() for value in means.values()):
            raise AdapterError("the means of a result are finite numbers")


@dataclass(frozen=True, kw_only=True)
class About:
    """What the author says of an adapter; in its config, on its model card and in the card's metadata.

    Attributes:
        summary: One line that says what the adapter is for, e.g. "Gaussian noise of sigma 25 in colour photographs"; it
            is the first line of the card.
        license: Identifier of the adapter's licence, as on the Hub: "apache-2.0", "cc-by-nc-4.0", "other". None leaves
            it open; nothing is guessed.
        base_model: Where the weights of the base are: a file on the Hub, `owner/name/path/to/file` with or without
            `@revision`, which `lowpeft.load_pretrained` fetches; the Hub repository alone; or an address, which is
            only shown.
        datasets: Names of the training data; those of the Hub's data sets become links.
        results: What was measured; `lowpeft.results_of` reads them from a report.
        picture: Path of an image file (PNG, JPEG or WebP) that is copied beside the adapter and shown on its card.

    Raises:
        AdapterError: A text is empty or longer than 1,000 characters, the licence is no identifier, or there is no such
            picture.
    """

    summary: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    results: tuple[Result, ...] = ()
    picture: str | Path | None = None

    def __post_init__(self) -> None:
        if isinstance(self.datasets, str):
            object.__setattr__(self, "datasets", (self.datasets,))
        for name in ("datasets", "results"):
            if not isinstance(given := getattr(self, name), (list, tuple)):
                raise AdapterError(f"{name} of an adapter are a list, not {given!r:.100}")
            object.__setattr__(self, name, tuple(given))
        if not isinstance(self.picture, (str, Path, type(None))):
            raise AdapterError(f"the picture of an adapter is a path, not {self.picture!r:.100}")
        if problems := [*self._problems()]:
            raise AdapterError("this cannot be said of an adapter:", problems=problems)

    @property
    def base_file(self) -> BaseFile | None:
        """The file of the base on the Hub; None if `base_model` names none."""
        if self.base_model is None or "://" in self.base_model:
            return None
        name, _, revision = self.base_model.partition("@")
        parts = PurePosixPath(name).parts
        return BaseFile("/".join(parts[:2]), "/".join(parts[2:]), revision or None) if len(parts) > 2 else None

    @property
    def base_repo(self) -> str | None:
        """The Hub repository of the base; None if `base_model` is an address, or unknown."""
        if self.base_model is None or "://" in self.base_model:
            return None
        return "/".join(self.base_model.partition("@")[0].split("/")[:2])

    def as_dict(self) -> dict[str, Any]:
        """Return what is said, as plain values; the picture by its name in the adapter folder."""
        results = [{**vars(each), "means": {k: dict(v) for k, v in each.means.items()}} for each in self.results]
        picture = None if self.picture is None else f"{PICTURE}{Path(self.picture).suffix.lower()}"
        values = {
            "summary": self.summary,
            "license": self.license,
            "base_model": self.base_model,
            "datasets": list(self.datasets),
            "results": results,
            "picture": picture,
        }
        return {name: value for name, value in values.items() if value}

    def _problems(self) -> list[str]:
        texts = {"summary": self.summary, "license": self.license, "base_model": self.base_model}
        texts |= {f"datasets[{i}]": name for i, name in enumerate(self.datasets)}
        problems = [
            f"{name} must be a text of 1 to {MOST_TEXT:,} characters on one line, not {value!r:.100}"
            for name, value in texts.items()
            if value is not None and not _is_text(value)
        ]
        if problems:
            return problems
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            problems.append(f"license must be an identifier such as 'apache-2.0' or 'other', not {self.license!r:.100}")
        if self.base_model is not None and not _names_a_base(self.base_model):
            problems.append(
                "base_model must be owner/name/path/to/file or owner/name of the Hub, or an address that begins with "
                f"https://, not {self.base_model!r:.100}"
            )
        if not all(isinstance(result, Result) for result in self.results):
            problems.append("results must be of lowpeft.results_of(report)")
        if max(len(self.datasets), len(self.results)) > MOST_ITEMS:
            problems.append(f"at most {MOST_ITEMS} datasets and {MOST_ITEMS} results")
        return problems + ([] if self.picture is None else _picture_problems(Path(self.picture)))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_TEXT and value.isprintable() and bool(value.strip())


def is_figure(value: object) -> bool:
    """Return whether a value is a finite number."""
    return is_number(value, above=-math.inf)


def _names_a_base(text: str) -> bool:
    if "://" in text:
        return re.fullmatch(r"https?://[^\s<>|`\"\\]+", text) is not None
    part = r"[\w.-]+"
    revision = rf"@\w{part}(/{part})*|@\w"
    named = re.fullmatch(rf"{part}(/{part})+({revision})?", text, re.ASCII)
    return named is not None and not any(not each.strip(".") for each in re.split("[/@]", text))


def _picture_problems(path: Path) -> list[str]:
    if path.suffix.lower() not in PICTURES:
        return [f"picture must be a file that ends in {', '.join(PICTURES)}, not {str(path)!r:.100}"]
    return []


def about_from_dict(values: Mapping[str, Any]) -> About:
    """Return what `About.as_dict` wrote; fields that it does not know are left out.

    Raises:
        AdapterError, AttributeError, LookupError, TypeError, ValueError: It wrote something else.
    """
    picture = values.get("picture")
    if picture is not None and picture not in PICTURE_NAMES:
        raise ValueError(f"the picture is named {picture!r:.100}")
    return About(
        summary=values.get("summary"),
        license=values.get("license"),
        base_model=values.get("base_model"),
        datasets=tuple(values.get("datasets", ())),
        results=tuple(_result_from_dict(each) for each in values.get("results", ())),
        picture=picture,
    )


def _result_from_dict(values: Mapping[str, Any]) -> Result:
    return Result(
        data=values["data"],
        degraded=values["degraded"],
        protocol=values["protocol"],
        means=dict(values["means"]),
        scenes=values.get("scenes"),
        verdict=values.get("verdict", ""),
        adapter=values.get("adapter"),
    )
