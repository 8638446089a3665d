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

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.attachment.copies import copy_of
from ..core.attachment.record import root_of
from ..core.attachment.slots import below
from ..core.files.contents import AdapterFile
from ..core.files.reading import read_adapter
from ..core.files.saving import picture_of, save_adapter
from ..core.observation.describe import facts_of, is_described
from ..core.observation.fingerprint import Fingerprint, compare, fingerprint
from ..core.operations.injection import attach_plan, restore
from ..core.planning.plan import plan_sites
from ..core.planning.site_values import other_facts
from ..core.planning.sites import Site, site_key
from ..errors import AdapterError
from ..families import find_places, recognise
from ..families.swinir import SWIN2SR, SWIN2SR_TRANSFORMERS
from ..ports.base import base_parameters, original_class
from ..ports.facts import RECORD

OFFICIAL, TRANSFORMERS = 0, 1  # indices into a row, called sides below
FAMILIES = (SWIN2SR, SWIN2SR_TRANSFORMERS)
PREFIXES = ("", "swin2sr")
"""Path of the module that the family's signature recognises, in a whole network of each layout."""

NamePair = tuple[str, str]
"""Names of the same tensors in both layouts: `#` is any number (in the same order on both sides), `*` weight or bias.

E.g. `layers.#.conv.*` of the one is `swin2sr.encoder.stages.#.conv.*` of the other.
"""
Pairs = dict[str, tuple[str, ...]]
"""Mapping from an official key to its transformers keys: one, or three for a fused weight."""

# --- the table -------------------------------------------------------------------------------------------------------

_O, _T = "layers.#.residual_group.blocks.#", "swin2sr.encoder.stages.#.layers.#"

BODY: tuple[NamePair, ...] = (
    ("conv_first.*", "swin2sr.first_convolution.*"),
    ("patch_embed.proj.*", "swin2sr.embeddings.patch_embeddings.projection.*"),
    ("patch_embed.norm.*", "swin2sr.embeddings.patch_embeddings.layernorm.*"),
    (f"{_O}.attn.logit_scale", f"{_T}.attention.self.logit_scale"),
    (f"{_O}.attn.cpb_mlp.#.*", f"{_T}.attention.self.continuous_position_bias_mlp.#.*"),
    # The official network fuses these three in this order along the first dimension.
    (f"{_O}.attn.qkv.weight", f"{_T}.attention.self.query.weight"),
    (f"{_O}.attn.qkv.weight", f"{_T}.attention.self.key.weight"),
    (f"{_O}.attn.qkv.weight", f"{_T}.attention.self.value.weight"),
    (f"{_O}.attn.q_bias", f"{_T}.attention.self.query.bias"),
    (f"{_O}.attn.v_bias", f"{_T}.attention.self.value.bias"),
    (f"{_O}.attn.proj.*", f"{_T}.attention.output.dense.*"),
    (f"{_O}.norm1.*", f"{_T}.layernorm_before.*"),
    (f"{_O}.mlp.fc1.*", f"{_T}.intermediate.dense.*"),
    (f"{_O}.mlp.fc2.*", f"{_T}.output.dense.*"),
    (f"{_O}.norm2.*", f"{_T}.layernorm_after.*"),
    ("layers.#.conv.*", "swin2sr.encoder.stages.#.conv.*"),
    ("layers.#.patch_embed.proj.*", "swin2sr.encoder.stages.#.patch_embed.projection.*"),
    ("norm.*", "swin2sr.layernorm.*"),
    ("conv_after_body.*", "swin2sr.conv_after_body.*"),
)
# `upsample.0` and `conv_last` of the official layout have several meanings; transformers has a name for each.
PLAIN: tuple[NamePair, ...] = (("conv_last.*", "final_convolution.*"),)
DIRECT: tuple[NamePair, ...] = (("upsample.0.*", "upsample.conv.*"),)
WIDE: tuple[NamePair, ...] = (
    ("conv_before_upsample.0.*", "upsample.conv_before_upsample.*"),
    ("conv_after_aux.0.*", "upsample.conv_after_aux.0.*"),
    ("conv_last.*", "upsample.final_convolution.*"),
    *((f"{name}.*", f"upsample.{name}.*") for name in ("conv_bicubic", "conv_aux", "conv_up1", "conv_up2", "conv_hr")),
)
TIMES_2: tuple[NamePair, ...] = tuple((f"upsample.{2 * i}.*", f"upsample.upsample.convolution_{i}.*") for i in range(3))
TIMES_3: tuple[NamePair, ...] = (("upsample.0.*", "upsample.upsample.convolution.*"),)
ROWS = (*BODY, *PLAIN, *DIRECT, *WIDE, *TIMES_2, *TIMES_3)

