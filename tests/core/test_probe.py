"""Finding sites in networks of no known family: right, or refused with a call that works."""

from __future__ import annotations

import functools
import gc
import random
import re
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import lowpeft
from lowpeft import AdapterConfig, PlanError, PrefixConfig, VPTConfig
from lowpeft.core.observation.examples import Example
from states import assert_same_tensors, randomise_adapters, run_acceptance_script, tensors
from tiers import by_default
from unfamiliar import (
    Block,
    Listed,
    Nested,
    Plain,
    Residual,
    SizedTokens,
    StereoNet,
    Timed,
    TokenNet,
    UNet,
    Unpadded,
    Video,
)
from zoo import build, image


def sites(network: nn.Module, recipe: object = "spatial", **options: object) -> list[str]:
    return [s.path for s in lowpeft.plan(network, recipe, **options).sites]


def refusal(network: nn.Module, recipe: object = "spatial", **options: object) -> str:
    """The message, with its problems; the network is unchanged."""
    before, classes = tensors(network), {p: type(m) for p, m in network.named_modules()}
    with pytest.raises(PlanError) as caught:
        lowpeft.adapt(network, recipe, **options)
    assert {p: type(m) for p, m in network.named_modules()} == classes
    assert_same_tensors(tensors(network), before)
    return str(caught.value)


def carried_out(message: str, model: nn.Module, example: object = None) -> nn.Module:
    """What the call that a refusal prints gives."""
    call = re.search(r"^    (lowpeft\.adapt\(.*\))$", message, re.MULTILINE)
    assert call is not None, message
    return eval(call[1], {"lowpeft": lowpeft, "model": model, "example": example})


def coarse(network: Plain) -> Plain:
    """The network with its stages at a quarter of the height and width, which makes attention to all tokens cheap."""
    network.head = nn.Conv2d(3, 8, 4, 4)
    network.tail = nn.Sequential(nn.Conv2d(8, 48, 1), nn.PixelShuffle(4))
    return network


REACH = {-2, -1, 0, 1, 2}
"""What two convolutions of 3x3 read around a row."""


