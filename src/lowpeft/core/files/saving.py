"""Writing adapter folders.

The safetensors file is self-contained: replacing it is the single step that turns an old adapter into a new one. All
three files are first written under other names, so a save that is killed leaves either the old or the new adapter.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import AdapterError
from ...locking import locked
from ...ports.base import base_parameters
from ...ports.facts import Making, literal
from ...recipes import recipe_to_dict
from ...storage import beside, fsync, leftovers
from ...version import version
from ..attachment.changes import one_at_a_time
from ..attachment.record import record_of, unwrap
from ..observation.figures import figures_of
from ..observation.fingerprint import digests, with_rounded
from ..operations.new_adapters import not_finite
from ..operations.state import adapter_state_dict, only_name
from ..planning.site_values import SCHEMA, facts_to_dict, sites_to_dicts
from .about import MOST_PICTURE_BYTES, PICTURE_NAMES, PICTURE_STARTS, About
from .card import model_card
from .contents import CARD, CONFIG, FILES, METADATA_KEY, TENSORS, facts_problems, size_of, tensors_digest
from .reading import opened, read_adapter, read_json, regular_file

LOCK = ".saving.lock"
WAIT_S = 60
"""Seconds that a save waits for another one into the same folder."""

LEFT_S = 3600
"""Age in seconds at which a temporary file is what a killed save left, also where the file system has no locks."""


@one_at_a_time
def save_adapter(
    model: object,
    folder: str | Path,
    *,
    name: str | None = None,
    facts: Mapping[str, str | float] | None = None,
    about: About | None = None,
) -> Path:
    """Write one adapter, and nothing of the base, to a folder.

    Args:
        model: An adapted model.
        folder: Folder to write to, created if needed; an adapter in it is replaced in one step, with its card.
        name: Name of the adapter; needed if several are attached.
        facts: Information for readers, shown as a table in the model card: data, results, name of the base's weights.
        about: Licence, source of the base's weights, data sets, results and picture, for the card and its metadata.

    Returns:
        The folder.

    Raises:
        AdapterError: Training results would be lost (a base tensor was changed or set trainable), a tensor contains
            NaN or infinity, the picture cannot be read, the folder cannot be written, or it has a README.md, say, that
            is of no adapter. What is in the folder is then unchanged.
        PlanError: The model has no adapters, or `name` does not select one.
    """
    root = unwrap(model)
    chosen = only_name(model, name)
    tensors = {k: v.cpu().contiguous() for k, v in adapter_state_dict(model, name=chosen).items()}
    if problems := [*_losses(root), *not_finite(tensors)]:
        raise AdapterError(f"the adapter {chosen!r} was not saved:", problems=problems)
    if problems := facts_problems(facts or {}):
        raise AdapterError(f"the adapter {chosen!r} was not saved:", problems=problems)
    said = about or About()
    check_results(said, tensors_digest(tensors))
    config = _config(root, chosen, tensors, dict(facts or {})) | {"about": said.as_dict()}
    return write_adapter(Path(folder), tensors, config, record_of(root).making, said.picture)


def check_results(about: About, digest: str) -> None:
    """Raise if results are of another adapter than that of these tensors (their `tensors_digest`).

    Raises:
        AdapterError: They are.
    """
    if any(result.adapter not in (None, digest) for result in about.results):
        raise AdapterError(
            "the results are about another adapter: the checksum of its tensors differs. Measure this one "
            "(lowpeft evaluate --out), or leave them out"
        )


def write_adapter(
    target: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    making: Making | None,
    picture: str | Path | None,
) -> Path:
    """Write the files of an adapter to a folder, and return the folder.

    Args:
        target: The folder, created if needed.
        tensors: Tensors on the CPU, contiguous.
        config: Contents of `adapter_config.json`.
        making: How the base was made, for the card.
        picture: Path of the picture that the config's `about` names; None for none.

    Raises:
        AdapterError: A file cannot be read or written, or the folder has a file of such a name that is of no adapter.
            What is in the folder is then unchanged.
    """
    try:
        target = target.expanduser()
        shown = {} if picture is None else {config["about"]["picture"]: picture_bytes(Path(picture).expanduser())}
        refuse_strangers(target, shown)
        target.mkdir(parents=True, exist_ok=True)
        _write(target, tensors, config, making, shown)
    except (OSError, RecursionError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, AdapterError):
            raise
        # Of the path, or of facts that JSON lacks.
        raise AdapterError(f"cannot write the adapter to {target}: {error}") from error
    return target


def picture_of(folder: Path, about: About) -> Path | None:
    """Return the path of the picture in an adapter folder; None if there is none, or it is no file in the folder."""
    if about.picture is None:
        return None
    try:
        return regular_file(folder, str(about.picture))
    except AdapterError:
        return None


def picture_bytes(path: Path) -> bytes:
    """Return the content of a picture.

    Raises:
        AdapterError: It is no file, no PNG, JPEG or WebP, or larger than 5 MiB.
        OSError: It cannot be read.
    """
    if not path.is_file():
        raise AdapterError(f"there is no picture at {path}")
    if (size := path.stat().st_size) > MOST_PICTURE_BYTES:
        raise AdapterError(f"the picture {path} has {size:,} bytes; at most {MOST_PICTURE_BYTES:,} are saved")
    content = path.read_bytes()
    if not re.match(PICTURE_STARTS, content, re.DOTALL):
        raise AdapterError(f"{path} is no picture in PNG, JPEG or WebP")
    return content


def _losses(root: nn.Module) -> list[str]:
    """Return the base tensors that require a gradient or were changed; the file would not contain them."""
    record = record_of(root)
    problems = [
        f"{path} of the base requires a gradient, but only adapters are saved; to save it, adapt with "
        f"train_also=[{path!r}]"
        for path, parameter in base_parameters(root)
        if parameter.requires_grad
    ]
    for path, now in digests(root).items():
        before = record.digests.get(path)
        if before != now and (before is None or before.split()[0] == now.split()[0]):
            problems.append(f"{path} of the base was changed after the network was adapted, and would not be saved")
    return problems


def _config(root: nn.Module, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    record = record_of(root)
    plan = record.plans[name]
    if record.in_files is None:
        record.in_files = with_rounded(record.base, root, record.digests), figures_of(root, record.facts)
    base, output = record.in_files
    return {
        "schema": SCHEMA,
        "lowpeft": version(),
        "recipe": recipe_to_dict(plan.recipe),
        "base": base.as_dict(),
        "output": None if output is None else output.as_dict(),
        "family": plan.family,
        "network": facts_to_dict(record.facts),
        "sites": sites_to_dicts(plan.sites),
        "calibrated": name in record.calibrated,
        "facts": facts,
        "opening": None if record.making is None else record.making.opening,
        "tensors": {"number": len(tensors), "sha256": tensors_digest(tensors)},
    }


def refuse_strangers(folder: Path, pictures: Iterable[str] = ()) -> None:
    """Refuse a folder with files of the names of an adapter's, a README.md say, that are of no adapter.

    Raises:
        AdapterError: There are some, and a save would overwrite them.
    """
    present = [name for name in (*FILES, *pictures) if (folder / name).exists()]
    if present and not _has_adapter(folder):
        path = folder / present[0]
        raise AdapterError(f"{path} is of no adapter, and would be overwritten: move it, or choose another folder")


def _write(
    folder: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    making: Making | None,
    pictures: Mapping[str, bytes],
) -> None:
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    card = model_card(config, size_of(tensors), literal(folder.resolve().name), making)
    (text + card).encode()  # raises before anything is written, e.g. for half of a surrogate pair in the facts
    metadata = {METADATA_KEY: json.dumps(config)}
    _put(
        folder,
        {
            CARD: lambda path: path.write_text(card, encoding="utf-8"),
            CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
            TENSORS: lambda path: save_file(tensors, path, metadata),
            **{name: partial(Path.write_bytes, data=content) for name, content in pictures.items()},
        },
    )


def copy_adapter(source: Path, target: Path) -> Path:
    """Copy the files of an adapter folder as they are, its picture too, and return the other folder.

    Raises:
        AdapterError: A file cannot be read or written, or the other folder has a README.md that is of no adapter. What
            is in the other folder is then unchanged.
    """
    picture = picture_of(source, read_adapter(source).about)
    names = [name for name in FILES if name != CARD or (source / CARD).exists()]
    copies: dict[str, Callable[[Path], object]] = {
        name: partial(shutil.copyfile, regular_file(source, name)) for name in names
    }
    try:
        target = target.expanduser()
        shown = {} if picture is None else {picture.name: picture_bytes(picture)}
        refuse_strangers(target, shown)
        target.mkdir(parents=True, exist_ok=True)
        _put(target, copies | {name: partial(Path.write_bytes, data=content) for name, content in shown.items()})
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"cannot write the adapter to {target}: {error}") from error
    return target


def _has_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter of lowpeft, which another one may replace."""
    try:
        with opened(folder):
            return True
    except AdapterError:
        return False


