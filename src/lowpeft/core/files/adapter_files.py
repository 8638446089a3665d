"""Adapter files: a folder with the tensors, the config and a model card. No pickle, no code.

    adapter_model.safetensors   tensors of the adapter; a copy of the config in its metadata
    adapter_config.json         schema, version of lowpeft, recipe, sites, fingerprint of the base
    README.md                   model card

The safetensors file is self-contained: replacing it is the single step that turns an old adapter into a new one. All
three files are first written under other names, so a save that is killed leaves either the old or the new adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import AdapterError, LowpeftError, and_more
from ...ports.base import base_parameters
from ...ports.facts import Facts, Making
from ...recipes import Recipe, recipe_from_dict, recipe_to_dict
from ...storage import fsync
from ...version import version
from ..attachment.changes import one_at_a_time
from ..attachment.record import record_of, root_of, unwrap
from ..attachment.slots import below
from ..observation.describe import facts_of, is_described
from ..observation.examples import Example
from ..observation.figures import Figures, figures_from_dict, figures_of, other_figures
from ..observation.fingerprint import (
    OTHER_STRUCTURE,
    OTHER_WEIGHTS,
    Fingerprint,
    compare,
    digest,
    digests,
    fingerprint,
    fingerprint_from_dict,
    rounding_between,
    with_rounded,
)
from ..observation.trial import Trial
from ..operations.injection import attach_plan
from ..operations.new_adapters import tensor_problems, tensors_of
from ..operations.state import adapter_state_dict, only_name
from ..planning.plan import plan_sites
from ..planning.site_values import (
    SCHEMA,
    SCHEMAS,
    facts_from_dict,
    facts_to_dict,
    other_facts,
    sites_from_dicts,
    sites_to_dicts,
    with_new_keys,
)
from ..planning.sites import Site, build, on_meta
from .card import model_card

FILES = TENSORS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
METADATA_KEY = "lowpeft"


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """Contents of an adapter folder, consistent but not yet checked against a network.

    Attributes:
        config: Plain values of `adapter_config.json`.
        recipe: Recipe that the adapter was made with.
        sites: Sites of the adapter.
        base: Fingerprint of the base.
        output: Figures of the base's output; None if there are none.
        facts: Information from the author for the model card (data, results, name of the base's weights).
        calibrated: True if the adapter's starting values were learned from data.
        network: Facts of the network that the adapter was made on (value range, scale, …); None in schema 1.
        tensors: Tensors by key, on the CPU.
    """

    config: dict[str, Any]
    recipe: Recipe
    sites: tuple[Site, ...]
    base: Fingerprint
    output: Figures | None
    facts: dict[str, Any]
    calibrated: bool
    network: Facts | None
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Total size of the tensors, in bytes."""
        return _bytes(self.tensors)


# --- writing ---------------------------------------------------------------------------------------------------------


@one_at_a_time
def save_adapter(
    model: object, folder: str | Path, *, name: str | None = None, facts: Mapping[str, str | float] | None = None
) -> Path:
    """Write one adapter, and nothing of the base, to a folder.

    Args:
        model: An adapted model.
        folder: Folder to write to, created if needed; an adapter in it is replaced in one step.
        name: Name of the adapter; needed if several are attached.
        facts: Information for readers, shown as a table in the model card: data, results, name of the base's weights.

    Returns:
        The folder.

    Raises:
        AdapterError: Training results would be lost (a base tensor was changed or set trainable), a tensor contains
            NaN or infinity, or the folder cannot be written. The adapter in the folder is then unchanged.
        PlanError: The model has no adapters, or `name` does not select one.
    """
    root = unwrap(model)
    chosen = only_name(model, name)
    tensors = {k: v.cpu().contiguous() for k, v in adapter_state_dict(model, name=chosen).items()}
    problems = _losses(root)
    problems += [f"{k} contains NaN or infinity" for k, v in tensors.items() if not torch.isfinite(v).all()]
    if problems:
        raise AdapterError(f"the adapter {chosen!r} was not saved:", problems=problems)
    config = _config(root, chosen, tensors, dict(facts or {}))
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write(target, tensors, config, record_of(root).making)
    except (OSError, TypeError, ValueError, SafetensorError) as error:  # of the path, or of facts that JSON lacks
        raise AdapterError(f"cannot write the adapter to {target}: {error}") from error
    return target


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
        record.in_files = with_rounded(record.base, root), figures_of(root, record.facts)
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
        "tensors": {"number": len(tensors), "sha256": _tensors_digest(tensors)},
    }


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    lines = "\n".join(f"{k} {digest(tensors[k])}" for k in sorted(tensors))
    return hashlib.sha256(lines.encode(), usedforsecurity=False).hexdigest()


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], making: Making | None) -> None:
    _finish_pending(folder)
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    card = model_card(config, _bytes(tensors), folder.resolve().name, making)
    (text + card).encode()  # raises before anything is written, e.g. for half of a surrogate pair in the facts
    new = {name: folder / f"{name}.new" for name in FILES}
    save_file(tensors, new[TENSORS], {METADATA_KEY: json.dumps(config)})
    new[CONFIG].write_text(text, encoding="utf-8")
    new[TENSORS].chmod(new[CONFIG].stat().st_mode)  # safetensors writes it readable by the owner only
    new[CARD].write_text(card, encoding="utf-8")
    for path in new.values():
        fsync(path)
    for name, path in new.items():  # tensors first: this replaces the old adapter
        path.replace(folder / name)


