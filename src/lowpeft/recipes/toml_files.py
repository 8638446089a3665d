"""Read and write TOML files, and check their keys and plain values."""

from __future__ import annotations

import itertools
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..errors import PlanError, did_you_mean

MOST_BYTES = 2**16
"""Of a file that is not bundled."""

_WORDS: dict[type, str] = {str: "a string", bool: "true or false"}


def toml_names(folder: Traversable) -> tuple[str, ...]:
    """Return the names of the TOML files in a folder, sorted, without `.toml`."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


def read_toml(
    name_or_path: str | Path, folder: Traversable, *, what: str, others: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str]:
    """Read a TOML file. Return its table, and the file's description for error messages.

    Args:
        name_or_path: Name of a file in `folder`, without `.toml`, or path of a file anywhere.
        folder: Folder of the bundled files.
        what: Noun for such a file in error messages, e.g. `recipe`.
        others: Further names that error messages list as known.

    Raises:
        PlanError: The name or file does not exist, cannot be read or is too large, or the file is not TOML.
    """
    path, known = Path(name_or_path), toml_names(folder)
    if isinstance(name_or_path, str) and name_or_path in known:
        text, origin = folder.joinpath(f"{name_or_path}.toml").read_bytes(), f"bundled {what} {name_or_path!r}"
    elif path.suffix == ".toml" and os.path.isfile(path):  # noqa: PTH113  (it never raises)
        text, origin = _bytes_of(path, what), str(path)
    else:
        raise PlanError(
            f"no {what} {str(name_or_path)!r}; give the path of a .toml file, or one of {', '.join(known + others)}"
            + did_you_mean(str(name_or_path), known + others)
        )
    try:
        return tomllib.loads(text.decode()), origin
    except (RecursionError, ValueError) as error:  # ValueError: of the text, of TOML, or of a number that is too long
        raise PlanError(f"{origin} is not TOML: {error}") from error


def _bytes_of(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error}") from error
    if len(text) > MOST_BYTES:
        raise PlanError(f"{path} is larger than any {what}: at most {MOST_BYTES:,} bytes are read")
    return text


def toml_header(name_or_path: str | Path, folder: Traversable) -> tuple[str, ...]:
    """Return the comment lines at the beginning of a file that `read_toml` has read, from the same arguments."""
    bundled = isinstance(name_or_path, str) and name_or_path in toml_names(folder)
    file = folder.joinpath(f"{name_or_path}.toml") if bundled else Path(name_or_path)
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(itertools.takewhile(lambda line: line.startswith("#"), lines))


def write_toml(table: Mapping[str, Any]) -> str:
    """Return a table as TOML: plain values, then lists of tables, and tables. None is left out."""
    sections = [_lines({k: v for k, v in table.items() if not _is_table(v)})]
    for name, value in table.items():
        if _is_table(value):
            heading = f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"
            rows = [value] if isinstance(value, Mapping) else value
            sections += [f"{heading}\n{_lines(row)}" for row in rows]
    return "\n".join(sections)


def _is_table(value: object) -> bool:
    """Return whether a value is a table, or a list of tables."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, Mapping)


def _lines(values: Mapping[str, Any]) -> str:
    # JSON's notation of strings, numbers and lists is TOML's, but for a character that TOML wants escaped.
    texts = {
        k: json.dumps(v, ensure_ascii=False).replace("\x7f", r"\u007f") for k, v in values.items() if v is not None
    }
    return "".join(f"{key} = {text}\n" for key, text in texts.items())


def check_schema(table: Mapping[str, Any], schema: int, problems: list[str]) -> None:
    """Append to `problems` if the table's `schema` is not this one."""
    if type(table.get("schema")) is not int or table["schema"] != schema:
        problems.append(f"schema is {table.get('schema')!r}, this version of lowpeft reads {schema}")


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str, problems: list[str]) -> None:
    """Append every unknown key to `problems`, with the nearest known ones; or with all, if one has no near ones."""
    near = {key: did_you_mean(key, known) for key in table if key not in known}
    problems += [f"{where} has an unknown key {key!r}{text}" for key, text in near.items()]
    if not all(near.values()):
        problems.append(f"keys of {where} are {', '.join(known)}")


def plain_values(
    table: Mapping[str, Any], fields: Mapping[str, tuple[type, Any]], problems: list[str]
) -> dict[str, Any]:
    """Return every field's value in the table, by field name.

    Args:
        table: Values by name.
        fields: Type and default of each field, by name. A field with the default None is required.
        problems: List of error messages; a value that is missing or of another type is appended.
    """
    values = {key: table.get(key, default) for key, (_, default) in fields.items()}
    problems += [
        f"{key} must be {_WORDS[kind]}, not {values[key]!r}"
        for key, (kind, _) in fields.items()
        if not isinstance(values[key], kind)
    ]
    return values
