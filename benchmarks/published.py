"""The networks that authors published, at full size: how each is built, and how many parameters it has.

Weights are random: nothing is downloaded. Needs the extras `spandrel` and `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import timm
from spandrel.architectures.HAT import HAT
from spandrel.architectures.IPT import IPT
from spandrel.architectures.Swin2SR import Swin2SR
from spandrel.architectures.SwinIR import SwinIR
from torch import nn
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.paper.reproduce.networks import HAT_L


@dataclass(frozen=True, kw_only=True)
class Network:
    """One published configuration.

    Attributes:
        name: The authors' name of the size, and the scale.
        family: lowpeft's name for it.
        build: Gives a new network in eval mode, the same for the same torch seed.
        parameters: The exact number; papers print it rounded.
        source: Where the configuration is from.
        input_px: Height and width of a small image that it takes.
        value_max: Images have values in 0..this.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    parameters: int
    source: str
    input_px: tuple[int, int]
    value_max: float = 1.0


def _build(make: Callable[..., nn.Module], **options: object) -> nn.Module:
    return make(**options).eval()


def _groups(groups: int, heads: int) -> dict[str, object]:
    return {"depths": [6] * groups, "num_heads": [heads] * groups}


# --- HAT
_HAT = {"window_size": 16, "conv_scale": 0.01, "overlap_ratio": 0.5, "mlp_ratio": 2, "img_range": 1.0}
_HAT_S = {**_HAT, **_groups(6, 6), "embed_dim": 144, "compress_ratio": 24, "squeeze_factor": 24}
_HAT_M = {**_HAT, **_groups(6, 6), "embed_dim": 180, "compress_ratio": 3, "squeeze_factor": 30}


def _hat(name: str, options: dict[str, object], counts: dict[int, int]) -> Iterator[Network]:
    for scale, parameters in counts.items():
        yield Network(
            name=f"{name} x{scale}",
            family="hat",
            build=partial(_build, HAT, **options, upscale=scale),
            parameters=parameters,
            source="XPixelGroup/HAT, options/test",
            input_px=(16, 32),
        )


# --- SwinIR and Swin2SR
_SWIN = {"img_size": 64, "window_size": 8, "mlp_ratio": 2, "img_range": 1.0}
_SWIN_M = {**_SWIN, **_groups(6, 6), "embed_dim": 180}
_SWIN_S = {**_SWIN, **_groups(4, 6), "embed_dim": 60, "upsampler": "pixelshuffledirect"}
_SWIN_L = {**_SWIN, **_groups(9, 8), "embed_dim": 240, "resi_connection": "3conv"}


def _swinir(name: str, options: dict[str, object], counts: dict[int, int]) -> Iterator[Network]:
    for scale, parameters in counts.items():
        yield Network(
            name=f"{name} x{scale}",
            family="swinir",
            build=partial(_build, SwinIR, **options, upscale=scale),
            parameters=parameters,
            source="JingyunLiang/SwinIR, main_test_swinir.py",
            input_px=(16, 24),
        )


def _swin2sr(name: str, options: dict[str, object], counts: dict[int, int]) -> Iterator[Network]:
    for scale, parameters in counts.items():
        yield Network(
            name=f"{name} x{scale}",
            family="swin2sr",
            build=partial(_build, Swin2SR, **options, upscale=scale),
            parameters=parameters,
            source="mv-lab/swin2sr, main_test_swin2sr.py",
            input_px=(16, 24),
        )


# --- EDT
def _edt(size: str, counts: dict[str, int], *, of_authors: tuple[str, ...]) -> Iterator[Network]:
    """A size of EDT for tasks; the authors have a configuration for those in `of_authors`."""
    for tasks, parameters in counts.items():
        names = ("sr_x2", "sr_x3", "sr_x4") if tasks == "x2x3x4" else (tasks if "_" in tasks else f"sr_{tasks}",)
        config = EDTConfig.published(size, names)
        yield Network(
            name=f"EDT-{size} {tasks}",
            family="edt",
            build=partial(_build, EDT, config=config),
            parameters=parameters,
            source="fenglinglwb/EDT, configs" if tasks in of_authors else f"as EDT-{size} x2; no file of the authors",
            input_px=(24, 48),
        )


