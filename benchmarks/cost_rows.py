"""Networks and ways to train them whose cost is measured; every bundled recipe is one, so new recipes get rows."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import LowpeftError
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.core.attachment.record import module_of
from lowpeft.paper.reproduce.networks import HAT_L, hat
from lowpeft.recipes import bundled, load_recipe
from lowpeft.restoration.training import build_model

LR_PX = (32, 80)
SCALE = 4
RANK = 4
"""Of the rows that compare lowpeft's LoRA with peft's; that of the recipe `lora`."""

STOCK, REFERENCE = "stock", "full fine-tuning"
PEFT = "LoRA of linear layers, peft"
MODES = ("keep", "rebuild", "checkpoint")


class UnavailableError(Exception):
    """A row or a network that cannot be had here, with the reason."""


# --- Networks
@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with random weights, or with those of a checkpoint.

    Attributes:
        title: What it is, for readers.
        build: Function that builds it, in eval mode.
        timed: True if it is small enough to be timed on a CPU.
        meta: True if its bytes are counted on meta tensors.
    """

    title: str
    build: Callable[[], nn.Module]
    timed: bool = True
    meta: bool = True


def hat_l(groups: int) -> nn.Module:
    """HAT-L x4, or its first groups."""
    torch.manual_seed(0)
    return hat(**{**HAT_L, "depths": (6,) * groups, "num_heads": (6,) * groups}, upscale=SCALE).eval()


def swinir_m(groups: int) -> nn.Module:
    """SwinIR-M x4 (classical), or its first groups; source: JingyunLiang/SwinIR, main_test_swinir.py."""
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    shape = {"depths": [6] * groups, "num_heads": [6] * groups, "embed_dim": 180, "window_size": 8, "mlp_ratio": 2}
    return SwinIR(**shape, img_size=64, upscale=SCALE, upsampler="pixelshuffle", resi_connection="1conv").eval()


def edt_b() -> nn.Module:
    torch.manual_seed(0)
    return EDT(EDTConfig.published("B")).eval()


def dctlsa() -> nn.Module:
    """DCTLSA x4 with its weights, from the folder that LOWPEFT_DATA names, or `shared/data` beside the repository.

    Raises:
        UnavailableError: It is not there.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    file = Path(os.environ.get("LOWPEFT_DATA") or beside) / "weights" / "DCTLSA_x4.pt"
    if not file.exists():
        raise UnavailableError("no weights/DCTLSA_x4.pt: set LOWPEFT_DATA to the folder of images and weights")
    return module_of(lowpeft.load_backbone(file)).eval()


NETWORKS = {
    "hat-l": Network(title="HAT-L", build=partial(hat_l, 12), timed=False),
    "hat-4": Network(title="HAT-L, 4 groups", build=partial(hat_l, 4)),
    "swinir-m": Network(title="SwinIR-M", build=partial(swinir_m, 6), timed=False),
    "swinir-2": Network(title="SwinIR-M, 2 groups", build=partial(swinir_m, 2)),
    "edt-b": Network(title="EDT-B", build=edt_b),
    "dctlsa": Network(title="DCTLSA, with its weights", build=dctlsa, meta=False),
    "hat-1": Network(title="HAT-L, 1 group", build=partial(hat_l, 1), timed=False),
    "hat-1 on the CPU": Network(
        title="HAT-L, 1 group, not on meta tensors", build=partial(hat_l, 1), timed=False, meta=False
    ),
}
"""By name; the last two show that meta tensors give the same figures as real ones."""


# --- Rows
@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to train or to use a network.

    Attributes:
        build: Function from a new network to the model, in the mode that it is trained in.
        counts: False if its bytes and FLOPs are those of another row.
        trains: False for inference alone.
        infers: False if its inference is that of another row.
        fused: True if no attention of it may run in the math kernel.
    """

    build: Callable[[nn.Module], nn.Module]
    counts: bool = True
    trains: bool = True
    infers: bool = True
    fused: bool = False


