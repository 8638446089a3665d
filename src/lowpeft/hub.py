"""Sharing an adapter on the Hugging Face Hub: the files of an adapter folder, in one commit."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .card import model_card
from .errors import AdapterError
from .files import CARD, CONFIG, FILES, read_adapter, read_json, save_adapter

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push_to_hub(
    model: object,
    repo_id: str,
    *,
    name: str | None = None,
    facts: Mapping[str, str | float] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    replace_card: bool = False,
) -> str:
    """Write one adapter, and nothing of the base, to a Hub repository, in one commit.

    What goes there is what `save_adapter` writes, with a model card that says which base the adapter is for, by its
    checksums, and how to load it from this repository. A card that somebody has edited stays. The token is that of
    `hf auth login` or of the environment's `HF_TOKEN`.

    Args:
        model: An adapted model.
        repo_id: `owner/name`; created if there is none.
        name: As in `save_adapter`.
        facts: As in `save_adapter`: data, figures, where the base's weights are published, their SHA-256.
        private: Whether a new repository is private; None leaves that to the owner's settings.
        revision: Branch; created if there is none. None means the default branch.
        replace_card: Replace the repository's model card even if somebody has edited it.

    Returns:
        The address of the commit.

    Raises:
        AdapterError: The adapter cannot be saved (see `save_adapter`; nothing was sent then), or the Hub refuses or
            cannot be reached.
        PlanError: As `save_adapter`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    with tempfile.TemporaryDirectory() as place:
        folder = save_adapter(model, Path(place) / "adapter", name=name, facts=facts)
        adapter = read_adapter(folder)
        try:
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            (folder / CARD).write_text(model_card(adapter.config, adapter.size_bytes, repo_id), encoding="utf-8")
            if not replace_card and _card_was_edited(api, repo_id, revision):
                (folder / CARD).unlink()
                warnings.warn(
                    f"the model card of {repo_id} was edited, so it stays; replace_card=True replaces it", stacklevel=2
                )
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"{adapter.recipe.name} adapter for {adapter.base.model}",
                revision=revision,
                allow_patterns=list(FILES),
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise AdapterError(f"the adapter was not pushed to {repo_id!r}: {reason}") from error
    return str(commit.commit_url)


def _card_was_edited(api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Whether the repository has a card that is not the one written for the adapter beside it."""
    if not api.file_exists(repo_id, CARD, revision=revision):
        return False
    card = Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
    if not api.file_exists(repo_id, CONFIG, revision=revision):
        return True
    config = read_json(Path(api.hf_hub_download(repo_id, CONFIG, revision=revision)))
    return config is None or not _is_ours(card, config, repo_id)


def _is_ours(card: str, config: dict[str, Any], repo_id: str) -> bool:
    try:
        written = model_card(config, 0, repo_id)
    except (KeyError, TypeError, AttributeError):
        return False
    return re.fullmatch(re.escape(written).replace(re.escape("0.00 MB"), r"\d+\.\d\d MB"), card) is not None
