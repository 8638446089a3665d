"""Adapter kinds: each is a config and a module, in one file; `table` holds them."""

from ..ports.attachment import Attachment, Layer
from .adalora import AdaLoRA, AdaLoRAConfig
from .adaptformer import AdaptFormer, AdaptFormerConfig
from .adaptir import AdaptIR, AdaptIRConfig
from .base import (
    LAYERS,
    Adapter,
    AdapterConfig,
    FeatureAdapter,
    FeatureConfig,
    Forward,
    RootPart,
    Surroundings,
    TokenAdapter,
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
from .learning import Calibrator, TrainingPart
from .loha import LoHa, LoHaConfig
from .lokr import LoKr, LoKrConfig
from .lora import LoRA, LoRAConfig
from .lst import LSTConfig, LSTRung
from .matrices import LowRankConfig, MatrixAdapter, MatrixConfig
from .norm import Norm, NormConfig
from .oft import OFT, OFTConfig
from .parallax import ParallaxAdapter, ParallaxConfig
from .pfeiffer import Pfeiffer, PfeifferConfig
from .prefix import Prefix, PrefixConfig
from .spatial import SpatialAdapter, SpatialConfig
from .spectral import Spectral, SpectralConfig
from .ssf import SSF, SSFConfig
from .stereo import StereoAdapter, StereoConfig
from .table import KINDS, Kind, get_kind, kinds, register_adapter, unregister_adapter
from .vera import VeRA, VeRAConfig
from .vpt import VPT, VPTConfig

__all__ = [
    "IA3",
    "KINDS",
    "LAYERS",
    "OFT",
    "SSF",
    "VPT",
    "AdaLoRA",
    "AdaLoRAConfig",
    "AdaptFormer",
    "AdaptFormerConfig",
    "AdaptIR",
    "AdaptIRConfig",
    "Adapter",
    "AdapterConfig",
    "Attachment",
    "BitFit",
    "BitFitConfig",
    "Calibrator",
    "CoLoRA",
    "CoLoRAConfig",
    "Convpass",
    "ConvpassConfig",
    "DoRA",
    "DoRAConfig",
    "FacT",
    "FacTConfig",
    "FeatureAdapter",
    "FeatureConfig",
    "Fish",
    "FishConfig",
    "Forward",
    "Full",
    "FullConfig",
    "Houlsby",
    "HoulsbyConfig",
    "IA3Config",
    "Kind",
    "LSTConfig",
    "LSTRung",
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
    "Norm",
    "NormConfig",
    "OFTConfig",
    "ParallaxAdapter",
    "ParallaxConfig",
    "Pfeiffer",
    "PfeifferConfig",
    "Prefix",
    "PrefixConfig",
    "RootPart",
    "SSFConfig",
    "SpatialAdapter",
    "SpatialConfig",
    "Spectral",
    "SpectralConfig",
    "StereoAdapter",
    "StereoConfig",
    "Surroundings",
    "TokenAdapter",
    "TrainingPart",
    "VPTConfig",
    "VeRA",
    "VeRAConfig",
    "WeightAdapter",
    "get_kind",
    "kinds",
    "register_adapter",
    "unregister_adapter",
]
