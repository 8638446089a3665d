"""The one table of tiny networks that the conformance tests run on.

Every row is as small as its architecture allows and keeps its structure: at least four groups of at least two blocks
wherever the architecture has groups. Weights are random; parameters that a constructor leaves at zero (residual scales,
gates) are filled, so that every branch takes part in the output and lets gradients through. Networks come in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import timm
import torch
from spandrel.architectures.ATD import ATD
from spandrel.architectures.AuraSR import AuraSR
from spandrel.architectures.Compact import Compact
from spandrel.architectures.CRAFT import CRAFT
from spandrel.architectures.DAT import DAT
from spandrel.architectures.DCTLSA import DCTLSA
from spandrel.architectures.DITN import DITN
from spandrel.architectures.DnCNN import DnCNN
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.DRUNet import DRUNet
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.FBCNN import FBCNN
from spandrel.architectures.FDAT import FDAT
from spandrel.architectures.FFTformer import FFTformer
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.GRL import GRL
from spandrel.architectures.HAT import HAT
from spandrel.architectures.HVICIDNet import HVICIDNet
from spandrel.architectures.IPT import IPT
from spandrel.architectures.KBNet import KBNet_l, KBNet_s
from spandrel.architectures.LaMa.__arch.LaMa import FFCResNetGenerator
from spandrel.architectures.MixDehazeNet import MixDehazeNet
from spandrel.architectures.MMRealSR import MMRealSR
from spandrel.architectures.MoESR import MoESR
from spandrel.architectures.MoSR import MoSR
from spandrel.architectures.NAFNet import NAFNet
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.RealCUGAN import UpCunet2x, UpCunet2x_fast, UpCunet3x, UpCunet4x
from spandrel.architectures.RestoreFormer import RestoreFormer
from spandrel.architectures.RetinexFormer import RetinexFormer
from spandrel.architectures.RGT import RGT
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SAFMNBCIE import SAFMNBCIE
from spandrel.architectures.SCUNet import SCUNet
from spandrel.architectures.SeemoRe import SeemoRe
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwiftSRGAN import SwiftSRGAN
from spandrel.architectures.Swin2SR import Swin2SR
from spandrel.architectures.SwinIR import SwinIR
from spandrel.architectures.Uformer import Uformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

import official_layouts
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.backbones.networks.edt import RGB_MEAN

Task = Literal["sr", "restoration", "features"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One tiny network. It takes N,`channels`,H,W with values in 0..`value_max` and (H, W) = `input_px`.

    `build` answers a new network in eval mode, the same for the same torch seed. `family` is lowpeft's name for it.
    The output of an "sr" or "restoration" network has `scale` times the input's size; "features" says N,h,w,C.
    """

    name: str
    build: Callable[[], nn.Module]
    input_px: tuple[int, int]
    scale: int
    family: str | None
    task: Task
    channels: int = 3
    value_max: float = 1.0


def image_of(output: object) -> Tensor:
    """The image (or feature map) in what a network of the table returns.

    That is a tensor, the first of a tuple, the last of a list of stages' features, or in a transformers output.
    """
    if isinstance(output, (tuple, list)):
        return image_of(output[0] if isinstance(output, tuple) else output[-1])
    found = output if isinstance(output, Tensor) else getattr(output, "reconstruction", None)
    if not isinstance(found, Tensor):
        raise TypeError(f"no image in an output of type {type(output).__name__}")
    return found


class _MeanShift(nn.Conv2d):
    """Frozen 1x1 convolution that adds `sign` times the mean colour."""

    def __init__(self, sign: int, value_max: float) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * value_max * torch.tensor(RGB_MEAN)
        self.requires_grad_(False)


class _ResBlock(nn.Module):
    def __init__(self, dim: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1), nn.ReLU(True), nn.Conv2d(dim, dim, 3, 1, 1))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)


