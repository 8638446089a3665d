"""Conversion of Swin2SR weights and adapters between the official layout (also spandrel's) and that of transformers.

Both layouts have the same tensors under different names, except that the official `attn.qkv` is one weight and
transformers has three. One table of names, `ROWS`, is used in both directions.

Converted weights give the same output (to rounding) for the upsamplers `pixelshuffle`, `pixelshuffledirect` and
`nearest+conv`, on images whose sides are multiples of the window. These differences between the networks remain
(transformers 5.23):

* sides: the official network pads by reflection; that of transformers raises, because its image processor pads before;
* `pixelshuffle_aux`, and no upsampler (denoising, JPEG): the official network subtracts the mean colour from the image
  that it interpolates or adds at its end, that of transformers does not. The body computes the same in both;
* `img_range` and the mean are attributes, not weights: give the other network the same `img_range`.

These have no counterpart in the other layout: `resi_connection="3conv"`, absolute position embeddings,
`pixelshuffle_hf`.

Sources of the names: Swin2SR in spandrel 0.4.2 and Swin2SRForImageSuperResolution in transformers 5.23.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.attachment.record import root_of
from ..core.attachment.specialise import original_class
from ..core.files.adapter_files import AdapterFile, read_adapter, save_adapter
from ..core.observation.fingerprint import Fingerprint, compare, fingerprint
from ..core.operations.injection import inject, restore
from ..core.operations.state import load_adapter_state_dict
from ..core.planning.plan import plan_sites
from ..core.planning.sites import Site, site_key
from ..errors import AdapterError
from ..families import find_places, recognise
from ..families.swinir import SWIN2SR, SWIN2SR_TRANSFORMERS
from ..ports.base import base_parameters
from ..ports.facts import RECORD

OFFICIAL, TRANSFORMERS = 0, 1  # indices into a row, called sides below
FAMILIES = (SWIN2SR, SWIN2SR_TRANSFORMERS)
PREFIXES = ("", "swin2sr")
"""Path of the module that the family's signature recognises, in a whole network of each layout."""

Row = tuple[str, str]
Pairs = dict[str, tuple[str, ...]]
"""Mapping from an official key to its transformers keys: one, or three for a fused weight."""

# --- the table -------------------------------------------------------------------------------------------------------

PARTS = ("query", "key", "value")
"""Values of `{part}`, in the order in which the official network fuses them along the first dimension."""

PLACEHOLDERS = {
    "group": "[0-9]+",
    "block": "[0-9]+",
    "layer": "[0-9]+",
    "tensor": "weight|bias",
    "part": "|".join(PARTS),
}

_O, _T = "layers.{group}.residual_group.blocks.{block}", "swin2sr.encoder.stages.{group}.layers.{block}"

BODY: tuple[Row, ...] = (
    ("conv_first.{tensor}", "swin2sr.first_convolution.{tensor}"),
    ("patch_embed.proj.{tensor}", "swin2sr.embeddings.patch_embeddings.projection.{tensor}"),
    ("patch_embed.norm.{tensor}", "swin2sr.embeddings.patch_embeddings.layernorm.{tensor}"),
    (f"{_O}.attn.logit_scale", f"{_T}.attention.self.logit_scale"),
    (
        f"{_O}.attn.cpb_mlp.{{layer}}.{{tensor}}",
        f"{_T}.attention.self.continuous_position_bias_mlp.{{layer}}.{{tensor}}",
    ),
    (f"{_O}.attn.qkv.weight", f"{_T}.attention.self.{{part}}.weight"),
    (f"{_O}.attn.q_bias", f"{_T}.attention.self.query.bias"),
    (f"{_O}.attn.v_bias", f"{_T}.attention.self.value.bias"),
    (f"{_O}.attn.proj.{{tensor}}", f"{_T}.attention.output.dense.{{tensor}}"),
    (f"{_O}.norm1.{{tensor}}", f"{_T}.layernorm_before.{{tensor}}"),
    (f"{_O}.mlp.fc1.{{tensor}}", f"{_T}.intermediate.dense.{{tensor}}"),
    (f"{_O}.mlp.fc2.{{tensor}}", f"{_T}.output.dense.{{tensor}}"),
    (f"{_O}.norm2.{{tensor}}", f"{_T}.layernorm_after.{{tensor}}"),
    ("layers.{group}.conv.{tensor}", "swin2sr.encoder.stages.{group}.conv.{tensor}"),
    ("layers.{group}.patch_embed.proj.{tensor}", "swin2sr.encoder.stages.{group}.patch_embed.projection.{tensor}"),
    ("norm.{tensor}", "swin2sr.layernorm.{tensor}"),
    ("conv_after_body.{tensor}", "swin2sr.conv_after_body.{tensor}"),
)
# `upsample.0` and `conv_last` of the official layout have several meanings; transformers has a name for each.
PLAIN: tuple[Row, ...] = (("conv_last.{tensor}", "final_convolution.{tensor}"),)
DIRECT: tuple[Row, ...] = (("upsample.0.{tensor}", "upsample.conv.{tensor}"),)
WIDE: tuple[Row, ...] = (
    ("conv_before_upsample.0.{tensor}", "upsample.conv_before_upsample.{tensor}"),
    ("conv_bicubic.{tensor}", "upsample.conv_bicubic.{tensor}"),
    ("conv_aux.{tensor}", "upsample.conv_aux.{tensor}"),
    ("conv_after_aux.0.{tensor}", "upsample.conv_after_aux.0.{tensor}"),
    ("conv_up1.{tensor}", "upsample.conv_up1.{tensor}"),
    ("conv_up2.{tensor}", "upsample.conv_up2.{tensor}"),
    ("conv_hr.{tensor}", "upsample.conv_hr.{tensor}"),
    ("conv_last.{tensor}", "upsample.final_convolution.{tensor}"),
)
TIMES_2: tuple[Row, ...] = tuple(
    (f"upsample.{2 * i}.{{tensor}}", f"upsample.upsample.convolution_{i}.{{tensor}}") for i in range(3)
)
TIMES_3: tuple[Row, ...] = (("upsample.0.{tensor}", "upsample.upsample.convolution.{tensor}"),)
ROWS = (*BODY, *PLAIN, *DIRECT, *WIDE, *TIMES_2, *TIMES_3)