def _finish_pending(folder: Path) -> None:
    """Move the pending config into place if the last save to the folder was killed after it replaced the tensors."""
    pending = folder / f"{CONFIG}.new"
    if not (folder / TENSORS).is_file() or not pending.is_file():
        return
    try:
        config = _config_in(folder / TENSORS)
    except SafetensorError:
        return
    if config is not None and read_json(pending) == config:
        pending.replace(folder / CONFIG)


def _config_in(tensors: Path) -> dict[str, Any] | None:
    """Return the config in the metadata of a file of tensors; None if it has none."""
    with safe_open(tensors, framework="pt") as file:
        return _json((file.metadata() or {}).get(METADATA_KEY, ""))


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


# --- reading ---------------------------------------------------------------------------------------------------------


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read and check an adapter folder, without a network.

    Raises:
        AdapterError: A file is missing, truncated, of an unknown schema, edited, or contains NaN; problems that can be
            found in one pass are listed together.
    """
    directory = Path(folder)
    if not os.path.isdir(directory):  # noqa: PTH112  (it never raises)
        raise AdapterError(f"{directory} is not an adapter folder: there is no such folder")
    missing = [n for n in (TENSORS, CONFIG) if not os.path.isfile(directory / n)]  # noqa: PTH113  (it never raises)
    if missing:
        found = f"{' and '.join(missing)} missing{_held_instead(directory)}"
        raise AdapterError(f"{directory} is not an adapter folder: {found}")
    try:
        with safe_open(directory / TENSORS, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        config = _config_in(directory / TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{directory / TENSORS} cannot be read: {error}") from error
    if config is None:
        raise AdapterError(f"{directory / TENSORS} has no config of lowpeft in its metadata: lowpeft did not write it")
    # If a save was killed between replacing the two files, the second one contains the matching config.
    copies = [path for path in (directory / CONFIG, directory / f"{CONFIG}.new") if path.is_file()]
    if not any(read_json(path) == config for path in copies):
        raise AdapterError(f"{directory / CONFIG} differs from the config in {TENSORS}: one of them was changed")
    return _checked(directory, config, tensors)


def _held_instead(directory: Path) -> str:
    """Return what a folder without an adapter holds, for an error: a network's weights, or the names of some files."""
    names = sorted(path.name for path in directory.glob("*"))
    if weights := [name for name in names if name.endswith(".safetensors") and name != TENSORS]:
        path = directory / weights[0]
        return f". It holds the weights of a network: lowpeft.load_backbone({str(path)!r}), --weights {path}"
    return f"; it holds {and_more(names)}" if names else "; it is empty"


def _checked(directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> AdapterFile:
    """Return the parsed contents; raise if the schema is unknown, or config or tensors were edited."""
    schema = config.get("schema")
    if schema not in SCHEMAS or type(schema) is not int:
        known = " and ".join(map(str, SCHEMAS))
        raise AdapterError(f"{directory} has schema {schema!r}; this version of lowpeft ({version()}) reads {known}")
    problems = []
    try:
        if config["tensors"]["sha256"] != _tensors_digest(tensors):
            problems.append("the tensors differ from those that were saved (their checksum differs)")
        sites = sites_from_dicts(config["sites"], schema=schema)
        adapter = AdapterFile(
            config=config,
            recipe=recipe_from_dict(config["recipe"], origin="its recipe"),
            sites=sites,
            base=fingerprint_from_dict(config["base"]),
            output=figures_from_dict(config["output"]) if config.get("output") is not None else None,
            facts=dict(config["facts"]),
            calibrated=config.get("calibrated", False) is True,
            network=facts_from_dict(config["network"]) if "network" in config else None,
            tensors=with_new_keys(tensors, sites, schema=schema),
        )
        problems += tensor_problems(_expected(sites), adapter.tensors)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        text = str(error) if isinstance(error, LowpeftError) else f"{type(error).__name__}: {error}"
        problems.append(f"{CONFIG} is not what lowpeft writes: {text}")
        # Where the config cannot be read, `tensor_problems` has not run.
        problems += [f"{key} contains NaN or infinity" for key, t in tensors.items() if not t.float().isfinite().all()]
    if problems:
        raise AdapterError(f"{directory} cannot be used:", problems=problems)
    return adapter


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object (dict) in a JSON file; None if the file is not valid JSON or not an object.

    Raises:
        AdapterError: The file cannot be read.
    """
    try:
        return _json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: deep nesting; ValueError also: a huge integer
        return None
    return value if isinstance(value, dict) else None


def _expected(sites: tuple[Site, ...]) -> dict[str, Tensor]:
    """Return the tensors of adapters at these sites, by key, on the meta device."""
    at = {below(s.path, s.key): s for s in sites}
    return on_meta(lambda: tensors_of((k, build(s.config, s.shape, s.layer, s.attachment.form)) for k, s in at.items()))


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
