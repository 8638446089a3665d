"""A base and its adapter by one name: the base is fetched from where the adapter's config says that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .backbones.opening import load_backbone
from .core.attachment.record import module_of
from .core.files.contents import AdapterFile
from .core.files.hub.pulling import pull_file
from .core.files.loading import Fetched, attach, fetched
from .errors import AdapterError, LowpeftError
from .ports.facts import Backbone, call, literal

DEMO = "demo"
"""In place of a file, for the built-in network."""


def load_pretrained(  # noqa: PLR0913  (options of a repository)
    folder_or_repo_id: str | Path,
    *,
    network: nn.Module | Backbone | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str = "default",
) -> nn.Module:
    """Load an adapter and its base.

    The adapter's `base_model` (see `About`) says where the base's weights are. If that is a file on the Hub, it is
    fetched, opened as `load_backbone` opens files (no code of it is run), and compared with the fingerprint in the
    adapter. An address elsewhere is shown in the error, and never asked.

    Args:
        folder_or_repo_id: As for `load_adapter`.
        network: Network of your own to fill with the weights, where they are of no architecture that lowpeft knows.
        revision: As for `load_adapter`.
        subfolder: As for `load_adapter`.
        token: As for `load_adapter`; for the base too.
        cache_dir: As for `load_adapter`; for the base too.
        local_files_only: As for `load_adapter`; for the base too.
        name: As for `load_adapter`.

    Returns:
        The adapted network on the CPU in eval mode, as `load_adapter` returns it.

    Raises:
        AdapterError: The adapter cannot be read; its config does not say where the base is, or names a place that is
            only shown; the base cannot be fetched or opened; or it is another one than the adapter was made for.
    """
    hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    found = fetched(folder_or_repo_id, revision=revision, subfolder=subfolder, **hub)
    place, options = find_base(found, own=network is not None, **hub)
    if place == DEMO:
        from .demo import demo_backbone

        base = demo_backbone()
    else:
        try:
            base = load_backbone(place, network=network, **options)
        except LowpeftError as error:
            message = f"the base of {found.source!r} cannot be opened: {error.message}"
            raise AdapterError(message, problems=error.problems) from error
    # A bare module, so that its facts are those of the adapter, which may differ from those of the file.
    return attach(module_of(base), found, name=name).eval()


def find_base(found: Fetched, *, own: bool = False, **hub: Any) -> tuple[str, dict[str, Any]]:
    """Fetch the weights of an adapter's base, and return their file and how `load_backbone` opens it.

    The file is `demo` for the built-in network.

    Args:
        found: The adapter.
        own: True where a network of the user's own is filled with the weights.
        hub: `token`, `cache_dir` and `local_files_only`, as for `load_pretrained`.

    Raises:
        AdapterError: As for `load_pretrained`.
    """
    opening, source = found.adapter.opening, found.adapter.about.base_file
    if opening is not None and "demo" in opening and not own:
        return DEMO, {}
    if source is None or (opening is None and not own):
        raise AdapterError(f"the base of {found.source!r} cannot be loaded with it: {_why_not(found.adapter)}")
    return str(pull_file(source.repo_id, source.path, revision=source.revision, **hub)), dict(opening or {})


def _why_not(adapter: AdapterFile) -> str:
    """Return why the base is not fetched, and what to do."""
    place, model = adapter.about.base_model, adapter.base.model
    way = f"{call('lowpeft.load_adapter', 'backbone', '…')} with the {model} of these weights: {adapter.base.weights}"
    if place is None:
        return f"its config does not say where the weights of the base are. Use {way}"
    if "://" in place:
        return f"its author says that the weights are at {place}, which is only shown. Get them, and use {way}"
    if adapter.about.base_file is None:
        return f"{literal(place)} is a repository, and no file in it. Use {way}"
    return "it is a network of its author's own: build it, and give it as network="
