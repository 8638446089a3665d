"""Results for model cards, from the reports of `lowpeft evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import AdapterError
from .about import Result, is_figure
from .reading import read_json

ADAPTED = "adapted"
DIGEST = "adapter tensors (SHA-256)"
"""Fact of a report that says which adapter was measured."""


def results_of(report: str | Path, data: str | None = None) -> tuple[Result, ...]:
    """Read what `lowpeft evaluate` measured, for `About.results`; an adapter is saved with results of its own only.

    Args:
        report: `report.json` that `lowpeft evaluate --adapter … --out FOLDER` wrote, or its folder.
        data: Name of the images, as others know them; by default that of the folder that they were in.

    Raises:
        AdapterError: It is no such report, or it cannot be read.
    """
    path = Path(report).expanduser()
    path = path / "report.json" if path.is_dir() else path
    if path.exists() and not path.is_file():
        raise AdapterError(f"{path} is no file")
    content = read_json(path) or {}
    try:
        return (_result(content, data),)
    except (AdapterError, AttributeError, LookupError, TypeError) as error:
        raise AdapterError(
            f"{path} is no report of `lowpeft evaluate --adapter … --out FOLDER`, which has means of {ADAPTED!r} images"
        ) from error


def _result(content: dict[str, Any], data: str | None) -> Result:
    methods = content["methods"]
    means = {m["method"]: {name: v for name, v in m["mean"].items() if is_figure(v)} for m in methods}
    made = [content[name] for name in ("LR images", "degraded images") if name in content]
    if not means[ADAPTED]:
        raise LookupError(ADAPTED)
    return Result(
        data=data if data is not None else str(content["data"]),
        degraded=str(made[0]),
        protocol=str(content["protocol"]),
        means=means,
        scenes=max(len(m.get("scenes", ())) for m in methods) or None,
        verdict=next((str(gain["verdict"]) for gain in content.get("gains", ())), ""),
        adapter=content.get(DIGEST),
    )