class EDSR(nn.Module):
    """EDSR's layout for x2, values 0..255: a flat body of residual blocks and one last convolution, no groups."""

    def __init__(self, *, dim: int = 8, blocks: int = 6, res_scale: float = 0.1) -> None:
        super().__init__()
        self.sub_mean = _MeanShift(-1, 255.0)
        self.add_mean = _MeanShift(1, 255.0)
        self.head = nn.Sequential(nn.Conv2d(3, dim, 3, 1, 1))
        self.body = nn.Sequential(*(_ResBlock(dim, res_scale) for _ in range(blocks)), nn.Conv2d(dim, dim, 3, 1, 1))
        upsampler = nn.Sequential(nn.Conv2d(dim, 4 * dim, 3, 1, 1), nn.PixelShuffle(2))
        self.tail = nn.Sequential(upsampler, nn.Conv2d(dim, 3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """N,3,H,W to N,3,2H,2W."""
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


def _ready(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = make()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if not name.endswith("bias") and not parameter.any():
                    parameter.normal_(std=0.1)
        return network.eval()

    return build


def _sr(
    name: str,
    make: Callable[[], nn.Module],
    input_px: tuple[int, int],
    scale: int,
    *,
    family: str | None = None,
    value_max: float = 1.0,
) -> Network:
    build = _ready(make)
    return Network(
        name=name, build=build, input_px=input_px, scale=scale, family=family, task="sr", value_max=value_max
    )


def _restoration(
    name: str,
    make: Callable[[], nn.Module],
    input_px: tuple[int, int],
    *,
    family: str | None = None,
    channels: int = 3,
) -> Network:
    build = _ready(make)
    return Network(
        name=name, build=build, input_px=input_px, scale=1, family=family, task="restoration", channels=channels
    )


def _features(
    name: str, make: Callable[[], nn.Module], input_px: tuple[int, int], *, family: str | None = None
) -> Network:
    return Network(name=name, build=_ready(make), input_px=input_px, scale=1, family=family or name, task="features")


def _span() -> nn.Module:
    # In eval mode SPAN writes the fused weight of each convolution before it uses it. One pass here makes that
    # write a no-op later, as it is after loading a checkpoint, so that "the base is not written" can be tested.
    network = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2).eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 4, 4))
    return network


def _lama() -> nn.Module:
    # LaMa itself takes an image and a mask; the Sequential inside its generator takes both in one tensor.
    return FFCResNetGenerator(4, 3, ngf=4, n_downsampling=3, n_blocks=4).model


def _fbcnn() -> nn.Module:
    # The constructor fixes the width of one Linear to the released 512 channels: 29 million parameters without this.
    network = FBCNN(nc=[4, 8, 16, 32], nb=2)
    network.qf_pred[4] = nn.Linear(32, 512)
    return network


def _kbnet_s() -> nn.Module:
    # As it is built, its kernel bases are so small that the convolutions that choose among them get no gradient to
    # speak of (1e-11).
    network = KBNet_s(width=4, middle_blk_num=2, enc_blk_nums=[2, 2], dec_blk_nums=[2, 2])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.rpartition(".")[2] in ("w", "attgamma", "ga1", "beta", "gamma"):
                parameter.normal_(std=0.5)
    return network


def _swin2sr_hf() -> nn.Module:
    sizes = {"image_size": 8, "embed_dim": 12, "window_size": 4, "upscale": 2}
    config = Swin2SRConfig(**sizes, depths=[2] * 4, num_heads=[2] * 4, upsampler="pixelshuffledirect")
    return Swin2SRForImageSuperResolution(config)


