"""Going on with an interrupted measurement of `lowpeft evaluate` and `lowpeft compare`: what must not have changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.attachment.record import module_of
from ..core.observation.fingerprint import digest
from ..errors import DataError
from ..restoration.data import Scene
from ..restoration.images import make_folder

if TYPE_CHECKING:
    from ..restoration.evaluation import Journal
    from ..restoration.evaluation.journal import Figures


def journal_of(folder: Path, facts: Mapping[str, object], scenes: Sequence[str], *, go_on: bool) -> Journal:
    """Return the journal of a measurement, in its working folder.

    Args:
        folder: The working folder.
        facts: What is measured.
        scenes: Names of the scenes.
        go_on: True goes on with an interrupted measurement of the same facts.

    Raises:
        DataError: The interrupted measurement is another one; or it is the same, and is not to go on.
    """
    from ..restoration.evaluation import Journal, resume, unfinished

    run, left = json.loads(json.dumps(dict(facts))), unfinished(folder)
    if go_on:
        if not left:
            print(f"there is nothing to resume in {folder.parent}: measuring all scenes", file=sys.stderr)
        make_folder(folder)
        return resume(folder, run, scenes)
    if left:
        try:
            resume(folder, run, scenes)
        except DataError:
            print(f"the {left} scenes of another, interrupted measurement are dropped", file=sys.stderr)
        else:
            raise DataError(
                f"{folder} has {left} of {len(scenes)} scenes of this measurement, which was interrupted: go on with "
                "--resume, or remove that folder"
            )
    shutil.rmtree(folder, ignore_errors=True)
    return Journal(make_folder(folder), run, {})


def with_images(journal: Journal, methods: Iterable[str], scenes: Iterable[Scene]) -> dict[str, Figures]:
    """Return the figures of a journal's scenes whose restored images are there, by name."""
    from ..restoration.evaluation.results import result_paths

    views, names = {scene.name: len(scene.hr) for scene in scenes}, list(methods)
    return {
        scene: row
        for scene, row in journal.rows.items()
        if all(path.exists() for name in names for path in result_paths(journal.folder, name, scene, views[scene]))
    }


@contextmanager
def said_where_it_stopped(rows: Mapping[str, Figures], count: int, journal: Journal | None) -> Iterator[None]:
    """Say on Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        if journal is not None:
            print(f"{len(rows)} of {count} scenes are measured and kept: go on with --resume", file=sys.stderr)
        raise


def files_digest(scenes: Iterable[Scene]) -> str:
    """Return a checksum of the paths, sizes and times of change of all files of scenes."""
    state = hashlib.sha256(usedforsecurity=False)
    for scene in scenes:
        for path in (*scene.hr, *scene.lr):
            found = path.stat()
            state.update(f"{scene.name!r} {str(path.resolve())!r} {found.st_size} {found.st_mtime_ns}\n".encode())
    return state.hexdigest()


def state_digest(models: Iterable[object]) -> str:
    """Return the SHA-256 of all tensors of networks, adapters included, and of all code of the user's own."""
    state = hashlib.sha256(usedforsecurity=False)
    for model in models:
        for path, tensor in module_of(model).state_dict().items():
            if isinstance(tensor, torch.Tensor):
                state.update(f"{path} {digest(tensor)}\n".encode())
    for file in _own_code():
        state.update(file.read_bytes())
    return state.hexdigest()


def _own_code() -> list[Path]:
    """Return the files of the modules that are loaded and belong to no installed package."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed.append(Path(__file__).resolve().parents[1])
    loaded = {str(module.__file__) for module in [*sys.modules.values()] if getattr(module, "__file__", None)}
    own = (path for path in map(Path, sorted(loaded)) if path.suffix == ".py" and path.is_file())
    return [path for path in own if not any(map(path.resolve().is_relative_to, installed))]
