"""Conflicts that prevent another adapter: attached adapters, names, and modules that cannot have an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ...errors import PlanError
from ...ports.base import SLOT, all_modules
from ...ports.facts import RECORD
from ...recipes import Recipe
from ..attachment.record import record_of
from ..attachment.slots import Slot, group_in, slot_of, slots
from ..observation.blocks import variant_in
from .sites import Site


def refuse_other_views(root: nn.Module, recipe: Recipe) -> None:
    """Refuse a recipe whose number of views differs from that of the attached adapters; 1 fits any number.

    Raises:
        PlanError: The numbers differ; the message contains them.
    """
    attached = {p.recipe.views for p in record_of(root).plans.values()} if RECORD in root.__dict__ else set()
    counts = sorted({recipe.views, *attached} - {1})
    if len(counts) > 1:
        raise PlanError(
            f"all adapters of a network must mix the same number of views, not {' and '.join(map(str, counts))}"
        )


def refuse_conflicts(root: nn.Module, modules: Mapping[str, nn.Module], name: str, sites: Sequence[Site]) -> None:
    """Refuse sites that cannot get another adapter, and a name that a new adapter cannot have.

    Args:
        root: Network, adapted or not.
        modules: Modules of the network, by path.
        name: Name of the new adapter.
        sites: Sites of the new adapter.

    Raises:
        PlanError: There are conflicts; the problems list all of them.
    """
    problems: list[str] = []
    taken: set[tuple[str, str]] = set()
    for site in sites:
        module = modules[site.path]
        slot = slot_of(module)
        if (site.path, site.key) in taken:
            problems.append(
                f"{site.path or 'the network'} would get two {site.config.kind} adapters with the same name"
            )
        taken.add((site.path, site.key))
        if "forward" in module.__dict__:
            problems.append(f"{site.path} has a `forward` set on the instance, which would bypass the adapters")
        if slot is None and hasattr(module, SLOT):
            problems.append(f"{site.path} already has an attribute {SLOT!r}, the name that adapters need")
        if site.attachment.form != "root" and site.attachment.source == "output" and _is_container(module):
            problems.append(f"{site.path} is a container ({type(module).__name__}); name the layer inside it")
        if isinstance(module, torch.jit.ScriptModule):
            problems.append(f"{site.path} is a TorchScript module, which cannot be adapted")
    problems += _clashing_forwards(modules, sites, name, record_of(root).forwards if RECORD in root.__dict__ else {})
    problems += _other_adapters(root)
    problems += _name_problems(root, name)
    if problems:
        raise PlanError("the adapters cannot be attached:", problems=list(dict.fromkeys(problems)))


def _is_container(module: nn.Module) -> bool:
    """Return whether a module only contains other modules; a ParametrizationList also has tensors, so it does not."""
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)) and not list(module._parameters)


def check_new_name(root: nn.Module, name: str) -> None:
    """Refuse a name that a new adapter cannot have.

    Raises:
        PlanError: The name is invalid or taken; the problem says why.
    """
    if problems := _name_problems(root, name):
        raise PlanError("invalid adapter name:", problems=problems)


def _name_problems(root: nn.Module, name: str) -> list[str]:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        return [f"an adapter's name must be an ASCII Python identifier (letters, digits, underscores), not {name!r}"]
    if hasattr(Slot(), name):
        return [f"{name!r} is an attribute of every torch module, so it cannot name an adapter"]
    if any(name in slot._modules for _, _, slot in slots(root)):
        return [f"an adapter named {name!r} is attached already; choose another name=, or restore() first"]
    return []


def _other_adapters(root: nn.Module) -> list[str]:
    """Return a problem if a parent module or submodule is adapted by itself: one record could not undo both."""
    inner = [path for path, m in all_modules(root) if path and RECORD in m.__dict__]
    if inner:
        return [f"{inner[0]} is an adapted network: adapt it in place of this model, or restore it first"]
    if RECORD not in root.__dict__ and next(iter(slots(root)), None) is not None:
        return ["this module is part of an adapted network: adapt that network, or restore it first"]
    return []


def _clashing_forwards(
    modules: Mapping[str, nn.Module], sites: Sequence[Site], name: str, installed: Mapping[str, str]
) -> list[str]:
    """Return a line on the first block whose adapters would need different variants of its forward; empty if none.

    Args:
        modules: Modules of the network, by path.
        sites: Sites of the new adapter.
        name: Name of the new adapter.
        installed: Names of the block forwards that replace a module's own forward, by path.
    """
    asked: dict[str, str] = {}
    for site in sites:
        if (ours := site.attachment.block) is None:
            continue
        others = {**_forwards_at(modules[site.path], installed.get(site.path)), "itself": asked.get(site.path, ours)}
        for who, theirs in others.items():
            if variant_in(theirs) != variant_in(ours):
                line = f"{site.path}: the adapter {name!r} runs the block as {ours}, and {who} as {theirs}"
                return [
                    f"{line}, which compute different results: remove one, or create both for the same block forward"
                ]
        asked[site.path] = ours
    return []


def _forwards_at(module: nn.Module, installed: str | None) -> dict[str, str]:
    """Return the names of the block forwards that are installed on a module or that its adapters require, by source."""
    by_source = {} if installed is None else {"the installed forward": installed}
    if (slot := slot_of(module)) is not None:
        for other in slot._modules:
            blocks = [piece.attachment.block for _, piece in group_in(slot, other)]
            by_source |= {f"the adapter {other!r}": block for block in blocks if block is not None}
    return by_source
