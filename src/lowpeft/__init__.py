"""lowpeft: parameter-efficient fine-tuning for low-level vision.

import lowpeft

stereo = lowpeft.adapt(model, "stereo")
left_sr, right_sr = stereo(left, right)
lowpeft.save_adapter(stereo, "my-adapter")
stereo = lowpeft.load_adapter(model, "my-adapter")
"""

import typing

from .backbones.asteisr import convert_asteisr
from .backbones.opening import load_backbone
from .backbones.swin2sr import convert_adapter, swin2sr_from_transformers, swin2sr_to_transformers
from .core.attachment.views import MultiViewModel, StereoModel
from .core.files.about import About, Result
from .core.files.hub.pushing import push_to_hub
from .core.files.loading import load_adapter
from .core.files.reading import read_adapter
from .core.files.results import results_of
from .core.files.saving import save_adapter
from .core.observation.describe import describe
from .core.operations.adapt import adapt, inject_spatial_adapters, wrap_stereo
from .core.operations.calibration import calibrate
from .core.operations.checking import check_trainable
from .core.operations.injection import delete, inject, rename, restore
from .core.operations.merging import MergeReport, merge
from .core.operations.methods import MethodRow, methods
from .core.operations.optimizing import optimize
from .core.operations.sensitivity import SensitivePlaces, sensitive_places
from .core.operations.state import (
    Summary,
    adapter_parameters,
    adapter_state_dict,
    list_adapters,
    load_adapter_state_dict,
    summary,
)
from .core.operations.switching import disabled, set_strength, using
from .core.operations.training_parts import training_parts
from .core.planning.plan import Plan, plan
from .core.planning.sites import Site
from .errors import AdapterError, DataError, LowpeftError, PlanError, TrainingError
from .families import BlockForward, Family, Place, Ports, register_family, unregister_family
from .kinds import (
    AdaLoRAConfig,
    AdapterConfig,
    AdaptFormerConfig,
    AdaptIRConfig,
    BitFitConfig,
    Calibrator,
    CoLoRAConfig,
    ConvpassConfig,
    DoRAConfig,
    FacTConfig,
    FeatureAdapter,
    FeatureConfig,
    FishConfig,
    Forward,
    FullConfig,
    HoulsbyConfig,
    IA3Config,
    Layer,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    LowRankConfig,
    LSTConfig,
    MatrixAdapter,
    MatrixConfig,
    NormConfig,
    OFTConfig,
    ParallaxConfig,
    PfeifferConfig,
    PrefixConfig,
    RootPart,
    SpatialConfig,
    SpectralConfig,
    SSFConfig,
    StereoConfig,
    TrainingPart,
    VeRAConfig,
    VPTConfig,
    WeightAdapter,
    register_adapter,
    unregister_adapter,
)
from .ports.facts import Backbone
from .ports.layouts import Features, Layout
from .pretrained import load_pretrained
from .recipes import Recipe, TrainSettings, load_recipe, register_recipe, unregister_recipe
from .restoration.inference import Tiling, enhance
from .version import version as _version

if typing.TYPE_CHECKING:
    from .restoration.data import PairCheck, check_pair

__version__ = _version()


def __getattr__(name: str) -> object:
    """Import what only the data package has when it is first asked for."""
    if name not in ("PairCheck", "check_pair"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .restoration import data

    return getattr(data, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "About",
    "AdaLoRAConfig",
    "AdaptFormerConfig",
    "AdaptIRConfig",
    "AdapterConfig",
    "AdapterError",
    "Backbone",
    "BitFitConfig",
    "BlockForward",
    "Calibrator",
    "CoLoRAConfig",
    "ConvpassConfig",
    "DataError",
    "DoRAConfig",
    "FacTConfig",
    "Family",
    "FeatureAdapter",
    "FeatureConfig",
    "Features",
    "FishConfig",
    "Forward",
    "FullConfig",
    "HoulsbyConfig",
    "IA3Config",
    "LSTConfig",
    "Layer",
    "Layout",
    "LoHaConfig",
    "LoKrConfig",
    "LoRAConfig",
    "LowRankConfig",
    "LowpeftError",
    "MatrixAdapter",
    "MatrixConfig",
    "MergeReport",
    "MethodRow",
    "MultiViewModel",
    "NormConfig",
    "OFTConfig",
    "PairCheck",
    "ParallaxConfig",
    "PfeifferConfig",
    "Place",
    "Plan",
    "PlanError",
    "Ports",
    "PrefixConfig",
    "Recipe",
    "Result",
    "RootPart",
    "SSFConfig",
    "SensitivePlaces",
    "Site",
    "SpatialConfig",
    "SpectralConfig",
    "StereoConfig",
    "StereoModel",
    "Summary",
    "Tiling",
    "TrainSettings",
    "TrainingError",
    "TrainingPart",
    "VPTConfig",
    "VeRAConfig",
    "WeightAdapter",
    "__version__",
    "adapt",
    "adapter_parameters",
    "adapter_state_dict",
    "calibrate",
    "check_pair",
    "check_trainable",
    "convert_adapter",
    "convert_asteisr",
    "delete",
    "describe",
    "disabled",
    "enhance",
    "inject",
    "inject_spatial_adapters",
    "list_adapters",
    "load_adapter",
    "load_adapter_state_dict",
    "load_backbone",
    "load_pretrained",
    "load_recipe",
    "merge",
    "methods",
    "optimize",
    "plan",
    "push_to_hub",
    "read_adapter",
    "register_adapter",
    "register_family",
    "register_recipe",
    "rename",
    "restore",
    "results_of",
    "save_adapter",
    "sensitive_places",
    "set_strength",
    "summary",
    "swin2sr_from_transformers",
    "swin2sr_to_transformers",
    "training_parts",
    "unregister_adapter",
    "unregister_family",
    "unregister_recipe",
    "using",
    "wrap_stereo",
]
