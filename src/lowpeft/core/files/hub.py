"""Upload of adapter folders to the Hugging Face Hub, in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import AdapterError
from ...ports.facts import Making
from ..attachment.record import record_of, unwrap
from .card import model_card
from .contents import CARD, CONFIG, FILES
from .reading import read_adapter, read_json
from .saving import save_adapter

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push_to_hub(  # noqa: PLR0913  (options of a repository)
    model: object,
    repo_id: str,
    *,
    name: str | None = None,
    facts: Mapping[str, str | float] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    edited_card: Literal["keep", "replace"] | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Write one adapter, and nothing of the base, to a Hub repository, in one commit.

    The files are those of `save_adapter`. The model card identifies the base by its checksums and shows how to load the
    adapter from this repository.

    Args:
        model: An adapted model.
        repo_id: Repository, `owner/name`; created if missing.
        name: Name of the adapter; needed if several are attached.
        facts: Information for the model card, as in `save_adapter`: data, results, source of the base's weights, their
            SHA-256.
        private: True to make a new repository private; None uses the owner's settings.
        revision: Branch, created if missing; None for the default branch.
        edited_card: Treatment of a model card that was edited in the repository: "keep" it or "replace" it.
        commit_message: Message of the commit; by default it names the recipe and the base.
        token: Token with write access; by default that of `hf auth login` or of `HF_TOKEN`. It is not stored.

    Returns:
        URL of the commit.

    Raises:
        AdapterError: The adapter cannot be saved (see `save_adapter`); or the model card was edited and `edited_card`
            is None (no files are sent then); or the Hub refuses or cannot be reached.
        PlanError: The model has no adapters, or `name` does not select one.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as temporary:
        folder = save_adapter(model, Path(temporary) / "adapter", name=name, facts=facts)
        adapter, making = read_adapter(folder), record_of(unwrap(model)).making
        try:
            api = HfApi(token=token)
            is_new = _create(api, repo_id, private)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if is_new or edited_card == "replace" or not _card_was_edited(api, repo_id, revision, making):
                card = model_card(adapter.config, adapter.size_bytes, repo_id, making)
                (folder / CARD).write_text(card, encoding="utf-8")
            elif edited_card == "keep":
                (folder / CARD).unlink()
            else:
                raise AdapterError(
                    f"nothing was pushed to {repo_id!r}, because its model card was edited by hand: "
                    "edited_card='keep' keeps that card, edited_card='replace' writes a new one"
                )
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"{adapter.recipe.name} adapter for {adapter.base.model}",
                revision=revision,
                allow_patterns=list(FILES),
            )
        # If the Hub cannot be reached, its HTTP library raises a base class of HfHubHTTPError; the library has changed.
        except (*HfHubHTTPError.__bases__, HFValidationError, OSError) as error:  # type: ignore[misc]
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise AdapterError(f"the adapter was not pushed to {repo_id!r}: {reason}") from error
    return str(commit.commit_url)


def _create(api: HfApi, repo_id: str, private: bool | None) -> bool:
    """Create the repository; return False if it exists, or if the token may only write to existing repositories."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repo_id, private=private)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT):
            return False
        raise
    return True


def _card_was_edited(api: HfApi, repo_id: str, revision: str | None, making: Making | None) -> bool:
    """Return whether the repository has a model card other than the one that lowpeft writes for its config.

    The config does not say how the base was made. Cards that show it as now, or not at all, are lowpeft's.
    """
    if not api.file_exists(repo_id, CARD, revision=revision):
        return False
    card = Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    if not api.file_exists(repo_id, CONFIG, revision=revision):
        return True
    config = read_json(Path(api.hf_hub_download(repo_id, CONFIG, revision=revision)))
    try:
        cards = {model_card(config or {}, 0, repo_id, each) for each in (making, None)}
    except (KeyError, TypeError, ValueError, AttributeError):  # the config is not lowpeft's
        return True
    patterns = (re.escape(written).replace(re.escape("0.00 MB"), r"\d+\.\d\d MB") for written in cards)
    return not any(re.fullmatch(pattern, card) for pattern in patterns)
