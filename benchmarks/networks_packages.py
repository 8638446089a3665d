"""Small networks of installed packages: spandrel's (the table of the tests), timm's, transformers' and diffusers'."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import nn

from networks_rows import Row, Size

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import zoo  # it lies beside the tests that use it

OTHERS = {"swin2sr_hf": "transformers", "timm_swin": "timm", "timm_swin_v2": "timm"}
"""Where networks of the tests' table come from that are not spandrel's."""

UNPADDED = {"craft": (16, 24)}
"""Sizes that a network does not pad, so that rows can be told from the shape of its features."""


def _zoo(network: zoo.Network) -> Row:
    return Row(
        name=network.name,
        source="spandrel" if network in zoo.SPANDREL else OTHERS.get(network.name, "lowpeft"),
        build=network.build,
        px=UNPADDED.get(network.name, network.input_px),
        channels=network.channels,
        value_max=network.value_max,
    )


# --- timm: feature extractors (several maps, of falling size) and plain networks without a head

_SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2, 2), "num_heads": (2, 2, 2), "window_size": 4}
_SWIN |= {"img_size": (64, 96)}
_VIT: dict[str, Any] = {"img_size": (64, 96), "patch_size": 16, "embed_dim": 32, "depth": 6, "num_heads": 2}

FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_features": ("swin_tiny_patch4_window7_224", {**_SWIN, "out_indices": (0, 1, 2)}),
    "swin_v2_features": ("swinv2_tiny_window8_256", {**_SWIN, "out_indices": (0, 1, 2)}),
    "swin_features_square": ("swin_tiny_patch4_window7_224", {**_SWIN, "img_size": 64, "out_indices": (0, 1, 2)}),
    "convnext_features": ("convnext_atto", {"dims": (8, 16, 24, 32), "depths": (2, 2, 4, 2)}),
    "convnextv2_features": ("convnextv2_atto", {"dims": (8, 16, 24, 32), "depths": (2, 2, 4, 2)}),
    "resnet18_features": ("resnet18", {}),
    "vit_features": ("vit_tiny_patch16_224", {**_VIT, "out_indices": (1, 3, 5)}),
    "vit_features_square": ("vit_tiny_patch16_224", {**_VIT, "img_size": 64, "out_indices": (1, 3, 5)}),
    "efficientnet_features": ("efficientnet_lite0", {}),
    "mobilenetv3_features": ("mobilenetv3_small_050", {}),
    "pvt_v2_features": ("pvt_v2_b0", {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}),
    "edgenext_features": ("edgenext_xx_small", {}),
    "poolformer_features": ("poolformer_s12", {}),
    "hrnet_features": ("hrnet_w18_small", {}),
    "regnet_features": ("regnetx_002", {}),
    "maxvit_features": ("maxvit_rmlp_pico_rw_256", {"img_size": 64}),
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_tiny": ("swin_tiny_patch4_window7_224", {**_SWIN, "global_pool": ""}),
    "swin_v2_tiny": ("swinv2_tiny_window8_256", {**_SWIN, "global_pool": ""}),
    "vit": ("vit_tiny_patch16_224", {**_VIT, "img_size": 64}),
    "vit_tokens": ("vit_tiny_patch16_224", {**_VIT, "global_pool": "", "class_token": False}),
    "deit3": ("deit3_small_patch16_224", {**_VIT, "img_size": 64}),
    "convnext": ("convnext_atto", {"dims": (8, 16, 24, 32), "depths": (2, 2, 4, 2)}),
    "resnet18": ("resnet18", {}),
    "mixer": ("mixer_s16_224", {"img_size": 64}),
}


def _timm(name: str, model: str, options: dict[str, Any], **more: Any) -> Row:
    square = options.get("img_size") == 64
    px: Size = (64, 64) if square else (64, 96)
    build = partial(timm.create_model, model, pretrained=False, **options, **more)
    return Row(name=f"timm_{name}", source="timm", build=build, px=px, fixed=options.get("img_size") == (64, 96))


def _timm_rows() -> list[Row]:
    rows = [_timm(name, model, options, features_only=True) for name, (model, options) in FEATURES.items()]
    return rows + [_timm(name, model, options, num_classes=0) for name, (model, options) in PLAIN.items()]


# --- transformers

_FOUR: dict[str, Any] = {"depths": [2] * 4, "num_heads": [2] * 4}
_VIT_HF: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64}
_VIT_HF |= {"intermediate_size": 64, "patch_size": 8}
_STAGES: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_DINO = {**_VIT_HF, "out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], Size]] = {
    "swin2sr_model": ("Swin2SRModel", "Swin2SRConfig", {**_FOUR, "embed_dim": 12, "window_size": 4}, (16, 24)),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [2] * 4, "decoder_hidden_size": 16, "num_labels": 4},
        (64, 96),
    ),
    "swinv2_backbone": (
        "Swinv2Backbone",
        "Swinv2Config",
        {**_FOUR, **_STAGES, "embed_dim": 8, "window_size": 4, "image_size": 64},
        (64, 96),
    ),
    "swin_backbone": (
        "SwinBackbone",
        "SwinConfig",
        {**_FOUR, **_STAGES, "embed_dim": 8, "window_size": 4, "image_size": 64},
        (64, 96),
    ),
    "convnext_backbone": (
        "ConvNextBackbone",
        "ConvNextConfig",
        {**_STAGES, "hidden_sizes": [8, 16, 24, 32], "depths": [2] * 4},
        (64, 96),
    ),
    "vit": ("ViTModel", "ViTConfig", _VIT_HF, (64, 64)),
    "dinov2_backbone": ("Dinov2Backbone", "Dinov2Config", _DINO, (64, 64)),
    "dpt": (
        "DPTForDepthEstimation",
        "DPTConfig",
        {
            **_VIT_HF,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "patch_size": 16,
            "initializer_range": 0.3,
        },
        (64, 64),
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        "GLPNConfig",
        {"hidden_sizes": [8, 16, 40, 64], "depths": [2] * 4, "decoder_hidden_size": 16},
        (64, 96),
    ),
}


def _transformers(name: str, model: str, config: str, options: dict[str, Any], px: Size) -> Row:
    def build() -> nn.Module:
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    return Row(name=f"hf_{name}", source="transformers", build=build, px=px)


# --- diffusers

_UNET: dict[str, Any] = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
_UNET |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), "sample_size": 32}
_UNET |= {"up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8}
_VAE: dict[str, Any] = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
_VAE |= {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}


def _diffusers() -> list[Row]:
    if importlib.util.find_spec("diffusers") is None:
        return []
    diffusers = importlib.import_module("diffusers")
    with_time = lambda images: (images, torch.full((len(images),), 7.0))  # noqa: E731
    unet, vae = partial(diffusers.UNet2DModel, **_UNET), partial(diffusers.AutoencoderKL, **_VAE)
    return [
        Row(name="diffusers_unet2d", source="diffusers", build=unet, inputs=with_time),
        Row(name="diffusers_vae", source="diffusers", build=vae),
    ]


def rows() -> list[Row]:
    """Every network of an installed package."""
    table: dict[str, Callable[[], list[Row]]] = {
        "zoo": lambda: [_zoo(network) for network in zoo.ALL],
        "timm": _timm_rows,
        "transformers": lambda: [_transformers(name, *what) for name, what in TRANSFORMERS.items()],
        "diffusers": _diffusers,
    }
    return [row for make in table.values() for row in make()]
