"""Network (the places and notes that planning collects) and Site (one adapter to attach). Never changes the network."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import PlanError
from ...families import TOKENS, Recognised, beside, find_containers, find_places, get_block
from ...kinds import Adapter, AdapterConfig, Attachment, Layer, get_kind
from ...ports.attachment import Spot
from ...ports.base import base_modules, original_class
from ...ports.facts import Facts
from ..observation.observing import Observed
from ..observation.probe import Probed, probe_places
from ..observation.trial import Trial

Built = TypeVar("Built")

NOT_PROBED = {
    TOKENS: "the network belongs to no known family, and not every one of its blocks has an nn.MultiheadAttention or a "
    "module with qkv, proj and num_heads that is plain attention; register a family that says where its attention is"
}
"""Reasons why a network of no known family lacks a place, by its name."""


@dataclass(frozen=True, kw_only=True)
class Site(Spot):
    """Spot in a network that would get an adapter, with everything needed to build it.

    Attributes:
        config: Config of the adapter; its type determines the kind.
        key: Name of the adapter's module within the slot: the kind, followed by the port of a block, by the parameters
            of a layer (e.g. `lora_weight`), or by `root` for the part that all sites share.
        module: Class name of the adapted module.
        parameters: Number of parameters that the adapter trains here.
    """

    config: AdapterConfig
    key: str
    module: str
    parameters: int


class Network:
    """Network with the facts, places and notes that planning collects; each is computed once.

    Attributes:
        notes: Remarks for people, as keys in insertion order: parts that were passed over, and assumptions.
    """

    def __init__(self, root: nn.Module, facts: Facts, trial: Trial, *, by_family: bool = True) -> None:
        self.root = root
        self.facts = facts
        self.trial = trial
        self.modules = dict(base_modules(root))
        self.recognised: Recognised | None = trial.recognised if by_family else None
        self.checked_blocks: set[tuple[object, ...]] = set()
        self.notes: dict[str, None] = {}
        scripted = [path for path, module in self.modules.items() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            self.notes[f"TorchScript modules cannot be adapted and were left out: {scripted[0]}, …"] = None

    @property
    def may_write_itself(self) -> bool:
        """True if a forward pass could change the network's weights; most families are known not to do so."""
        return self.recognised is None or self.recognised.family.writes_itself

    @functools.cached_property
    def probed(self) -> Probed:
        """Places, stages and blocks found by running the network."""
        probed = probe_places(self.trial)
        if probed.beside:
            self.notes[f"left alone, because not part of the observed stages: {'; '.join(probed.beside)}"] = None
        return probed

    def find(self, name: str) -> tuple[Spot, ...]:
        """Return the family's places of that name or, without a family, those found in a run; may be empty."""
        if self.recognised is None:
            return self.probed.places.get(name, ())
        if others := beside(self.root, self.recognised):
            named = ", ".join(f"{each.prefix} ({each.family.title})" for each in others)
            self.notes[f"left alone: {named}; target= names modules there"] = None
        return find_places(self.root, self.recognised, name)

    def places(self, name: str, advice: str | None = None) -> tuple[Spot, ...]:
        """Return the same places as `find`.

        Args:
            name: Name of the place.
            advice: What to do where there is none; None for what all kinds can do.

        Raises:
            PlanError: The network has no such places.
        """
        if spots := self.find(name):
            return spots
        known = {p.name for p in self.recognised.family.places} if self.recognised else set(self.probed.places)
        title = self.recognised.family.title if self.recognised else original_class(self.root).__name__
        if name in known:
            raise PlanError(f"this network has no module at the place {name!r} of its family {title}")
        reason = self.recognised.family.without.get(name) if self.recognised else NOT_PROBED.get(name)
        if reason is not None:
            raise PlanError(f"{title} has no place {name!r}: {reason}")
        advice = advice or "Name modules with target=, or register a family that has this place"
        raise PlanError(f"{title} has no place {name!r}; it has {', '.join(sorted(known))}. {advice}")

    def pixels_per_position(self, path: str) -> int | None:
        """Return the pixels of the image's sides per position of a module's output, where it lies on the image's grid.

        None if no test image's sides are the same multiple of those of the output. Networks of a known family may pad
        every image, below and to the right; others could pad on all sides.
        """
        may_pad = self.recognised is not None
        try:
            return self.trial.first(lambda observed: _pixels_per_position(observed, path, may_pad=may_pad))
        except PlanError:
            return None

    @functools.cached_property
    def containers(self) -> dict[str, tuple[int | None, int | None]]:
        """Stage and block numbers by the path of the module that is the stage (block None) or the block."""
        return find_containers(self.root, self.recognised) if self.recognised else self.probed.containers

    def stage_and_block(self, path: str) -> tuple[int | None, int | None]:
        """Return the numbers of the innermost block, or else stage, that contains a module; None if outside."""
        parts = path.split(".")
        around = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((self.containers[path] for path in around if path in self.containers), (None, None))


