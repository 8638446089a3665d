"""Adapter kinds: each is a config and a module, in one file; `table` holds them."""

from ..ports.attachment import Attachment, Layer
from .adalora import AdaLoRA, AdaLoRAConfig
from .base import (
    LAYERS,
    Adapter,
    AdapterConfig,
    FeatureAdapter,
    FeatureConfig,
    Forward,
    RootPart,
    TokenAdapter,
    WeightAdapter,
)
from .colora import CoLoRA, CoLoRAConfig
from .convpass import Convpass, ConvpassConfig
from .dora import DoRA, DoRAConfig
from .full import Full, FullConfig
from .learning import Calibrator, TrainingPart
from .loha import LoHa, LoHaConfig
from .lokr import LoKr, LoKrConfig
from .lora import LoRA, LoRAConfig
from .matrices import LowRankConfig, MatrixAdapter, MatrixConfig
from .oft import OFT, OFTConfig
from .parallax import ParallaxAdapter, ParallaxConfig
from .spatial import SpatialAdapter, SpatialConfig
from .ssf import SSF, SSFConfig
from .stereo import StereoAdapter, StereoConfig
from .table import KINDS, Kind, get_kind, kinds, register_adapter, unregister_adapter
from .vera import VeRA, VeRAConfig

__all__ = [
    "KINDS",
    "LAYERS",
    "OFT",
    "SSF",
    "AdaLoRA",
    "AdaLoRAConfig",
    "Adapter",
    "AdapterConfig",
    "Attachment",
    "Calibrator",
    "CoLoRA",
    "CoLoRAConfig",
    "Convpass",
    "ConvpassConfig",
    "DoRA",
    "DoRAConfig",
    "FeatureAdapter",
    "FeatureConfig",
    "Forward",
    "Full",
    "FullConfig",
    "Kind",
    "Layer",
    "LoHa",
    "LoHaConfig",
    "LoKr",
    "LoKrConfig",
    "LoRA",
    "LoRAConfig",
    "LowRankConfig",
    "MatrixAdapter",
    "MatrixConfig",
    "OFTConfig",
    "ParallaxAdapter",
    "ParallaxConfig",
    "RootPart",
    "SSFConfig",
    "SpatialAdapter",
    "SpatialConfig",
    "StereoAdapter",
    "StereoConfig",
    "TokenAdapter",
    "TrainingPart",
    "VeRA",
    "VeRAConfig",
    "WeightAdapter",
    "get_kind",
    "kinds",
    "register_adapter",
    "unregister_adapter",
]