# --- IPT
def _ipt(name: str, scales: list[int], parameters: int, source: str) -> Network:
    return Network(
        name=name,
        family="ipt",
        build=partial(_build, IPT, scale=scales),
        parameters=parameters,
        source=source,
        input_px=(48, 48),
        value_max=255.0,
    )


_IPT_OPTIONS = "huawei-noah/Pretrained-IPT, option.py"


# --- Swin Transformers of timm: networks of features, without the classifier
def _timm(name: str, family: str, parameters: int, side_px: int) -> Network:
    return Network(
        name=name,
        family=family,
        build=partial(_build, timm.create_model, model_name=name, num_classes=0, global_pool=""),
        parameters=parameters,
        source="timm, without the classifier",
        input_px=(side_px, side_px),
    )


NETWORKS: tuple[Network, ...] = (
    *_hat("HAT-S", _HAT_S, {2: 9_473_471, 3: 9_658_111, 4: 9_621_183}),
    *_hat("HAT", _HAT_M, {2: 20_624_795, 3: 20_809_435, 4: 20_772_507}),
    *_hat("HAT-L", HAT_L, {2: 40_698_863, 3: 40_883_503, 4: 40_846_575}),
    *_swinir("SwinIR-S", _SWIN_S, {2: 910_152, 3: 918_267, 4: 929_628}),
    *_swinir("SwinIR-M", {**_SWIN_M, "upsampler": "pixelshuffle"}, {2: 11_752_487, 3: 11_937_127, 4: 11_900_199}),
    *_swinir("SwinIR-M real", {**_SWIN_M, "upsampler": "nearest+conv"}, {4: 11_715_559}),
    *_swinir("SwinIR-L real", {**_SWIN_L, "upsampler": "nearest+conv"}, {4: 28_013_059}),
    *_swin2sr("Swin2SR light", _SWIN_S, {2: 1_005_348}),
    *_swin2sr("Swin2SR", {**_SWIN_M, "upsampler": "pixelshuffle"}, {2: 12_091_571, 4: 12_239_283}),
    *_swin2sr("Swin2SR compressed", {**_SWIN_M, "upsampler": "pixelshuffle_aux"}, {4: 12_244_598}),
    Network(
        name="Swin2SR x2 (transformers)",
        family="swin2sr_transformers",
        build=lambda: Swin2SRForImageSuperResolution(Swin2SRConfig()).eval(),
        parameters=12_091_571,
        source="transformers, Swin2SRConfig()",
        input_px=(16, 24),
    ),
    *_edt(
        "T", {"x2": 916_924, "x3": 919_099, "x4": 922_144, "x2x3x4": 1_137_537}, of_authors=("x2", "x3", "x4", "x2x3x4")
    ),
    *_edt("S", {"x2": 4_230_323, "x3": 4_276_563, "x4": 4_267_315, "x2x3x4": 5_076_201}, of_authors=("x2",)),
    *_edt(
        "B",
        {"x2": 11_479_355, "x3": 11_663_995, "x4": 11_627_067, "x2x3x4": 14_576_937, "dn_g15": 11_503_163},
        of_authors=("x2", "x3", "x4", "x2x3x4", "dn_g15"),
    ),
    *_edt("L", {"x2": 39_927_395, "x3": 40_665_315, "x4": 40_517_731, "x2x3x4": 51_193_161}, of_authors=("x2",)),
    _ipt("IPT x2", [2], 115_460_443, _IPT_OPTIONS),
    _ipt("IPT x3", [3], 115_645_083, _IPT_OPTIONS),
    _ipt("IPT x4", [4], 115_608_155, _IPT_OPTIONS),
    _ipt("IPT, six tasks", [2, 3, 4, 1, 1, 1], 118_155_114, _IPT_OPTIONS),
    _timm("swin_tiny_patch4_window7_224", "timm_swin", 27_519_354, 224),
    _timm("swinv2_tiny_window8_256", "timm_swin_v2", 27_578_154, 256),
)
"""Every row once; names are unique."""


def network(name: str) -> Network:
    """The row of that name."""
    return next(n for n in NETWORKS if n.name == name)
