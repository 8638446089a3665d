"""What an adapter folder holds: names, limits, and the config as values of the library.

    adapter_model.safetensors   tensors of the adapter; a copy of the config in its metadata
    adapter_config.json         schema, version of lowpeft, recipe, sites, fingerprint of the base
    README.md                   model card

No pickle, no code. A stranger may have written the folder, so everything that is read has a limit, and is checked
before what costs more.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...errors import AdapterError, LowpeftError, and_more, printable
from ...ports.facts import Facts
from ...recipes import Recipe, recipe_from_dict
from ...version import version
from ..attachment.slots import below
from ..observation.figures import Figures, figures_from_dict
from ..observation.fingerprint import Fingerprint, digest, fingerprint_from_dict
from ..operations.new_adapters import tensors_of
from ..planning.site_values import SCHEMAS, facts_from_dict, sites_from_dicts
from ..planning.sites import Site, build, on_meta
from .about import About, about_from_dict

FILES = TENSORS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
METADATA_KEY = "lowpeft"

MOST_CONFIG_BYTES = 2**24
"""Of `adapter_config.json`; that of HAT-L with LoRA in all layers has 60 kB."""
MOST_HEADER_BYTES = 2**26
"""Of the header of the safetensors file, which holds the config too."""
MOST_SITES = 20_000
MOST_TENSORS = 100_000
MOST_NAME = 1_000
"""Characters of the name of a tensor or a module."""
MOST_FACTS = 1_000
MOST_FACT = 10_000
"""Characters of the name or the value of a fact."""
MOST_ADAPTERS = 1_000
"""Of a recipe."""

FIELDS = {
    "schema",
    "lowpeft",
    "recipe",
    "base",
    "output",
    "family",
    "network",
    "sites",
    "calibrated",
    "facts",
    "about",
    "opening",
    "tensors",
}
"""Fields of a config; those of a later lowpeft are named in a warning."""


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
        about: What the author says of licence, base, data and results; the picture by its name in the folder.
        opening: What `load_backbone` needs beside the file of the base, as in `Making`; None if that is not known.
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
    about: About
    opening: dict[str, str | bool] | None
    calibrated: bool
    network: Facts | None
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Total size of the tensors, in bytes."""
        return size_of(self.tensors)


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the total size of tensors, in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, in hexadecimal digits."""
    lines = "\n".join(f"{k} {digest(tensors[k])}" for k in sorted(tensors))
    return hashlib.sha256(lines.encode(), usedforsecurity=False).hexdigest()


def object_of(text: str) -> dict[str, Any] | None:
    """Return the object (dict) that a JSON text is; None if it is not valid JSON or not an object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: deep nesting; ValueError also: a huge integer
        return None
    return value if isinstance(value, dict) else None


def parsed(config: dict[str, Any], where: str) -> AdapterFile:
    """Return the values of a config, without tensors.

    Args:
        config: Plain values of an `adapter_config.json`.
        where: What it is the config of, for messages.

    Raises:
        AdapterError: The schema is unknown, or a value is missing, invalid or above its limit.
    """
    schema = config.get("schema")
    if schema not in SCHEMAS or type(schema) is not int:
        known = " and ".join(map(str, SCHEMAS))
        newer = type(schema) is int and schema > max(SCHEMAS)
        advice = "; a newer lowpeft wrote it: pip install -U lowpeft" if newer else ""
        read = f"this version of lowpeft ({version()}) reads {known}"
        raise AdapterError(f"{where} has schema {printable(schema)[:100]}; {read}{advice}")
    if problem := _too_large(config):
        raise AdapterError(f"{where} cannot be used: {problem}")
    try:
        adapter = AdapterFile(
            config=config,
            recipe=recipe_from_dict(config["recipe"], origin="its recipe"),
            sites=sites_from_dicts(config["sites"], schema=schema),
            base=fingerprint_from_dict(config["base"]),
            output=figures_from_dict(config["output"]) if config.get("output") is not None else None,
            facts=dict(config["facts"]),
            about=about_from_dict(config.get("about") or {}),
            opening=_opening(config.get("opening")),
            calibrated=config.get("calibrated", False) is True,
            network=facts_from_dict(config["network"]) if "network" in config else None,
            tensors={},
        )
        if problems := facts_problems(config["facts"]):
            raise ValueError(problems[0])
        if not isinstance(config["tensors"]["sha256"], str):
            raise TypeError("the checksum of the tensors is no text")
        places = Counter((site.path, site.key) for site in adapter.sites)
        if twice := [path for (path, _), count in places.items() if count > 1]:
            raise ValueError(f"a site is named more than once: {and_more(twice)}")
        if any(len(site.path) > MOST_NAME for site in adapter.sites):
            raise ValueError(f"the name of a module has more than {MOST_NAME:,} characters")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        text = str(error) if isinstance(error, LowpeftError) else f"{type(error).__name__}: {error}"
        problem = f"{CONFIG} is not what lowpeft writes: {text[:2000]}"
        raise AdapterError(f"{where} cannot be used:", problems=[problem]) from error
    if later := sorted(config.keys() - FIELDS):
        named = and_more([printable(name)[:100] for name in later])
        wrote = printable(config.get("lowpeft"))[:100]
        warnings.warn(
            f"{where}: what a later lowpeft ({wrote}) wrote there is not used: {named}", UserWarning, stacklevel=3
        )
    return adapter


