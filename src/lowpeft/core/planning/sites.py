"""Network (the places and notes that planning collects) and Site (one adapter to attach). Never changes the network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ...errors import PlanError
from ...families import FoundPlace, Recognised, find_places, get_block, recognise
from ...kinds import Adapter, AdapterConfig, Attachment, Layer, get_kind
from ...ports.base import base_modules
from ...ports.facts import Facts
from ...ports.patterns import Candidate
from ..attachment.specialise import original_class
from ..observation.probe import probe_places
from ..observation.trial import Trial

Built = TypeVar("Built")


@dataclass(frozen=True, kw_only=True)
class Site(Candidate):
    """Place in a network that would get an adapter, with everything needed to build it.

    Attributes:
        config: Config of the adapter; its type determines the kind.
        key: Name of the adapter's module within the slot: the kind, followed by the port of a block, by the parameters
            of a layer (e.g. `lora_weight`), or by `root` for the part that all sites share.
        module: Class name of the adapted module.
        shape: (channels,) of the features, shape of the (first) weight, or shape that the shared part is built for.
        layer: Parameters that a weight adapter changes.
        attachment: Form in which the adapter acts on its module.
        parameters: Number of parameters that the adapter trains here.
    """

    config: AdapterConfig
    key: str
    module: str
    shape: tuple[int, ...]
    layer: Layer | None = None
    attachment: Attachment
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
        self.recognised: Recognised | None = recognise(root) if by_family else None
        self.checked_blocks: set[tuple[object, ...]] = set()
        self.notes: dict[str, None] = {}
        scripted = [path for path, module in self.modules.items() if isinstance(module, torch.jit.ScriptModule)]
        if scripted:
            self.notes[f"TorchScript modules cannot be adapted, and were left out: {scripted[0]}, …"] = None

    @property
    def may_write_itself(self) -> bool:
        """True if a forward pass could change the network's weights; most families are known not to do so."""
        return self.recognised is None or self.recognised.family.writes_itself

    @functools.cached_property
    def probed(self) -> dict[str, tuple[FoundPlace, ...]]:
        """Places found by running the network, by name."""
        places, beside = probe_places(self.trial)
        if beside:
            self.notes[f"no part of the stages that running it showed, so left alone: {'; '.join(beside)}"] = None
        return places

    def find(self, name: str) -> tuple[FoundPlace, ...]:
        """Return the family's places of that name or, without a family, those found in a run; may be empty."""
        return find_places(self.root, self.recognised, name) if self.recognised else self.probed.get(name, ())

    def places(self, name: str) -> tuple[FoundPlace, ...]:
        """Return the same places as `find`.

        Raises:
            PlanError: The network has no such places.
        """
        found = self.find(name)
        if not found:
            known = {p.name for p in self.recognised.family.places} if self.recognised else set(self.probed)
            if name in known:
                raise PlanError(f"no module of this network lies where the family has its place {name!r}")
            title = self.recognised.family.title if self.recognised else f"{original_class(self.root).__name__}"
            raise PlanError(
                f"{title} has no place {name!r}; it has {', '.join(sorted(known))}. Name modules with target=, or "
                "register a family that has it"
            )
        return found

    @functools.cached_property
    def containers(self) -> dict[str, tuple[int | None, int | None]]:
        """Stage and block numbers by the path of the module that is the stage or the block."""
        if self.recognised is None:
            places = [p for found in self.probed.values() for p in found]
        else:
            names = dict.fromkeys(p.name for p in self.recognised.family.places)
            places = [p for name in names for p in find_places(self.root, self.recognised, name)]
        found: dict[str, tuple[int | None, int | None]] = {}
        for place in places:
            if place.block_path is not None:
                found.setdefault(place.block_path, (place.stage, place.block))
        for place in places:
            found.setdefault(place.stage_path or place.path, (place.stage, None))
        return found

    def place_of(self, path: str) -> tuple[int | None, int | None]:
        """Return stage and block number of a module: those of the innermost block or stage around it."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            if (found := self.containers.get(".".join(parts[:length]))) is not None:
                return found
        return None, None


# --- one site --------------------------------------------------------------------------------------------------------


def make_site(
    network: Network,
    config: AdapterConfig,
    path: str,
    act: Attachment,
    shape: tuple[int, ...],
    layer: Layer | None = None,
    where: Candidate | None = None,
) -> Site:
    """Return the site of an adapter at a module of the network.

    Args:
        network: The network.
        config: Config of the adapter.
        path: Path of the module.
        act: Form in which the adapter acts on the module.
        shape: (channels,) of features, shape of the weight, or shape that a shared part is built for.
        layer: Parameters that a weight adapter changes.
        where: Candidate that gives stage and block.

    Raises:
        PlanError: Kind, shape and attachment do not match, or the adapter cannot be built for this shape.
    """
    return Site(
        path=path,
        stage=where.stage if where else None,
        block=where.block if where else None,
        config=config,
        key=site_key(config, shape, layer, act),
        module=original_class(network.modules[path]).__name__,
        shape=shape,
        layer=layer,
        attachment=act,
        parameters=count_parameters(config, shape, layer, act.form),
    )


def site_key(config: AdapterConfig, shape: tuple[int, ...], layer: Layer | None, act: Attachment) -> str:
    """Return the name of an adapter's module within the slot.

    Raises:
        PlanError: Kind, shape and attachment do not match.
    """
    kind = get_kind(config.kind)
    sides = bool(shape) and all(type(n) is int and n > 0 for n in shape)
    if act.form == "root":
        fits = kind.module.root_part_class is not None and sides and layer is None
    elif kind.on_weights:
        fits = act.form == "weight" and layer is not None and layer.names == act.tensors and sides
        fits = fits and shape == layer.shape(layer.main)  # type: ignore[union-attr]
    else:
        fits = act.form in ("output", "block") and layer is None and sides and len(shape) == 1
    if not fits or act.views != (1 if act.form == "weight" else config.views):
        raise PlanError(f"a {config.kind} adapter cannot be a {act.form} of shape {shape}")
    if act.block is not None:
        get_block(act.block)
    suffix = {"weight": act.tensors, "block": (act.port,), "root": ("root",)}.get(act.form, ())
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

    def build_there() -> Built:
        with torch.device("meta"):
            return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(build_there).result()
