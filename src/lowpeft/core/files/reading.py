"""Reading and checking adapter folders: header and sizes first, tensors last."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import AdapterError, and_more
from ..operations.new_adapters import not_finite, tensor_problems
from ..planning.site_values import with_new_keys
from .contents import (
    CONFIG,
    METADATA_KEY,
    MOST_CONFIG_BYTES,
    MOST_HEADER_BYTES,
    MOST_NAME,
    MOST_TENSORS,
    TENSORS,
    AdapterFile,
    expected_tensors,
    object_of,
    parsed,
    tensors_digest,
)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes that an adapter's tensors may have, by their names in safetensors."""

MOST_BYTES_OF_WRONG = 2**26
"""Of a file whose header is wrong: the tensors of a larger one are not read for what is wrong with them too."""

TRIES = 100
"""How often a folder is read whose two copies of the config differ because others save into it meanwhile."""


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read and check an adapter folder, without a network.

    Headers, sizes and the config are checked before tensors are read; limits are in `docs/adapter-file.md`.

    Raises:
        AdapterError: A file is missing, truncated, of an unknown schema, edited, larger than an adapter can be, a link
            out of the folder, or contains NaN; problems that can be found in one pass are listed together.
    """
    directory = folder_at(folder)
    missing = [n for n in (TENSORS, CONFIG) if not os.path.lexists(directory / n)]
    if missing:
        found = f"{' and '.join(missing)} missing{_held_instead(directory)}"
        raise AdapterError(f"{directory} is not an adapter folder: {found}")
    for _ in range(TRIES):
        before = _identity(directory)
        with opened(directory) as (file, config):
            if _saved_with(directory, config):
                return _checked(directory, config, file)
        if _identity(directory) == before:
            break  # nobody is saving into it
    raise AdapterError(f"{directory / CONFIG} differs from the config in {TENSORS}: one of them was changed")


def _identity(directory: Path) -> tuple[object, ...]:
    """Return what changes when another save replaces the files of a folder."""
    found = []
    for name in (TENSORS, CONFIG):
        with contextlib.suppress(OSError):
            status = (directory / name).stat()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def folder_at(folder: str | Path) -> Path:
    """Return the path of a folder, with `~` expanded.

    Raises:
        AdapterError: There is no such folder.
    """
    try:
        directory = Path(folder).expanduser()
    except RuntimeError as error:  # no home folder
        raise AdapterError(f"{folder} is not an adapter folder: {error}") from error
    if not os.path.isdir(directory):  # noqa: PTH112  (it never raises)
        raise AdapterError(f"{directory} is not an adapter folder: there is no such folder")
    return directory


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open the file of tensors of a folder, and yield it with the config in its metadata; no tensor is read.

    Raises:
        AdapterError: The file cannot be read, has too much in its header, or lowpeft did not write it.
    """
    path = regular_file(directory, TENSORS)
    try:
        with path.open("rb") as raw:
            header_bytes = int.from_bytes(raw.read(8), "little")
        if header_bytes > MOST_HEADER_BYTES:
            raise SafetensorError(f"its header has {header_bytes:,} bytes; at most {MOST_HEADER_BYTES:,} are read")
        file: Any = safe_open(path, framework="pt")
        config = object_of((file.metadata() or {}).get(METADATA_KEY, ""))
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if config is None:
        raise AdapterError(f"{path} has no config of lowpeft in its metadata: lowpeft did not write it")
    with file:
        yield file, config


