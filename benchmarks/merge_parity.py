"""Merged against unmerged outputs of weight adapters on every geometry of layers, beside peft's in the same run.

    python benchmarks/merge_parity.py --out benchmarks/results/merge_parity.json

A cell is the norm of (merged - unmerged) outputs over the norm of what the adapter adds, in float32, with random
adapters that change the output by a tenth of the base's or more; or, for peft, the first line of its error. Of lowpeft
there are two: with gradients low-rank changes run as products of their own. `traps` are cases of which peft's code was
known to be wrong. Needs `pip install peft` for its columns; a minute on one core.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from common import options_of, provenance, write
from lowpeft.errors import LowpeftError
from lowpeft.kinds import get_kind, kinds

LEAST_CHANGE = 0.1
PEFT = "peft"


class NoEffectError(Exception):
    """No random adapter changes the output by a tenth."""


class MeanShift(nn.Conv2d):
    """A convolution with a constructor of its own, as in EDSR and IPT."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)


class StandardisedConv(nn.Conv2d):
    """A convolution that standardises its weight in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Functional(nn.Module):
    """A module that reads the weight of its linear layer, as Swin2SR does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.keys = getattr(layer, "kdim", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.keys is None:
            return self.layer(x)
        key = x[..., : self.keys]
        return self.layer(x, key, key, need_weights=False)[0]


def conv(**options: Any) -> Callable[[], nn.Module]:
    return lambda: Holder(nn.Conv2d(8, 8, 3, **{"padding": 1, **options}))


MAP, ROW, TOKENS = (2, 8, 9, 7), (2, 8, 12), (2, 5, 8)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Holder(nn.Linear(8, 8)), TOKENS),
    "conv, zeros": (conv(), MAP),
    "conv, reflect": (conv(padding_mode="reflect"), MAP),
    "conv, replicate": (conv(padding_mode="replicate"), MAP),
    "conv, circular": (conv(padding_mode="circular"), MAP),
    "conv, stride 2": (conv(stride=2), MAP),
    "conv, dilation 2": (conv(dilation=2, padding=2), MAP),
    'conv, padding="same", dilation 2': (conv(dilation=2, padding="same"), MAP),
    "conv, groups 2": (conv(groups=2), MAP),
    "conv, depthwise": (conv(groups=8), MAP),
    "conv1d": (lambda: Holder(nn.Conv1d(8, 8, 3, padding=1)), ROW),
    "conv3d": (lambda: Holder(nn.Conv3d(8, 8, 3, padding=1)), (2, 8, 5, 6, 7)),
    "transposed": (lambda: Holder(nn.ConvTranspose2d(8, 6, 3, stride=2)), MAP),
    "transposed, groups 2": (lambda: Holder(nn.ConvTranspose2d(8, 6, 3, groups=2)), MAP),
    "subclass with its own constructor": (lambda: Holder(MeanShift(8)), MAP),
    "weight-standardised subclass": (lambda: Holder(StandardisedConv(8, 8, 3, padding=1)), MAP),
    "weight read functionally": (Functional, TOKENS),
    "attention": (lambda: Holder(nn.MultiheadAttention(8, 2, batch_first=True)), TOKENS),
    "layer norm": (lambda: Holder(nn.LayerNorm(8)), TOKENS),
    "group norm": (lambda: Holder(nn.GroupNorm(2, 8)), MAP),
    "batch norm": (lambda: Holder(nn.BatchNorm2d(8)), MAP),
    "attention, kdim": (lambda: Holder(nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)), TOKENS),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2},
    "dora": {"rank": 2},
    "adalora": {"rank": 2},
    "colora": {"rank": 2},
    "loha": {"rank": 2},
    "lokr": {"rank": 2},
    "oft": {"block": 4},
    "vera": {"rank": 8},
}


def weight_kinds() -> list[str]:
    return [kind.name for kind in kinds() if kind.on_weights]


