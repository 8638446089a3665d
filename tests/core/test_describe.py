"""Facts of networks: given, from the family, measured, assumed; and own networks through every call by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
import zoo
from lowpeft import Backbone, PlanError, describe
from lowpeft.core.observation.describe import facts_of, image_facts
from lowpeft.ports.facts import ImageFacts
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import compare, evaluate
from lowpeft.restoration.images import matlab_downscale
from lowpeft.restoration.training import train, validation
from states import assert_same_tensors, randomise_adapters, run_acceptance_script, tensors
from tiers import by_default
from training_runs import SETTINGS, Samples

PROBED = {"compact": (2, 3, 1), "drct": (2, 3, 4), "drunet": (1, 4, 8), "realcugan_x3": (3, 3, 1)}
"""Scale, channels and multiple of sides of networks of no family."""


def row(name: str) -> zoo.Network:
    return next(n for n in zoo.ALL if n.name == name)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return row(name).build()


# --- Own networks
class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Windows(nn.Module):
    """Attention within windows, which pads what it gets, and a residual MLP."""

    def __init__(self, channels: int, window: int = 4) -> None:
        super().__init__()
        self.window = window
        self.norm, self.norm_mlp = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))

    def attention(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        w = self.window
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        tokens = x.view(n, rows, w, columns, w, channels).transpose(2, 3).reshape(-1, w * w, channels)
        x = self.proj(F.scaled_dot_product_attention(*self.qkv(tokens).chunk(3, dim=-1)))
        x = x.view(n, rows, columns, w, w, channels).transpose(2, 3).reshape(n, rows * w, columns * w, channels)
        return x[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.attention(self.norm(x))
        x = x + self.mlp(self.norm_mlp(x))
        return x.permute(0, 3, 1, 2)


class Own(nn.Module):
    """A network of no family: head, blocks, and a tail that enlarges."""

    def __init__(self, block: Callable[[int], nn.Module], *, scale: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, 16, 3, padding=1)
        self.body = nn.ModuleList(block(16) for _ in range(4))
        self.tail = nn.Sequential(nn.Conv2d(16, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.head(x)
        for block in self.body:
            x = block(x)
        return self.tail(x + first)


def own(block: Callable[[int], nn.Module] = Residual, **options: int) -> Own:
    torch.manual_seed(0)
    return Own(block, **options).eval()


class Fixed(Own):
    """Takes squares of one size."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (48, 48):
            raise ValueError("only 48x48")
        return super().forward(x)


# --- Known and measured
@pytest.mark.parametrize(
    "name", by_default(["edt", "ipt", "nafnet", "swinir"], [n.name for n in zoo.FAMILIES if n.task != "features"])
)
def test_networks_of_a_family_have_the_facts_of_their_row(name: str) -> None:
    found, wanted = describe(build(name)), row(name)
    assert (found.scale, found.channels, found.value_range) == (wanted.scale, wanted.channels, (0.0, wanted.value_max))
    assert found.family == wanted.family
    assert all(side % found.size_multiple == 0 for side in wanted.input_px)
    assert all(side == (found.fixed_px or side) for side in wanted.input_px)


@pytest.mark.parametrize("name", [n.name for n in zoo.FAMILIES if n.task == "features"])
def test_networks_that_give_features_cannot_be_run_on_images(name: str) -> None:
    module = build(name)
    found = describe(module)
    assert (found.scale, found.channels) == (None, 3)
    with pytest.raises(PlanError, match="scale") as refused:
        lowpeft.enhance(module, torch.rand(3, 64, 96))
    assert "scale: none, because the network gives features" in refused.value.problems


@pytest.mark.parametrize("name", PROBED)
def test_other_networks_are_measured(name: str) -> None:
    found = describe(build(name))
    assert (found.scale, found.channels, found.size_multiple) == PROBED[name]
    scale, channels, multiple = PROBED[name]
    assert found.notes == (
        f"scale: x{scale}, measured",
        f"channels: {channels}, measured",
        f"size_multiple: {multiple} px, measured",
        "value_range: assumed to be 0..1",
    )


def test_the_only_size_that_runs_is_found() -> None:
    found = describe(Fixed(Residual).eval())
    assert (found.scale, found.fixed_px) == (2, 48)
    assert any(note.startswith("fixed_px: 48 px, measured") for note in found.notes)
    assert lowpeft.enhance(found, torch.rand(3, 50, 60)).shape == (3, 100, 120)


