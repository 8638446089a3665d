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


def results_of(report: str | Path, *, digest: str | None = None) -> tuple[Result, ...]:
    """Read what `lowpeft evaluate` measured, for `About.results`.

    Args:
        report: `report.json` that `lowpeft evaluate --adapter … --out FOLDER` wrote, or its folder.
        digest: SHA-256 of the tensors of the adapter that the report should be about; None does not ask.

    Raises:
        AdapterError: It is no such report, it cannot be read, or it is about another adapter.
    """
    path = Path(report).expanduser()
    path = path / "report.json" if path.is_dir() else path
    content = read_json(path) or {}
    if digest is not None and content.get(DIGEST, digest) != digest:
        raise AdapterError(
            f"{path} is about another adapter ({content.get('adapter')!s:.100}): the checksum of its tensors differs"
        )
    try:
        return (_result(content),)
    except (AdapterError, AttributeError, LookupError, TypeError) as error:
        raise AdapterError(
            f"{path} is no report of `lowpeft evaluate --adapter … --out FOLDER`, which has means of {ADAPTED!r} images"
        ) from error


def _result(content: dict[str, Any]) -> Result:
    means = {m["method"]: {name: v for name, v in m["mean"].items() if is_figure(v)} for m in content["methods"]}
    made = [content[name] for name in ("LR images", "degraded images") if name in content]
    if not means[ADAPTED]:
        raise LookupError(ADAPTED)
    return Result(data=str(content["data"]), degraded=str(made[0]), protocol=str(content["protocol"]), means=means)