def spread_out(model: nn.Module, parameters: Callable[[], list[Tensor]], base: Tensor, x: Tensor) -> Tensor:
    """Fill adapters with random values, larger until the output changes enough; return the output."""
    start = [p.detach().clone() for p in parameters()]
    for std in (0.1, 0.2, 0.4, 0.8, 1.6):
        generator = torch.Generator().manual_seed(5)
        for parameter, first in zip(parameters(), start, strict=True):
            parameter.copy_(first + std * torch.randn(parameter.shape, generator=generator))
        out: Tensor = model(x)
        if (out - base).norm() >= LEAST_CHANGE * base.norm():
            return out
    raise NoEffectError


@torch.no_grad()
def own(kind: str, build: Callable[[], nn.Module], x: Tensor) -> dict[str, float | str]:
    torch.manual_seed(0)
    base = build().eval()
    plain = base(x)
    config = get_kind(kind).config(target="layer", **OPTIONS.get(kind, {}))
    try:
        model = lowpeft.adapt(base, config, example=x)
    except LowpeftError as error:
        return {"lowpeft": f"refused: {' '.join(error.problems) or error.message}"}
    unmerged = spread_out(model, lambda: [p for _, p in lowpeft.adapter_parameters(model)], plain, x)
    with torch.enable_grad():
        with_gradients = model(x).detach()
    lowpeft.merge(model, example=x)
    merged, change = model(x), (unmerged - plain).norm()
    outputs = {"lowpeft": unmerged, "lowpeft, with gradients": with_gradients}
    return {name: float((merged - output).norm() / change) for name, output in outputs.items()}


@torch.no_grad()
def peers(kind: str, build: Callable[[], nn.Module], x: Tensor) -> float | str:
    import peft

    configs = {
        "lora": lambda: peft.LoraConfig(r=2, target_modules=["layer"]),
        "dora": lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=["layer"]),
        "adalora": lambda: peft.AdaLoraConfig(init_r=2, target_r=2, total_step=10, target_modules=["layer"]),
        "loha": lambda: peft.LoHaConfig(r=2, target_modules=["layer"]),
        "lokr": lambda: peft.LoKrConfig(r=2, target_modules=["layer"]),
        "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["layer"]),
        "vera": lambda: peft.VeraConfig(r=8, target_modules=["layer"]),
        "ia3": lambda: peft.IA3Config(target_modules=["layer"], feedforward_modules=[]),
    }
    if kind not in configs:
        return "no such method"
    torch.manual_seed(0)
    base = build().eval()
    plain = base(x)
    try:
        model = peft.get_peft_model(copy.deepcopy(base), configs[kind]()).eval()
        unmerged = spread_out(model, lambda: [p for p in model.parameters() if p.requires_grad], plain, x)
        merged = model.merge_and_unload()(x)
    except NoEffectError:
        return "no effect"
    except Exception as error:  # noqa: BLE001  (whatever peft raises is its result)
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return float((merged - unmerged).norm() / (unmerged - plain).norm())


# --- Traps: each is a figure of lowpeft's and a figure of peft's, 0 if right


def image() -> Tensor:
    return torch.randn(MAP, generator=torch.Generator().manual_seed(1))


def network(*, dead: bool = False) -> nn.Module:
    torch.manual_seed(0)
    base = conv()().eval()
    if dead:
        with torch.no_grad():
            base.layer.weight[3].zero_()  # type: ignore[union-attr, index, operator]
    return base


def share_of_nan(model: nn.Module) -> float:
    return float(model(image()).isnan().double().mean())


def own_dead_channel() -> float:
    return share_of_nan(lowpeft.adapt(network(dead=True), lowpeft.DoRAConfig(target="layer", rank=2)))


def peft_dead_channel() -> float:
    import peft

    return share_of_nan(
        peft.get_peft_model(network(dead=True), peft.LoraConfig(r=2, use_dora=True, target_modules=["layer"]))
    )


def own_start() -> float:
    base = network()
    plain = base(image())
    model = lowpeft.adapt(base, get_kind("oft").config(target="layer", block=4))
    return float((model(image()) - plain).norm() / plain.norm())