def test_an_example_settles_what_random_images_cannot() -> None:
    found = describe(own(channels=5), example=torch.rand(1, 5, 40, 40))
    assert (found.channels, found.scale) == (5, 2)


# --- Given
def test_what_is_given_counts_and_needs_no_note() -> None:
    found = describe(own(), scale=2, value_range=(-1, 1), size_multiple=8, architecture="Mine")
    assert (found.architecture, found.value_range, found.size_multiple) == ("Mine", (-1.0, 1.0), 8)
    assert found.notes == ("channels: 3, measured",)
    assert describe(own(), scale=2, channels=3, size_multiple=1, value_range=(0, 1)).notes == ()


def test_a_network_that_cannot_be_run_has_the_facts_that_are_given() -> None:
    bicubic = nn.Upsample(scale_factor=2, mode="bicubic")
    with pytest.raises(PlanError, match="scale and channels"):
        lowpeft.enhance(bicubic, torch.rand(3, 8, 8))
    found = describe(bicubic, scale=2, channels=3)
    assert found.notes == ("size_multiple: assumed to be 1 px", "value_range: assumed to be 0..1")
    assert lowpeft.enhance(found, torch.rand(3, 8, 8)).shape == (3, 16, 16)


def test_one_fact_of_a_backbone_can_be_changed() -> None:
    first = describe(own())
    changed = describe(first, value_range=(0, 255))
    assert changed.module is first.module
    assert changed.value_range == (0.0, 255.0)
    assert set(first.notes) - set(changed.notes) == {"value_range: assumed to be 0..1"}
    assert first.facts == replace(changed.facts, value_range=(0.0, 1.0), notes=first.notes)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"scale": 0}, "scale must be .*, not 0"),
        ({"scale": 2.0}, r"scale must be .*, not 2\.0"),
        ({"scale": True}, "scale must be .*, not True"),
        ({"channels": -1}, "channels must be"),
        ({"size_multiple": 0}, "size_multiple must be"),
        ({"fixed_px": "48"}, "fixed_px must be"),
        ({"value_range": (1, 0)}, r"value_range must be .*\(1, 0\)"),
        ({"value_range": (0, 0)}, "value_range must be"),
        ({"value_range": (0, 1, 2)}, "value_range must be"),
        ({"value_range": 255}, "value_range must be"),
        ({"output": 3.0}, "output must be .*, not 3"),
        ({"architecture": 3}, "architecture must be .*, not 3"),
    ],
    ids=str,
)
def test_impossible_facts_are_refused(facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        describe(own(), **facts)


def test_all_impossible_facts_are_listed() -> None:
    with pytest.raises(PlanError) as refused:
        describe(own(), scale=0, channels=0, value_range=(1, 0))
    assert len(refused.value.problems) == 3


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(PlanError, match=r"takes a torch\.nn\.Module or a Backbone, not dict"):
        describe({"weight": torch.zeros(3)})


# --- Facts stay with the model
def test_an_adapted_network_keeps_the_facts_that_it_was_given() -> None:
    backbone = describe(own(), value_range=(0, 255))
    stereo = lowpeft.adapt(backbone, "stereo")
    for model in (stereo, stereo.backbone, backbone):
        assert facts_of(model) == backbone.facts
    assert isinstance(image_facts(stereo), ImageFacts)
    lowpeft.restore(stereo)
    assert facts_of(stereo.backbone).value_range == (0.0, 1.0), "the bare module never had the fact"


def test_plan_and_summary_say_what_was_assumed() -> None:
    module = own()
    for printed in (str(lowpeft.plan(module, "stereo")), str(lowpeft.summary(lowpeft.adapt(module, "stereo")))):
        assert "value_range: assumed to be 0..1" in printed
        assert "scale: x2, measured" in printed
    given = describe(own(), scale=2, channels=3, size_multiple=1, value_range=(0, 1))
    assert "assumed" not in str(lowpeft.plan(given, "stereo"))


@pytest.mark.parametrize("name", ["hat", "ipt", "timm_swin", "realcugan_x3"])
def test_a_backbone_prints_as_one_line(name: str) -> None:
    found = describe(build(name))
    for text in (repr(found), str(found)):
        assert len(text) < 400
        assert "\n" not in text
        assert f"{found.parameters:,} parameters" in text


@pytest.mark.parametrize("name", ["swinir", "span", "aurasr", "rcan"])
def test_describing_touches_nothing(name: str) -> None:
    """SPAN writes weights when it runs, AuraSR draws random numbers, RCAN writes its input."""
    module = build(name).train()
    module.requires_grad_(False)
    next(module.parameters()).requires_grad_(True)
    before, modes = tensors(module), [m.training for m in module.modules()]
    flags, state = [p.requires_grad for p in module.parameters()], torch.get_rng_state()
    describe(module)
    assert_same_tensors(tensors(module), before)
    assert modes == [m.training for m in module.modules()]
    assert flags == [p.requires_grad for p in module.parameters()]
    assert torch.equal(state, torch.get_rng_state())


def test_the_acceptance_script_passes() -> None:
    run_acceptance_script("own_module.py")


# --- Own networks through every call
def pairs(count: int = 2) -> list[Example]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for i in range(count):
        coarse = torch.rand(2, 3, 6, 9, generator=generator)
        hr = tuple((F.interpolate(coarse, (40, 96), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8))
        found.append(Example(f"scene {i}", tuple(matlab_downscale(view, 2) for view in hr), hr))
    return found


@pytest.mark.parametrize("block", by_default([Windows], [Residual, Windows]))
def test_an_own_network_becomes_a_stereo_network(block: Callable[[int], nn.Module], tmp_path: Path) -> None:
    net, settings = own(block), replace(SETTINGS, steps=3, validate_every_steps=3)
    left, right = torch.rand(2, 3, 21, 34)
    alone = lowpeft.enhance(net, left)
    assert alone.shape == (3, 42, 68)

    stereo = lowpeft.adapt(net, "stereo")
    left_sr, right_sr = lowpeft.enhance(stereo, left, right)
    assert left_sr.shape == right_sr.shape == (3, 42, 68)
    torch.testing.assert_close(left_sr, alone, rtol=0, atol=1e-5)

    done = train(stereo, Samples(), settings, out=tmp_path / "run", validate=validation(pairs()))
    assert done.best is not None
    means = evaluate(stereo, pairs()).means()
    assert compare(stereo, pairs()).means_db()["adapted"] == pytest.approx(means["PSNR (L+R)/2"])

    randomise_adapters(stereo)
    wanted = lowpeft.enhance(stereo, left, right)
    lowpeft.save_adapter(stereo, tmp_path / "adapter")
    loaded = lowpeft.load_adapter(own(block), tmp_path / "adapter")
    assert all(map(torch.equal, lowpeft.enhance(loaded, left, right), wanted))
    assert torch.equal(lowpeft.enhance(lowpeft.restore(stereo), left), alone)


@pytest.mark.parametrize("block", [Residual, Windows])
def test_an_own_restoration_network_keeps_the_size(block: Callable[[int], nn.Module]) -> None:
    net = lowpeft.adapt(own(block, scale=1), "spatial")
    train(net, Samples(scale=1, views=1), replace(SETTINGS, steps=2))
    noisy = torch.rand(2, 3, 19, 23)
    assert lowpeft.enhance(net, noisy).shape == noisy.shape
    clean = (torch.rand(3, 32, 48) * 255).to(torch.uint8)
    scene = Example("scene", (clean.roll(1, 0),), (clean,))
    assert evaluate(net, [scene], protocol="single-image").means()["PSNR Y"] > 0


def test_a_backbone_is_trained_as_a_whole_by_its_facts(tmp_path: Path) -> None:
    """`validate` gets what `train` got, so that facts which only the backbone knows count there too."""
    backbone = describe(own(), value_range=(0, 255))
    seen: list[object] = []

    def look(model: object) -> float:
        seen.append(model)
        return validation(pairs())(model)

    settings = replace(SETTINGS, steps=2, validate_every_steps=2)
    done = train(backbone, Samples(views=1), settings, out=tmp_path, validate=look)
    assert done.parameters == backbone.parameters
    assert seen == [backbone]
    assert done.best == pytest.approx(validation(pairs())(backbone), abs=1e-3)
    assert done.best != pytest.approx(validation(pairs())(Backbone(module=backbone.module, **describe(own()).values)))
    assert (tmp_path / "network.safetensors").exists()