# Buffers that each network computes for itself, so they are not converted.
COORDINATES: tuple[Row, ...] = ((f"{_O}.attn.relative_coords_table", f"{_T}.attention.self.relative_coords_table"),)
MEAN = "swin2sr.mean"
RECOMPUTED = (
    (COORDINATES[0][OFFICIAL], f"{_O}.attn.relative_position_index", f"{_O}.attn_mask"),
    (COORDINATES[0][TRANSFORMERS], f"{_T}.attention.self.relative_position_index", MEAN),
)


@functools.cache
def _expression(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for name, values in PLACEHOLDERS.items():
        text = text.replace(re.escape("{" + name + "}"), f"(?P<{name}>{values})")
    return re.compile(text)


def _pair(keys: Iterable[str], rows: tuple[Row, ...], side: int) -> tuple[Pairs, list[str]]:
    """Pair the keys of one side with the other's; also return keys that match no row or that duplicate another key."""
    pairs: Pairs = {}
    unknown = []
    for key in keys:
        matches = ((row, _expression(row[side]).fullmatch(key)) for row in rows)
        row, match = next(((r, m) for r, m in matches if m), (None, None))
        if row is None or match is None:
            unknown.append(key)
            continue
        values = match.groupdict()
        names = tuple(dict.fromkeys(row[TRANSFORMERS].format(**{**values, "part": part}) for part in PARTS))
        if pairs.setdefault(row[OFFICIAL].format(**values), names) != names:
            unknown.append(key)
    return pairs, unknown


def _rows(state: Mapping[str, Tensor], side: int) -> tuple[Row, ...]:
    """Return the rows that apply to a network: in the official layout the upsampler decides what some names mean."""
    if side == TRANSFORMERS:
        return ROWS
    first = state.get("upsample.0.weight")
    if "conv_before_upsample.0.weight" not in state:
        return (*BODY, *(PLAIN if first is None else DIRECT))
    threefold = first is not None and first.shape[0] == 9 * first.shape[1]
    return (*BODY, *WIDE, *(TIMES_3 if threefold else TIMES_2))


def _pairs(state: Mapping[str, Tensor], side: int) -> Pairs:
    """Pair the tensors of one side with the other's, without the buffers that networks compute for themselves.

    Raises:
        AdapterError: Keys match no row, or fused weights cannot be split or joined; all are listed.
    """
    buffers = [_expression(template) for template in RECOMPUTED[side]]
    keys = [key for key in state if not any(b.fullmatch(key) for b in buffers)]
    pairs, unknown = _pair(keys, _rows(state, side), side)
    problems = [f"unknown: {key}" for key in unknown]
    for official, names in pairs.items():
        if len(names) == 1:
            continue
        if side == OFFICIAL and state[official].shape[0] % len(names):
            problems.append(f"{official} of shape {tuple(state[official].shape)} is not {len(names)} equal parts")
        elif side == TRANSFORMERS:
            problems += [f"missing: {name}, a part of {official}" for name in names if name not in state]
            if len({state[name].shape for name in names if name in state}) > 1:
                problems.append(f"{', '.join(names)} are parts of {official}, but differ in shape")
    if problems:
        title = FAMILIES[side].title
        raise AdapterError(f"these tensors are not those of a {title} that has both layouts:", problems=problems)
    return pairs


# --- weights ---------------------------------------------------------------------------------------------------------


def swin2sr_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of an official (or spandrel's) Swin2SR to the names of transformers.

    Args:
        state: State dict of the whole network, without a wrapper's `module.` or `params`. `attn_mask`,
            `relative_position_index` and `relative_coords_table` are dropped: the other network computes its own, for
            its `image_size` and `window_size`.

    Returns:
        State dict for `Swin2SRForImageSuperResolution.load_state_dict` (strict). The tensors share memory with `state`.

    Raises:
        AdapterError: Keys have no counterpart; all are listed.
    """
    return {
        name: tensor
        for official, names in _pairs(state, OFFICIAL).items()
        for name, tensor in zip(names, state[official].chunk(len(names)), strict=True)
    }


def swin2sr_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of transformers' Swin2SR to official names; inverse of `swin2sr_to_transformers`.

    Args:
        state: State dict of a whole `Swin2SRForImageSuperResolution`. Buffers (`relative_position_index`,
            `relative_coords_table`, the mean), which some versions save, are dropped.

    Returns:
        Every parameter of the official network, but none of its buffers (`attn_mask`, `relative_position_index`,
        `relative_coords_table`): these depend on sizes that the weights do not contain. A network that was built for
        these sizes has them already, so load with `strict=False`. The tensors are those of `state`, except that
        `attn.qkv` is new.

    Raises:
        AdapterError: Keys have no counterpart, or a query, key or value lacks the other two; all are listed.
    """
    return {
        official: state[names[0]] if len(names) == 1 else torch.cat([state[name] for name in names])
        for official, names in _pairs(state, TRANSFORMERS).items()
    }


_TO_THE_OTHER = (swin2sr_to_transformers, swin2sr_from_transformers)


# --- adapters --------------------------------------------------------------------------------------------------------


def convert_adapter(source: str | Path, destination: str | Path, base: object) -> Path:
    """Convert an adapter that was made on one layout of Swin2SR to the other layout.

    The tensors are unchanged; sites and keys get the names of `base`, and the fingerprint is that of `base`. The recipe
    is unchanged, including patterns for the old layout, because loading uses the sites. The fact "converted from"
    names the class that the adapter was made on. Features at the sites are the same in both networks, whatever the
    upsampler; images are the same where those of the networks are (see `lowpeft.backbones.swin2sr`).

    The fingerprint in the adapter's file must match that of the renamed tensors of `base`: all parameters (bits and
    dtype) and the tables of coordinates must be equal. The tables come from `base`, so a checkpoint whose table was
    rounded differently on another machine counts as another base. `img_range` and the mean of an official network are
    not checked, because they are not weights.

    Args:
        source: Folder of the adapter.
        destination: Folder to write, created if needed. An existing adapter (`source` too) is replaced in one step.
        base: Whole network of the other layout, adapted or not, or a `Backbone`. It is not changed.

    Returns:
        The folder that was written, for `load_adapter(base, destination)`.

    Raises:
        AdapterError: The folder cannot be read or written; `base` is not of the other layout or has other weights; or
            sites have no counterpart (the fused `attn.qkv`, modules that only one layout has). Problems that can be
            found together are listed together. Nothing is written.
        PlanError: `base` is not a network.
    """
    adapter = read_adapter(source)
    root = root_of(base)
    side = _check_layouts(adapter, root)
    pairs = _pairs(dict(base_parameters(root)), 1 - side)
    problems = compare(adapter.base, _renamed_fingerprint(root, side, adapter.base.model))
    moved, stuck = _move(adapter.sites, _counterparts(pairs, side), root)
    problems += stuck
    if problems:
        what = f"{original_class(root).__name__} cannot take over the adapter {str(source)!r}:"
        raise AdapterError(what, problems=problems)
    twin = copy.deepcopy(root)
    if RECORD in twin.__dict__:
        restore(twin)
    adapted = inject(twin, plan_sites(twin, adapter.recipe, tuple(new for _, new in moved), name="default"))
    load_adapter_state_dict(adapted, _renamed_tensors(adapter.tensors, moved))
    return save_adapter(adapted, destination, facts={**adapter.facts, "converted from": adapter.base.model})


def _check_layouts(adapter: AdapterFile, root: nn.Module) -> int:
    """Return the adapter's side; raise if the network is not a whole network of the other side."""
    names = [family.name for family in FAMILIES]
    family = adapter.config.get("family")
    if family not in names:
        known = " and ".join(f.title for f in FAMILIES)
        raise AdapterError(f"only adapters of {known} can be converted, not one of {family or 'no known family'}")
    side = names.index(family)
    found = recognise(root)
    if found is None or (found.family.name, found.prefix) != (names[1 - side], PREFIXES[1 - side]):
        raise AdapterError(
            f"the adapter was made on a {FAMILIES[side].title}, so base must be a whole {FAMILIES[1 - side].title}, "
            f"not wrapped, and not a part of one; this {original_class(root).__name__} is none"
        )
    return side


def _renamed_fingerprint(root: nn.Module, side: int, model: str) -> Fingerprint:
    """Compute the fingerprint that the network would have in the layout `side`, with the class name `model`."""
    parameters = _TO_THE_OTHER[1 - side](dict(base_parameters(root)))
    renamed = nn.Module()
    for key, tensor in parameters.items():
        _holder(renamed, key).register_parameter(key.rpartition(".")[2], nn.Parameter(tensor, requires_grad=False))
    if side == OFFICIAL:  # only this layout saves its tables of coordinates
        buffers = dict(root.named_buffers())
        tables, _ = _pair(buffers, COORDINATES, TRANSFORMERS)
        for key, (name,) in tables.items():
            _holder(renamed, key).register_buffer(key.rpartition(".")[2], buffers[name])
    return replace(fingerprint(renamed), model=model, indices=None)  # transformers saves no indices


def _holder(root: nn.Module, key: str) -> nn.Module:
    """Return the module that a tensor of that name belongs to; create missing modules on the path."""
    for name in key.split(".")[:-1]:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root


def _counterparts(pairs: Pairs, side: int) -> dict[str, str]:
    """Map keys and module paths of the layout `side` to those of the other, where there is exactly one.

    Modules correspond if their direct parameters (not those of submodules) correspond one to one.
    """
    single = {(o, names[0])[side]: (o, names[0])[1 - side] for o, names in pairs.items() if len(names) == 1}
    here = _by_module(name for o, names in pairs.items() for name in ((o,), names)[side])
    there = _by_module(name for o, names in pairs.items() for name in ((o,), names)[1 - side])
    modules = {}
    for path, keys in here.items():
        others = {single.get(key, "") for key in keys}
        home = min(others).rpartition(".")[0]
        if others == there.get(home):
            modules[path] = home
    return single | modules


def _by_module(keys: Iterable[str]) -> dict[str, set[str]]:
    modules: dict[str, set[str]] = {}
    for key in keys:
        modules.setdefault(key.rpartition(".")[0], set()).add(key)
    return modules


def _move(
    sites: tuple[Site, ...], counterparts: dict[str, str], root: nn.Module
) -> tuple[list[tuple[Site, Site]], list[str]]:
    """Return pairs of an old site and the new one on the network, and a line for each site without a counterpart."""
    moved, problems = [], []
    for site in sites:
        found = _move_weight(site, counterparts) if site.layer else _move_feature(site, counterparts, root)
        if found is None:
            names = [f"{site.path}.{t}" for t in site.attachment.tensors] or [site.path]
            problems.append(f"the {site.config.kind} adapter on {', '.join(names)} has no counterpart")
            continue
        key = site_key(found.config, found.shape, found.layer, found.attachment)
        module = original_class(root.get_submodule(found.path)).__name__
        moved.append((site, replace(found, module=module, key=key)))
    return moved, problems


def _move_weight(site: Site, counterparts: dict[str, str]) -> Site | None:
    """Return a weight site with the names of the other layout; None if its tensors are not in one module there."""
    targets = [counterparts.get(f"{site.path}.{t}", "").rpartition(".") for t in site.attachment.tensors]
    path, names = targets[0][0], tuple(t[2] for t in targets)
    if not path or any(t[0] != path for t in targets) or site.layer is None:
        return None
    shapes = tuple((name, shape) for name, (_, shape) in zip(names, site.layer.shapes, strict=True))
    attachment = replace(site.attachment, tensors=names)
    return replace(site, path=path, attachment=attachment, layer=replace(site.layer, shapes=shapes))


def _move_feature(site: Site, counterparts: dict[str, str], root: nn.Module) -> Site | None:
    """Return a feature site on the other layout: the same port of the same block, or the corresponding module."""
    if site.attachment.port is None:
        path = counterparts.get(site.path)
        return None if path is None else replace(site, path=path)
    family = recognise(root)
    places = find_places(root, family, site.attachment.port) if family is not None else ()
    for place in places:
        if (place.stage, place.block) == (site.stage, site.block) and place.attachment.block is not None:
            attachment = replace(site.attachment, block=place.attachment.block, port=place.attachment.port)
            return replace(site, path=place.path, attachment=attachment)
    return None


def _renamed_tensors(tensors: Mapping[str, Tensor], moved: list[tuple[Site, Site]]) -> dict[str, Tensor]:
    leads = {f"{old.path}.{old.key}.": f"{new.path}.{new.key}." for old, new in moved}
    return {
        new + key.removeprefix(old): tensor
        for old, new in leads.items()
        for key, tensor in tensors.items()
        if key.startswith(old)
    }