def facts_problems(facts: Mapping[Any, Any]) -> list[str]:
    """Return why facts are no table that people can read; empty if they are one."""
    if len(facts) > MOST_FACTS:
        return [f"it has {len(facts):,} facts; at most {MOST_FACTS:,} are read"]
    return [
        f"a fact has {len(text):,} characters; at most {MOST_FACT:,} are read"
        for text in map(str, (*facts.keys(), *facts.values()))
        if len(text) > MOST_FACT
    ]


def _opening(values: Any) -> dict[str, str | bool] | None:
    """Return how the base is opened, as `Making.opening`.

    Raises:
        TypeError, ValueError: The values are others than lowpeft writes.
    """
    if values is None:
        return None
    types = {"demo": bool, "task": str, "weights": str, "allow_half": bool}
    opening = dict(values)
    if any(type(value) is not types.get(name) for name, value in opening.items()):
        raise ValueError(f"the base cannot be opened with {printable(opening)[:200]}")
    return opening


def _too_large(config: dict[str, Any]) -> str | None:
    """Return which limit a config exceeds; None for none. Values of other types are left to the readers of each."""
    groups, recipe = config.get("sites"), config.get("recipe")
    if isinstance(groups, list):
        places = sum(len(g["places"]) for g in groups if isinstance(g, dict) and isinstance(g.get("places"), list))
        if max(places, len(groups)) > MOST_SITES:
            return f"it has {max(places, len(groups)):,} sites; at most {MOST_SITES:,} are read"
    adapters = recipe.get("adapter") if isinstance(recipe, dict) else None
    if isinstance(adapters, list) and len(adapters) > MOST_ADAPTERS:
        return f"its recipe has {len(adapters):,} adapters; at most {MOST_ADAPTERS:,} are read"
    return None


def expected_tensors(sites: tuple[Site, ...]) -> dict[str, Tensor]:
    """Return the tensors of adapters at these sites, by key, on the meta device.

    Raises:
        AdapterError: There are too many.
    """
    alike: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        alike.setdefault((site.config, site.shape, site.layer, site.attachment.form), []).append(site)

    def built() -> list[dict[str, Tensor]]:
        firsts = [group[0] for group in alike.values()]
        return [tensors_of([("", build(s.config, s.shape, s.layer, s.attachment.form))]) for s in firsts]

    each = on_meta(built)
    number = sum(len(tensors) * len(group) for tensors, group in zip(each, alike.values(), strict=True))
    if number > MOST_TENSORS:
        raise AdapterError(f"the adapter has {number:,} tensors; at most {MOST_TENSORS:,} are read")
    return {
        f"{below(site.path, site.key)}{key}": tensor
        for tensors, group in zip(each, alike.values(), strict=True)
        for site in group
        for key, tensor in tensors.items()
    }
