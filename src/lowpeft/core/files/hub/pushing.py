"""Pushing adapter folders to the Hub, in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....errors import AdapterError
from ....ports.facts import Making
from ...attachment.record import record_of, unwrap
from ..card import model_card
from ..contents import CARD, CONFIG, FILES, TENSORS, AdapterFile
from ..reading import read_adapter, read_json
from ..saving import save_adapter
from .client import TIMEOUT_S, path_in_repo, talking

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 5
"""How often a push begins again because others changed other files of the repository meanwhile."""

EditedCard = Literal["keep", "replace"]


@dataclass(frozen=True)
class _Target:
    """Where an adapter goes."""

    repo_id: str
    revision: str | None
    subfolder: str | None
    create_pr: bool

    def path(self, name: str) -> str:
        return path_in_repo(self.subfolder, name)

    def __str__(self) -> str:
        return f"{self.repo_id!r}" if self.subfolder is None else f"the folder {self.subfolder!r} of {self.repo_id!r}"


def push_to_hub(  # noqa: PLR0913  (options of a repository)
    model: object,
    repo_id: str,
    *,
    name: str | None = None,
    facts: Mapping[str, str | float] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    create_pr: bool = False,
    edited_card: EditedCard | None = None,
    overwrite: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> str:
    """Write one adapter, and nothing of the base, to a Hub repository, in one commit.

    The files are those of `save_adapter`. The model card identifies the base by its checksums and shows how to load the
    adapter from this repository. If others push to the repository meanwhile, nothing of theirs is lost: the push begins
    again on top of what they wrote, or is refused if they wrote the same files.

    Args:
        model: An adapted model.
        repo_id: Repository, `owner/name`; created if missing.
        name: Name of the adapter; needed if several are attached.
        facts: Information for the model card, as in `save_adapter`: data, results, source of the base's weights, their
            SHA-256.
        private: True to make a new repository private; None uses the owner's settings.
        revision: Branch, created if missing; None for the default branch.
        subfolder: Folder of the repository to write to, e.g. "x4/noise"; None for its top.
        create_pr: True to open a pull request instead of writing to the branch; for repositories of others.
        edited_card: Treatment of a model card that was edited in the repository: "keep" it or "replace" it.
        overwrite: True to replace an adapter that was made for another base.
        commit_message: Message of the commit; by default it names the recipe and the base.
        token: Token with write access; by default that of `hf auth login` or of `HF_TOKEN`. It is not stored.
        dry_run: True to write nothing, and return what would be written.

    Returns:
        URL of the commit, or of the pull request; with `dry_run`, what would be pushed where.

    Raises:
        AdapterError: The adapter cannot be saved (see `save_adapter`); the model card was edited and `edited_card` is
            None; the repository has an adapter of another base there, and `overwrite` is false; someone else pushed the
            same files meanwhile; or the Hub refuses or cannot be reached. Nothing is sent then, or all of it was: a
            commit is one step.
        PlanError: The model has no adapters, or `name` does not select one.
    """
    from huggingface_hub import HfApi

    target = _Target(repo_id, revision, subfolder, create_pr)
    target.path(CONFIG)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_adapter(model, Path(temporary) / "adapter", name=name, facts=facts)
        adapter, making = read_adapter(folder), record_of(unwrap(model)).making
        card = model_card(adapter.config, adapter.size_bytes, repo_id, making)
        (folder / CARD).write_text(card, encoding="utf-8")
        if dry_run:
            return _what_would_be_pushed(target, folder)
        message = commit_message or f"{adapter.recipe.name} adapter for {adapter.base.model}"
        with talking(f"the adapter was not pushed to {target}", token=token):
            api = HfApi(token=token)
            _make_repository(api, target, private)
            seen: dict[str, str] | None = None
            for _ in range(TRIES):
                parent, present = _present(api, target)
                if seen is not None and present != seen:
                    raise AdapterError(
                        f"the adapter was not pushed to {target}: someone else wrote there meanwhile. Look at it, and "
                        "push again"
                    )
                seen = present
                _check_base(api, target, parent, present, adapter, overwrite=overwrite)
                names = _files_to_send(api, target, parent, present, making, edited_card)
                if (url := _committed(api, target, parent, {n: folder / n for n in names}, message)) is not None:
                    return url
    raise AdapterError(f"the adapter was not pushed to {target}: others push there all the time; try again later")


def _what_would_be_pushed(target: _Target, folder: Path) -> str:
    lines = [f"would be pushed to {target}, {'a pull request' if target.create_pr else target.revision or 'main'}:"]
    lines += [f"  {target.path(name)}: {(folder / name).stat().st_size:,} bytes" for name in FILES]
    return "\n".join(lines)


def _make_repository(api: HfApi, target: _Target, private: bool | None) -> None:
    """Create the repository and the branch; a token that may only write to existing repositories is enough for these.

    A pull request is for a repository that is there.
    """
    from huggingface_hub.errors import HfHubHTTPError

    if not target.create_pr:
        try:
            api.create_repo(target.repo_id, private=private)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code not in (HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT):
                raise
    if target.revision is not None:
        api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)


def _present(api: HfApi, target: _Target) -> tuple[str, dict[str, str]]:
    """Return the newest commit, and the contents (by hash) of those of our files that it has, by path."""
    commit = str(api.repo_info(target.repo_id, revision=target.revision, timeout=TIMEOUT_S).sha)
    entries: list[Any] = api.get_paths_info(target.repo_id, [target.path(name) for name in FILES], revision=commit)
    return commit, {entry.path: str(entry.blob_id) for entry in entries}


def _check_base(
    api: HfApi, target: _Target, commit: str, present: Mapping[str, str], adapter: AdapterFile, *, overwrite: bool
) -> None:
    if overwrite or target.path(TENSORS) not in present or target.path(CONFIG) not in present:
        return
    config = read_json(Path(api.hf_hub_download(target.repo_id, target.path(CONFIG), revision=commit))) or {}
    base = config.get("base")
    ours = adapter.base.as_dict()
    same = isinstance(base, dict) and all(base.get(key) == ours[key] for key in ("model", "structure", "weights"))
    if not same:
        theirs = base.get("model") if isinstance(base, dict) else None
        raise AdapterError(
            f"the adapter was not pushed to {target}: the adapter there was made for another base ({theirs!s:.100}). "
            "overwrite=True replaces it; subfolder= puts this one beside it"
        )


def _files_to_send(
    api: HfApi,
    target: _Target,
    commit: str,
    present: Mapping[str, str],
    making: Making | None,
    edited_card: EditedCard | None,
) -> tuple[str, ...]:
    """Return the names of the files to send: without the card, if a person wrote the one that is there."""
    if edited_card == "replace" or not _card_was_edited(api, target, commit, present, making):
        return FILES
    if edited_card == "keep":
        return TENSORS, CONFIG
    raise AdapterError(
        f"nothing was pushed to {target}, because its model card was edited by hand: edited_card='keep' keeps that "
        "card, edited_card='replace' writes a new one"
    )


def _card_was_edited(
    api: HfApi, target: _Target, commit: str, present: Mapping[str, str], making: Making | None
) -> bool:
    """Return whether the repository has a model card other than the one that lowpeft writes for its config.

    The config does not say how the base was made. Cards that show it as now, or not at all, are lowpeft's.
    """
    if target.path(CARD) not in present:
        return False
    if target.path(CONFIG) not in present:
        return True
    texts = [Path(api.hf_hub_download(target.repo_id, target.path(name), revision=commit)) for name in (CARD, CONFIG)]
    card, config = texts[0].read_text(encoding="utf-8"), read_json(texts[1])
    try:
        cards = {model_card(config or {}, 0, target.repo_id, each) for each in (making, None)}
    except (KeyError, TypeError, ValueError, AttributeError):  # the config is not lowpeft's
        return True
    patterns = (re.escape(written).replace(re.escape("0.00 MB"), r"\d+\.\d\d MB") for written in cards)
    return not any(re.fullmatch(pattern, card) for pattern in patterns)


def _committed(api: HfApi, target: _Target, parent: str, files: Mapping[str, Path], message: str) -> str | None:
    """Send files in one commit on top of a known one; return its URL, None if the repository has moved on."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    operations = [
        CommitOperationAdd(path_in_repo=target.path(name), path_or_fileobj=path) for name, path in files.items()
    ]
    try:
        commit = api.create_commit(
            target.repo_id,
            operations=operations,
            commit_message=message,
            revision=target.revision,
            create_pr=target.create_pr,
            parent_commit=parent,
        )
    except HfHubHTTPError as error:
        moved = (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT)
        if error.response is not None and error.response.status_code in moved:
            return None
        raise
    return str(commit.pr_url or commit.commit_url)