def rows() -> dict[str, Row]:
    """Every row by name, the stock network and full fine-tuning first."""
    found = {STOCK: Row(build=stock, trains=False), REFERENCE: Row(build=lambda network: network.train(), infers=False)}
    for name in bundled():
        found[name] = Row(build=partial(adapted, recipe=name), infers=not load_recipe(name).from_scratch)
    found["LoRA of linear layers"] = Row(build=own_lora)
    found[PEFT] = Row(build=peft_lora)
    for name in stereo_recipes():
        for mode in MODES:
            for last in (False, True):
                build = partial(optimised, recipe=name, memory=mode, channels_last=last)
                # Without gradients there is nothing to keep: the modes are one. A layout changes no count.
                infers = mode == MODES[0]
                row = Row(build=build, counts=not last, infers=infers, fused=True)
                found[mode_row(name, mode, channels_last=last)] = row
    return found


def stereo_recipes() -> list[str]:
    """Bundled recipes for two views."""
    return [name for name in bundled() if load_recipe(name).views == 2]


def mode_row(recipe: str, mode: str, *, channels_last: bool = False) -> str:
    """Name of the row of a recipe in a memory mode."""
    return f"{recipe}, {mode}" + ", channels_last" * channels_last


def stock(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def adapted(network: nn.Module, recipe: str) -> nn.Module:
    """The model that `lowpeft train RECIPE` trains, with adapters away from zero, so that every gradient is alive."""
    with _refusals_are_reasons():
        model = module_of(build_model(network, load_recipe(recipe)))
    return (model if load_recipe(recipe).from_scratch else _awake(model)).train()


def optimised(network: nn.Module, recipe: str, memory: str, *, channels_last: bool) -> nn.Module:
    with _refusals_are_reasons():
        return lowpeft.optimize(adapted(network, recipe), memory=memory, channels_last=channels_last)


def own_lora(network: nn.Module) -> nn.Module:
    with _refusals_are_reasons():
        model = lowpeft.adapt(network, lowpeft.LoRAConfig(target=linear_layers(network), rank=RANK))
    return _awake(model).train()


def peft_lora(network: nn.Module) -> nn.Module:
    """peft's LoRA of the layers and the rank of `own_lora`.

    Raises:
        UnavailableError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UnavailableError("peft is not installed")
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear_layers(network), init_lora_weights=False)
    return peft.get_peft_model(network, config).train()


def linear_layers(network: nn.Module) -> list[str]:
    """Paths of the linear layers that the recipe `lora` would change.

    Raises:
        UnavailableError: There is none.
    """
    with _refusals_are_reasons():
        paths = [site.path for site in lowpeft.plan(network, "lora").sites]
    if found := [path for path in paths if isinstance(network.get_submodule(path), nn.Linear)]:
        return found
    raise UnavailableError("the network has no linear layer")


@contextlib.contextmanager
def _refusals_are_reasons() -> Iterator[None]:
    try:
        yield
    except LowpeftError as error:
        raise UnavailableError(str(error)) from error


def _awake(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


# --- Calls
def pair(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """One LR pair (2,3,h,w) and its HR pair, values 0..1; the same in every run."""
    generator = torch.Generator().manual_seed(1)
    height, width = LR_PX
    lr = torch.rand(2, 3, height, width, generator=generator)
    hr = torch.rand(2, 3, SCALE * height, SCALE * width, generator=generator)
    return lr.to(device), hr.to(device)


def run(model: nn.Module, lr: Tensor) -> Tensor:
    """Both views through a model, (2,3,H,W)."""
    if isinstance(model, lowpeft.MultiViewModel):
        return torch.cat(model(lr[:1], lr[1:]))
    return model(lr)


def loss_of(model: nn.Module, lr: Tensor, hr: Tensor) -> Tensor:
    """Loss of one step, as the recipes have it."""
    return F.l1_loss(run(model, lr), hr)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