# Settings that many of the Swin-like constructors share; all of them pass lists or tuples on unchanged.
_GROUPS = {"depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2)}
_SWIN = {**_GROUPS, "img_size": 8, "embed_dim": 12, "window_size": 4, "mlp_ratio": 2.0, "upscale": 2}
_TIMM = {**_GROUPS, "img_size": 64, "embed_dim": 8, "window_size": 4, "strict_img_size": False}
_NO_HEAD = {"num_classes": 0, "global_pool": ""}  # the features themselves
_TIMM |= _NO_HEAD

_HAT = _sr("hat", partial(HAT, **_SWIN, squeeze_factor=1, num_feat=16), (8, 12), 2, family="hat")
_SWINIR = _sr("swinir", partial(SwinIR, **_SWIN, upsampler="pixelshuffle"), (8, 12), 2, family="swinir")
_SWINIR_3CONV = _sr(
    "swinir_3conv",
    partial(SwinIR, **{**_SWIN, "upscale": 4}, upsampler="nearest+conv", resi_connection="3conv"),
    (8, 12),
    4,
    family="swinir",
)
_SWIN2SR = _sr("swin2sr", partial(Swin2SR, **_SWIN, upsampler="pixelshuffle"), (8, 12), 2, family="swin2sr")
_IPT = _sr(
    "ipt", partial(IPT, n_feats=4, num_heads=2, num_layers=4, scale=[2]), (48, 48), 2, family="ipt", value_max=255.0
)
_NAFNET = _restoration(
    "nafnet",
    partial(NAFNet, width=8, enc_blk_nums=[2, 2], middle_blk_num=4, dec_blk_nums=[2, 2]),
    (16, 24),
    family="nafnet",
)
_KBNET_S = _restoration("kbnet_s", _kbnet_s, (16, 24), family="kbnet")
_RCAN_X2 = partial(RCAN, n_resgroups=4, n_resblocks=2, n_feats=8, reduction=1, scale=2)
_RCAN = _sr("rcan", _RCAN_X2, (8, 12), 2, family="rcan")
_GRL_SIZES = {"depths": [2] * 4, "num_heads_window": [2] * 4, "num_heads_stripe": [2] * 4, "window_size": 4}
_GRL = partial(
    GRL, **_GRL_SIZES, img_size=16, embed_dim=20, stripe_shift=True, anchor_window_down_factor=2, mlp_ratio=2.0
)
_GRL_X2 = partial(_GRL, upscale=2, upsampler="pixelshuffledirect")
_EDT = partial(EDT, EDTConfig(features=4, dim=16, heads=2, depths=(2, 2, 2, 2), image_px=24))
_AURASR = partial(
    AuraSR,
    dim=4,
    image_size=None,
    input_image_size=None,
    style_network={"dim_in": 8, "dim_out": 32, "depth": 2},
    up_dim_mults=(1, 1, 2, 2, 2),
    down_dim_mults=(2, 2, 2),
    self_attn_dim_head=4,
    self_attn_heads=2,
    attn_depths=(2,) * 5,
    mid_attn_depth=2,
    num_conv_kernels=2,
)
_PLKSR = partial(PLKSR, dim=16, n_blocks=4, upscaling_factor=2, kernel_size=5)
_REALPLKSR = partial(RealPLKSR, dim=16, n_blocks=4, upscaling_factor=2, kernel_size=5)
_MOESR = partial(MoESR, scale=2, dim=16, n_blocks=4, n_block=2)
_ESRGAN = partial(ESRGAN, num_filters=4, num_blocks=4)
# The position bias networks of CRAFT, DAT and RGT have embed_dim // 32 channels, and a LayerNorm over them.
_DAT = partial(DAT, img_size=8, embed_dim=64, split_size=[4, 8], expansion_factor=1.0, upscale=2)
_RGT = partial(RGT, img_size=16, embed_dim=64, split_size=[4, 8], mlp_ratio=1.0, upscale=2)
_CRAFT = partial(CRAFT, **{**_GROUPS, "depths": (1,) * 4}, embed_dim=64, window_size=8, split_size_0=4, split_size_1=8)
_RESTOREFORMER = partial(RestoreFormer, n_embed=16, embed_dim=32, ch=32, ch_mult=(1, 1, 1, 1), z_channels=32)
_ATD_ROW = _sr(
    "atd",
    partial(ATD, **_SWIN, category_size=32, num_tokens=8, upsampler="pixelshuffledirect"),
    (8, 12),
    2,
    family="atd",
)
_CRAFT_ROW = _sr("craft", partial(_CRAFT, upscale=2), (8, 12), 2, family="craft")
_DAT_ROW = _sr("dat", _DAT, (8, 12), 2, family="dat")
_DAT_LIGHT_ROW = _sr(
    "dat_light", partial(_DAT, resi_connection="3conv", upsampler="pixelshuffledirect"), (8, 12), 2, family="dat"
)
_DCTLSA_ROW = _sr("dctlsa", partial(DCTLSA, nf=10, num_head=2, upscale=2), (16, 24), 2, family="dctlsa")
_DITN_ROW = _sr(
    "ditn", partial(DITN, dim=8, ITL_blocks=2, SAL_blocks=2, UFONE_blocks=4, upscale=2), (16, 24), 2, family="ditn"
)
_UFORMER_ROW = _restoration(
    "uformer",
    partial(Uformer, img_size=64, embed_dim=4, num_heads=[1, 1, 2, 2, 2, 2, 2, 1, 1], win_size=4, mlp_ratio=2.0),
    (64, 64),
    family="uformer",
)
_TIMM_TINY = {"features_only": True, "pretrained": False, **{k: v for k, v in _TIMM.items() if k not in _NO_HEAD}}

SPANDREL: tuple[Network, ...] = (
    _ATD_ROW,
    _sr("aurasr", _AURASR, (16, 24), 4),
    _sr("compact", partial(Compact, num_feat=8, num_conv=4, upscale=2), (8, 12), 2),
    _CRAFT_ROW,
    _DAT_ROW,
    _DAT_LIGHT_ROW,
    _DCTLSA_ROW,
    _DITN_ROW,
    _restoration("dncnn", partial(DnCNN, in_nc=3, out_nc=3, nc=8, nb=6), (8, 12)),
    _restoration("dncnn_gray", partial(DnCNN, nc=8, nb=6, act_mode="R"), (8, 12), channels=1),
    _sr("drct", partial(DRCT, **{**_SWIN, "embed_dim": 24}, gc=8, upsampler="pixelshuffle"), (8, 12), 2),
    # Three colours and one noise map in, three colours out, as in the released networks.
    _restoration("drunet", partial(DRUNet, in_nc=4, out_nc=3, nc=[8, 16, 32, 64], nb=2), (16, 24), channels=4),
    _sr("esrgan", partial(_ESRGAN, scale=2), (8, 12), 2),
    _sr("esrgan_plus", partial(_ESRGAN, scale=2, plus=True), (8, 12), 2),
    _sr("esrgan_unshuffle", partial(_ESRGAN, in_nc=12, scale=4, shuffle_factor=2), (8, 12), 2),
    _restoration("fbcnn", _fbcnn, (16, 24)),
    _sr(
        "fdat",
        partial(FDAT, scale=2, embed_dim=16, depth_per_group=1, num_heads=2, window_size=4, mid_dim=16),
        (8, 12),
        2,
    ),
    _restoration("fftformer", partial(FFTformer, dim=8, num_blocks=[2, 2, 2], num_refinement_blocks=2), (32, 64)),
    _restoration("gfpgan", partial(GFPGAN, out_size=64, num_style_feat=16, num_mlp=2, narrow=1 / 32), (64, 64)),
    _sr("grl", _GRL_X2, (16, 24), 2),
    _sr("grl_local", partial(_GRL_X2, local_connection=True), (16, 24), 2),
    _HAT,
    _restoration("hvicidnet", partial(HVICIDNet, channels=[4, 4, 8, 16], heads=[1, 2, 2, 2]), (16, 24)),
    _IPT,
    _restoration(
        "kbnet_l",
        partial(
            KBNet_l, dim=6, num_blocks=[2] * 4, num_refinement_blocks=2, heads=[1, 2, 2, 2], ffn_expansion_factor=2
        ),
        (16, 24),
    ),
    _KBNET_S,
    _restoration("lama", _lama, (32, 48), channels=4),
    _restoration("mixdehazenet", partial(MixDehazeNet, embed_dims=[8, 16, 32, 16, 8], depths=[2] * 5), (40, 56)),
    _sr(
        "mmrealsr",
        partial(MMRealSR, num_in_ch=3, num_out_ch=3, num_feat=8, num_block=4, num_grow_ch=4, num_feats=[4, 8, 8, 8]),
        (16, 24),
        4,
    ),
    _sr("moesr", _MOESR, (8, 12), 2),
    _sr("moesr_dysample", partial(_MOESR, upsampler="dysample"), (8, 12), 2),
    _sr("mosr", partial(MoSR, upscale=2, n_block=4, dim=8), (8, 12), 2),
    _sr("mosr_geometric", partial(MoSR, upscale=2, n_block=4, dim=8, upsampler="gps"), (8, 12), 2),
    _NAFNET,
    _sr("omnisr", partial(OmniSR, num_feat=16, block_num=2, window_size=4, res_num=4, up_scale=2), (16, 24), 2),
    _sr("plksr", _PLKSR, (8, 12), 2),
    _sr(
        "plksr_sparse",
        partial(
            _PLKSR, ccm_type="DCCM", lk_type="SparsePLK", sparse_kernels=[3, 3], sparse_dilations=[1, 2], with_idt=True
        ),
        (8, 12),
        2,
    ),
    _RCAN,
    _sr("realcugan_x2", UpCunet2x, (20, 28), 2),
    _sr("realcugan_x2_fast", UpCunet2x_fast, (40, 48), 2),
    _sr("realcugan_x3", UpCunet3x, (20, 28), 3),
    _sr("realcugan_x4", partial(UpCunet4x, pro=True), (20, 28), 4),
    _sr("realplksr", _REALPLKSR, (8, 12), 2),
    _sr("realplksr_dysample", partial(_REALPLKSR, dysample=True, layer_norm=True), (8, 12), 2),
    _restoration("restoreformer", partial(_RESTOREFORMER, attn_resolutions=(4,), resolution=32, head_size=2), (32, 48)),
    _restoration("retinexformer", partial(RetinexFormer, n_feat=8, stage=3, num_blocks=[2, 2, 2]), (16, 24)),
    _sr("rgt", _RGT, (32, 48), 2),
    _sr("safmn", partial(SAFMN, dim=8, n_blocks=4, upscaling_factor=2), (16, 24), 2),
    _restoration("safmnbcie", partial(SAFMNBCIE, dim=8, n_blocks=4, num_layers=2), (32, 48)),
    _restoration("scunet", partial(SCUNet, config=[2] * 7), (40, 48)),
    _sr("seemore", partial(SeemoRe, scale=2, num_experts=3, num_layers=4, embedding_dim=8), (16, 24), 2),
    _sr("span", _span, (8, 12), 2, family="span"),
    _sr("swiftsrgan", partial(SwiftSRGAN, num_channels=8, num_blocks=8, upscale_factor=2), (8, 12), 2),
    _SWIN2SR,
    _sr("swin2sr_light", partial(Swin2SR, **_SWIN, upsampler="pixelshuffledirect"), (8, 12), 2, family="swin2sr"),
    _sr("swin2sr_aux", partial(Swin2SR, **_SWIN, upsampler="pixelshuffle_aux"), (8, 12), 2, family="swin2sr"),
    _SWINIR,
    _SWINIR_3CONV,
    _sr("swinir_light", partial(SwinIR, **_SWIN, upsampler="pixelshuffledirect"), (8, 12), 2, family="swinir"),
    _restoration(
        "swinir_jpeg",
        partial(SwinIR, **_GROUPS, img_size=14, embed_dim=12, window_size=7, img_range=255.0),
        (14, 21),
        family="swinir",
    ),
    _UFORMER_ROW,
)

FAMILIES: tuple[Network, ...] = (
    _HAT,
    _SWINIR,
    _SWINIR_3CONV,
    _SWIN2SR,
    _sr("swin2sr_hf", _swin2sr_hf, (8, 12), 2, family="swin2sr_transformers"),
    _features("timm_swin", partial(SwinTransformer, **_TIMM), (64, 96)),
    _features("timm_swin_v2", partial(SwinTransformerV2, **_TIMM), (64, 96)),
    _sr("edt", _EDT, (24, 48), 4, family="edt"),
    _IPT,
    _NAFNET,
    _KBNET_S,
    _RCAN,
    _sr("edsr", EDSR, (8, 12), 2, family="edsr", value_max=255.0),
    _ATD_ROW,
    _CRAFT_ROW,
    _DAT_ROW,
    _DCTLSA_ROW,
    _DITN_ROW,
    _UFORMER_ROW,
    _restoration("restormer", official_layouts.Restormer, (16, 24), family="restormer"),
    _sr("hitsrf", partial(official_layouts.HiT, "srf"), (8, 12), 2, family="hitsrf"),
    _sr("hitsir", partial(official_layouts.HiT, "sir"), (8, 12), 2, family="hitsir"),
    _sr("hitsng", partial(official_layouts.HiT, "sng"), (8, 12), 2, family="hitsng"),
    _features(
        "timm_swin_features",
        partial(timm.create_model, "swin_tiny_patch4_window7_224", **_TIMM_TINY),
        (64, 96),
        family="timm_swin",
    ),
    _features(
        "timm_swin_v2_features",
        partial(timm.create_model, "swinv2_tiny_window8_256", **_TIMM_TINY),
        (64, 96),
        family="timm_swin_v2",
    ),
)

TWO_VIEWS: tuple[Network, ...] = tuple(
    Network(name=name, build=_ready(make), input_px=(8, 12), scale=2, family=name, task="sr", channels=6)
    for name, make in (("nafssr", official_layouts.nafssr), ("cvhssr", official_layouts.cvhssr))
)
"""Networks of a family that take left and right, side by side in the channels, and mix them themselves."""

ALL: tuple[Network, ...] = (*SPANDREL, *(n for n in (*FAMILIES, *TWO_VIEWS) if n not in SPANDREL))
"""Every row once."""

ROWS: dict[str, Network] = {network.name: network for network in ALL}


def build(name: str, seed: int = 7) -> nn.Module:
    """The network of that row, the same for the same seed."""
    torch.manual_seed(seed)
    return ROWS[name].build()


def image(name: str, count: int = 1) -> Tensor:
    """Random images for the network of that row, always the same."""
    row = ROWS[name]
    return row.value_max * torch.rand(count, row.channels, *row.input_px, generator=torch.Generator().manual_seed(3))


LATER: frozenset[str] = frozenset(network.name for network in FAMILIES[FAMILIES.index(_ATD_ROW) :])
"""Rows of families that add no mechanism to those before them: most of their cases are in the slow tier."""

VARIANTS: frozenset[str] = frozenset({"kbnet_s", "swinir_3conv", "swinir_jpeg"})
"""Rows that are near another one of an earlier family: as `LATER`, but for what is asked of each family."""


class Holder(nn.Module):
    """A layer behind a convolution, so that it is not the root."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.first(x))


UNUSUAL: dict[str, str] = {
    "LaMa": "takes an image and a mask; 51 million parameters at its one width. The row `lama` is its generator.",
}
"""Architectures of spandrel that no row holds as they are."""

COUPLED: dict[str, str] = {
    "aurasr": "draws noise for the input and for the style in every call, also in eval mode",
    "gfpgan": "draws noise in every style convolution, also in eval mode",
    "seemore": "in eval mode it picks the experts of one image and fails on a batch of more",
}
"""Rows whose output for a batch is not that of its images one by one."""

NO_BACKWARD: dict[str, str] = dict.fromkeys(
    ("plksr", "realplksr", "realplksr_dysample"),
    "in eval mode PLKConv2d overwrites its input, which the backward pass needs; in train mode it computes the same",
)
"""Rows through which no gradient gets in eval mode, frozen or not."""

SLOW = frozenset({"scunet"})
"""Rows for which a test takes over a second."""