# Buffers that each network computes for itself, so they are not converted.
COORDINATES: tuple[NamePair, ...] = (
    (f"{_O}.attn.relative_coords_table", f"{_T}.attention.self.relative_coords_table"),
)
RECOMPUTED = (
    (COORDINATES[0][OFFICIAL], f"{_O}.attn.relative_position_index", f"{_O}.attn_mask"),
    (COORDINATES[0][TRANSFORMERS], f"{_T}.attention.self.relative_position_index", "swin2sr.mean"),
)


@functools.cache
def _expression(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\#", "([0-9]+)").replace(r"\*", "(weight|bias)"))


def _renamed(key: str, rows: tuple[NamePair, ...], side: int) -> list[str]:
    """Return a key's names on the other side: one, three for a fused weight, or none if no row matches."""
    matches = ((row[1 - side], _expression(row[side]).fullmatch(key)) for row in rows)
    return [re.sub("[#*]", "{}", other).format(*match.groups()) for other, match in matches if match]


def _rows(state: Mapping[str, Tensor], side: int) -> tuple[NamePair, ...]:
    """Return the rows that apply to a network, which its upsampler decides."""
    tails = {rows: state.get(rows[0][side].replace("*", "weight")) for rows in (WIDE, DIRECT, TIMES_3)}
    if tails[WIDE] is None:
        return (*BODY, *(PLAIN if tails[DIRECT] is None else DIRECT))
    first = tails[TIMES_3]
    threefold = first is not None and first.dim() == 4 and first.shape[0] == 9 * first.shape[1]
    return (*BODY, *WIDE, *(TIMES_3 if threefold else TIMES_2))


def _pairs(state: Mapping[str, Tensor], side: int) -> Pairs:
    """Pair the tensors of one side with the other's, without the buffers that networks compute for themselves.

    Raises:
        AdapterError: Keys match no row, or fused weights cannot be split or joined; all are listed.
    """
    rows = _rows(state, side)
    pairs: Pairs = {}
    problems = []
    for key in state:
        if any(_expression(template).fullmatch(key) for template in RECOMPUTED[side]):
            continue
        others = _renamed(key, rows, side)
        if others:
            official = key if side == OFFICIAL else others[0]
            pairs[official] = tuple(_renamed(official, rows, OFFICIAL))
        else:
            problems.append(f"unknown: {key}")
    for official, names in pairs.items():
        if len(names) == 1:
            continue
        if side == OFFICIAL and state[official].shape[0] % len(names):
            problems.append(
                f"{official} of shape {tuple(state[official].shape)} cannot be split into {len(names)} equal parts"
            )
        elif side == TRANSFORMERS:
            problems += [f"missing: {name}, a part of {official}" for name in names if name not in state]
            if len({state[name].shape for name in names if name in state}) > 1:
                problems.append(f"{', '.join(names)} are the parts of {official}, so they must have the same shape")
    if problems:
        title = FAMILIES[side].title
        raise AdapterError(f"these are not the tensors of a {title} that exists in both layouts:", problems=problems)
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
    problems = compare(adapter.base, _renamed_fingerprint(root, side, adapter.base.model))
    if adapter.network is not None and is_described(base):
        problems += other_facts(adapter.network, facts_of(base))
    moved, alone = _counterparts(adapter.sites, root, side)
    if problems := [*problems, *alone]:
        what = f"the adapter {str(source)!r} cannot be converted for this {original_class(root).__name__}:"
        raise AdapterError(what, problems=problems)
    twin = copy_of(root)
    if RECORD in twin.__dict__:
        restore(twin)
    facts = facts_of(base)  # its output, say, is that of its layout
    if adapter.network is not None:
        facts = replace(facts, value_range=adapter.network.value_range)
    plan = plan_sites(twin, adapter.recipe, tuple(moved.values()), name="default", facts=facts)
    prefixes = {f"{below(old.path, old.key)}.": f"{below(new.path, new.key)}." for old, new in moved.items()}
    tensors = {
        prefixes[old] + key.removeprefix(old): tensor
        for key, tensor in adapter.tensors.items()
        for old in prefixes
        if key.startswith(old)
    }
    adapted = attach_plan(twin, plan, tensors=tensors, calibrated=adapter.calibrated)
    about = replace(
        adapter.about,
        picture=picture_of(Path(source), adapter.about),
        results=tuple(replace(result, adapter=None) for result in adapter.about.results),  # its tensors are renamed
    )
    said = {**adapter.facts, "converted from": adapter.base.model}
    return save_adapter(adapted, destination, facts=said, about=about)


def _counterparts(sites: Sequence[Site], root: nn.Module, side: int) -> tuple[dict[Site, Site], list[str]]:
    """Return the sites of the layout `side` as those of the network `root`, and the problems with those without one."""
    pairs = _pairs(dict(base_parameters(root)), 1 - side)
    # Counterparts of keys, without fused weights and their parts.
    single = {(o, names[0])[side]: (o, names[0])[1 - side] for o, names in pairs.items() if len(names) == 1}
    moved, problems = {}, []
    for site in sites:
        if (new := _moved(site, single, root)) is not None:
            moved[site] = new
        else:
            names = [f"{site.path}.{t}" for t in site.attachment.tensors] or [site.path]
            problems.append(f"the {site.config.kind} adapter on {', '.join(names)} has no counterpart")
    return moved, problems


def _check_layouts(adapter: AdapterFile, root: nn.Module) -> int:
    """Return the adapter's side; raise if the network is not a whole network of the other side."""
    names = [family.name for family in FAMILIES]
    family = adapter.config.get("family")
    if family not in names:
        known = " and ".join(f.title for f in FAMILIES)
        raise AdapterError(
            f"only adapters of {known} can be converted; the family of this one is {family or 'unknown'}"
        )
    side = names.index(family)
    found = recognise(root)
    if found is None or (found.family.name, found.prefix) != (names[1 - side], PREFIXES[1 - side]):
        raise AdapterError(
            f"the adapter was made on a {FAMILIES[side].title}, so `base` must be a whole {FAMILIES[1 - side].title} "
            f"without a wrapper; this {original_class(root).__name__} is not"
        )
    return side


def _renamed_fingerprint(root: nn.Module, side: int, model: str) -> Fingerprint:
    """Compute the fingerprint that the network would have in the layout `side`, with the class name `model`."""
    renamed = nn.Module()  # one module with dotted names of parameters, which only its dicts accept
    for key, tensor in _TO_THE_OTHER[1 - side](dict(base_parameters(root))).items():
        renamed._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    if side == OFFICIAL:  # only this layout saves its tables of coordinates
        for key, buffer in root.named_buffers():
            renamed._buffers |= dict.fromkeys(_renamed(key, COORDINATES, TRANSFORMERS), buffer)
    return replace(fingerprint(renamed), model=model, indices=None)  # transformers saves no indices


def _moved(site: Site, single: dict[str, str], root: nn.Module) -> Site | None:
    """Return a site as one of the network `root`, by the counterparts of single keys; None if it has no counterpart."""
    if site.attachment.form == "root":
        return replace(site, module=original_class(root).__name__)
    new = _move_weight(site, single) if site.layer else _move_feature(site, single, root)
    if new is None:
        return None
    key = site_key(new.config, new.shape, new.layer, new.attachment)
    return replace(new, module=original_class(root.get_submodule(new.path)).__name__, key=key)


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
        weight = counterparts.get(f"{site.path}.weight", "")  # where one has a counterpart, so has the whole module
        return replace(site, path=weight.removesuffix(".weight")) if weight.endswith(".weight") else None
    family = recognise(root)
    places = find_places(root, family, site.attachment.port) if family is not None else ()
    for place in places:
        if (place.stage, place.block) == (site.stage, site.block) and place.attachment.block is not None:
            attachment = replace(site.attachment, block=place.attachment.block, port=place.attachment.port)
            return replace(site, path=place.path, attachment=attachment)
    return None
