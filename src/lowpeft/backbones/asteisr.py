"""Conversion of ASteISR checkpoints, which have HAT's weights and the adapters in one file.

    layers.G.residual_group.blocks.B.S_Adapter.*   a spatial adapter, in every block
    layers.G.stereo_adapter.*                      a stereo adapter, in the groups 1, 3, 5, …
    all others                                     HAT's weights

The published code applies the attention mask of shifted windows in unshifted blocks too, unlike HAT. Networks were
trained that way, so an adapter can request it: its sites then name a variant of HAT's block forward
(`families.hat.MASKS`), which runs only while that adapter is on.

Source of the names: the code that was published with arXiv 2407.03598.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..checks import one_of
from ..core.files.saving import save_adapter
from ..core.operations.injection import inject
from ..core.operations.state import adapter_state_dict, load_adapter_state_dict
from ..core.planning.plan import Plan, plan
from ..core.planning.sites import Site
from ..errors import AdapterError, LowpeftError
from ..families.hat import HAB, HAT, MASKS
from ..ports.facts import Backbone
from ..storage import new_file, new_folder
from .checkpoints import Choice, in_full_precision, read_checkpoint, said, the_one, wanted, which_weights
from .opening import backbone_of, recognised
from .weights import State, Weights

WEIGHTS, ADAPTER = "HAT.safetensors", "adapter"
"""Names of the weights file and the adapter folder that a conversion writes."""

PARTS = {
    "fc1": "D_fc1",
    "fc2": "D_fc2",
    "norm_left": "norm_l",
    "norm_right": "norm_r",
    "query_left": "l_proj1",
    "query_right": "r_proj1",
    "value_left": "l_proj2",
    "value_right": "r_proj2",
    "beta": "beta",
    "gamma": "gamma",
}
"""Mapping from lowpeft's names of the parts of a spatial or stereo adapter to the authors' names."""

_KEY = re.compile(r"layers\.\d+\.(residual_group\.blocks\.\d+\.S_Adapter|stereo_adapter)\..+")


class Converted(NamedTuple):
    """Paths that a conversion wrote.

    Attributes:
        weights: File with the frozen HAT, for `load_backbone`.
        adapter: Folder of the adapter, for `load_adapter`.
    """

    weights: Path
    adapter: Path


def convert_asteisr(path: str | Path, out: str | Path, *, mask: str = "hat", weights: Choice = "ema") -> Converted:
    """Split a checkpoint in the layout of ASteISR's authors into HAT's weights and an adapter.

    Args:
        path: Path of the checkpoint (.pth, .safetensors), in any form that `load_backbone` reads. Sizes and depths are
            read from its tensors.
        out: Folder to write. A missing one is created in one step; an existing one must be empty.
        mask: Blocks that use the attention mask while the adapter is on: `hat` for the shifted blocks only, like HAT;
            `published` for the unshifted blocks too, like the authors' code. It is saved with the adapter.
        weights: Weights to load, "ema" or "raw", as in `load_backbone`. If the file has averages, the adapter's facts
            say which were loaded.

    Returns:
        The paths of the weights and of the adapter.

    Raises:
        AdapterError: The mask is unknown; `out` is not empty or cannot be written; or the file is not such a network:
            it has no adapters, is not a HAT, contains NaN or half-precision weights, or has missing or unknown tensors
            or wrong shapes (all are listed). Nothing is written.
        LowpeftError: The file cannot be read as plain tensors, or has no raw weights and they were requested.
    """
    target, source = Path(out), Path(path)
    if problems := one_of("mask", mask, MASKS):
        raise AdapterError(problems[0])
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise AdapterError(f"{target} exists and is not an empty folder; choose another folder, or remove it")
    state, notes = _state(source, weights)
    theirs = {key: tensor for key, tensor in state.items() if _KEY.fullmatch(key)}
    frozen = {key: tensor for key, tensor in state.items() if key not in theirs}
    backbone = _hat(frozen, source)
    stereo = _with_mask(plan(backbone, "stereo"), mask)
    adapted = inject(backbone, stereo)
    load_adapter_state_dict(adapted, _renamed(theirs, stereo.sites, adapter_state_dict(adapted), source))
    facts = {"converted from": f"{source.name}, in the layout of ASteISR's authors", "attention mask": mask}
    if (which := which_weights(notes)) is not None:
        facts["weights"] = which
    try:
        _write(adapted, frozen, target, facts)
    except AdapterError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"cannot write to {target}: {error}") from error
    return Converted(target / WEIGHTS, target / ADAPTER)


def _state(source: Path, choice: Choice) -> tuple[State, tuple[str, ...]]:
    """Return the state dict with adapters, and a note that says which weights it has if the file has averages."""
    in_file = read_checkpoint(source)
    candidates = wanted(in_file, choice, source)
    with_adapters = [weights for weights in candidates if any(map(_KEY.fullmatch, weights.state))]
    if not with_adapters:
        raise AdapterError(
            f"{source} has no adapters of ASteISR: none of its {len(candidates[0].state)} tensors has a name like "
            "layers.0.residual_group.blocks.0.S_Adapter.D_fc1.weight. For a plain HAT, use load_backbone instead"
        )
    try:
        taken = the_one(with_adapters)
        return in_full_precision(taken.state, allow_half=False), said(taken, in_file)
    except LowpeftError as error:
        raise AdapterError(f"{source} cannot be converted: {error.message}", problems=error.problems) from error


def _hat(weights: State, source: Path) -> Backbone:
    """Build the HAT of a state dict without adapters."""
    try:
        backbone = backbone_of(recognised([Weights(path=(), state=weights, averaged=False)]).state)
    except LowpeftError as error:
        raise AdapterError(
            f"{source} without its adapters cannot be opened as a HAT: {error.message}", problems=error.problems
        ) from error
    if backbone.family != HAT.name:
        raise AdapterError(f"{source} without its adapters is a {backbone.architecture}, not a HAT")
    return backbone


def _with_mask(found: Plan, mask: str) -> Plan:
    """Return the plan with its sites in HAT blocks set to the block forward of a mask."""

    def masked(site: Site) -> Site:
        act = site.attachment
        return replace(site, attachment=replace(act, block=MASKS[mask])) if act.block == HAB.name else site

    return replace(found, sites=tuple(map(masked, found.sites)))


def _renamed(
    theirs: Mapping[str, Tensor], sites: Iterable[Site], ours: Mapping[str, Tensor], source: Path
) -> dict[str, Tensor]:
    """Return the authors' tensors with lowpeft's names and shapes."""
    pairs = dict(_names(sites, ours))
    problems = [f"missing: {key}" for key in pairs if key not in theirs]
    problems += [f"unknown: {key}" for key in theirs if key not in pairs]
    renamed = {}
    for key, name in pairs.items():
        tensor, shape = theirs.get(key), ours[name].shape
        if tensor is None:
            continue
        if [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]:  # the authors use 1x1 convolutions
            renamed[name] = tensor.reshape(shape)
        else:
            problems.append(f"{key} has shape {tuple(tensor.shape)}, which does not fit {tuple(shape)}")
    if problems:
        raise AdapterError(f"the adapters in {source} do not fit ASteISR's on this HAT:", problems=problems)
    return renamed


def _names(sites: Iterable[Site], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield the authors' name and lowpeft's name of each adapter tensor."""
    for site in sites:
        ours = f"{site.path}.{site.key}."
        theirs = f"{site.path}.S_Adapter" if site.config.kind == "spatial" else f"layers.{site.stage}.stereo_adapter"
        for name in (key.removeprefix(ours) for key in tensors if key.startswith(ours)):
            part, dot, rest = name.partition(".")
            yield f"{theirs}.{PARTS[part]}{dot}{rest}", ours + name


def _write(adapted: object, weights: State, target: Path, facts: Mapping[str, str]) -> None:
    """Write a new folder in one step; in an existing folder, write the file and the adapter folder in one step each."""
    if not target.is_dir():
        with new_folder(target) as new:
            _write(adapted, weights, new, facts)
        return
    with new_file(target / WEIGHTS) as file, new_folder(target / ADAPTER) as folder:
        save_adapter(adapted, folder, facts=facts)
        save_file({k: t.clone(memory_format=torch.contiguous_format) for k, t in weights.items()}, file)
