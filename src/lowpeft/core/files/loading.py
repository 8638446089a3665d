"""Attaching saved adapters to networks."""

from __future__ import annotations

import os
from dataclasses import replace
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
from .contents import FILES, AdapterFile
from .reading import read_adapter


def load_adapter(
    model: object,
    folder_or_repo_id: str | Path,
    *,
    revision: str | None = None,
    name: str = "default",
    force: bool = False,
    example: Any = None,
) -> nn.Module:
    """Attach a saved adapter to its base.

    Args:
        model: Network or `Backbone`, with the same base as when the adapter was made.
        folder_or_repo_id: Folder that `save_adapter` wrote, or a Hugging Face Hub repository (`owner/name`).
        revision: Commit, tag or branch of the Hub repository.
        name: Name of the adapter on this model; one base can have several adapters.
        force: True to attach the adapter even if it was made for another base. Sites and shapes must fit anyway.
        example: Input of the base, used with `force`; needed if it is not one N,C,H,W tensor, as in `adapt`.

    Returns:
        The same object, or a `StereoModel` around it, as `adapt` returns.

    Raises:
        AdapterError: The file is damaged, or the adapter was made for another base; the model is unchanged.
        PlanError: The adapter cannot be attached; the model is unchanged.
    """
    adapter = read_adapter(_folder(folder_or_repo_id, revision))
    return _attach(model, adapter, str(folder_or_repo_id), name=name, force=force, example=example)


@one_at_a_time
def _attach(model: object, adapter: AdapterFile, source: str, *, name: str, force: bool, example: Any) -> nn.Module:
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
    notes = [] if rounding is None else [rounding.text]
    notes += [f"attached by force, though its base was another one: {'; '.join(problems)}"] if problems else []
    plan = replace(plan, notes=(*plan.notes, *notes))
    return attach_plan(model, plan, found=known, tensors=adapter.tensors, calibrated=adapter.calibrated)


def _folder(source: str | Path, revision: str | None) -> Path:
    is_repo_id = isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "/"))
    if os.path.lexists(source) or not is_repo_id:
        if revision is not None:
            raise AdapterError(f"revision={revision!r} is for Hub repositories; {source} is a folder")
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"there is no folder {source!r}, and as a Hub repository it cannot be read: {reason}"
        ) from error