def _put(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write the files of an adapter, by functions that write each to a path; other savers of the folder wait."""
    with locked(folder, AdapterError, name=LOCK, wait_s=WAIT_S):
        _finish_pending(folder)
        new = {name: beside(folder / name) for name in writers}
        try:
            for name, write in writers.items():
                write(new[name])
            new[TENSORS].chmod(new[CONFIG].stat().st_mode)  # safetensors writes it readable by the owner only
            for path in new.values():
                fsync(path)
            new[TENSORS].replace(folder / TENSORS)  # this replaces the old adapter
        except BaseException:
            for path in new.values():
                path.unlink(missing_ok=True)
            raise
        for name in (CONFIG, CARD):  # if it stops here, a reader finds the config under its temporary name
            if name in new:
                new[name].replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # that of the old adapter
        for name in new.keys() - FILES:
            new[name].replace(folder / name)
        fsync(folder)


def _finish_pending(folder: Path) -> None:
    """Finish what a killed save left: move its config into place if it replaced the tensors, and remove old files."""
    starts = tuple(f".{name}." for name in (*FILES, *PICTURE_NAMES))
    ours = [path for path in leftovers(folder) if path.name.startswith(starts)]
    with contextlib.suppress(AdapterError), opened(folder) as (_, config):
        for path in ours:
            if path.name.startswith(f".{CONFIG}.") and read_json(path) == config:
                path.replace(folder / CONFIG)
    for path in ours:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_S:
                path.unlink()
