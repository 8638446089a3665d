"""Figures that are written scene by scene, so that an interrupted measurement goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...storage import write_text

Figures = Mapping[str, Sequence[float]]
"""Figures of one scene by method: one per column of the method's protocol."""

NAME = "measured.jsonl"


class Journal:
    """File with a line of JSON for each measured scene; its first line says what was measured.

    A reader ignores a last line that a killed writer did not finish.

    Attributes:
        folder: Folder that it lies in.
        rows: Figures of the scenes that are measured, by name.
    """

    def __init__(self, folder: Path, run: Mapping[str, object], rows: Mapping[str, Figures]) -> None:
        self.folder, self.rows = folder, dict(rows)
        self._path = folder / NAME
        lines = [json.dumps(run), *(_line(scene, figures) for scene, figures in rows.items())]
        try:
            write_text(self._path, "\n".join(lines) + "\n")
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def add(self, scene: str, figures: Figures) -> None:
        """Append a scene.

        Raises:
            DataError: The file cannot be written, e.g. because the disk is full.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(scene, figures) + "\n")
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self.rows[scene] = figures


def resume(folder: Path, run: Mapping[str, object], scenes: Iterable[str]) -> Journal:
    """Open the journal of an interrupted measurement of the same kind; a new one if there is none.

    Args:
        folder: Folder of the reports.
        run: JSON values that say what is measured, by name.
        scenes: Names of the scenes to measure.

    Raises:
        DataError: The journal is of another measurement, or damaged; it is left as it is.
    """
    path = folder / NAME
    try:
        head, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is unfinished
        saved, rows = json.loads(head), dict(map(_parsed, lines))
    except FileNotFoundError:
        return Journal(folder, run, {})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove it to measure all scenes again") from error
    here = json.loads(json.dumps(run))
    names = set(scenes)
    differing = [f"{key}: {here.get(key)!r}, there {saved.get(key)!r}" for key in {**here, **saved}
                 if here.get(key) != saved.get(key)]  # fmt: skip
    differing += [f"scene {name} is not among those to measure" for name in rows if name not in names]
    if differing:
        raise DataError(
            f"{path} is of another measurement, so it cannot be resumed: measure without --resume, or into another "
            "folder",
            problems=differing,
        )
    return Journal(folder, run, rows)


def unfinished(folder: Path) -> int:
    """Return the number of scenes that an interrupted measurement left in its working folder."""
    try:
        return max(0, (folder / NAME).read_text(encoding="utf-8").count("\n") - 1)
    except (OSError, ValueError):
        return 0


def _line(scene: str, figures: Figures) -> str:
    values = {method: [v if math.isfinite(v) else str(v) for v in row] for method, row in figures.items()}
    return json.dumps({"scene": scene, "figures": values})


def _parsed(line: str) -> tuple[str, Figures]:
    row: dict[str, Any] = json.loads(line)
    return row["scene"], {method: tuple(map(float, values)) for method, values in row["figures"].items()}


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path}: {error.strerror or error}; what was measured is kept, --resume goes on")
