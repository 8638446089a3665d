"""Pushing adapter folders to the Hub, in one commit."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ....errors import AdapterError, and_more
from ....ports.facts import Making, literal
from ...planning.site_values import SCHEMA
from ..about import PICTURE_NAMES, About, about_from_dict
from ..card import card_text, is_repository_card, making_in, model_card, repository_card
from ..contents import CARD, CONFIG, FILES, TENSORS, AdapterFile, tensors_digest
from ..reading import read_adapter, read_json, regular_file
from ..saving import check_results, picture_of, save_adapter, write_adapter
from .client import TIMEOUT_S, is_repo_id, path_in_repo, talking

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

    @property
    def place(self) -> str:
        """Arguments of `load_adapter`, as Python code."""
        folder = "" if self.subfolder is None else f", subfolder={literal(self.path('').rstrip('/'))}"
        return f"{literal(self.repo_id)}{folder}"

    def __str__(self) -> str:
        return f"{self.repo_id!r}" if self.subfolder is None else f"the folder {self.subfolder!r} of {self.repo_id!r}"


def push_to_hub(  # noqa: PLR0913  (options of a repository)
    model: object,
    repo_id: str,
    *,
    name: str | None = None,
    facts: Mapping[str, str | float] | None = None,
    about: About | None = None,
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
        model: An adapted model, or the folder of a saved adapter.
        repo_id: Repository, `owner/name`; created if missing.
        name: Name of the adapter; needed if several are attached.
        facts: Information for the model card, as in `save_adapter`; of a folder, in place of those in it.
        about: Licence, source of the base's weights, data sets, results and picture, for the card and its metadata; of
            a folder, in place of what is said in it.
        private: True to make a new repository private; None uses the owner's settings.
        revision: Branch, created if missing; None for the default branch.
        subfolder: Folder of the repository to write to, e.g. "x4/noise"; None for its top.
        create_pr: True to open a pull request instead of writing to the branch; for repositories of others.
        edited_card: Treatment of a model card that was edited in the repository: "keep" it or "replace" it.
        overwrite: True to replace an adapter that was made for another base, and to keep nothing that the repository
            says of one for this base.
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

    if not is_repo_id(repo_id):
        inner = "; a folder in it is given by subfolder= (--subfolder)" if str(repo_id).count("/") > 1 else ""
        raise AdapterError(f"a Hub repository is written owner/name, not {repo_id!r:.200}{inner}")
    target = _Target(repo_id, revision, subfolder, create_pr)
    target.path(CONFIG)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        if isinstance(model, str | Path):
            _copy(Path(model).expanduser(), folder, name=name, facts=facts, about=about)
        else:
            save_adapter(model, folder, name=name, facts=facts, about=about)
        ours = _Ours(target, folder, read_adapter(folder), making_in(card_text(folder / CARD)))
        ours.write_card(ours.adapter.config)
        if dry_run:
            return ours.would_be_pushed()
        with talking(f"the adapter was not pushed to {target}", token=token):
            api = HfApi(token=token)
            _check_source(api, ours.adapter.about)
            _make_repository(api, target, private)
            return _pushed(api, ours, edited_card, overwrite=overwrite, message=commit_message or ours.message)


@dataclass(frozen=True)
class _Ours:
    """The adapter that is pushed.

    Attributes:
        target: Where it goes.
        folder: Folder of its files, which are sent.
        adapter: Its contents.
        making: How its base was made, for the card; None if that is not known.
    """

    target: _Target
    folder: Path
    adapter: AdapterFile
    making: Making | None

    @property
    def message(self) -> str:
        """Message of the commit, where none is given."""
        return f"{self.adapter.recipe.name} adapter for {self.adapter.base.model}"

    def write_card(self, config: Mapping[str, Any]) -> None:
        """Write the card that loads the adapter from the repository."""
        card = model_card(config, self.adapter.size_bytes, self.target.place, self.making)
        (self.folder / CARD).write_text(card, encoding="utf-8")

    def say(self, about: About) -> None:
        """Write the files with other words about the adapter; its own picture stays."""
        config = {**self.adapter.config, "about": about.as_dict()}
        own = self.adapter.about.picture
        picture = None if own is None else self.folder / str(own)
        write_adapter(self.folder, self.adapter.tensors, config, self.making, picture)
        self.write_card(config)

    def files(self) -> list[Path]:
        """Return the files that are sent: without the lock."""
        return sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))

    def would_be_pushed(self) -> str:
        """Return what would be sent where."""
        target = self.target
        where = "a pull request" if target.create_pr else target.revision or "main"
        lines = [f"  {target.path(path.name)}: {path.stat().st_size:,} bytes" for path in self.files()]
        return "\n".join([f"would be pushed to {target}, {where}:", *lines])


@dataclass(frozen=True)
class _There:
    """What a repository has where an adapter goes, at one commit.

    Attributes:
        commit: The commit.
        files: Contents (by hash) of those of our files that it has, by path.
        config: Config of the adapter; empty if there is none, or none of lowpeft's.
    """

    commit: str
    files: Mapping[str, str]
    config: Mapping[str, Any]

    def is_of_base(self, adapter: AdapterFile) -> bool:
        """Return whether the adapter there was made for the same base as another one; also where there is none."""
        base, ours = self.config.get("base"), adapter.base.as_dict()
        return not self.config or (
            isinstance(base, dict) and all(base.get(key) == ours[key] for key in ("model", "structure", "weights"))
        )


def _pushed(api: HfApi, ours: _Ours, edited_card: EditedCard | None, *, overwrite: bool, message: str) -> str:
    """Send the adapter in one commit, on top of what is there; return the commit's URL.

    Raises:
        AdapterError: As for `push_to_hub`.
    """
    target, before = ours.target, None
    for _ in range(TRIES):
        there = _there(api, target)
        if before not in (None, there.files):
            raise AdapterError(
                f"the adapter was not pushed to {target}: someone else wrote there meanwhile. Look at it, and push "
                "again"
            )
        before = there.files
        if not (overwrite or there.is_of_base(ours.adapter)):
            raise _of_another_base(target, there)
        kept = _card_to_keep(api, target, there, edited_card)
        said = ours.adapter.about if overwrite else _say_what_was_said(ours, there)
        if said != ours.adapter.about:
            _check_source(api, said)
        files: dict[str, Path | bytes] = {target.path(path.name): path for path in ours.files() if path.name != kept}
        if target.subfolder is not None and not api.get_paths_info(target.repo_id, [CARD], revision=there.commit):
            files[CARD] = repository_card(ours.adapter.config, target.repo_id).encode()  # the Hub finds it by this one
        if (url := _committed(api, target, there.commit, files, message)) is not None:
            return url
    raise AdapterError(f"the adapter was not pushed to {target}: others push there all the time; try again later")


def _say_what_was_said(ours: _Ours, there: _There) -> About:
    """Keep what the repository says of the adapter where nothing else is said now, warn of it, and return all of it.

    Results are kept if they are of the same tensors, a picture if it is there.
    """
    own, target = ours.adapter.about, ours.target
    try:
        theirs = about_from_dict(there.config.get("about") or {}) if there.is_of_base(ours.adapter) else About()
    except (AdapterError, AttributeError, LookupError, TypeError, ValueError):  # lowpeft did not write it
        return own
    digest = tensors_digest(ours.adapter.tensors)
    theirs = replace(
        theirs,
        results=tuple(each for each in theirs.results if each.adapter == digest),
        picture=theirs.picture if target.path(str(theirs.picture)) in there.files else None,
    )
    kept = {name: value for name, value in vars(theirs).items() if value and not getattr(own, name)}
    if not kept:
        return own
    said = [name if name == "results" else f"{name} {value!s:.100}" for name, value in kept.items()]
    warnings.warn(
        f"what {target} says already is kept: {and_more(said, most=10)}; overwrite=True (--overwrite) leaves it out",
        UserWarning,
        stacklevel=4,
    )
    about = replace(own, **kept)
    ours.say(about)
    return about


def _check_source(api: HfApi, about: About) -> None:
    """Check that the base is where the author says.

    Raises:
        AdapterError: The Hub has no such file or repository, or not for this token.
    """
    file, repo = about.base_file, about.base_repo
    if file is not None and not api.file_exists(file.repo_id, file.path, revision=file.revision):
        raise AdapterError(f"base_model= (--base-model) names {about.base_model}, but the Hub has no such file")
    if file is None and repo is not None and not api.repo_exists(repo):
        raise AdapterError(f"base_model= (--base-model) names {about.base_model}, but the Hub has no such repository")


def _copy(
    source: Path, folder: Path, *, name: str | None, facts: Mapping[str, str | float] | None, about: About | None
) -> None:
    """Write a saved adapter to another folder, with other words about it."""
    if name is not None:
        raise AdapterError(f"name={name!r} selects one adapter of a model; a folder has one")
    adapter = read_adapter(source)
    if adapter.config["schema"] != SCHEMA:
        raise AdapterError(f"{source} is of schema {adapter.config['schema']}: load it, save it again, and push that")
    said = replace(adapter.about, picture=picture_of(source, adapter.about)) if about is None else about
    check_results(said, tensors_digest(adapter.tensors))
    changed = {"about": said.as_dict(), **({} if facts is None else {"facts": dict(facts)})}
    try:
        making = making_in(card_text(regular_file(source, CARD)))
    except (AdapterError, OSError):  # loading does not need the card
        making = None
    write_adapter(folder, adapter.tensors, {**adapter.config, **changed}, making, said.picture)


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


def _there(api: HfApi, target: _Target) -> _There:
    """Return what the repository has at its newest commit."""
    commit = str(api.repo_info(target.repo_id, revision=target.revision, timeout=TIMEOUT_S).sha)
    entries: list[Any] = api.get_paths_info(
        target.repo_id, [target.path(name) for name in (*FILES, *PICTURE_NAMES)], revision=commit
    )
    files, config = {entry.path: str(entry.blob_id) for entry in entries}, None
    if {target.path(TENSORS), target.path(CONFIG)} <= files.keys():
        config = read_json(Path(api.hf_hub_download(target.repo_id, target.path(CONFIG), revision=commit)))
    return _There(commit, files, config or {})


def _of_another_base(target: _Target, there: _There) -> AdapterError:
    base = there.config.get("base")
    theirs = base.get("model") if isinstance(base, dict) else None
    return AdapterError(
        f"the adapter was not pushed to {target}: the adapter there was made for another base ({theirs!s:.100}). "
        "overwrite=True (--overwrite) replaces it; subfolder= (--subfolder) puts this one beside it"
    )


def _card_to_keep(api: HfApi, target: _Target, there: _There, edited_card: EditedCard | None) -> str | None:
    """Return the name of the card, which is not sent, if a person wrote the one that is there; otherwise None."""
    if edited_card == "replace" or target.path(CARD) not in there.files:
        return None
    card = card_text(Path(api.hf_hub_download(target.repo_id, target.path(CARD), revision=there.commit)))
    if not _was_edited(card, there.config, target) or (target.subfolder is None and is_repository_card(card)):
        return None
    if edited_card == "keep":
        return CARD
    raise AdapterError(
        f"nothing was pushed to {target}, because its model card was edited by hand: edited_card='keep' (--edited-card "
        "keep) keeps that card, edited_card='replace' writes a new one"
    )


def _was_edited(card: str, config: Mapping[str, Any], target: _Target) -> bool:
    """Return whether a model card is another one than lowpeft writes for a config."""
    try:
        written = model_card(config, 0, target.place, making_in(card))
    except (KeyError, TypeError, ValueError, AttributeError):  # the config is not lowpeft's
        return True
    pattern = re.escape(written).replace(re.escape("0.00 MB"), r"\d+\.\d\d MB")
    return re.fullmatch(pattern, card) is None


def _committed(api: HfApi, target: _Target, parent: str, files: Mapping[str, Path | bytes], message: str) -> str | None:
    """Send files in one commit on top of a known one; return its URL, None if the repository has moved on."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
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
