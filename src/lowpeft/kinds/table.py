"""The open table of adapter kinds, with those that come with lowpeft."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from functools import partial

from ..errors import PlanError
from ..registry import Registry
from .adalora import AdaLoRA, AdaLoRAConfig
from .adaptformer import AdaptFormer, AdaptFormerConfig
from .adaptir import AdaptIR, AdaptIRConfig
from .base import (
    AdapterConfig,
    FeatureAdapter,
    WeightAdapter,
)
from .bitfit import BitFit, BitFitConfig
from .colora import CoLoRA, CoLoRAConfig
from .convpass import Convpass, ConvpassConfig
from .dora import DoRA, DoRAConfig
from .fact import FacT, FacTConfig
from .fish import Fish, FishConfig
from .full import Full, FullConfig
from .houlsby import Houlsby, HoulsbyConfig
from .ia3 import IA3, IA3Config
from .loha import LoHa, LoHaConfig
from .lokr import LoKr, LoKrConfig
from .lora import LoRA, LoRAConfig
from .lst import LSTConfig, LSTRung
from .norm import Norm, NormConfig
from .oft import OFT, OFTConfig
from .parallax import ParallaxAdapter, ParallaxConfig
from .pfeiffer import Pfeiffer, PfeifferConfig
from .prefix import Prefix, PrefixConfig
from .spatial import SpatialAdapter, SpatialConfig
from .spectral import Spectral, SpectralConfig
from .ssf import SSF, SSFConfig
from .stereo import StereoAdapter, StereoConfig
from .vera import VeRA, VeRAConfig
from .vpt import VPT, VPTConfig


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One entry of the registry: a kind's config class and its module class."""

    name: str
    config: type[AdapterConfig]
    module: type[FeatureAdapter] | type[WeightAdapter]

    @property
    def on_weights(self) -> bool:
        """True if the kind changes parameters, False if it changes features."""
        return issubclass(self.module, WeightAdapter)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the config's fields."""
        return tuple(f.name for f in dataclasses.fields(self.config))

    @property
    def parameters(self) -> str:
        """Formula of the number of trained parameters, from the docstring of the module; empty if it has none."""
        found = _PARAMETERS.search(inspect.getdoc(self.module) or "")
        return " ".join(found[1].split()).removesuffix(".") if found else ""

    def needs_data(self, config: AdapterConfig) -> bool:
        """Return whether adapters of a config learn their initial values from data, by `lowpeft.calibrate`."""
        return self.module.calibrator_class is not None or config.needs_data


_PARAMETERS = re.compile(r"^Trained parameters per (?:layer|site): (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
"""Paragraph of a module's docstring that gives its number of parameters."""

KINDS: Registry[Kind] = Registry(
    "adapter kind",
    error=PlanError,
    advice=". Register your own kind first (lowpeft.register_adapter)",
)

PARTS = ("root_part_class", "calibrator_class", "training_part_class")


def _unwritten(part: type) -> list[str]:
    """Return the names of the abstract methods that a class does not implement, sorted."""
    return sorted(getattr(part, "__abstractmethods__", ()))


def register_adapter(config: type[AdapterConfig], module: type[FeatureAdapter] | type[WeightAdapter]) -> Kind:
    """Register a kind of adapter. Recipes and adapter files of this process then find it by `config.kind`.

    Args:
        config: Frozen, keyword-only dataclass derived from `AdapterConfig`, with a class attribute `kind`.
        module: `FeatureAdapter` class that is built as `module(channels, config)`, or `WeightAdapter` class that is
            built as `module(layer, config)`. New instances must add exactly zero.

    Raises:
        PlanError: The classes do not fit together, or the name is taken. The registry is then unchanged.
    """
    name = getattr(config, "kind", None)
    problems = []
    if not (isinstance(config, type) and issubclass(config, AdapterConfig) and dataclasses.is_dataclass(config)):
        problems.append(f"the config {config!r} is not a dataclass derived from AdapterConfig")
    elif not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        problems.append(f"the config {config.__name__} is not frozen")
    if not (isinstance(module, type) and issubclass(module, (FeatureAdapter, WeightAdapter))):
        problems.append(f"the module {module!r} is neither a FeatureAdapter nor a WeightAdapter")
    parts = [module, *filter(None, map(partial(getattr, module), PARTS))] if not problems else []
    problems += [f"{p.__name__} has no {', '.join(m)}" for p in parts if (m := _unwritten(p))]
    if not isinstance(name, str) or not name.isidentifier():
        problems.append(f"kind must be an identifier like 'lora', not {name!r}")
    elif name in KINDS:
        problems.append(f"the kind {name!r} is already registered, by {KINDS[name].module.__name__}")
    elif getattr(module, "kind", None) != name:
        problems.append(f"the module says its kind is {getattr(module, 'kind', None)!r}, the config says {name!r}")
    if problems:
        raise PlanError("cannot register this adapter kind:", problems=problems)
    kind = Kind(name=str(name), config=config, module=module)
    KINDS.register(kind)
    return kind


def unregister_adapter(name: str) -> Kind:
    """Remove a kind of adapter from the registry. Models keep the adapters of this kind that they already have.

    Raises:
        PlanError: The kind is not registered.
    """
    return KINDS.unregister(name)


def get_kind(name: str) -> Kind:
    """Return the kind with this name.

    Raises:
        PlanError: The kind is not registered.
    """
    return KINDS.find(name)


def kinds() -> tuple[Kind, ...]:
    """Return all registered kinds, in the order of registration."""
    return tuple(KINDS.values())


register_adapter(SpatialConfig, SpatialAdapter)
register_adapter(StereoConfig, StereoAdapter)
register_adapter(ParallaxConfig, ParallaxAdapter)
register_adapter(LoRAConfig, LoRA)
register_adapter(FullConfig, Full)
register_adapter(DoRAConfig, DoRA)
register_adapter(SSFConfig, SSF)
register_adapter(ConvpassConfig, Convpass)
register_adapter(AdaptIRConfig, AdaptIR)
register_adapter(SpectralConfig, Spectral)
register_adapter(VeRAConfig, VeRA)
register_adapter(LoHaConfig, LoHa)
register_adapter(LoKrConfig, LoKr)
register_adapter(OFTConfig, OFT)
register_adapter(AdaLoRAConfig, AdaLoRA)
register_adapter(CoLoRAConfig, CoLoRA)
register_adapter(IA3Config, IA3)
register_adapter(BitFitConfig, BitFit)
register_adapter(NormConfig, Norm)
register_adapter(FishConfig, Fish)
register_adapter(HoulsbyConfig, Houlsby)
register_adapter(PfeifferConfig, Pfeiffer)
register_adapter(AdaptFormerConfig, AdaptFormer)
register_adapter(LSTConfig, LSTRung)
register_adapter(FacTConfig, FacT)
register_adapter(PrefixConfig, Prefix)
register_adapter(VPTConfig, VPT)