def peft_start() -> float:
    import peft

    base = network()
    plain = base(image())
    model = peft.get_peft_model(base, peft.OFTConfig(oft_block_size=4, target_modules=["layer"]))
    return float((model(image()) - plain).norm() / plain.norm())


@torch.no_grad()
def own_sum() -> float:
    base = network()
    x, plain = image(), base(image())
    config = lowpeft.LoRAConfig(target="layer", rank=2, alpha=4, rank_stabilised=True)
    for name in ("one", "two"):
        lowpeft.adapt(base, config, name=name)
    spread_out(base, lambda: [p for _, p in lowpeft.adapter_parameters(base)], plain, x)
    wanted = -plain
    for name in ("one", "two"):
        with lowpeft.using(base, {name: 1.0}):
            wanted = wanted + base(x)
    lowpeft.merge(base)
    return float((base(x) - wanted).norm() / (wanted - plain).norm())


@torch.no_grad()
def peft_sum() -> float:
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=4, use_rslora=True, target_modules=["layer"])
    base = network()
    x, plain = image(), base(image())
    model = peft.get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    spread_out(model, lambda: [p for n, p in model.named_parameters() if "lora_" in n], plain, x)
    wanted = -plain
    for name in ("one", "two"):
        model.set_adapter(name)
        wanted = wanted + model(x)
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter("both")
    return float((model(x) - wanted).norm() / (wanted - plain).norm())


@torch.no_grad()
def own_transposed() -> float:
    torch.manual_seed(0)
    base = Holder(nn.ConvTranspose2d(8, 6, 3, groups=2)).eval()
    x = image()
    model = lowpeft.adapt(base, lowpeft.DoRAConfig(target="layer", rank=2))
    spread_out(model, lambda: [p for _, p in lowpeft.adapter_parameters(model)], base(x), x)
    grown = 1 + next(p for n, p in lowpeft.adapter_parameters(model) if n.endswith("magnitude"))
    layer: Any = model.layer
    lengths = [
        w.unflatten(0, (2, -1)).square().sum((1, 3, 4)).flatten().sqrt()
        for w in (layer.weight, layer._parameters["weight"])
    ]
    return float((lengths[0] / (grown * lengths[1]).abs() - 1).abs().max())


def peft_transposed() -> float | str:
    import peft

    try:
        peft.get_peft_model(
            Holder(nn.ConvTranspose2d(8, 6, 3, groups=2)), peft.LoraConfig(use_dora=True, target_modules=["layer"])
        )
    except ValueError as error:
        return f"ValueError: {str(error).splitlines()[0][:100]}"
    return 0.0


TRAPS = (
    (
        "DoRA on a convolution with an output channel of zeros: share of outputs that are NaN",
        own_dead_channel,
        peft_dead_channel,
    ),
    ("DoRA on a transposed convolution: error of the norms of its output rows", own_transposed, peft_transposed),
    ("OFT on a 3x3 convolution: difference of a new adapter's output, of the base's", own_start, peft_start),
    ("sum of two rsLoRA adapters: difference from the sum of their changes, of that sum", own_sum, peft_sum),
)


def main() -> None:
    options = options_of(__doc__).parse_args()
    warnings.simplefilter("ignore")
    has_peft = importlib.util.find_spec(PEFT) is not None
    rows = []
    for kind in weight_kinds():
        for name, (build, size) in LAYERS.items():
            x = torch.randn(size, generator=torch.Generator().manual_seed(1))
            row: dict[str, object] = {"kind": kind, "layer": name, **own(kind, build, x)}
            rows.append(row | ({PEFT: peers(kind, build, x)} if has_peft else {}))
    traps = [
        {"trap": name, "lowpeft": ours(), **({PEFT: theirs()} if has_peft else {})} for name, ours, theirs in TRAPS
    ]
    head = provenance("python benchmarks/merge_parity.py", *([PEFT] if has_peft else []))
    write({**head, "least_change": LEAST_CHANGE, "rows": rows, "traps": traps}, options.out)


if __name__ == "__main__":
    main()
