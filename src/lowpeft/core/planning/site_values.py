"""Conversion of sites and facts to and from the plain values of an adapter file, for every supported schema."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import AdapterError
from ...kinds import AdapterConfig, Attachment, Layer
from ...ports.facts import Facts
from ...ports.layouts import Layout
from ...recipes import config_from_dict, config_to_dict
from .sites import Site, count_parameters, site_key

SCHEMA = 2
"""Schema of new files."""
SCHEMAS = (1, 2)
"""Schemas that can be read. Schema 1 has one parameter per weight adapter, one port per block, and no shared parts."""

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Attachment)}


def sites_to_dicts(sites: tuple[Site, ...]) -> list[dict[str, Any]]:
    """Return sites as plain values, grouped: sites that differ only in path, stage and block share one entry."""
    groups: dict[str, dict[str, Any]] = {}
    for site in sites:
        shared: dict[str, Any] = {
            "adapter": config_to_dict(site.config),
            "attachment": _attachment_to_dict(site.attachment),
            "key": site.key,
            "module": site.module,
            "shape": list(site.shape),
            "parameters": site.parameters,
        }
        if site.layer is not None:
            shared["layer"] = _layer_to_dict(site.layer)
        group = groups.setdefault(json.dumps(shared), {**shared, "places": []})
        group["places"].append([site.path, site.stage, site.block])
    return list(groups.values())


def _layer_to_dict(layer: Layer) -> dict[str, Any]:
    values: dict[str, Any] = {
        "shapes": [[name, list(shape)] for name, shape in layer.shapes],
        "transposed": layer.transposed,
        "groups": layer.groups,
    }
    return values | ({"table": True} if layer.table else {}) | ({"parts": list(layer.parts)} if layer.parts else {})


def _attachment_to_dict(attachment: Attachment) -> dict[str, Any]:
    values = {k: v for k, v in dataclasses.asdict(attachment).items() if v != _DEFAULTS.get(k)}
    return {k: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Layout) else v for k, v in values.items()}


def sites_from_dicts(groups: list[Mapping[str, Any]], *, schema: int) -> tuple[Site, ...]:
    """Return sites from the groups of `sites_to_dicts`; their order may differ from the original one.

    Raises:
        AdapterError: The values of a group do not match each other.
        LowpeftError: A value is invalid; some invalid values raise `KeyError`, `TypeError` or `ValueError` instead.
    """
    sites = []
    for group in groups:
        config, shape = config_from_dict(group["adapter"]), tuple(group["shape"])
        attachment, layer = (_from_schema_1 if schema == 1 else _from_schema_2)(group, config, shape)
        key = site_key(config, shape, layer, attachment)
        parameters = count_parameters(config, shape, layer, attachment.form)
        known = _key_in_schema_1(key, config, attachment) if schema == 1 else key
        if (group["key"], group["parameters"]) != (known, parameters):
            raise AdapterError(
                f"a {config.kind} site of shape {shape} must have the key {known!r} and {parameters} parameters, not "
                f"{group['key']!r} and {group['parameters']!r}"
            )
        for path, stage, block in group["places"]:
            _check_place(path, stage, block)
            site = Site(
                path=path,
                key=key,
                module=group["module"],
                stage=stage,
                block=block,
                shape=shape,
                layer=layer,
                parameters=parameters,
                config=config,
                attachment=attachment,
            )
            sites.append(site)
    return tuple(sites)


def _key_in_schema_1(key: str, config: AdapterConfig, attachment: Attachment) -> str:
    """Return the key of a site in schema 1, which omits the port because a block has only one."""
    return config.kind if attachment.form == "block" else key


def with_new_keys(tensors: Mapping[str, Tensor], sites: tuple[Site, ...], *, schema: int) -> dict[str, Tensor]:
    """Return the tensors of a file, by their keys in the current schema."""
    if schema != 1:
        return dict(tensors)
    leads = {f"{s.path}.{_key_in_schema_1(s.key, s.config, s.attachment)}.": f"{s.path}.{s.key}." for s in sites}
    moved = {old: new for old, new in leads.items() if old != new}

    def renamed(key: str) -> str:
        return next((new + key.removeprefix(old) for old, new in moved.items() if key.startswith(old)), key)

    return {renamed(key): tensor for key, tensor in tensors.items()}


def _from_schema_2(
    group: Mapping[str, Any], config: AdapterConfig, shape: tuple[int, ...]
) -> tuple[Attachment, Layer | None]:
    values = dict(group["attachment"])
    if "layout" in values:
        values["layout"] = Layout(values["layout"])
    values["tensors"] = tuple(values.get("tensors", ()))
    layer = None
    if "layer" in group:
        shapes = tuple((name, tuple(sides)) for name, sides in group["layer"]["shapes"])
        layer = Layer(**{**group["layer"], "shapes": shapes, "parts": tuple(group["layer"].get("parts", ()))})
    return Attachment(**values), layer


def _from_schema_1(
    group: Mapping[str, Any], config: AdapterConfig, shape: tuple[int, ...]
) -> tuple[Attachment, Layer | None]:
    values = dict(group["attachment"])
    form = values["form"]
    if form == "weight":
        return Attachment(form="weight", tensors=(values["tensor"],)), Layer(shapes=((values["tensor"], shape),))
    if form == "branch":
        return Attachment(form="block", block=values["branch"], port="attention", views=config.views), None
    if form != "feature":
        raise AdapterError(f"an attachment of schema 1 cannot have form={form!r}")
    kept = {k: values[k] for k in ("source", "item", "square") if k in values}
    return Attachment(form="output", layout=Layout(values["layout"]), views=config.views, **kept), None


def _check_place(path: object, stage: object, block: object) -> None:
    numbers = all(n is None or (type(n) is int and n >= 0) for n in (stage, block))
    if not isinstance(path, str) or not numbers:
        raise AdapterError(f"[{path!r}, {stage!r}, {block!r}] is not [path, stage, block] of a site")


# --- facts -----------------------------------------------------------------------------------------------------------


def facts_to_dict(facts: Facts) -> dict[str, Any]:
    """Return a network's facts, without the notes, as plain values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in facts.values.items() if name != "notes"}


