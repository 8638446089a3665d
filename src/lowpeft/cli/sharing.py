"""`lowpeft push`, `pull` and `list`: adapters on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import tables
from ..core.files.about import About, Result
from ..core.files.contents import CONFIG, TENSORS
from ..core.files.hub.client import is_on_hub
from ..core.files.hub.pulling import adapters_of, pull, pull_file, search
from ..core.files.hub.pushing import push_to_hub
from ..core.files.reading import read_adapter, read_json
from ..core.files.results import results_of
from ..core.files.saving import copy_adapter, picture_of
from ..errors import AdapterError, LowpeftError, printable
from ..recipes import recipe_to_dict
from .common import new_command
from .help import option_group
from .output import emit


def add_to(commands: Any) -> None:
    """Add the commands to the parser."""
    sub = new_command(
        commands,
        "push",
        run_push,
        "write a saved adapter to the Hugging Face Hub, in one commit, with a card",
        "lowpeft push runs/denoise owner/name --license apache-2.0 --dry-run",
        "lowpeft push runs/denoise owner/name --license apache-2.0 --base-model owner/base/network.safetensors "
        "--dataset BSDS500 --evaluation results/report.json --subfolder noise-25",
    )
    sub.add_argument("folder", help="folder of the adapter")
    sub.add_argument("repository", metavar="owner/name", help="Hub repository, created if missing")
    _add_card(sub)
    group = option_group(sub, "where it goes")
    group.add_argument("--subfolder", metavar="PATH", help="folder in the repository, e.g. x4/noise")
    group.add_argument("--revision", metavar="NAME", help="branch, created if missing")
    group.add_argument("--create-pr", action="store_true", help="open a pull request; for repositories of others")
    group.add_argument("--private", action="store_true", help="make a new repository private")
    group.add_argument("--message", metavar="TEXT", help="message of the commit")
    group.add_argument(
        "--edited-card", choices=("keep", "replace"), help="what becomes of a card that was edited in the repository"
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an adapter that was made for another base, and keep nothing that the repository says",
    )
    group.add_argument("--dry-run", action="store_true", help="ask nobody, and say what would be sent")

    sub = new_command(
        commands,
        "pull",
        run_pull,
        "fetch an adapter from the Hub, check it, and copy it to a folder",
        "lowpeft pull owner/name",
        "lowpeft pull owner/name --subfolder noise-25 --out noise-25",
    )
    sub.add_argument("repository", metavar="owner/name", help="Hub repository")
    sub.add_argument("--revision", metavar="NAME", help="commit, tag or branch")
    sub.add_argument("--subfolder", metavar="PATH", help="folder of the adapter in the repository")
    sub.add_argument("--out", metavar="DIR", help="folder to copy it to; without it, it stays in the Hub's cache")

    sub = new_command(
        commands,
        "list",
        run_list,
        "list adapters: those of the Hub, of one of its repositories, or in a folder",
        "lowpeft list",
        "lowpeft list owner/name",
        "lowpeft list adapters",
    )
    sub.add_argument("where", nargs="?", help="repository owner/name, or a folder; without it, all of the Hub")
    sub.add_argument("--search", metavar="TEXT", help="of the Hub, those whose names have this")
    sub.add_argument("--revision", metavar="NAME", help="commit, tag or branch of the repository")


def _add_card(sub: argparse.ArgumentParser) -> None:
    group = option_group(sub, "what the card says")
    group.add_argument("--summary", metavar="TEXT", help="one line that says what the adapter is for")
    group.add_argument(
        "--license",
        metavar="ID",
        help="licence of the adapter, as the Hub names it: apache-2.0, mit, cc-by-nc-4.0, other; needed unless the "
        "folder has one already",
    )
    group.add_argument(
        "--base-model",
        metavar="PLACE",
        help="where the base's weights are: owner/name/path/to/file of the Hub, with or without @revision, which "
        "load_pretrained fetches, or an address, which it shows",
    )
    group.add_argument("--dataset", action="append", metavar="NAME", help="training data; may be repeated")
    group.add_argument(
        "--evaluation",
        action="append",
        metavar="[NAME=]DIR",
        help="what `lowpeft evaluate --out` wrote, for the table of results, and how others know the images, e.g. "
        "Kodak24=measured; may be repeated",
    )
    group.add_argument("--picture", metavar="FILE", help="image to show")


def run_push(options: argparse.Namespace) -> None:
    """Push the adapter, and print the address of the commit."""
    adapter = read_adapter(options.folder)
    given: dict[str, Any] = {
        "summary": options.summary,
        "license": options.license,
        "base_model": options.base_model,
        "datasets": tuple(options.dataset) if options.dataset else None,
        "picture": options.picture,
    }
    if options.evaluation:
        given["results"] = tuple(result for each in options.evaluation for result in _results(each))
    own = replace(adapter.about, picture=picture_of(Path(options.folder), adapter.about))
    about: About = replace(own, **{name: value for name, value in given.items() if value is not None})
    if about.license is None:
        raise LowpeftError(
            "the licence is not known: --license ID says under which one others get the adapter (apache-2.0, mit, "
            "cc-by-nc-4.0, …, or other); mind that of the base's weights and of the training data"
        )
    done = push_to_hub(
        options.folder,
        options.repository,
        about=about,
        private=options.private or None,
        revision=options.revision,
        subfolder=options.subfolder,
        create_pr=options.create_pr,
        edited_card=options.edited_card,
        overwrite=options.overwrite,
        commit_message=options.message,
        dry_run=options.dry_run,
    )
    names = ("repository", "subfolder", "revision", "create_pr", "dry_run")
    emit(options, {**{name: getattr(options, name) for name in names}, "about": about.as_dict(), "result": done}, done)


def _results(text: str) -> tuple[Result, ...]:
    """Read the results that an option `[NAME=]DIR` names."""
    name, equals, path = text.partition("=")
    if equals and not os.path.lexists(text):
        return results_of(path, name)
    return results_of(text)


def run_pull(options: argparse.Namespace) -> None:
    """Fetch the adapter, and print where it is."""
    if options.out is not None and not options.out.strip():
        raise LowpeftError("--out '' names no folder")
    found = pull(options.repository, revision=options.revision, subfolder=options.subfolder)
    adapter = read_adapter(found.folder)
    folder = found.folder if options.out is None else copy_adapter(found.folder, Path(options.out))
    figures = {"folder": folder, "repository": found.repo_id, "commit": found.commit}
    base = f"{adapter.base.model} of {adapter.base.parameters:,} parameters"
    emit(options, figures, printable(f"{folder}: {adapter.recipe.name} adapter for {base}, commit {found.commit}"))


def run_list(options: argparse.Namespace) -> None:
    """Print the adapters."""
    where = options.where
    if where is None:
        if options.revision is not None:
            raise LowpeftError("--revision is for one repository: give owner/name")
        listed = search(options.search)
        rows = [[each.repo_id, str(each.downloads), each.changed or "", " ".join(each.tags)] for each in listed]
        named = [["repository", "downloads", "changed", "tags"], *([*map(printable, row)] for row in rows)]
        emit(options, {"repositories": listed}, _table(named, "the Hub has none"))
        return
    if options.search is not None:
        raise LowpeftError("--search is for the whole Hub: leave out the repository or folder")
    if is_on_hub(where, revision=options.revision):
        folders = adapters_of(where, revision=options.revision)
        found = [_of_repository(where, folder, options.revision) for folder in folders]
        rows = [[*map(_cell, each.values())] for each in found]
        heading = ["folder", "recipe", "base", "licence", "in commands"]
        emit(options, {"repository": where, "adapters": found}, _table([heading, *rows], f"{where} has none"))
        return
    figures = [_of_folder(folder) for folder in _folders(Path(where))]
    heading = ["folder", "recipe", "base", "parameters", "what is wrong with it"]
    shown = [{**each, "folder": os.path.relpath(str(each["folder"]), where)} for each in figures]
    cells = [heading, *([*map(_cell, each.values())] for each in shown)]
    whole = not any(each["problem"] for each in figures)
    text = _table([row[:-1] for row in cells] if whole else cells, f"{where} has none")
    emit(options, {"adapters": figures}, text)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else printable(value)


def _of_repository(repo_id: str, folder: str, revision: str | None) -> dict[str, object]:
    """Return a row about an adapter of a repository, as its config says; nothing in it is checked."""
    try:
        path = CONFIG if folder == "." else f"{folder}/{CONFIG}"
        config = read_json(pull_file(repo_id, path, revision=revision)) or {}
    except AdapterError:  # a folder of a name that cannot be asked for
        config = {}
    said = {key: value if isinstance(value, dict) else {} for key, value in config.items()}
    named = [said.get(table, {}).get(name, "") for table, name in (("recipe", "name"), ("base", "model"))]
    options = ["--adapter", repo_id, *(["--subfolder", folder] if folder != "." else [])]
    return {
        "folder": folder,
        "recipe": f"{named[0]:.100}" if isinstance(named[0], str) else "",
        "base": f"{named[1]:.100}" if isinstance(named[1], str) else "",
        "licence": f"{said.get('about', {}).get('license', '')!s:.100}",
        "in commands": shlex.join(options),
    }


def _folders(top: Path) -> list[Path]:
    if not top.is_dir():
        raise LowpeftError(f"there is no folder {top}; a Hub repository is written owner/name")
    return sorted(path.parent for path in top.rglob(TENSORS))


def _of_folder(folder: Path) -> dict[str, object]:
    """Return a row about an adapter; of one that cannot be read, why."""
    try:
        adapter = read_adapter(folder)
    except AdapterError as error:
        return {"folder": folder, "recipe": "", "base": "", "parameters": "", "problem": str(error).splitlines()[0]}
    return {
        "folder": folder,
        "recipe": recipe_to_dict(adapter.recipe)["name"],
        "base": adapter.base.model,
        "parameters": sum(site.parameters for site in adapter.sites),
        "problem": "",
    }


def _table(cells: list[list[str]], nothing: str) -> str:
    return tables.text(cells) if len(cells) > 1 else nothing
