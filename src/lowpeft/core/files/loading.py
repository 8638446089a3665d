"""Attaching saved adapters to networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import AdapterError
from ..attachment.changes import one_at_a_time
from ..attachment.record import root_of
from ..observation.describe import facts_of, is_described
from ..observation.examples import Example
from ..observation.figures import other_figures
from ..observation.fingerprint import OTHER_STRUCTURE, OTHER_WEIGHTS, compare, digests, fingerprint, rounding_between
from ..observation.trial import Trial
from ..operations.injection import attach_plan
from ..planning.plan import plan_sites
from ..planning.site_values import other_facts
from .contents import AdapterFile
from .hub.client import is_on_hub
from .hub.pulling import pull
from .reading import read_adapter


def load_adapter(  # noqa: PLR0913  (options of a repository)
    model: object,
    folder_or_repo_id: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str = "default",
    force: bool = False,
    example: Any = None,
) -> nn.Module:
    """Attach a saved adapter to its base.

    Args:
        model: Network or `Backbone`, with the same base as when the adapter was made.
        folder_or_repo_id: Folder that `save_adapter` wrote, or a Hugging Face Hub repository (`owner/name`).
        revision: Commit, tag or branch of the Hub repository; it is resolved once, and `summary` names the commit.
        subfolder: Folder of the adapter in the Hub repository.
        token: Token for private repositories; by default that of `hf auth login` or of `HF_TOKEN`.
        cache_dir: Folder of the cache; by default the Hub's own. If the Hub cannot be reached, what it has is used.
        local_files_only: True to ask the cache alone.
        name: Name of the adapter on this model; one base can have several adapters.
        force: True to attach the adapter even if it was made for another base. Sites and shapes must fit anyway.
        example: Input of the base, used with `force`; needed if it is not one N,C,H,W tensor, as in `adapt`.

    Returns:
        The same object, or a `StereoModel` around it, as `adapt` returns.

    Raises:
        AdapterError: The file is damaged, the adapter was made for another base, or the Hub repository cannot be read;
            the model is unchanged.
        PlanError: The adapter cannot be attached; the model is unchanged.
    """
    found = fetched(
        folder_or_repo_id,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    return attach(model, found, name=name, force=force, example=example)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A saved adapter, read and checked.

    Attributes:
        adapter: Its contents.
        source: The folder or the repository that was asked for.
        notes: Where it is from, for the summary.
    """

    adapter: AdapterFile
    source: str
    notes: tuple[str, ...] = ()


def fetched(folder_or_repo_id: str | Path, *, local_files_only: bool = False, **asked: Any) -> Fetched:
    """Read an adapter from a folder or, if there is no such folder, from the Hub.

    Args:
        folder_or_repo_id: As for `load_adapter`.
        local_files_only: As for `load_adapter`.
        asked: `revision`, `subfolder`, `token` and `cache_dir`, as for `load_adapter`.

    Raises:
        AdapterError: As for `load_adapter`.
    """
    if not isinstance(folder_or_repo_id, (str, Path)):
        raise AdapterError(f"an adapter is a folder or a Hub repository owner/name, not {folder_or_repo_id!r:.100}")
    source = str(folder_or_repo_id)
    if is_on_hub(folder_or_repo_id, revision=asked.get("revision"), subfolder=asked.get("subfolder")):
        found = pull(source, **asked, local_files_only=local_files_only)
        notes = (f"from the Hub repository {found.repo_id} at {found.commit}",)
        return Fetched(adapter=read_adapter(found.folder), source=source, notes=notes)
    return Fetched(adapter=read_adapter(folder_or_repo_id), source=source)


@one_at_a_time
def attach(
    model: object, found: Fetched, *, name: str = "default", force: bool = False, example: Any = None
) -> nn.Module:
    """Attach an adapter that was read to its base; see `load_adapter`."""
    adapter, source = found.adapter, found.source
    root = root_of(model)
    known = digests(root)
    problems = compare(adapter.base, fingerprint(root, known))
    rounding = rounding_between(adapter.base, root) if problems == [OTHER_WEIGHTS] else None
    if rounding is not None:
        problems = []
    if adapter.output is not None and not problems and not force:
        problems += other_figures(adapter.output, root, rounding.dtype if rounding is not None else None)
    if adapter.network is not None and is_described(model):
        problems += other_facts(adapter.network, facts_of(model))
    given = None if example is None else Example.of(example)
    trial = Trial(root, given) if problems else None  # possibly another base: run it once
    if trial is not None and not force:
        advice = "force=True (--force) attaches it anyway"
        advice += ", if its sites fit" if OTHER_STRUCTURE in problems else ""
        family = trial.recognised
        if (family is None or family.family.writes_itself) and trial.runs and trial.written():
            advice = "but this one writes its own weights when it runs, and has not run yet: run it in eval mode first"
        raise AdapterError(f"the adapter {source!r} belongs to another base ({advice}):", problems=problems)
    plan = plan_sites(model, adapter.recipe, adapter.sites, name=name, trial=trial, facts=adapter.network)
    notes = [*found.notes] if rounding is None else [*found.notes, rounding.text]
    notes += [f"attached by force, though its base was another one: {'; '.join(problems)}"] if problems else []
    plan = replace(plan, notes=(*plan.notes, *notes))
    return attach_plan(model, plan, found=known, tensors=adapter.tensors, calibrated=adapter.calibrated)