def facts_from_dict(values: Mapping[str, Any]) -> Facts:
    """Return facts from the values of `facts_to_dict`; their note says that they are from the adapter file.

    Raises:
        AdapterError: A value is invalid for its fact.
    """
    values = {**facts_to_dict(Facts(architecture="", scale=None, channels=None)), **values}  # old files lack some
    numbers = ("scale", "channels", "size_multiple", "min_px", "fixed_px")
    right = all(values[n] is None or (type(values[n]) is int and values[n] > 0) for n in numbers)
    right = right and all(type(values[n]) is int for n in ("size_multiple", "min_px"))
    right = right and all(type(values[n]) is bool for n in ("square", "strips"))
    right = right and isinstance(values["family"], (str, type(None))) and isinstance(values["architecture"], str)
    right = right and (isinstance(values["output"], (str, type(None))) or type(values["output"]) is int)
    right = right and _is_range(values["value_range"])
    right = right and (values["output_range"] is None or _is_range(values["output_range"]))
    right = right and all(type(v) in (int, float) for v in values["maps"])
    if not (right and all(isinstance(t, str) for t in values["tasks"])):
        raise AdapterError(f"invalid facts of a network: {dict(values)}")
    floats = {n: tuple(map(float, values[n])) for n in ("value_range", "output_range", "maps") if values[n] is not None}
    notes = ("the facts are from the adapter file",)
    return Facts(**{**values, **floats, "tasks": tuple(values["tasks"]), "notes": notes})


def _is_range(values: Any) -> bool:
    low, high = values
    return type(low) in (int, float) and type(high) in (int, float) and low < high


COMPARED = {
    "value_range": "values",
    "scale": "scale",
    "channels": "channels",
    "maps": "constant maps",
}
"""Mapping from facts that must be the same for an adapter and its network to their names in messages."""


def other_facts(made: Facts, present: Facts) -> list[str]:
    """Return the differences between the facts an adapter was made with and those of its network, as lines for people.

    The facts in `COMPARED` are compared unless one is None; output ranges are compared if the value ranges agree.
    """
    lines = []
    for name, what in COMPARED.items():
        ours, theirs = getattr(made, name), getattr(present, name)
        if None not in (ours, theirs) and ours != theirs:
            lines.append(f"the adapter was made for {what} {ours}, this network has {theirs}")
    if made.value_range == present.value_range and made.range_out != present.range_out:
        lines.append(f"the adapter was made for outputs in {made.range_out}, this network returns {present.range_out}")
    return lines
