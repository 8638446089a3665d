"""Plans: the sites an adapter would get, as a value, and the checks before it is attached. Never changes the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ... import tables
from ...errors import PlanError, and_more
from ...kinds import AdapterConfig
from ...ports.base import base_modules, base_parameters, original_class
from ...ports.facts import Facts
from ...recipes import Recipe, load_recipe, override
from ..attachment.changes import one_at_a_time
from ..attachment.record import module_of, root_of
from ..attachment.wrappers import refuse_fixed
from ..observation.blocks import ChangedBlockError, OtherBlockError, check_block, variant_in
from ..observation.describe import facts_of, is_described
from ..observation.examples import Example
from ..observation.probe import NoStagesError
from ..observation.trial import Trial
from ..observation.usable import refuse_moving_statistics, refuse_unusable
from .budget import within_budget
from .choosing import choose_sites, layer_of
from .conflicts import refuse_conflicts, refuse_other_views
from .feature_sites import other_channels, refuse_moving_channels
from .mixing import is_known_apart, mixes_images
from .ready_calls import Asked, with_call, with_found_places
from .sites import Network, Site, site_key


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sites and parameters that `adapt` would create; printing a plan gives a table.

    Attributes:
        model: Class name of the network.
        family: Name of the network's family; None if its stages were found by running it or the sites were named.
        name: Name of the adapter.
        recipe: Recipe, with the overrides applied.
        sites: Sites that get an adapter.
        structure: Digest of the network's modules and parameter shapes, without adapters; `inject` compares it.
        base_parameters: Number of parameters of the frozen network.
        facts: Facts of the network: given, known or measured.
        notes: Remarks for people: parameters that the patterns passed over, and assumptions.
    """

    model: str
    family: str | None
    name: str
    recipe: Recipe
    sites: tuple[Site, ...] = field(repr=False)
    structure: str
    base_parameters: int
    facts: Facts = field(repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def parameters(self) -> int:
        """Number of parameters that the adapters train."""
        return sum(s.parameters for s in self.sites)

    def __str__(self) -> str:
        share = 100 * self.parameters / max(1, self.base_parameters)
        heading = (
            f"{self.recipe.name!r} on {self.model} ({self.family or 'no known family'}): {len(self.sites)} sites, "
            f"{self.parameters:,} trained beside {self.base_parameters:,} frozen parameters ({share:.2f} %)"
        )
        notes = [f"  {note}" for note in (*self.facts.notes, *self.notes)]
        notes += [f"{config.kind}: {config.settings}" for config in self.recipe.adapters if config.settings]
        rows = [("kind", "stage", "site", "class", "shape", "parameters")]
        rows += [
            (
                s.config.kind,
                "" if s.stage is None else str(s.stage),
                _where(s),
                s.module,
                "x".join(map(str, s.shape)),
                f"{s.parameters:,}",
            )
            for s in self.sites
        ]
        return "\n".join([heading, str(self.facts), *notes, tables.text(rows)])


def _where(site: Site) -> str:
    """Return the path of a site and, in brackets, its port, its parameters or its form."""
    inside = site.attachment.port or ", ".join(site.attachment.tensors) or site.attachment.form
    return f"{site.path or '(network)'}" + (f" [{inside}]" if inside != "output" else "")


@one_at_a_time
def plan(
    model: object,
    recipe: str | Path | Recipe | AdapterConfig | Sequence[AdapterConfig] = "stereo",
    *,
    name: str = "default",
    example: Any = None,
    **overrides: Any,
) -> Plan:
    """Return what `adapt` would do with the same arguments. The model is not changed: forward passes run on a copy.

    Args:
        model: A network, a `Backbone`, or an adapted network or `StereoModel` that gets one more adapter; may be inside
            torch's wrappers.
        recipe: Name of a bundled recipe, path to a TOML recipe, `Recipe`, or adapter configs.
        name: Name of the adapter; one base can have several adapters.
        example: Input of the network, needed if that is not one N,C,H,W tensor: a tensor or a list (the only argument),
            a tuple (positional arguments) or a dict (keyword arguments), with at least one image.
        overrides: Fields of the recipe's adapters (`every=1`, `spatial={"reduction": 8}`), `train_also=[patterns]` for
            layers of the base that are also trained, or `budget="1%"` for the size that comes nearest to this share of
            trained parameters.

    Raises:
        PlanError: The adapters cannot be attached, for any reason. If the places for them could not be determined, the
            message contains a call that names modules.
    """
    wanted = override(load_recipe(recipe), overrides)
    if not wanted.adapters and not wanted.from_scratch:
        raise PlanError(f"recipe {wanted.name!r} has no adapters, so nothing would be trained")
    if wanted.from_scratch:
        raise PlanError(
            f"recipe {wanted.name!r} has no adapters: it trains a new network from scratch; use `lowpeft train`"
        )
    refuse_fixed(module_of(model))
    root = root_of(model)
    refuse_unusable(root)
    trial = Trial(root, None if example is None else Example.of(example))
    if trial.example is not None and not trial.runs:
        raise trial.did_not_run()
    facts = trial.facts = facts_of(model, trial)
    asked = Asked(recipe=recipe, wanted=wanted, overrides=overrides, has_example=example is not None, name=name)
    if not wanted.freeze_statistics:
        frozen = replace(asked, overrides={**overrides, "freeze_statistics": True})
        moved = trial.moved_by_training()
        advice = "Keep them fixed by freeze_statistics=True, on the command line --set freeze_statistics=true:"
        refuse_moving_statistics(root, f"{advice}\n    {frozen.call({})}", moved)
    network, sites, wanted = _choose(Network(root, facts, trial), asked)
    if network.may_write_itself and trial.runs:
        _refuse_own_writes(trial)
    if wanted.views > 1 and not is_known_apart(network) and mixes_images(trial, sites):
        raise PlanError(
            f"{original_class(root).__name__} mixes the images of a batch: its output for one image depends on the "
            f"others, so {wanted.views} views would be mixed before any training. Use adapters of single images, e.g. "
            "`spatial` or `lora`"
        )
    return _checked_plan(network, name, wanted, sites, facts)


def _choose(network: Network, asked: Asked) -> tuple[Network, list[Site], Recipe]:
    """Choose the sites; if the blocks are not those of the family, treat the network as one of no known family.

    Returns:
        The network as it was treated, the sites, and the recipe with the sizes that its budget gives.
    """
    try:
        recipe = within_budget(network, asked.wanted)
        sites = [site for config in recipe.adapters for site in choose_sites(network, config)]
        refuse_moving_channels(network, sites)
        return network, sites, recipe
    except NoStagesError as error:
        raise with_call(error, network, asked) from error
    except ChangedBlockError as error:
        unknown = Network(network.root, network.facts, network.trial, by_family=False)
        if not isinstance(error, OtherBlockError):
            raise with_found_places(error, unknown, asked) from error
        unknown.notes[f"treated as a network of no known family, because {error.message}"] = None
        return _choose(unknown, asked)


def _refuse_own_writes(trial: Trial) -> None:
    """Refuse a network that wrote its own weights or buffers in the forward passes so far."""
    written = trial.written()
    if not written:
        return
    some = and_more(written, most=3)
    text = f"{original_class(trial.root).__name__} changes its own state when it runs ({len(written)} tensors: {some})"
    if trial.written_again():
        raise PlanError(
            f"{text}, in every forward, so an adapter file could not identify its base: keep such values in plain "
            "attributes, or out of the state dict (register_buffer(…, persistent=False))"
        )
    raise PlanError(
        f"{text}, in the first forward only: run it once in eval mode before you adapt it, "
        "`with torch.no_grad(): network.eval()(image)`, so that the final values are frozen"
    )


def plan_sites(
    model: object,
    recipe: Recipe,
    sites: tuple[Site, ...],
    *,
    name: str,
    trial: Trial | None = None,
    facts: Facts | None = None,
) -> Plan:
    """Return a plan from recorded sites (those of an adapter file), checked against a network.

    Args:
        model: The network or `Backbone`.
        recipe: Recipe that the sites belong to.
        sites: Sites that get an adapter.
        name: Name of the adapter.
        trial: Trial of the network, if its base is not known to be the same; the network is then run to compare the
            channels of its features.
        facts: Facts of the network, used if the model has none.

    Raises:
        PlanError: A module or parameter is missing or has another class or shape, or the adapters cannot be attached;
            the model is not changed.
    """
    refuse_fixed(module_of(model))
    root = root_of(model)
    refuse_unusable(root)
    if not recipe.freeze_statistics:
        refuse_moving_statistics(root, "Create the adapter again with freeze_statistics=True.")
    tried = trial or Trial(root)
    facts = tried.facts = facts_of(model, tried) if facts is None or is_described(model) else facts
    network = Network(root, facts, tried)
    problems = _misfits(network.modules, sites)
    for site in [] if problems else sites:
        module = network.modules[site.path]
        if site.attachment.block is not None:
            check_block(network.checked_blocks, site.path, module, site.attachment.block)
    if not problems and trial is not None:
        problems = trial.first(lambda observed: other_channels(sites, observed))
    if problems:
        raise PlanError(f"the adapter does not fit this {original_class(root).__name__}:", problems=problems)
    return _checked_plan(network, name, recipe, [_here(network, s) for s in sites], facts)


def _misfits(modules: Mapping[str, nn.Module], sites: Iterable[Site]) -> list[str]:
    """Return the mismatches between sites and a network: missing modules, other classes, missing parameters."""
    problems = []
    for site in sites:
        module = modules.get(site.path)
        if module is None:
            problems.append(f"the network has no module {site.path}")
        elif original_class(module).__name__ != site.module:
            problems.append(f"{site.path} is a {original_class(module).__name__}, the adapter is for a {site.module}")
        elif site.layer is not None:
            problems += _other_parameters(site, module)
    return problems


def _other_parameters(site: Site, module: nn.Module) -> list[str]:
    """Return the parameters of a weight site that are missing in a module or have another shape there."""
    present = {name: None if p is None else tuple(p.shape) for name, p in module._parameters.items()}
    shapes = site.layer.shapes if site.layer is not None else ()
    return [f"{site.path} has no parameter {n} of shape {shape}" for n, shape in shapes if present.get(n) != shape]


def _here(network: Network, site: Site) -> Site:
    """Return a site with its layer read from the network: schema 1 does not store `transposed` and `groups`."""
    if site.layer is None:
        return site
    return replace(site, layer=layer_of(network.modules[site.path], site.layer.names, site.path))


def _checked_plan(network: Network, name: str, recipe: Recipe, sites: Sequence[Site], facts: Facts) -> Plan:
    root = network.root
    refuse_conflicts(root, network.modules, name, sites)
    refuse_other_views(root, recipe)
    variants = sorted({v for site in sites if (v := variant_in(site.attachment.block)) is not None})
    return Plan(
        model=original_class(root).__name__,
        family=network.recognised.family.name if network.recognised else None,
        name=name,
        recipe=recipe,
        sites=tuple(sites),
        structure=structure_of(root),
        base_parameters=sum(p.numel() for _, p in base_parameters(root)),
        facts=facts,
        notes=(*network.notes, *(f"while the adapter is on, its blocks run as {variant}" for variant in variants)),
    )


# --- checks ----------------------------------------------------------------------------------------------------------


def structure_of(root: nn.Module) -> str:
    """Return the SHA-256 of the paths and classes of a network's modules and the names and shapes of its parameters."""
    lines = [f"{path} {original_class(module).__qualname__}" for path, module in base_modules(root)]
    lines += [f"{path} {tuple(parameter.shape)}" for path, parameter in base_parameters(root)]
    return hashlib.sha256("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def check_plan(root: nn.Module, plan: Plan) -> None:
    """Refuse a plan that does not fit the network in its present state.

    Raises:
        PlanError: The plan was made for another network, or conflicts with adapters that were attached since.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"inject needs a Plan from lowpeft.plan, not {type(plan).__name__}")
    if plan.structure != structure_of(root):
        raise PlanError(
            f"the plan is for another network, {plan.model} with {plan.base_parameters:,} parameters, not for this "
            f"{original_class(root).__name__} with {sum(p.numel() for _, p in base_parameters(root)):,}: plan again"
        )
    modules = dict(base_modules(root))
    problems = _misfits(modules, plan.sites)
    problems += [f"{s.path} does not fit the key {s.key!r}" for s in plan.sites if s.key != _key_of(s)]
    if problems:
        raise PlanError("the plan's sites do not fit this network:", problems=problems)
    refuse_conflicts(root, modules, plan.name, plan.sites)
    refuse_other_views(root, plan.recipe)


def _key_of(site: Site) -> str | None:
    try:
        return site_key(site.config, site.shape, site.layer, site.attachment)
    except (AttributeError, PlanError):
        return None
