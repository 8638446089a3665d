"""Networks, folders, modes and devices that are odd but legal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import About, AdapterError, PlanError
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.demo import demo_backbone
from lowpeft.families.swin import noise
from lowpeft.recipes import TrainSettings
from lowpeft.recipes.losses import loss_terms
from lowpeft.restoration.degradations.draws import generator, uniform, whole
from lowpeft.restoration.training import train
from zoo import build


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 3, 1, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for module in self.children():
            y = module(y)
        return x + y


class Stages(nn.Module):
    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        for stage in self.stages:
            y = stage(y)
        out: Tensor = self.tail(y)
        return out


class TwoTensors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.a(x), y + self.b(y)


class TwoTensorStages(Stages):
    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        z = y * 0.5
        for stage in self.stages:
            y, z = stage(y, z)
        out: Tensor = self.tail(y + 2 * z)
        return out


IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def filled(model: nn.Module, name: str, seed: int) -> None:
    for number, (_, parameter) in enumerate(lowpeft.adapter_parameters(model, name=name)):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + number)))


@torch.no_grad()
def test_adapters_on_several_tensors_of_one_module_each_act_on_their_own() -> None:
    base, outputs = TwoTensorStages(*(TwoTensors() for _ in range(3))).eval(), []
    for order in ((0, 1), (1, 0)):
        model: Any = copy.deepcopy(base)
        for item in order:
            model = lowpeft.adapt(model, "spatial", target="stages.*", item=item, name=f"item{item}")
        for item in order:
            filled(model, f"item{item}", 100 * item)
        single = []
        for item in (0, 1):
            with lowpeft.using(model, {f"item{item}": 1}):
                single.append(model(IMAGE))
        with lowpeft.using(model, {"item0": 1, "item1": 1}):
            outputs.append(model(IMAGE))
        assert not torch.equal(single[0], single[1])
    assert torch.equal(*outputs)


def test_a_shared_last_layer_gets_no_adapter_of_one_stage() -> None:
    act = nn.ReLU()
    network = Stages(*(nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), act) for _ in range(3)))
    for target in ({}, {"target": "stages.0"}):
        with pytest.raises(PlanError, match=r"stages\.0 is a container \(Sequential\); name the layer inside it"):
            lowpeft.adapt(network, "spatial", **target)
    lowpeft.adapt(network, "spatial", target="stages.*.0")


@torch.no_grad()
def test_networks_that_call_their_children_in_turn_run_when_adapted() -> None:
    network = Stages(*(Stage() for _ in range(3))).eval()
    before = network(IMAGE)
    assert torch.equal(lowpeft.adapt(network, "spatial")(IMAGE), before)
    lowpeft.check_trainable(network)


@torch.no_grad()
def test_a_part_of_an_adapted_sequential_is_that_of_the_base() -> None:
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 1, 1)) for _ in range(3)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *layers, nn.Conv2d(8, 3, 3, 1, 1)).eval()
    features = network[:-1](IMAGE)
    model: Any = lowpeft.adapt(network, "vera")
    assert (len(model), len(model[:-1])) == (5, 4)
    assert torch.equal(model[:-1](IMAGE), features)
    assert model[-1] is network[4]
    with pytest.raises(IndexError):
        model[5]


def test_a_save_overwrites_nothing_that_is_of_no_adapter(tmp_path: Path) -> None:
    picture = tmp_path / "some.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\nfirst")
    model = lowpeft.adapt(Stages(*(Stage() for _ in range(3))), "lora", rank=2)
    for name in ("README.md", "picture.png"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(AdapterError, match=rf"{name} is of no adapter, and would be overwritten"):
            lowpeft.save_adapter(model, folder, about=About(picture=picture))
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]
    folder = lowpeft.save_adapter(model, tmp_path / "adapter", about=About(picture=picture))
    picture.write_bytes(b"\x89PNG\r\n\x1a\nsecond")
    with pytest.raises(AdapterError):  # JSON has no such value
        lowpeft.save_adapter(model, folder, about=About(picture=picture), facts={"a": object()})  # type: ignore[dict-item]
    assert (folder / "picture.png").read_bytes().endswith(b"first")
    lowpeft.save_adapter(model, folder, about=About(picture=picture))
    assert (folder / "picture.png").read_bytes().endswith(b"second")


def test_training_says_at_once_that_a_readme_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    model = lowpeft.adapt(lowpeft.describe(nn.Conv2d(3, 3, 3, padding=1), scale=1, channels=3), "lora", rank=1)
    with pytest.raises(AdapterError, match=r"README\.md is of no adapter"):
        train(model, [(torch.rand(3, 8, 8), torch.rand(3, 8, 8))], TrainSettings(steps=1, batch=1), out=tmp_path)


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16])
def test_a_rounded_network_says_only_what_it_knows_of_roundings(saved: torch.dtype, tmp_path: Path) -> None:
    base = Stages(*(Stage() for _ in range(3)))
    model = lowpeft.adapt(copy.deepcopy(base), "lora", rank=2).to(saved)
    lowpeft.save_adapter(model, tmp_path)
    rounded = lowpeft.read_adapter(tmp_path).base.rounded
    assert list(rounded or {}) == [str(saved).removeprefix("torch.")]
    for dtype in (torch.float32, saved):
        lowpeft.load_adapter(copy.deepcopy(base).to(dtype), tmp_path)


def test_weights_laid_out_in_inference_mode_can_be_trained() -> None:
    image = torch.rand(1, 3, 24, 32)
    model = lowpeft.optimize(demo_backbone().module, channels_last=True)
    with torch.inference_mode():
        lowpeft.restore(model)
    model(image).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    model = demo_backbone().module
    with torch.inference_mode():
        lowpeft.optimize(model, channels_last=True)
    lowpeft.adapt(model, "lora")
    model(image).sum().backward()
    assert all(parameter.grad is not None for _, parameter in lowpeft.adapter_parameters(model))


def test_a_plus_after_the_name_of_a_loss_is_no_exponent() -> None:
    assert loss_terms("mse+0.1*fft") == {"mse": 1.0, "fft": 0.1}
    assert loss_terms("0.5*mse+1e+0*l1") == {"mse": 0.5, "l1": 1.0}


def test_random_numbers_do_not_go_to_the_default_device() -> None:
    with torch.device("meta"):
        assert noise(torch.zeros(1, device="cpu"), 2).device.type == "cpu"
        assert 0 <= uniform(0, 1, generator("audit")) <= 1
        assert whole(1, 3, generator("audit")) in (1, 2, 3)


def test_an_empty_target_selects_nothing_and_says_so() -> None:
    for config in (lowpeft.FullConfig(target=[]), lowpeft.SSFConfig(target=[])):
        with pytest.raises(PlanError, match="no pattern was given"):
            lowpeft.plan(demo_backbone(), config)
    sites = lowpeft.plan(demo_backbone(), "spatial").sites
    assert lowpeft.plan(demo_backbone(), "spatial", train_also=[]).sites == sites


class Attention(nn.Module):
    num_heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 4)).movedim(2, 0).transpose(2, 3)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.attn, self.mlp, self.given = Attention(), nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8)), given

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(tokens, **self.given)
        tokens = tokens + self.mlp(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


@torch.no_grad()
def test_tokens_act_in_attention_that_is_given_no_mask_and_are_refused_where_it_is() -> None:
    network = Stages(*(Block(mask=None, causal=False) for _ in range(3))).eval()
    before = network(IMAGE)
    model = lowpeft.adapt(network, "prefix")
    assert torch.equal(model(IMAGE), before)
    filled(model, "default", 0)
    assert not torch.equal(model(IMAGE), before)
    for given in ({"causal": True}, {"mask": torch.zeros(1, 1)}):
        with pytest.raises(PlanError, match="tokens"):
            lowpeft.plan(Stages(*(Block(**given) for _ in range(3))), "prefix")


def test_a_network_beside_the_recognised_one_is_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoise, self.sr = build("nafnet"), build("swinir")

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.sr(self.denoise(x))
            return out

    notes = lowpeft.plan(Two().eval(), "spatial").notes
    assert [note for note in notes if note.startswith("left alone: sr (SwinIR")]


def test_a_ladder_is_refused_on_a_network_of_several_tasks() -> None:
    network = EDT(EDTConfig(tasks=("sr_x2", "sr_x3"), features=4, dim=16, heads=2, depths=(2, 2), image_px=24))
    with pytest.raises(PlanError, match=r"one for each of its tasks \(sr_x2, sr_x3\): choose one with task="):
        lowpeft.adapt(network, "lst")


def test_ranks_that_were_dropped_stay_so_in_a_later_training_of_some_layers() -> None:
    torch.manual_seed(0)
    model = lowpeft.adapt(demo_backbone(), lowpeft.AdaLoRAConfig(rank=2, target="**.mlp.fc1"))
    layers: list[Any] = [module for module in model.modules() if type(module).__name__ == "AdaLoRA"]

    def trained(steps: int) -> None:
        parts, image = lowpeft.training_parts(model, steps=steps), torch.rand(1, 3, 16, 16)
        optimizer = torch.optim.SGD([p for a in layers for p in a.parameters() if p.requires_grad], lr=0.5)
        for step in range(1, steps + 1):
            loss = (model(image) - 0.3).abs().mean()
            (loss + sum(penalty for part in parts.values() if (penalty := part.penalty()) is not None)).backward()
            optimizer.step()
            for part in parts.values():
                part.after_step(step)
            optimizer.zero_grad()

    trained(6)
    before = [layer.kept.clone() for layer in layers]
    assert not all(bool(kept.all()) for kept in before)
    for layer in layers:
        layer.requires_grad_(not bool(layer.kept.all()))
    trained(6)
    for layer, kept in zip(layers, before, strict=True):
        assert not (layer.kept & ~kept).any()
        assert not layer.e[~kept].any()


class Standardised(nn.Conv2d):
    """A convolution with a standardised weight, as timm's StdConv2d."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class NormBesideInput(nn.Module):
    """A norm that adds its input, as the GlobalResponseNorm of ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        spread = x.norm(dim=(2, 3), keepdim=True)
        return x + self.weight[:, None, None] * x * spread + self.bias[:, None, None]


@pytest.mark.parametrize("kind", ["ssf", "ia3"])
def test_layers_whose_output_does_not_go_with_their_weight_are_not_scaled(kind: str) -> None:
    network = Stages(Standardised(8, 8, 3, padding=1), NormBesideInput(), nn.Conv2d(8, 8, 3, padding=1))
    plan = lowpeft.plan(network, kind)
    assert {site.path for site in plan.sites} == {"head", "tail", "stages.2"}
    assert any("stages.0.weight: the output of Standardised does not go with its weight" in note for note in plan.notes)
    with pytest.raises(PlanError, match="does not go with its weight"):
        lowpeft.plan(network, kind, target="stages.0")
    lowpeft.plan(network, "lora", target="stages.0")