def regular_file(directory: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    A link may lead to a file in the folder or, in a cache of the Hub, to the store of its repository.

    Raises:
        AdapterError: It is no regular file, it cannot be read, or it is a link that leaves the folder.
    """
    path = directory / name
    try:
        inside = _inside(directory, path)
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if not regular:
        raise AdapterError(f"{path} cannot be read: it is no regular file")
    if not inside:
        raise AdapterError(
            f"{path} is a link to {path.resolve()}, out of its folder; links are followed within the folder alone: "
            "copy the file"
        )
    return path


def _inside(directory: Path, path: Path) -> bool:
    if not path.is_symlink():
        return True
    target, root = path.resolve(), directory.resolve()
    # In the Hub's cache, …/models--OWNER--NAME/snapshots/COMMIT/… links to …/models--OWNER--NAME/blobs.
    caches = [p.parent for p in root.parents if p.name == "snapshots" and p.parent.name.startswith("models--")]
    return any(target.is_relative_to(each) for each in (root, *(cache / "blobs" for cache in caches)))


def _saved_with(directory: Path, config: dict[str, Any]) -> bool:
    """Return whether the config beside the tensors is that of the tensors.

    If a save was killed between replacing the two files, a temporary file still holds the config of the tensors.
    """
    pending = (path.name for path in directory.glob(f".{CONFIG}.*"))
    return any(_config_at(directory, name) == config for name in (CONFIG, *pending))


def _config_at(directory: Path, name: str) -> dict[str, Any] | None:
    """Return the config in a file of the folder; None if it is none, or gone by now."""
    try:
        return read_json(regular_file(directory, name))
    except AdapterError:
        if name == CONFIG and os.path.lexists(directory / name):
            raise
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object (dict) in a JSON file; None if the file is not valid JSON or not an object.

    Raises:
        AdapterError: The file cannot be read, or is too large.
    """
    try:
        if (size := path.stat().st_size) > MOST_CONFIG_BYTES:
            raise AdapterError(
                f"{path} cannot be read: it has {size:,} bytes; at most {MOST_CONFIG_BYTES:,} are read of a config"
            )
        return object_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def _held_instead(directory: Path) -> str:
    """Return what a folder without an adapter holds, for an error: a network's weights, or the names of some files."""
    names = sorted(path.name for path in directory.glob("*"))
    if weights := [name for name in names if name.endswith(".safetensors") and name != TENSORS]:
        path = directory / weights[0]
        return f". It holds the weights of a network: lowpeft.load_backbone({str(path)!r}), --weights {path}"
    return f"; it holds {and_more(names)}" if names else "; it is empty"


def _checked(directory: Path, config: dict[str, Any], file: Any) -> AdapterFile:
    """Return the contents; raise if the schema is unknown, or config or tensors were edited."""
    given, problems = _header(file)
    adapter: AdapterFile | None = None
    try:
        adapter = parsed(config, str(directory))
        present = with_new_keys(given, adapter.sites, schema=config["schema"])
        problems += tensor_problems(expected_tensors(adapter.sites), present)
    except AdapterError as error:
        if not error.problems:
            raise
        problems += error.problems
    if problems and (directory / TENSORS).stat().st_size > MOST_BYTES_OF_WRONG:
        raise AdapterError(f"{directory} cannot be used:", problems=problems)
    try:
        tensors = {key: file.get_tensor(key) for key in given}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise AdapterError(f"{directory / TENSORS} cannot be read: {error}") from error
    saved = config.get("tensors")
    if not isinstance(saved, dict) or saved.get("sha256") != tensors_digest(tensors):
        problems.append("the tensors differ from those that were saved (their checksum differs)")
    problems += not_finite(tensors)
    if problems or adapter is None:
        raise AdapterError(f"{directory} cannot be used:", problems=problems)
    return replace(adapter, tensors=with_new_keys(tensors, adapter.sites, schema=config["schema"]))


def _header(file: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file on the meta device, and what is wrong with their names, dtypes and shapes.

    Raises:
        AdapterError: There are too many tensors.
    """
    keys = list(file.keys())
    if len(keys) > MOST_TENSORS:
        raise AdapterError(f"the adapter has {len(keys):,} tensors; at most {MOST_TENSORS:,} are read")
    found: dict[str, Tensor] = {}
    problems: list[str] = []
    for key in keys:
        try:
            found[key] = _described(key, file.get_slice(key))
        except (RuntimeError, ValueError, OverflowError, TypeError) as error:
            problems.append(f"{key[:100]}: {error}")
    return found, problems


def _described(key: str, view: Any) -> Tensor:
    """Return a tensor of a file on the meta device.

    Raises:
        ValueError: Its name is too long, or no adapter has its dtype.
        RuntimeError, OverflowError, TypeError: No tensor has its shape.
    """
    if len(key) > MOST_NAME:
        raise ValueError(f"its name has {len(key):,} characters; at most {MOST_NAME:,} are read")
    if (dtype := DTYPES.get(view.get_dtype())) is None:
        raise ValueError(f"no adapter has tensors of the dtype {view.get_dtype()}")
    return torch.empty(view.get_shape(), dtype=dtype, device="meta")
