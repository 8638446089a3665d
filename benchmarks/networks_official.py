"""Small networks with random weights from checkouts of their authors' code, for `which_networks.py --official`.

A checkout lies in the folder under the repository's name (`HAT` for XPixelGroup/HAT). Repositories that are not there
are left out. No code of theirs is here: a row names a module of the checkout, its class and small sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from networks_imports import module_of
from networks_rows import Row, Size, one_tensor


@dataclass(frozen=True, kw_only=True)
class Official:
    """A network of a checkout: `module` (its dotted name there) holds the class `cls`, which takes `options`."""

    repository: str
    module: str
    cls: str
    options: dict[str, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    px: Size = (16, 24)
    channels: int = 3
    value_max: float = 1.0
    inputs: Callable[[Tensor], tuple[Any, ...]] = one_tensor
    pair: bool = False


def build(official: Path, row: Official) -> nn.Module:
    """The network."""
    module = module_of(official, row.repository.partition("/")[2], row.module)
    return getattr(module, row.cls)(*row.args, **row.options)


_FOUR: dict[str, Any] = {"depths": [2] * 4, "num_heads": [2] * 4}
_SWIN: dict[str, Any] = {**_FOUR, "img_size": 16, "embed_dim": 16, "window_size": 8, "mlp_ratio": 2, "upscale": 2}
_DIRECT = {"upsampler": "pixelshuffledirect"}
_SMALL_SR: dict[str, Any] = {"upscale": 2, "num_in_ch": 3, "num_out_ch": 3, "task": "lsr"}
_HIT = {**_FOUR, **_DIRECT, "img_size": 32, "embed_dim": 20, "base_win_size": [8, 8], "upscale": 2}
_HIT |= {"hier_win_ratios": [0.5, 1, 2]}
_NAF = {"width": 8, "middle_blk_num": 2, "enc_blk_nums": [2, 2], "dec_blk_nums": [2, 2]}
_IPT: dict[str, Any] = {"n_feats": 4, "rgb_range": 255, "n_colors": 3, "scale": [2], "patch_size": 48, "patch_dim": 3}
_IPT |= {"num_heads": 2, "num_layers": 4, "num_queries": 1, "dropout_rate": 0}
_IPT |= dict.fromkeys(("no_mlp", "pos_every", "no_pos", "no_norm"), False)
_ELAN = SimpleNamespace(scale=2, colors=3, window_sizes=[4, 8, 16], m_elan=4, c_elan=12, n_share=0, r_expand=2)
_ELAN.rgb_range = 255
_CATANET = {"upscale": 2, "n_iters": [1] * 8, "num_tokens": [8] * 8, "group_size": [64] * 8}
_LBNET = SimpleNamespace(scale=[2], n_feats=32, num_heads=8, rgb_range=255, n_colors=3)
_EDT = SimpleNamespace(
    MODEL=SimpleNamespace(
        IN_CHANNEL=3, DEPTH=2, IMAGE_SIZE=24, SCALES=[2], NOISE_LEVELS=[], RAIN_LEVELS=[], WINDOW_SIZE=(6, 12),
        IMAGE_RANGE=1.0, NUM_FEAT=4, DEPTHS=[2] * 4, EMBED_DIM=16, NUM_HEADS=[2] * 4, MLP_RATIO=2,
        UPSAMPLER="pixelshuffledirect", RESI_CONNECTION="1conv", DOWNSAMPLE=1, DEVICE="cpu",
    )
)  # fmt: skip
_OMNI = {"num_feat": 16, "res_num": 4, "block_num": 1, "upsampling": 2, "bias": True, "window_size": 8, "pe": True}
_OMNI |= {"block_script_name": "OSA", "block_class_name": "OSA_Block"}


def _frames(images: Tensor) -> tuple[Tensor]:
    return (images.unflatten(1, (-1, 3)),)


def _listed(images: Tensor) -> tuple[list[Tensor]]:
    return ([images],)


def _with_noise_level(images: Tensor) -> tuple[Tensor, Tensor]:
    return images, torch.full((len(images), 1, 1, 1), 0.1)


_FRIED = "Fried-Rice-Lab/FriedRiceLab"
_BASIC = "XPixelGroup/BasicSR"
_NAFNET = "megvii-research/NAFNet"
_KAIR = "cszn/KAIR"
_NGRAM = "rami0205/NGramSwin"


def _fried(file: str, cls: str, **options: Any) -> Official:
    px = (16, 32) if file == "elan" else (16, 24)  # which it does not pad
    return Official(repository=_FRIED, module=f"archs.{file}_arch", cls=cls, options={**_SMALL_SR, **options}, px=px)


def _naf(file: str, cls: str, **more: Any) -> Official:
    return Official(repository=_NAFNET, module=f"basicsr.models.archs.{file}_arch", cls=cls, **more)


def _basic(file: str, cls: str, options: dict[str, Any], **more: Any) -> Official:
    return Official(repository=_BASIC, module=f"basicsr.archs.{file}_arch", cls=cls, options=options, **more)


def _hit(name: str) -> Official:
    module = f"basicsr.archs.hit_{name}_arch"
    return Official(repository="XiangZ-0/HiT-SR", module=module, cls=f"HiT_{name.upper()}", options=_HIT, px=(16, 32))


_SWINIR = "models.network_swinir"
_HEAVY = {"upsampler": "pixelshuffle"}
_3CONV = {"upsampler": "nearest+conv", "resi_connection": "3conv", "upscale": 4}
_JPEG = {"upscale": 1, "window_size": 7, "img_size": 14, "img_range": 255.0, "in_chans": 1}
_CHECKPOINT = {"use_checkpoint": True, "drop_path_rate": 0.1}
_SWIN_LIKE: dict[str, Official] = {
    "HAT": Official(
        repository="XPixelGroup/HAT",
        module="hat.archs.hat_arch",
        cls="HAT",
        options={**_SWIN, **_HEAVY, "squeeze_factor": 4},
    ),
    "SwinIR light": Official(
        repository="JingyunLiang/SwinIR", module=_SWINIR, cls="SwinIR", options={**_SWIN, **_DIRECT}
    ),
    "SwinIR 3conv": Official(
        repository="JingyunLiang/SwinIR", module=_SWINIR, cls="SwinIR", options={**_SWIN, **_3CONV}
    ),
    "SwinIR JPEG": Official(
        repository="JingyunLiang/SwinIR",
        module=_SWINIR,
        cls="SwinIR",
        options={**_SWIN, **_JPEG},
        channels=1,
        px=(14, 28),
    ),
    "SwinIR checkpointed": Official(
        repository="JingyunLiang/SwinIR", module=_SWINIR, cls="SwinIR", options={**_SWIN, **_HEAVY, **_CHECKPOINT}
    ),
    "Swin2SR": Official(
        repository="mv-lab/swin2sr", module="models.network_swin2sr", cls="Swin2SR", options={**_SWIN, **_DIRECT}
    ),
    "Swin2SR aux": Official(
        repository="mv-lab/swin2sr",
        module="models.network_swin2sr",
        cls="Swin2SR",
        options={**_SWIN, "upsampler": "pixelshuffle_aux"},
    ),
    "SwinIR-NG": Official(
        repository=_NGRAM, module="my_model.swinirng", cls="SwinIRNG", options={**_SWIN, **_DIRECT, "img_size": 64}
    ),
    "SRFormer": Official(
        repository="HVision-NKU/SRFormer",
        module="basicsr.archs.srformer_arch",
        cls="SRFormer",
        options={**_SWIN, **_DIRECT},
    ),
    "SRFormerV2": Official(
        repository="HVision-NKU/SRFormer",
        module="basicsr.archs.srformerv2_arch",
        cls="SRFormerv2",
        options={**_SWIN, **_DIRECT, "squeeze_dim": 8},
        px=(48, 96),
    ),
    "DRCT": Official(
        repository="ming053l/DRCT",
        module="drct.archs.DRCT_arch",
        cls="DRCT",
        options={**_SWIN, **_HEAVY, "gc": 4, "resi_connection": "1conv"},
    ),
    "HMANet": Official(
        repository="korouuuuu/HMA", module="hma.archs.hma_arch", cls="HMANet", options={**_SWIN, **_HEAVY}
    ),
    "ATD": Official(
        repository="LabShuHangGU/Adaptive-Token-Dictionary",
        module="basicsr.archs.atd_arch",
        cls="ATD",
        options={**_SWIN, **_DIRECT, "category_size": 32, "num_tokens": 8},
    ),
    "DAT": Official(
        repository="zhengchen1999/DAT",
        module="basicsr.archs.dat_arch",
        cls="DAT",
        options={"img_size": 16, "embed_dim": 64, "split_size": [4, 8], "expansion_factor": 1.0, "upscale": 2},
    ),
    **{f"HiT-{name.upper()}": _hit(name) for name in ("srf", "sir", "sng")},
}

_TASKS: dict[str, Official] = {
    "Restormer": Official(
        repository="swz30/Restormer",
        module="basicsr.models.archs.restormer_arch",
        cls="Restormer",
        options={"dim": 8, "num_blocks": [1, 2, 2, 2], "num_refinement_blocks": 2, "heads": [1, 2, 2, 4]},
    ),
    "Uformer": Official(
        repository="ZhendongWang6/Uformer",
        module="model",
        cls="Uformer",
        options={"img_size": 64, "embed_dim": 8, "num_heads": [1, 1, 2, 2, 2, 2, 2, 1, 1], "win_size": 4},
        px=(64, 64),
    ),
    "NGswin": Official(
        repository=_NGRAM,
        module="my_model.ngswin_model.ngswin",
        cls="NGswin",
        options={
            "training_img_size": 64,
            "embed_dim": 16,
            "depths": (2, 2, 2),
            "num_heads": (2, 2, 2),
            "dec_dim": 16,
            "dec_depths": 2,
            "dec_num_heads": 2,
        },
        px=(64, 64),
    ),
    "MobileSR": Official(
        repository="sunny2109/MobileSR-NTIRE2022",
        module="models.mobilesr",
        cls="MobileSR",
        options={"n_feats": 40, "n_heads": 8},
        px=(32, 48),
    ),
    "CATANet": Official(
        repository="EquationWalker/CATANet", module="basicsr.archs.catanet_arch", cls="CATANet", options=_CATANET
    ),
    "EDT": Official(
        repository="fenglinglwb/EDT",
        module="utils.modules.edt",
        cls="Network",
        args=(_EDT,),
        inputs=_listed,
        px=(24, 48),
    ),
    "IPT": Official(
        repository="huawei-noah/Pretrained-IPT",
        module="model.ipt",
        cls="ipt",
        args=(SimpleNamespace(**_IPT),),
        px=(48, 48),
        value_max=255.0,
    ),
    "NAFNet": _naf("NAFNet", "NAFNet", options=_NAF),
    "NAFNetLocal": _naf("NAFNet", "NAFNetLocal", options={**_NAF, "train_size": (1, 3, 32, 32)}),
    "NAFNetSR": _naf("NAFSSR", "NAFNetSR", options={"up_scale": 2, "width": 8, "num_blks": 4}),
    "NAFSSR": _naf(
        "NAFSSR", "NAFSSR", options={"up_scale": 2, "width": 8, "num_blks": 4}, channels=6, pair=True, px=(12, 36)
    ),
    "CVHSSR": Official(
        repository="AlexZou14/CVHSSR",
        module="basicsr.models.archs.CVHSSR_arch",
        cls="CVHSSR",
        options={"up_scale": 2, "width": 16, "num_blks": 4},
        channels=6,
        pair=True,
        px=(12, 36),
    ),
    "OmniSR": Official(repository="Francis0625/Omni-SR", module="components.OmniSR", cls="OmniSR", options=_OMNI),
    "LBNet": Official(repository="IVIPLab/LBNet", module="model.lbnet", cls="LBNet", args=(_LBNET,), value_max=255.0),
    "ELAN": Official(
        repository="xindongzhang/ELAN",
        module="models.elan_network",
        cls="ELAN",
        args=(_ELAN,),
        value_max=255.0,
        px=(16, 32),
    ),
    "RFDN": Official(repository="njulj/RFDN", module="RFDN", cls="RFDN", options={"nf": 12}),
    "RDN": Official(repository="yjn870/RDN-pytorch", module="models", cls="RDN", args=(2, 3, 16, 16, 4, 4)),
    "VDSR": Official(repository="twtygqyy/pytorch-vdsr", module="vdsr", cls="Net", channels=1),
    "DnCNN": Official(
        repository=_KAIR, module="models.network_dncnn", cls="DnCNN", options={"in_nc": 3, "out_nc": 3, "nc": 16}
    ),
    "FFDNet": Official(
        repository=_KAIR,
        module="models.network_ffdnet",
        cls="FFDNet",
        options={"in_nc": 3, "out_nc": 3, "nc": 16},
        inputs=_with_noise_level,
    ),
    "DRUNet": Official(
        repository=_KAIR,
        module="models.network_unet",
        cls="UNetRes",
        options={"in_nc": 4, "nc": [8, 16, 24, 32], "nb": 2},
        channels=4,
    ),
    "MSRResNet": Official(
        repository=_KAIR, module="models.network_msrresnet", cls="MSRResNet1", options={"nc": 16, "nb": 4}
    ),
}

_BASICSR: dict[str, Official] = {
    "EDSR": _basic("edsr", "EDSR", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 4, "upscale": 2}),
    "RCAN": _basic(
        "rcan", "RCAN", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_group": 4, "num_block": 2, "upscale": 2}
    ),
    "RRDBNet": _basic(
        "rrdbnet", "RRDBNet", {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 4, "num_grow_ch": 8}
    ),
    "ECBSR": _basic(
        "ecbsr",
        "ECBSR",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_block": 4,
            "num_channel": 16,
            "with_idt": False,
            "act_type": "prelu",
            "scale": 2,
        },
    ),
    "RIDNet": _basic("ridnet", "RIDNet", {"in_channels": 3, "mid_channels": 16, "out_channels": 3, "num_block": 4}),
    "BasicVSR": _basic(
        "basicvsr", "BasicVSR", {"num_feat": 16, "num_block": 3}, channels=9, inputs=_frames, px=(64, 64)
    ),
}

_FRIEDRICELAB: dict[str, Official] = {
    "RCAN (FriedRiceLab)": _fried("rcan", "_RCAN", planes=16, num_groups=4, num_blocks=2),
    "EDSR (FriedRiceLab)": _fried("edsr", "_EDSR", planes=16, n_blocks=4),
    "ESWT": _fried("eswt", "ESWT", n_t=2, n_g=4, dim=20),
    "ELAN (FriedRiceLab)": _fried("elan", "ELAN", planes=30, num_blocks=4, window_sizes=(4, 8, 16)),
    "HNCT": _fried("hnct", "HNCT", dim=50),
    "MAN": _fried("man", "MAN", n_resblocks=4, n_feats=18),
    "IMDN": _fried("imdn", "IMDN", planes=16, num_modules=4),
    "BSRN": _fried("bsrn", "BSRN", planes=16, num_modules=4, num_times=4, conv_type="bsconv_u"),
    "VapSR": _fried("vapsr", "vapsr", dim=16, num_block=4, d_atten=16),
    "PAN": _fried("pan", "PAN", planes=16, n_blocks=4, tail_planes=8),
    "RLFN": _fried("rlfn", "RLFN", planes=16, num_blocks=4),
    "EFDN": _fried("efdn", "EFDN", n_feats=16),
    "FMEN": _fried("fmen", "FMEN", up_blocks=[2, 1, 1, 1, 1], down_blocks=4, n_feats=16, mid_feats=8),
    "ShuffleMixer": _fried("ShuffleMixer", "ShuffleMixer", dim=16, n_blocks=4),
    "LatticeNet": _fried("latticenet", "LatticeNet", n_feats=16, n_diff=4, n_slice=4),
    "SCET": _fried("scet", "SCET", planes=16),
    "ESRT": _fried("esrt", "ESRT"),
}

NETWORKS: dict[str, Official] = {**_SWIN_LIKE, **_TASKS, **_BASICSR, **_FRIEDRICELAB}


def rows(official: Path) -> list[Row]:
    """The networks whose checkouts lie in the folder."""
    return [
        Row(
            name=name,
            source=row.repository,
            build=lambda row=row: build(official, row),
            px=row.px,
            channels=row.channels,
            value_max=row.value_max,
            inputs=row.inputs,
            pair=row.pair,
        )
        for name, row in NETWORKS.items()
        if (official / row.repository.partition("/")[2]).is_dir()
    ]