def _pixels_per_position(observed: Observed, path: str, *, may_pad: bool) -> int:
    seen, image = observed.modules.get(path), observed.example.size
    if seen is None or seen.size is None or image is None:
        raise PlanError(f"the height and width of the output of {path} are not known")
    pixels = max(1, image[0] // max(1, seen.size[0]))
    height, width = (pixels * side for side in seen.size)
    if (height, width) != tuple(image) and not (may_pad and height >= image[0] and width >= image[1]):
        raise PlanError(f"the output of {path} is not on the grid of an image of {image}: it has sides {seen.size}")
    return pixels


# --- one site --------------------------------------------------------------------------------------------------------


def make_site(network: Network, config: AdapterConfig, spot: Spot) -> Site:
    """Return the site of an adapter at a spot of the network.

    Raises:
        PlanError: Kind, shape and attachment do not match, or the adapter cannot be built for this shape.
    """
    on_weights = spot.attachment.form == "weight"
    attachment = dataclasses.replace(spot.attachment, views=1 if on_weights else config.views)
    return Site(
        path=spot.path,
        stage=spot.stage,
        block=spot.block,
        attachment=attachment,
        shape=spot.shape,
        layer=spot.layer,
        config=config,
        key=site_key(config, spot.shape, spot.layer, attachment),
        module=original_class(network.modules[spot.path]).__name__,
        parameters=count_parameters(config, spot.shape, spot.layer, attachment.form),
    )


def site_key(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, attachment: Attachment) -> str:
    """Return the name of an adapter's module within the slot.

    Raises:
        PlanError: Kind, shape and attachment do not match.
    """
    kind = get_kind(config.kind)
    sides = bool(shape) and all(type(n) is int and n > 0 for n in shape)
    form = attachment.form
    if form == "root":
        fits = kind.module.root_part_class is not None and sides and layer is None
    elif kind.on_weights:
        fits = form == "weight" and layer is not None and layer.names == attachment.tensors and sides
        fits = fits and shape == layer.shape(layer.main)  # type: ignore[union-attr]
    else:
        fits = form in ("output", "block") and layer is None and sides and len(shape) == 1
    if not fits or attachment.views != (1 if form == "weight" else config.views):
        raise PlanError(f"a {config.kind} adapter does not fit an attachment of form {form!r} and shape {shape}")
    if attachment.block is not None:
        get_block(attachment.block)
    suffix = {"weight": attachment.tensors, "block": (attachment.port,), "root": ("root",)}.get(form, ())
    return "_".join((config.kind, *map(str, suffix)))


def build(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, form: str) -> Adapter:
    """Build an adapter for features of (channels,) or for parameters of a layer, or a kind's shared part ("root")."""
    module: Any = get_kind(config.kind).module
    make: Callable[..., Adapter] = module.root_part_class if form == "root" else module
    return make({"root": shape, "weight": layer}.get(form, shape[0]), config)


@functools.lru_cache(maxsize=4096)
def count_parameters(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, form: str) -> int:
    """Return the number of parameters of an adapter, without allocating them."""
    return sum(p.numel() for p in on_meta(lambda: build(config, shape, layer, form)).parameters())


def on_meta(make: Callable[[], Built]) -> Built:
    """Return what `make` builds, with tensors on the meta device (no memory).

    `make` runs in a separate thread: the default device is thread-local, so an interrupt in the main thread cannot
    leave it set to meta.
    """

    def build_on_meta() -> Built:
        with torch.device("meta"):
            return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build_on_meta).result()