def rows_read(model: nn.Module, size: tuple[int, int]) -> set[int]:
    """The rows of the right view that a pixel in the middle row of the left result depends on, counted from it."""
    height, width = size
    right = torch.rand(1, 3, height, width).requires_grad_()
    pixel = model(torch.rand(1, 3, height, width), right)[0][..., height // 2, 0].sum()
    reach = torch.autograd.grad(pixel, right)[0].abs().sum((0, 1, 3))
    return {int(row) - height // 2 for row in reach.nonzero().flatten()}


# --- stages ----------------------------------------------------------------------------------------------------------


def test_every_level_of_a_u_shape_is_a_stage_the_finest_too() -> None:
    found = sites(UNet(), "stereo-only", every=1)
    levels = ("encoder_level1", "encoder_level2", "latent", "decoder_level2", "decoder_level1")
    assert found == [f"{level}.1" for level in levels]
    assert sites(UNet(), "spatial", target="stage=0") == ["encoder_level1.0", "encoder_level1.1"]


def test_lists_that_are_never_called_are_stages() -> None:
    assert sites(Nested(), "stereo-only", every=1) == [f"stages.{i}.1" for i in range(4)]


def test_stages_that_change_the_size_are_stages() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 1, 1)
            for i in range(4):
                self.add_module(f"layers_{i}", nn.Sequential(nn.Conv2d(8 << i, 16 << i, 2, 2), nn.GELU()))

        def forward(self, x: Tensor) -> list[Tensor]:
            x, found = self.stem(x), []
            for i in range(4):
                x = getattr(self, f"layers_{i}")(x)
                found.append(x)
            return found

    assert sites(Pyramid(), "stereo-only", every=1) == [f"layers_{i}.1" for i in range(4)]


def test_convolutions_without_padding_keep_stages() -> None:
    assert sites(Unpadded(), "stereo-only", every=1) == [f"stages.{i}.1" for i in range(4)]
    model = randomise_adapters(lowpeft.adapt(Unpadded().eval(), "stereo-only", every=1))
    assert rows_read(model, (24, 32)) <= set(range(-7, 8))


def test_a_lone_candidate_with_few_of_the_parameters_is_refused_with_a_call() -> None:
    class Heavy(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.heavy = nn.Conv2d(8, 256, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.heavy(self.head(x)).mean(1, keepdim=True)

    message = refusal(Heavy(), "spatial")
    assert "stages.0 … stages.3: 4 of " in message
    model = carried_out(message, Heavy())
    assert lowpeft.summary(model).by_kind["spatial"] > 0


@pytest.mark.parametrize("recipe", ["stereo", "spatial", "stereo-only", lowpeft.SpatialConfig(reduction=2)])
def test_the_printed_call_is_for_the_recipe_that_was_asked(recipe: object) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 8, 3, 1, 1), Residual(), Residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.third(self.second(self.first(x))).mean(1, keepdim=True)

    model = carried_out(refusal(Odd(), recipe), Odd().eval())
    wanted = {"stereo": {"spatial", "stereo"}, "stereo-only": {"stereo"}}.get(str(recipe), {"spatial"})
    assert set(lowpeft.summary(model).by_kind) == wanted


def test_overrides_stay_in_the_printed_call() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Conv2d(3, 8, 3, 1, 1), Residual()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.first(x))

    message = refusal(One(), "stereo", spatial={"reduction": 2}, logit_scale=2.0)
    model = carried_out(message, One().eval())
    configs = {s.config.kind: s.config for s in lowpeft.plan(One(), "spatial", target="body").sites}
    assert configs
    found = {
        c.kind: c for c in lowpeft.core.attachment.record.record_of(model.backbone).plans["default"].recipe.adapters
    }
    assert (found["spatial"].reduction, found["stereo"].logit_scale) == (2, 2.0)


class Bodies(nn.Module):
    """A level that runs its blocks itself; `depths` blocks in five of them, named `layer1` to `layer5`."""

    class Body(nn.Module):
        def __init__(self, dim: int, count: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Residual(dim) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    def __init__(self, *depths: int) -> None:
        super().__init__()
        dims = (8, 16, 32, 16, 8)
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True), 1):
            self.add_module(f"layer{i}", self.Body(dim, depth))
        self.head, self.tail = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.downs = nn.ModuleList(nn.Conv2d(d, 2 * d, 2, 2) for d in (8, 16))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(d, d // 2, 2, 2) for d in (32, 16))

    def forward(self, x: Tensor) -> Tensor:
        one = self.layer1(self.head(x))
        two = self.layer2(self.downs[0](one))
        y = self.layer3(self.downs[1](two))
        y = self.layer4(self.ups[0](y) + two)
        return self.tail(self.layer5(self.ups[1](y) + one))


@pytest.mark.parametrize("depths", [(2, 2, 2, 2, 2), (1, 2, 4, 2, 1), (1, 1, 1, 1, 1)])
def test_levels_of_one_shape_at_both_ends_of_a_u_shape_are_two_stages(depths: tuple[int, ...]) -> None:
    stages = lowpeft.plan(Bodies(*depths), "stereo-only", every=1).sites
    assert [s.path for s in stages] == [f"layer{i}" for i in range(1, 6)]
    blocks = [s.stage for s in lowpeft.plan(Bodies(*depths), "spatial").sites]
    assert blocks == sorted(blocks)
    assert set(blocks) == set(range(5))


def test_levels_of_one_block_are_levels() -> None:
    class Single(UNet):
        def __init__(self) -> None:
            super().__init__(block=Block)
            for name in ("encoder_level1", "latent", "decoder_level1"):
                del getattr(self, name)[1]

    assert sites(Single(), "stereo-only", every=1) == [
        "encoder_level1.0",
        "encoder_level2.1",
        "latent.0",
        "decoder_level2.1",
        "decoder_level1.0",
    ]
    assert all(".attn" in path for path in sites(Single(), "spatial"))


def test_what_was_taken_for_channels_must_not_follow_from_the_images_size() -> None:
    class Lines(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.conv = nn.Conv1d(dim, dim, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    class Flat(Plain):
        def body(self, x: Tensor) -> Tensor:
            return super().body(x.flatten(2)).view(x.shape)

    assert "stages.0 gives 64 channels, the adapter is for 1536" in refusal(Flat(Lines), "spatial")


@pytest.mark.slow
def test_a_compiled_part_is_tried_out_like_any_other() -> None:
    network = Plain().eval()
    network.stages[3] = torch.compile(network.stages[3], backend="eager")
    assert sites(network, "spatial")


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_that_are_told_no_size_take_spatial_adapters_and_no_stereo() -> None:
    assert sites(TokenNet()) == [f"stages.{i}" for i in range(4)]
    assert "1536 tokens" in refusal(TokenNet(), "stereo")


def test_tokens_that_are_told_their_size_take_stereo_adapters_on_the_right_rows() -> None:
    model = randomise_adapters(lowpeft.adapt(TokenNet(SizedTokens).eval(), "stereo-only"), std=0.3)
    for size in ((16, 16), (32, 8), (8, 32), (64, 16), (16, 24)):
        assert rows_read(model, size) <= REACH


def test_class_tokens_beside_the_image_are_no_rows() -> None:
    assert sites(TokenNet(extra=1)) == [f"stages.{i}" for i in range(4)]
    assert "1537 tokens" in refusal(TokenNet(extra=1), "stereo")
    assert "1537 tokens" in refusal(TokenNet(SizedTokens, extra=1), "stereo")


def test_tokens_lie_on_a_square_only_where_the_network_takes_squares_alone() -> None:
    class Square(TokenNet):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2] != x.shape[-1]:
                raise ValueError("square images only")
            return super().forward(x)

    model = randomise_adapters(lowpeft.adapt(Square().eval(), "stereo-only"), std=0.3)
    assert rows_read(model, (16, 16)) <= REACH


def test_the_acceptance_script_of_tokens_and_mixing_passes() -> None:
    with pytest.raises(SystemExit) as end:
        run_acceptance_script("tokens_and_mixing.py")
    assert end.value.code == 0


def test_features_that_are_turned_get_no_stereo_adapters() -> None:
    """Along their rows lie the image's columns."""

    class Turned(Plain):
        def body(self, x: Tensor) -> Tensor:
            return super().body(x.mT).mT

    assert "no sequence of stages" in refusal(Turned(), "stereo")
    assert "(2, 8, 48, 32)" in refusal(Turned(), "stereo-only", target="stages.*", every=1)


def test_tokens_that_are_told_width_and_height_in_the_other_order_get_no_stereo_adapters() -> None:
    class Swapped(TokenNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.head(x)
            n, c, h, w = x.shape
            tokens = x.flatten(2).transpose(1, 2)
            for stage in self.stages:
                tokens = stage(tokens, (w, h))
            return self.tail(tokens.transpose(1, 2).reshape(n, c, h, w))

    assert "1536 tokens" in refusal(Swapped(SizedTokens), "stereo")
    assert len(sites(Swapped(SizedTokens), "spatial")) == 4


# --- the batch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixes", [0.1, 1e-3])
def test_a_network_that_mixes_its_batch_is_refused_for_several_views_and_taken_for_one(mixes: float) -> None:
    network = TokenNet(SizedTokens, mixes=mixes).eval()
    assert "mixes the images of a batch" in refusal(network, "stereo")
    assert sites(network) == [f"stages.{i}" for i in range(4)]


class OneSided(Plain):
    """The second image of a batch depends on the first."""

    def body(self, x: Tensor) -> Tensor:
        x = super().body(x)
        return torch.cat((x[:1], x[1:] + x[:-1]))


class Larger(Plain):
    """Mixes images that are larger than the smallest that can be tried."""

    def body(self, x: Tensor) -> Tensor:
        x = super().body(x)
        return x + x.mean(0) if x.shape[-1] > 16 else x


class NanCorner(OneSided):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return torch.cat((out[..., :1] * float("nan"), out[..., 1:]), dim=-1)


class ZeroTail(Plain):
    """The last layer is still zero, so that nothing shows in the output."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.tail.weight)

    def body(self, x: Tensor) -> Tensor:
        return super().body(torch.cat((x[:1], x[1:] + x[:-1])))


class Reordered(Plain):
    """Its stages see the images the other way round."""

    def body(self, x: Tensor) -> Tensor:
        return super().body(x.flip(0)).flip(0)


@pytest.mark.parametrize("make", [OneSided, Larger, NanCorner, ZeroTail, Reordered])
def test_mixing_is_found_whichever_image_and_size_shows_it(make: type[nn.Module]) -> None:
    assert "mixes the images of a batch" in refusal(make().eval(), "stereo")


def test_an_output_that_is_pooled_over_the_batch_has_no_views() -> None:
    class Pooled(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(0, keepdim=True)

    assert "(1, 3, 8, 8)" in refusal(Pooled().eval(), "stereo")


def test_a_network_that_takes_one_image_at_a_time_takes_adapters_of_single_images() -> None:
    class One(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * x.new_ones(1, 3, 1, 1).expand(1, 3, *x.shape[2:]).view(x.shape)

    assert sites(One(), "spatial") == [f"stages.{i}" for i in range(4)]
    assert len(sites(One(), "lora")) == 9
    assert "(2, 3, 32, 48)" in refusal(One(), "stereo")


# --- outputs of several tensors --------------------------------------------------------------------------------------


class Twice(Residual):
    """Gives one tensor under two indices."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x[1] if isinstance(x, tuple) else x)
        return y, y


class TwiceNet(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(self.head(x))[1])


def test_stages_of_several_tensors_are_refused_with_a_call_that_names_one() -> None:
    message = refusal(TwiceNet(Twice), "spatial")
    assert "(or item=1)" in message
    carried_out(message, TwiceNet(Twice))


def test_a_named_module_of_several_tensors_needs_an_item() -> None:
    assert "item=0 or item=1" in refusal(TwiceNet(Twice), "spatial", target="stages.*")
    model = lowpeft.adapt(TwiceNet(Twice).eval(), "spatial", target="stages.*", item=1)
    x = torch.rand(1, 3, 8, 8)
    before = model(x)
    assert not torch.equal(randomise_adapters(model)(x), before)
    assert "no tensor at item 2" in refusal(TwiceNet(Twice), "spatial", target="stages.*", item=2)


@pytest.mark.parametrize("rows", [8, 4096])
def test_what_an_item_gets_does_not_depend_on_the_images_size(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, some rows at a time, is for features that nobody else holds; here two indices hold one tensor."""
    monkeypatch.setattr("lowpeft.core.attachment.adding.ROW_CHUNK_BYTES", rows)
    network = TwiceNet(Twice).eval()
    model = randomise_adapters(lowpeft.adapt(network, lowpeft.StereoConfig(target="stages.*", item=0, every=1)))
    left, right = torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        found = model(left, right)
        with lowpeft.disabled(model):
            expected = network(torch.cat((left, right)))
    assert torch.equal(torch.cat(found), expected)  # the network reads item 1, which is not adapted


def test_stages_of_two_views_are_not_adapted_on_one_of_them() -> None:
    example = torch.rand(1, 6, 16, 24)
    message = refusal(StereoNet(), "spatial", example=example)
    assert "item=" in message
    model = randomise_adapters(lowpeft.adapt(StereoNet().eval(), "spatial", target="stages.*.one", example=example))
    one = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        moved = model(torch.cat((one, one), 1)).chunk(2, 1)
        with lowpeft.disabled(model):
            still = model(torch.cat((one, one), 1)).chunk(2, 1)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], still[0])


# --- blocks ----------------------------------------------------------------------------------------------------------


def test_children_of_a_block_that_are_added_are_the_places_of_attention_and_mlp() -> None:
    network = Plain(Block)
    assert sites(network) == [f"stages.{i}.attn.2" for i in range(4)]
    assert sites(network, placement="mlp") == [f"stages.{i}.mlp.2" for i in range(4)]
    parallel = lowpeft.plan(network, "spatial", placement="parallel").sites
    assert [(s.path, s.attachment.source) for s in parallel] == [(f"stages.{i}.mlp", "input") for i in range(4)]


@pytest.mark.parametrize("placement", ["attention", "mlp", "both", "parallel"])
def test_an_adapter_on_a_child_adds_to_its_contribution(placement: str) -> None:
    network, x = Plain(Block).eval(), torch.rand(2, 3, 16, 24)
    expected = network(x)
    model = lowpeft.adapt(network, "spatial", placement=placement)
    assert torch.equal(model(x), expected)
    lowpeft.check_trainable(model)


class Gated(nn.Module):
    """Multiplies by what its child by name of an attention gives, and adds that."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = Residual(dim)
        self.attn = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * self.attn(y)


def test_gates_are_no_attention() -> None:
    assert sites(Plain(Gated)) == [f"stages.{i}" for i in range(4)]


def test_children_whose_output_is_not_added_are_no_places() -> None:
    network = Plain(lambda dim: Block(dim, post=True))
    assert sites(network) == [f"stages.{i}" for i in range(4)]
    assert "'mlp'" in refusal(network, "spatial", placement="mlp")


def test_the_fused_forward_of_torchs_transformer_layer_is_adapted_from_outside() -> None:
    class Layer(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(dim, 2, 2 * dim, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)

    network, x = coarse(Plain(Layer)).eval(), torch.rand(1, 3, 8, 8)
    assert "stages.0.layer.linear2: name stages.0.layer" in refusal(network, "spatial", target="**.linear2")
    model = randomise_adapters(lowpeft.adapt(network, "spatial"))
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(fused, model(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad(), lowpeft.disabled(model):
        assert not torch.allclose(fused, model(x))


# --- examples --------------------------------------------------------------------------------------------------------

X, TIME = torch.rand(1, 3, 16, 24), torch.ones(1)
EXAMPLES: dict[str, tuple[Callable[[], nn.Module], object, Callable[[Tensor], object]]] = {
    "a tuple": (Timed, (X, TIME), lambda x: (x, TIME)),
    "a dict": (Timed, {"x": X, "time": TIME}, lambda x: {"x": x, "time": TIME}),
    "a list": (Listed, [X], lambda x: [x]),
    "six channels": (StereoNet, torch.rand(1, 6, 16, 24), lambda x: torch.cat((x, x), 1)),
    "frames": (Video, torch.rand(1, 2, 3, 16, 24), lambda x: torch.stack((x, x), 1)),
}


@pytest.mark.parametrize(
    ("make", "example", "of"),
    [
        pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name not in ("a dict", "six channels")))
        for name, row in EXAMPLES.items()  # one that is unpacked and one tensor; the others are of these sorts
    ],
)
def test_an_example_says_what_a_network_is_called_with(
    make: Callable[[], nn.Module], example: object, of: Callable[[Tensor], object]
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    target = {"target": "stages.*.one"} if make is StereoNet else {}
    assert "example=" in refusal(network, "spatial", target="stages.*")
    model = lowpeft.adapt(network, "spatial", example=example, **target)
    lowpeft.check_trainable(model, example=example)
    assert len(lowpeft.plan(make(), "lora", example=example).sites) > 4


@pytest.mark.parametrize("name", ["a tuple", "a dict", "a list"])
def test_each_view_of_a_stereo_model_is_what_the_network_takes(name: str) -> None:
    make, example, of = EXAMPLES[name]
    network = make().eval()
    left, right = torch.rand(2, 1, 3, 16, 24)
    with torch.no_grad():
        expected = [Example.of(of(view)).call(network) for view in (left, right)]
        model = lowpeft.adapt(network, "stereo", example=example)
        found = model(of(left), of(right))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    lowpeft.check_trainable(model, example=example)


def test_frames_of_a_video_are_no_scenes_of_views() -> None:
    named = {"spatial": {"target": "stages.*"}, "stereo": {"target": "stages.*", "every": 1}}
    for options in (named, {}):
        assert "(4, 8, 16, 24)" in refusal(Video(), "stereo", example=EXAMPLES["frames"][1], **options)


@pytest.mark.parametrize("example", [3, "image", (), {}, [1, 2], torch.tensor(1.0)])
def test_an_example_without_a_batch_is_refused(example: object) -> None:
    message = refusal(Plain(), "spatial", example=example)
    assert "example=" in message
    assert f"this {type(example).__name__}" in message


def test_the_callers_example_is_never_written() -> None:
    class Writes(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    x = torch.rand(2, 3, 16, 24)
    kept = x.clone()
    model = lowpeft.adapt(Writes().eval(), "stereo", example=x)
    lowpeft.check_trainable(model, example=x)
    lowpeft.check_trainable(model, x[:1], x[1:])
    lowpeft.describe(Writes(), example=x)
    assert torch.equal(x, kept)


def test_the_live_network_is_not_run_while_it_is_planned() -> None:
    class Counts(Plain):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    network = Counts()
    lowpeft.plan(network, "stereo")
    assert network.calls == 0


def test_an_example_that_does_not_run_is_refused_whatever_the_recipe() -> None:
    for recipe in ("spatial", "lora"):
        assert "(2, 3, 16, 24) and 1 more" in refusal(Plain(), recipe, example=X.double())
    for unusable in (X.to("meta"), X[:0], X.to_sparse()):
        assert f"{unusable.layout}, on {unusable.device}" in refusal(Plain(), "lora", example=unusable)


def test_what_is_no_batch_is_the_same_for_all_views() -> None:
    class Sigma(Plain):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return super().forward(x * sigma)

    view = (X, torch.tensor(0.5))
    model = lowpeft.adapt(Sigma().eval(), "stereo", example=view)
    assert model(view, view)[0].shape == X.shape
    with pytest.raises(PlanError, match=r"tensor\(0\.5000\) and tensor\(0\.6000\)"):
        model(view, (X, torch.tensor(0.6)))


def test_inference_mode_and_copies_that_are_no_copies_are_refused() -> None:
    with torch.inference_mode(), pytest.raises(PlanError, match="made in inference mode"):
        lowpeft.adapt(Plain(), "lora")

    class Same(Residual):
        def __deepcopy__(self, memo: object) -> Residual:
            return self

    network = Plain(Same).train()
    assert "shares modules with it" in refusal(network, "spatial")
    assert all(module.training for module in network.modules())


def test_a_class_that_takes_no_subclass_is_refused_and_put_back() -> None:
    class Strict(Plain):
        def __init_subclass__(cls, *, key: str) -> None:
            super().__init_subclass__()

    assert "cannot be specialised" in refusal(Strict(), "spatial")


def test_networks_that_are_equal_have_settings_of_their_own() -> None:
    class Equal(Plain):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

    one, other = (lowpeft.adapt(Equal().eval(), "spatial") for _ in range(2))
    randomise_adapters(other)
    with lowpeft.disabled(one):
        within = other(X)
    assert torch.equal(within, other(X))


@dataclass
class Output:
    image: Tensor


class GivesDataclass(Plain):
    def forward(self, x: Tensor) -> Output:
        return Output(super().forward(x))


def test_an_output_whose_views_cannot_be_told_apart_is_refused_at_once_until_one_says_where_the_image_is() -> None:
    assert "describe(network, output=" in refusal(GivesDataclass(), "stereo")
    model = lowpeft.adapt(lowpeft.describe(GivesDataclass().eval(), output="image"), "stereo")
    assert [view.shape for view in model(X, X)] == [X.shape, X.shape]
    for recipe in ("spatial", "lora"):
        lowpeft.check_trainable(lowpeft.adapt(GivesDataclass(), recipe))


def test_parts_in_torchscript_are_left_out_and_said() -> None:
    network = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.stages[2] = torch.jit.script(Residual())
    for recipe in ("spatial", "lora", "full"):
        plan = lowpeft.plan(network, recipe)
        assert not any(site.path.startswith("stages.2") for site in plan.sites)
        assert any("TorchScript" in note for note in plan.notes)


# --- networks that cannot be tried out, or write themselves ----------------------------------------------------------


def lazy() -> nn.Module:
    network = Plain()
    network.extra = nn.LazyLinear(3)
    return network


def sparse() -> nn.Module:
    network = Plain()
    network.extra = nn.Parameter(torch.eye(3).to_sparse())
    return network


def offloaded() -> nn.Module:
    from accelerate import cpu_offload

    return cpu_offload(Plain(), torch.device("cpu"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Plain().to("meta"), "on the meta device"),
        (lazy, "lazy, without a shape"),
        (sparse, "sparse"),
        (offloaded, "forward"),
        (lambda: torch.ao.quantization.quantize_dynamic(TokenNet(), {nn.Linear}), "quantised"),
    ],
    ids=["meta", "lazy", "sparse", "offloaded", "quantised"],
)
@pytest.mark.parametrize("recipe", ["stereo", "lora"])
def test_a_network_that_cannot_be_adapted_as_it_is_is_refused_in_one_sentence(
    make: Callable[[], nn.Module], why: str, recipe: str
) -> None:
    with pytest.raises(PlanError, match=re.escape(why)):
        lowpeft.adapt(make(), recipe)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
@pytest.mark.parametrize("recipe", ["spatial", "stereo"])
def test_an_adapted_network_can_be_quantised(recipe: str) -> None:
    model = lowpeft.adapt(TokenNet(SizedTokens).eval(), recipe)
    views = [torch.rand(1, 3, 8, 8)] * (2 if recipe == "stereo" else 1)
    expected = model(*views)
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(*views)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)


class Counts(Plain):
    """Writes a floating-point buffer in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


class Starts(Counts):
    """Learns a factor from the first batch, as layers with data-dependent initialisation do."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.count:
            self.count.copy_(x.std())
        return Plain.forward(self, x * self.count)


def test_a_network_that_writes_its_state_in_every_forward_is_known_at_adapt() -> None:
    assert "in every forward" in refusal(Counts(), "spatial")


def test_a_network_that_writes_its_state_once_is_refused_until_it_has_run() -> None:
    network = Starts()
    assert "network.eval()(image)" in refusal(network, "spatial")
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, 8, 8))
    lowpeft.adapt(network, "spatial")


def test_a_network_that_keeps_statistics_of_its_own_in_training_is_refused_where_they_would_move() -> None:
    class Average(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(8))

        def body(self, x: Tensor) -> Tensor:
            if self.training:
                self.mean.lerp_(x.mean((0, 2, 3)).detach(), 0.1)
            return super().body(x)

    message = refusal(Average(), "full")
    assert "mean" in message
    model = carried_out(message, Average()).train()
    model(X)
    assert not model.mean.any()


class Derived(nn.Module):
    """A convolution whose forward writes its weight from two others, as SPAN's in eval mode."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        self.fused = nn.Conv2d(dim, dim, 1)
        self.last = nn.Conv2d(dim, dim, 1)
        self.fuse()

    def fuse(self) -> None:
        self.fused.weight.data = self.one.weight.data + self.two.weight.data
        self.fused.bias.data = self.one.bias.data + self.two.bias.data

    def forward(self, x: Tensor) -> Tensor:
        self.fuse()
        return x + self.last(self.fused(x).tanh())


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_weights_that_a_network_derives_itself_are_passed_over_and_said(recipe: str) -> None:
    network = Plain(Derived).eval()
    plan = lowpeft.plan(network, recipe)
    assert {s.path.rpartition(".")[2] for s in plan.sites} <= {"last", "head", "tail"}
    (note,) = (note for note in plan.notes if "stages.0." in note)
    assert note in str(plan)
    model = randomise_adapters(lowpeft.adapt(network, recipe))
    lowpeft.check_trainable(model)
    x = torch.rand(1, 3, 8, 8)
    expected = model(x)
    report = lowpeft.merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert report.output_difference is not None
    assert report.output_difference < 1e-5
    assert "stages.0.fused" in refusal(Plain(Derived).eval(), recipe, target="**.fused")


def test_merging_refuses_a_change_that_the_forward_would_lose_and_undoes_it() -> None:
    class Late(Plain):
        """Derives its weight once it is told to."""

        derives = False

        def forward(self, x: Tensor) -> Tensor:
            if self.derives:
                self.tail.weight.data = torch.full_like(self.tail.weight, 0.1)
            return super().forward(x)

    network = Late().eval()
    network.tail.weight.data.fill_(0.1)
    model = randomise_adapters(lowpeft.adapt(network, lowpeft.kinds.FullConfig(target="tail")))
    network.derives = True
    x, before = torch.rand(1, 3, 8, 8), tensors(network)
    expected = model(x)
    with pytest.raises(PlanError, match="lost"):
        lowpeft.merge(model)
    assert torch.equal(model(x), expected)
    assert_same_tensors(tensors(network), before)
    assert lowpeft.list_adapters(model) == ["default"]


def test_merging_says_where_it_could_compare_nothing() -> None:
    class Silent(Plain):
        def forward(self, x: Tensor) -> str:
            return str(super().forward(x).shape)

    assert lowpeft.merge(lowpeft.adapt(Silent(), "lora")).output_difference is None


# --- weights ---------------------------------------------------------------------------------------------------------


def test_lora_has_a_default_place() -> None:
    plan = lowpeft.plan(Plain(), "lora")
    assert [s.path for s in plan.sites] == ["head", *(f"stages.{i}.conv{j}" for i in range(4) for j in (1, 2))]
    assert any("left out 1 layers" in note and "tail.weight" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("change", "fold"),
    [
        (nn.utils.parametrizations.weight_norm, "remove_parametrizations"),
        (nn.utils.parametrizations.spectral_norm, "remove_parametrizations"),
        (nn.utils.spectral_norm, "remove_spectral_norm"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "prune.remove"),
    ],
    ids=["weight_norm", "spectral_norm", "old spectral_norm", "pruned"],
)
def test_a_layer_that_computes_its_weight_is_passed_over_with_what_to_do(
    change: Callable[[nn.Module], object], fold: str
) -> None:
    network = Plain()
    change(network.stages[0].conv1)
    notes = " ".join(lowpeft.plan(network, "lora").notes)
    assert fold in notes
    assert "stages.0.conv1" in notes
    assert fold in refusal(network, "lora", target="stages.0.conv1")
    assert not any(fold in note for note in lowpeft.plan(network, "lora", target="stages.1").notes)


@pytest.mark.parametrize("change", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_full_training_reaches_the_tensors_of_a_parametrised_layer(change: Callable[[nn.Module], object]) -> None:
    torch.manual_seed(0)
    network = Plain().eval()
    change(network.stages[0].conv1)
    network.eval()
    x = torch.rand(1, 3, 8, 8)
    expected = network(x)
    model = lowpeft.adapt(network, "full", freeze_statistics=True)  # spectral_norm's vectors are state of its own
    assert torch.equal(model(x), expected)
    lowpeft.check_trainable(model)
    changed = randomise_adapters(model, std=0.01)(x)
    lowpeft.merge(model)
    torch.testing.assert_close(model(x), changed, rtol=1e-4, atol=1e-5)


def test_the_projections_of_attention_with_other_keys_are_adapted() -> None:
    class Attends(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.keys = nn.Linear(dim, 2 * dim)
            self.attention = nn.MultiheadAttention(dim, 2, kdim=2 * dim, vdim=2 * dim, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            keys = self.keys(x)
            return x + self.attention(x, keys, keys)[0]

    network = coarse(TokenNet(Attends)).eval()
    model = lowpeft.adapt(network, "lora", target="**.attention")
    names = {
        n.partition("attention.")[2].partition(".a")[0].removesuffix(".b") for n in lowpeft.adapter_state_dict(model)
    }
    assert len(names) == 4
    lowpeft.check_trainable(randomise_adapters(model))


def test_what_a_pattern_passes_over_is_said() -> None:
    class Table(Residual):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.table = nn.Parameter(torch.zeros(dim, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.table

    notes = " ".join(lowpeft.plan(Plain(Table), "lora").notes)
    assert "passed over 4 parameters that it does not fit, e.g. stages.0.table" in notes


@pytest.mark.parametrize("make", [Plain, lambda: TokenNet(SizedTokens), UNet], ids=["plain", "tokens", "u-net"])
def test_the_copy_goes_with_the_plan(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not wait for the garbage collector: it is as large as the network."""
    copies: list[weakref.ref[nn.Module]] = []

    def twin_of(root: nn.Module) -> nn.Module:
        twin = copy_without_adapters(root)
        copies.append(weakref.ref(twin))
        return twin

    copy_without_adapters = lowpeft.core.attachment.copies.twin_of
    monkeypatch.setattr("lowpeft.core.observation.trial.twin_of", twin_of)
    gc.disable()
    try:
        for recipe in ("stereo", "spatial", "lora"):
            lowpeft.plan(make(), recipe)
        assert [copy() for copy in copies] == [None] * 3
    finally:
        gc.enable()


def test_a_second_body_beside_the_stages_is_said() -> None:
    class Two(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.others = nn.ModuleList(Residual() for _ in range(2))

        def body(self, x: Tensor) -> Tensor:
            y = x
            for other in self.others:
                y = other(y)
            return super().body(x) + y

    plan = lowpeft.plan(Two(), "spatial")
    assert [s.path for s in plan.sites] == [f"stages.{i}" for i in range(4)]
    assert any("others.0 … others.1: 2 of" in note for note in plan.notes)
    assert lowpeft.plan(Plain(), "spatial").notes == ()


@pytest.mark.parametrize("recipe", ["stereo", "lora", "full"])
def test_nothing_that_is_tried_moves_a_generator_and_noise_does_not_look_like_another_output(recipe: str) -> None:
    class Noisy(Plain):
        def forward(self, x: Tensor) -> Tensor:
            noise = random.random() + np.random.rand() + torch.rand(())
            return super().forward(x) + float(noise)

    def states() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    network = Noisy().eval()
    before = states()
    lowpeft.plan(network, recipe)
    assert states() == before
    model = lowpeft.adapt(network, recipe)
    before = states()
    lowpeft.check_trainable(model)
    if recipe != "stereo":
        lowpeft.merge(randomise_adapters(model))
    assert states() == before


def test_a_refusal_names_no_part_on_which_the_output_does_not_depend() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tail = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
            self.used, self.idle = Residual(), Residual()

        def forward(self, x: Tensor) -> Tensor:
            x = self.head(x)
            self.idle(x)
            return self.tail(self.used(x))

    call = refusal(Idle().eval(), "spatial").partition("This call works")[2]
    assert "'used'" in call
    assert "idle" not in call


# --- a family inside a module of the user's own ----------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["stereo", "spatial"])
def test_what_a_wrapped_family_says_of_its_output_is_not_believed_of_the_wrapper(recipe: str) -> None:
    """transformers' Swin2SR gives an object with the image in it; the module around it gives the image itself."""

    class Unpacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build("swin2sr_hf")

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).reconstruction

    network, x = Unpacked().eval(), image("swin2sr_hf", 2)
    with torch.no_grad():
        expected = network(x)
        model = lowpeft.adapt(network, recipe)
        found = torch.cat(model(x[:1], x[1:])) if recipe == "stereo" else model(x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("placement", ["parallel", "parallel_both"])
def test_what_a_layer_writes_in_place_was_read_before(placement: str) -> None:
    class Activated(nn.Module):
        """Both branches begin with a ReLU of the branch's input."""

        def __init__(self, dim: int, *, inplace: bool) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(1, dim), nn.GroupNorm(1, dim)
            self.attn = nn.Sequential(nn.ReLU(inplace=inplace), nn.Conv2d(dim, dim, 1))
            self.mlp = nn.Sequential(nn.ReLU(inplace=inplace), nn.Conv2d(dim, dim, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    x, found = torch.rand(2, 3, 12, 14), []
    for inplace in (False, True):
        torch.manual_seed(0)
        network = Plain(functools.partial(Activated, inplace=inplace)).eval()
        model = randomise_adapters(lowpeft.adapt(network, "spatial", placement=placement))
        lowpeft.check_trainable(model, x)
        with torch.no_grad():
            found.append(model(x))
    assert torch.equal(*found)


def test_a_module_that_overwrites_its_input_is_told() -> None:
    class Doubling(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(dim, dim, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.mul_(2))

    class Calling(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.norm, self.mlp = nn.GroupNorm(1, dim), Doubling(dim)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.norm(x))

    model = lowpeft.adapt(Plain(Calling).eval(), "spatial", placement="parallel")
    with torch.no_grad(), pytest.raises(PlanError, match="Doubling overwrites its input"):
        model(torch.rand(2, 3, 12, 14))


# --- tokens ----------------------------------------------------------------------------------------------------------


class QKV(nn.Module):
    """Attention of a vision transformer."""

    def __init__(self, dim: int, *, biased: bool = False) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.rand(1)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 2, dim // 2).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) / (dim // 2) ** 0.5
        if self.bias is not None:
            logits = logits + self.bias * torch.eye(length)
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class TokenBlock(nn.Module):
    """A transformer's block on maps; `make` gives its attention, called with tokens, or as torch's."""

    def __init__(self, dim: int, make: Callable[[int], nn.Module], *, masked: bool = False) -> None:
        super().__init__()
        self.norm, self.attn, self.masked = nn.LayerNorm(dim), make(dim), masked
        self.mlp = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = getattr(self.attn, "batch_first", True)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        tokens = tokens if first else tokens.transpose(0, 1)
        if isinstance(self.attn, nn.MultiheadAttention):
            mask = torch.zeros(x[0, 0].numel(), x[0, 0].numel()) if self.masked else None
            y = self.attn(tokens, tokens, tokens, attn_mask=mask, need_weights=False)[0]
        else:
            y = self.attn(tokens)
        x = x + (y if first else y.transpose(0, 1)).transpose(1, 2).reshape(x.shape)
        return x + self.mlp(x)


PLAIN_ATTENTION: dict[str, Callable[[int], nn.Module]] = {
    "qkv": QKV,
    "batch first": lambda dim: nn.MultiheadAttention(dim, 2, batch_first=True),
    "batch second": lambda dim: nn.MultiheadAttention(dim, 2),
}


def by_hand(attention: Any, x: Tensor, config: AdapterConfig, w: Mapping[str, Tensor]) -> Tensor:
    """Attention of one image's tokens (L,C) with extra keys and values, head by head."""
    weights = [attention.qkv.weight, attention.qkv.bias, attention.proj] if isinstance(attention, QKV) else None
    if weights is None:
        weights = [attention.in_proj_weight, attention.in_proj_bias, attention.out_proj]
    matrix, bias, project = weights

    def attended(keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (x @ matrix.T + bias).chunk(3, -1)
        k, v = torch.cat((k, keys)), torch.cat((v, values))
        half = q.shape[-1] // 2
        halves = [(q[:, h], k[:, h], v[:, h]) for h in (slice(0, half), slice(half, None))]
        return project(torch.cat([(a @ b.T / half**0.5).softmax(-1) @ c for a, b, c in halves], -1))

    none = x.new_zeros(0, x.shape[1])
    if config.kind == "prefix":
        keys, values = w["keys"][0], w["values"][0]
    else:
        _, keys, values = (w["prompts"][0] @ matrix.T + bias).chunk(3, -1)
    without = attended(none, none)
    return without + w["gate"] * (attended(keys, values) - without)


# Either kind takes every attention that it meets through one port: by default it is a kind of each, in turns.
@pytest.mark.parametrize(
    ("config", "name"),
    by_default(
        [
            (PrefixConfig(tokens=3), "qkv"),
            (VPTConfig(tokens=3), "batch first"),
            (PrefixConfig(tokens=3), "batch second"),
        ],
        [(config, name) for config in (PrefixConfig(tokens=3), VPTConfig(tokens=3)) for name in PLAIN_ATTENTION],
    ),
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
@torch.no_grad()  # with gradients, torch's own fast path ends where they begin, and rounds otherwise
def test_plain_attention_of_an_unknown_network_takes_tokens(config: AdapterConfig, name: str) -> None:
    torch.manual_seed(0)
    network = coarse(Plain(lambda dim: TokenBlock(dim, PLAIN_ATTENTION[name])))
    network.eval().requires_grad_(False).double()
    x = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    wanted = network(x)
    model = lowpeft.adapt(network, config)
    assert [s.path for s in lowpeft.plan(network, config, name="again").sites] == [f"stages.{i}.attn" for i in range(4)]
    assert torch.equal(model(x), wanted)
    randomise_adapters(model)
    with torch.enable_grad():
        lowpeft.check_trainable(model, x)
    seen: list[tuple[Tensor, Tensor]] = []
    attention = network.stages[0].attn
    attention.register_forward_hook(lambda m, a, out: seen.append((a[0], out[0] if isinstance(out, tuple) else out)))
    together = model(x)
    for i in (0, 1):
        torch.testing.assert_close(model(x[i : i + 1]), together[i : i + 1], rtol=1e-9, atol=1e-9)
    given, found = (t.transpose(0, 1) if name == "batch second" else t for t in seen[0])
    state = {n.rpartition(".")[2]: t for n, t in lowpeft.adapter_state_dict(model).items() if n.startswith("stages.0.")}
    for i in (0, 1):
        torch.testing.assert_close(found[i], by_hand(attention, given[i], config, state), rtol=1e-9, atol=1e-9)


def test_attention_with_a_position_bias_of_its_own_is_not_plain() -> None:
    network = coarse(Plain(lambda dim: TokenBlock(dim, functools.partial(QKV, biased=True))))
    assert "is plain attention" in refusal(network, "vpt")


def test_masks_and_tokens_do_not_go_together() -> None:
    attention = PLAIN_ATTENTION["batch first"]
    model = lowpeft.adapt(coarse(Plain(lambda dim: TokenBlock(dim, attention))).eval(), "vpt")
    for module in model.modules():
        if isinstance(module, TokenBlock):
            module.masked = True
    with torch.no_grad(), pytest.raises(PlanError, match="without masks"):
        model(torch.rand(1, 3, 8, 12))


class Widening(nn.Module):
    def __init__(self, taken: int, given: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(taken, given, 3, padding=1), nn.Conv2d(given, given, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))))


class Changing(nn.Module):
    """A small U-Net whose blocks change the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.e1, self.e2, self.e3 = Widening(3, 8), Widening(8, 16), Widening(16, 32)
        self.u2, self.u1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.d2, self.d1 = Widening(32, 16), Widening(16, 8)
        self.tail = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.e1(x)
        second = self.e2(nn.functional.max_pool2d(first, 2))
        y = self.u2(self.e3(nn.functional.max_pool2d(second, 2)))
        y = self.u1(self.d2(torch.cat((y, second), 1)))
        return x + self.tail(self.d1(torch.cat((y, first), 1)))


@pytest.mark.parametrize("kind", ["convpass", "adaptformer", "adaptir", "spectral"])
def test_a_block_that_changes_its_channels_has_no_place_beside_it(kind: str) -> None:
    with pytest.raises(PlanError, match="no place"):
        lowpeft.plan(Changing(), kind)


def test_other_kinds_fit_blocks_that_change_their_channels() -> None:
    model, x = Changing().eval(), torch.rand(1, 3, 16, 16)
    expected = model(x)
    assert torch.equal(lowpeft.adapt(model, "spatial")(x), expected)
