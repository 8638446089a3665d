"""lowpeft: parameter-efficient fine-tuning for low-level vision.

import lowpeft

stereo = lowpeft.adapt(model, "stereo")
left_sr, right_sr = stereo(left, right)
lowpeft.save_adapter(stereo, "my-adapter")
stereo = lowpeft.load_adapter(model, "my-adapter")
"""

from .api import adapt, inject_spatial_adapters, wrap_stereo
from .asteisr import convert_asteisr
from .backbones import load_backbone
from .calibration import calibrate
from .checking import check_trainable
from .conversion import convert_adapter, swin2sr_from_transformers, swin2sr_to_transformers
from .describe import describe
from .errors import AdapterError, DataError, LowpeftError, PlanError, TrainingError
from .facts import Backbone
from .families import BlockForward, Family, Place, Ports, register_family
from .files import load_adapter, read_adapter, save_adapter
from .hub import push_to_hub
from .inference import Tiling, enhance
from .injection import delete, inject, rename, restore
from .kinds import (
    AdapterConfig,
    Calibrator,
    ConvpassConfig,
    DoRAConfig,
    FeatureAdapter,
    Forward,
    FullConfig,
    Layer,
    LoRAConfig,
    RootPart,
    SpatialConfig,
    SSFConfig,
    StereoConfig,
    TrainingPart,
    VeRAConfig,
    WeightAdapter,
    register_adapter,
)
from .layouts import Features, Layout
from .merging import MergeReport, merge
from .model import Summary, adapter_parameters, adapter_state_dict, list_adapters, load_adapter_state_dict, summary
from .planning import Plan, plan
from .recipes import Recipe, TrainSettings, load_recipe
from .sites import Site
from .switching import disabled, set_strength, using
from .version import version as _version
from .views import MultiViewModel, StereoModel

__version__ = _version()

__all__ = [
    "AdapterConfig",
    "AdapterError",
    "Backbone",
    "BlockForward",
    "Calibrator",
    "ConvpassConfig",
    "DataError",
    "DoRAConfig",
    "Family",
    "FeatureAdapter",
    "Features",
    "Forward",
    "FullConfig",
    "Layer",
    "Layout",
    "LoRAConfig",
    "LowpeftError",
    "MergeReport",
    "MultiViewModel",
    "Place",
    "Plan",
    "PlanError",
    "Ports",
    "Recipe",
    "RootPart",
    "SSFConfig",
    "Site",
    "SpatialConfig",
    "StereoConfig",
    "StereoModel",
    "Summary",
    "Tiling",
    "TrainSettings",
    "TrainingError",
    "TrainingPart",
    "VeRAConfig",
    "WeightAdapter",
    "__version__",
    "adapt",
    "adapter_parameters",
    "adapter_state_dict",
    "calibrate",
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
    "load_recipe",
    "merge",
    "plan",
    "push_to_hub",
    "read_adapter",
    "register_adapter",
    "register_family",
    "rename",
    "restore",
    "save_adapter",
    "set_strength",
    "summary",
    "swin2sr_from_transformers",
    "swin2sr_to_transformers",
    "using",
    "wrap_stereo",
]
