"""What went wrong elsewhere: each trap that was seen in another library or in a published network, as a test."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch
from spandrel.architectures.HAT import HAT
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import lowpeft
import zoo
from lowpeft import (
    AdapterConfig,
    Family,
    FeatureAdapter,
    Features,
    Layer,
    Layout,
    LoRAConfig,
    Place,
    PlanError,
    SpatialConfig,
    StereoModel,
    WeightAdapter,
)
from lowpeft.ports.base import SLOT
from states import assert_same_tensors, randomise_adapters, tensors
from tiers import by_default
from zoo import ROWS, Holder, Network, build, image_of

EVERYWHERE = LoRAConfig(target="**", rank=1)


def pairs_for(network: Network, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, count, network.channels, *network.input_px)
    left, right = network.value_max * torch.rand(shape, generator=generator)
    return left, right


def step(model: nn.Module, *inputs: Tensor) -> None:
    """One step of AdamW on a random projection of the output."""
    optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-2, weight_decay=0.0)
    model.train()
    out = model(*inputs)
    out = torch.cat(out) if isinstance(out, tuple) else out
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).mean().backward()
    optimiser.step()
    optimiser.zero_grad()


# --- Low-rank changes of unusual layers ------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Standardises its weight in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class ReadFunctionally(nn.Module):
    """Never calls its layer, only reads the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), self.fc.weight, self.fc.bias)


class Tokens(nn.Module):
    """Self-attention over the positions; `nn.MultiheadAttention` reads `out_proj`, and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


MEAN_SHIFT = type(zoo.EDSR().sub_mean)  # a Conv2d with another `__init__`, as in EDSR and IPT

LAYERS: dict[str, tuple[Callable[[], nn.Module], str | list[str]]] = {
    "zeros": (lambda: nn.Conv2d(6, 8, 3, padding=1), "**"),
    "reflect": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), "**"),
    "replicate": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="replicate"), "**"),
    "circular": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), "**"),
    "stride": (lambda: nn.Conv2d(6, 8, 3, stride=2), "**"),
    "dilation": (lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=2), "**"),
    "same": (lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2), "**"),
    "groups": (lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2), "**"),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), "**"),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1), "**"),
    "transposed groups": (lambda: nn.ConvTranspose2d(6, 8, 3, groups=2), "**"),
    "other __init__": (lambda: nn.Sequential(nn.Conv2d(6, 3, 1), MEAN_SHIFT(-1, 1.0)), "**"),
    "standardised": (lambda: Standardised(6, 8, 3, padding=1), "**"),
    "read functionally": (ReadFunctionally, "**"),
    "attention": (Tokens, "**"),
    "attention in_proj": (Tokens, "**.in_proj_weight"),
    "attention out_proj": (Tokens, "**.out_proj"),
}

every_layer = pytest.mark.parametrize("layer", LAYERS)


def with_lora(layer: str, *, rank: int = 1) -> nn.Module:
    make, target = LAYERS[layer]
    patterns = ["layer" if target == "**" else target]
    return randomise_adapters(lowpeft.adapt(Holder(make()).eval(), LoRAConfig(target=patterns, rank=rank)), std=0.3)


@every_layer
@torch.no_grad()
def test_lora_has_an_effect_and_merging_it_changes_no_bit(layer: str) -> None:
    model, x = with_lora(layer), torch.rand(2, 3, 8, 8)
    adapted = model(x)
    with lowpeft.disabled(model):
        assert not torch.allclose(model(x), adapted, atol=1e-3)
    lowpeft.merge(model)
    assert not any(SLOT in name.split(".") for name, _ in model.named_modules())
    # torch's own linear rounds differently, without gradients too, when its weight's requires_grad flag is set.
    assert torch.equal(model.requires_grad_(False)(x), adapted)


@every_layer
def test_every_lora_tensor_gets_a_gradient(layer: str) -> None:
    model = with_lora(layer).train()
    out = model(torch.rand(2, 3, 8, 8))
    (out * torch.randn(out.shape)).mean().backward()
    assert [n for n, p in lowpeft.adapter_parameters(model) if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("layer", by_default(["reflect", "attention"], LAYERS))
@torch.no_grad()
def test_300_bf16_forwards_leave_the_base_bit_equal(layer: str) -> None:
    model = with_lora(layer).bfloat16()
    before, x = tensors(model), torch.rand(1, 3, 8, 8).bfloat16()
    with lowpeft.disabled(model):
        expected = model(x)
    for _ in range(300):
        model(x)
    assert_same_tensors(tensors(model), before)
    with lowpeft.disabled(model):
        assert torch.equal(model(x), expected)


def test_no_lora_tensor_of_ipt_is_without_a_gradient() -> None:
    model = randomise_adapters(lowpeft.adapt(build("ipt"), EVERYWHERE)).train()
    attention = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    adapted = {n for n, m in model.named_modules() if SLOT in m._modules}
    assert attention
    assert set(attention) | {f"{n}.out_proj" for n in attention} <= adapted
    out = model(pairs_for(ROWS["ipt"], 1)[0])
    (out * torch.randn(out.shape)).mean().backward()
    assert [n for n, p in lowpeft.adapter_parameters(model) if p.grad is None or not p.grad.any()] == []


def test_lora_on_swin2sr_reaches_the_weight_that_is_read_functionally() -> None:
    root = build("swin2sr")
    (x, _), target = pairs_for(ROWS["swin2sr"], 1), "layers.0.residual_group.blocks.0.attn.qkv"
    with torch.no_grad():
        before = root(x.clone())
        model = randomise_adapters(lowpeft.adapt(root, LoRAConfig(target=target, rank=2)))
        assert not torch.equal(model(x.clone()), before)
    lowpeft.check_trainable(model, x)


# --- Patterns --------------------------------------------------------------------------------------------------------


def test_a_typo_in_one_of_two_targets_is_an_error_that_names_it() -> None:
    with pytest.raises(PlanError) as refusal:
        lowpeft.adapt(build("hat"), LoRAConfig(target=["**.qkv", "**.prij"]))
    assert len(refusal.value.problems) == 1
    assert "'**.prij'" in refusal.value.problems[0]


def test_a_typo_in_a_lora_target_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(PlanError) as refusal:
        lowpeft.adapt(build("hat"), LoRAConfig(target=["**.qkv", "**.prij"]))
    assert "proj" in refusal.value.problems[0].partition("nearest")[2]


@pytest.mark.parametrize("name", ["hat", "swinir"])
def test_train_also_upsample_does_not_touch_conv_before_upsample(name: str) -> None:
    root = build(name)
    assert hasattr(root, "conv_before_upsample")
    plan = lowpeft.plan(root, "spatial", train_also=["upsample"])
    paths = {site.path for site in plan.sites if site.config.kind == "full"}
    assert paths == {n for n, m in root.named_modules() if n.startswith("upsample.") and [*m.parameters(recurse=False)]}


@pytest.mark.parametrize("name", ["hat", "swinir", "swin2sr", "edt"])
def test_stage_0_is_the_first_group_and_not_the_first_block_of_every_group(name: str) -> None:
    sites = lowpeft.plan(build(name), SpatialConfig(target="stage=0")).sites
    lead = "body.layers.0." if name == "edt" else "layers.0."
    assert len(sites) == 2
    assert all(site.path.startswith(lead) for site in sites)
    assert [site.block for site in sites] == [0, 1]


def test_every_place_of_stage_0_is_adapted_with_both_placements() -> None:
    sites = lowpeft.plan(build("hat"), SpatialConfig(target="stage=0 block=1", placement="both")).sites
    assert {site.path for site in sites} == {"layers.0.residual_group.blocks.1"}
    assert [site.attachment.port for site in sites] == ["attention", "mlp"]


# --- What moves in a frozen network ----------------------------------------------------------------------------------


def batch_norm_network() -> nn.Module:
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 3, 3, padding=1),
    ]
    return Holder(nn.Sequential(nn.Conv2d(6, 3, 1), *layers)).eval()


def test_batch_statistics_do_not_move_under_train() -> None:
    model = lowpeft.adapt(batch_norm_network(), EVERYWHERE)
    before = tensors(model)
    for _ in range(3):
        step(model, torch.rand(2, 3, 8, 8))
    assert any(name.endswith("running_mean") for name in before)
    assert_same_tensors(tensors(model), before)


def test_a_recipe_that_would_let_batch_statistics_move_is_refused_when_planned() -> None:
    """No adapter file could hold them, and `restore` could not put them back."""
    recipe = lowpeft.Recipe(name="moving", adapters=(EVERYWHERE,), freeze_statistics=False)
    with pytest.raises(PlanError, match="freeze_statistics") as refusal:
        lowpeft.adapt(batch_norm_network(), recipe)
    assert refusal.value.problems == ("layer.2",)
    lowpeft.adapt(batch_norm_network(), recipe, freeze_statistics=True)


def test_dropout_and_batch_statistics_are_those_of_eval_mode_under_train() -> None:
    model, x = lowpeft.adapt(batch_norm_network(), EVERYWHERE), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.train()(x), model.eval()(x))


def test_drop_path_is_silent_under_train() -> None:
    sizes = {"img_size": 8, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
    root = HAT(**sizes, mlp_ratio=2.0, squeeze_factor=1, num_feat=16, upscale=2, drop_path_rate=0.5)
    assert any(type(m).__name__ == "DropPath" for m in root.modules())
    x = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        assert not torch.equal(root.train()(x), root(x))
        model = lowpeft.adapt(root, "spatial").train()
        assert torch.equal(model(x), model(x))


# --- Checkpointing ---------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    model.train().zero_grad()
    out = model(*inputs)
    out = torch.cat(out) if isinstance(out, tuple) else out
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).mean().backward()
    return {name: p.grad.clone() for name, p in lowpeft.adapter_parameters(model) if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def tiny_swinir(*, use_checkpoint: bool) -> nn.Module:
    torch.manual_seed(7)
    sizes = {"img_size": 8, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
    return SwinIR(**sizes, mlp_ratio=2.0, upscale=2, upsampler="pixelshuffle", use_checkpoint=use_checkpoint).eval()


RECIPES = ["stereo", "spatial", "lora"]


# SwinIR calls torch's checkpoint without saying which implementation it wants.
@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant:UserWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("recipe", ["stereo", "spatial", EVERYWHERE], ids=RECIPES)
def test_swinir_with_its_own_checkpointing_trains_with_the_same_gradients(recipe: object) -> None:
    models = [randomise_adapters(lowpeft.adapt(tiny_swinir(use_checkpoint=c), recipe)) for c in (False, True)]
    left, right = torch.rand(2, 1, 3, 8, 12)
    inputs = (left, right) if isinstance(models[0], StereoModel) else (left,)
    plain, checkpointed = (gradients(model, *inputs) for model in models)
    assert len(plain) == len(list(lowpeft.adapter_parameters(models[0])))
    assert_same_gradients(checkpointed, plain)


class Checkpointed(nn.Module):
    """Runs a stage through torch's checkpoint."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *args: object) -> Tensor:
        return checkpoint(self.stage, *args, use_reentrant=False)


@pytest.mark.parametrize("recipe", ["stereo", "spatial", EVERYWHERE], ids=RECIPES)
def test_non_reentrant_checkpoints_around_the_stages_leave_the_gradients_alone(recipe: object) -> None:
    model = randomise_adapters(lowpeft.adapt(build("hat"), recipe))
    left, right = pairs_for(ROWS["hat"], 1)
    inputs = (left, right) if isinstance(model, StereoModel) else (left,)
    plain = gradients(model, *inputs)
    root = model.backbone if isinstance(model, StereoModel) else model
    names = [n for n, _ in lowpeft.adapter_parameters(model)]
    for number, stage in enumerate(root.layers):
        root.layers[number] = Checkpointed(stage)
    checkpointed = gradients(model, *inputs)
    assert len(checkpointed) == len(names) == len(plain)
    found = {name.replace(".stage.", ".", 1): gradient for name, gradient in checkpointed.items()}
    assert_same_gradients(found, plain)


class CutOff(nn.Module):
    """Runs a stage without gradients, as a reentrant checkpoint with a frozen input does."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *args: object) -> Tensor:
        with torch.no_grad():
            return self.stage(*args)


def test_check_trainable_names_every_tensor_that_gets_no_gradient() -> None:
    model = lowpeft.adapt(build("hat"), "spatial")
    model.layers[0] = CutOff(model.layers[0])
    with pytest.raises(PlanError) as refusal:
        lowpeft.check_trainable(model, torch.rand(1, 3, 8, 12))
    named = {problem.partition(":")[0] for problem in refusal.value.problems}
    assert named == {name for name, _ in lowpeft.adapter_parameters(model) if name.startswith("layers.0.")}
    assert len(named) == 8


# --- Copies, threads -------------------------------------------------------------------------------------------------


def test_an_averaged_model_averages_the_adapters_and_leaves_the_trained_one_alone() -> None:
    model, views = randomise_adapters(lowpeft.adapt(build("edsr"), "stereo")), pairs_for(ROWS["edsr"], 1)
    average = AveragedModel(model)
    average.update_parameters(model)
    start = {n: p.detach().clone() for n, p in lowpeft.adapter_parameters(model)}
    step(model, *views)
    average.update_parameters(model)
    end = {n: p.detach().clone() for n, p in lowpeft.adapter_parameters(model)}
    for name, parameter in lowpeft.adapter_parameters(average.module):
        torch.testing.assert_close(parameter, (start[name] + end[name]) / 2)
        assert not torch.equal(start[name], end[name])
    assert_same_tensors(dict(lowpeft.adapter_parameters(model)), end)


@pytest.mark.parametrize("name", by_default(["hat"], ["hat", "ipt", "rcan"]))
def test_two_threads_on_one_model_give_the_serial_results(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(build(name), "stereo"))
    lowpeft.adapt(model, EVERYWHERE, name="lora")
    left, right = pairs_for(ROWS[name], 8)
    views = list(zip(left.split(1), right.split(1), strict=True))

    @torch.no_grad()
    def call(pair: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(model(*pair))

    serial = [call(pair) for pair in views]
    with ThreadPoolExecutor(max_workers=2) as pool:
        threaded = list(pool.map(call, views))
    assert len({tuple(t.flatten()[:4].tolist()) for t in serial}) == 8
    assert all(torch.equal(a, b) for a, b in zip(threaded, serial, strict=True))


# --- Views and batches -----------------------------------------------------------------------------------------------

SR = by_default(
    # How views are paired is the code of `StereoModel` and of the ports: convolutions, windows and IPT's sequence.
    ("ipt", "rcan", "swinir"),
    [network.name for network in zoo.FAMILIES if network.task == "sr" and network.name not in zoo.LATER],
)


@pytest.mark.parametrize("batch", [1, 2])
def test_calling_a_stereo_adapted_backbone_itself_is_refused(batch: int) -> None:
    model = lowpeft.adapt(build("hat"), "stereo")
    with pytest.raises(PlanError, match=r"disabled\("):
        model.backbone(torch.rand(batch, 3, 8, 12))


def test_a_stereo_adapted_backbone_of_strength_0_takes_single_images() -> None:
    model, x = lowpeft.adapt(build("hat"), "stereo"), torch.rand(1, 3, 8, 12)
    lowpeft.set_strength(model, 0)
    with torch.no_grad():
        assert torch.equal(model.backbone(x), build("hat")(x))


@pytest.mark.parametrize("name", [n for n in SR if n.values != ("swin2sr_hf",)])
@torch.no_grad()
def test_permuting_the_pairs_of_a_batch_permutes_the_outputs(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(build(name), "stereo"))
    left, right = pairs_for(ROWS[name], 3)
    order, tolerance = [2, 0, 1], 1e-6 * ROWS[name].value_max
    together, permuted = model(left, right), model(left[order], right[order])
    for out, moved in zip(together, permuted, strict=True):
        torch.testing.assert_close(moved, out[order], rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", SR)
@torch.no_grad()
def test_a_pair_in_a_batch_is_the_pair_alone(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(build(name), "stereo"))
    left, right = pairs_for(ROWS[name], 3)
    together = model(left.clone(), right.clone())
    for i in range(3):
        alone = model(left[i : i + 1].clone(), right[i : i + 1].clone())
        for out, single in zip(together, alone, strict=True):
            torch.testing.assert_close(out[i : i + 1], single, rtol=1e-6, atol=2e-6 * ROWS[name].value_max)


def influence(model: nn.Module, left: Tensor, right: Tensor, *, of: int) -> tuple[Tensor, Tensor]:
    """The gradient of the left output of pair `of` with respect to all left and all right views."""
    left, right = left.clone().requires_grad_(), right.clone().requires_grad_()
    out = image_of(model(left, right)[0])[of]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((out * weights).sum(), (left, right))


@pytest.mark.parametrize("name", SR)
def test_the_other_view_counts_after_one_step_and_not_before(name: str) -> None:
    model, (left, right) = lowpeft.adapt(build(name), "stereo"), pairs_for(ROWS[name], 1)
    assert not influence(model, left, right, of=0)[1].any()
    step(model, left, right)
    assert influence(model.eval(), left, right, of=0)[1].any()


@pytest.mark.parametrize("name", SR)
def test_another_pair_never_counts(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(build(name), "stereo"))
    left, right = pairs_for(ROWS[name], 2)
    for gradient in influence(model, left, right, of=0):
        assert gradient[0].any()
        assert not gradient[1].any()


class InHalves(nn.Module):
    """Gives its network one half of the batch after the other, as `nn.DataParallel` gives each device its part."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(half) for half in x.chunk(2)])


def test_a_wrapper_that_splits_the_batch_pairs_the_right_images() -> None:
    left, right = pairs_for(ROWS["hat"], 2)
    model = randomise_adapters(lowpeft.adapt(InHalves(build("hat")), "stereo"))
    gradients_of_inputs = influence(model, left, right, of=0)
    assert [g[0].any().item() for g in gradients_of_inputs] == [True, True]
    assert [g[1].any().item() for g in gradients_of_inputs] == [False, False]


def test_a_single_image_through_the_network_inside_an_adapted_wrapper_is_refused() -> None:
    inner = build("hat")
    lowpeft.adapt(Body(inner), "stereo")
    with pytest.raises(PlanError, match=r"disabled\("):
        inner(torch.rand(1, 3, 8, 12))


@torch.no_grad()
def test_one_tensor_of_two_views_is_answered_in_the_same_form() -> None:
    model, (left, right) = randomise_adapters(lowpeft.adapt(build("edsr"), "stereo")), pairs_for(ROWS["edsr"], 2)
    out_left, out_right = model(left, right)
    assert torch.equal(model(torch.stack((left, right), 1)), torch.stack((out_left, out_right), 1))
    assert torch.equal(model(torch.cat((left, right), 1)), torch.cat((out_left, out_right), 1))


def test_views_of_different_shapes_are_refused() -> None:
    model = lowpeft.adapt(build("edsr"), "stereo")
    with pytest.raises(PlanError, match="same shape"):
        model(torch.rand(1, 3, 8, 12), torch.rand(2, 3, 8, 12))


# --- Networks as users hold them -------------------------------------------------------------------------------------


def test_a_module_that_the_user_called_lowpeft_is_refused() -> None:
    root = build("hat")
    root.layers[1].conv.add_module(SLOT, nn.Linear(1, 1))
    with pytest.raises(PlanError, match=SLOT):
        lowpeft.adapt(root, "stereo")
    assert not any(SLOT in m._modules for n, m in root.named_modules() if n != "layers.1.conv")


class Body(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "body": Body,
    "body.body": lambda network: Body(Body(network)),
    "module": nn.DataParallel,
}


@pytest.mark.parametrize("prefix", [pytest.param(p, marks=[pytest.mark.slow] * ("." in p)) for p in WRAPPERS])
@pytest.mark.parametrize("name", by_default(["swinir"], ["hat", "swinir", "ipt"]))
@torch.no_grad()
def test_a_network_inside_another_module_is_recognised(name: str, prefix: str) -> None:
    wrapped = WRAPPERS[prefix](build(name)).eval()
    plan, bare = lowpeft.plan(wrapped, "stereo"), lowpeft.plan(build(name), "stereo")
    assert plan.family == name
    lead = "" if isinstance(wrapped, nn.DataParallel) else f"{prefix}."  # torch's own wrappers are seen through
    assert [site.path for site in plan.sites] == [f"{lead}{site.path}" for site in bare.sites]
    x = torch.cat(pairs_for(ROWS[name], 1))
    expected = wrapped(x.clone())
    assert torch.equal(torch.cat(lowpeft.adapt(wrapped, "stereo")(x[:1], x[1:])), expected)


def test_an_unmarked_fork_of_hats_block_is_refused_by_name() -> None:
    """A published fork masks the attention of unshifted blocks too; its adapted forward would be another network."""
    root = build("hat")
    base = type(root.layers[0].residual_group.blocks[0])

    class HAB(base):  # the fork keeps the name
        def forward(self, x: Tensor, x_size: tuple[int, int], rpi_sa: Tensor, attn_mask: Tensor) -> Tensor:
            real = self.attn.forward
            self.attn.forward = lambda windows, rpi, mask=None: real(windows, rpi=rpi, mask=attn_mask)
            try:
                return super().forward(x, x_size, rpi_sa, attn_mask)
            finally:
                del self.attn.forward

    for layer in root.layers:
        for block in layer.residual_group.blocks:
            block.__class__ = HAB
    classes = [type(m) for m in root.modules()]
    with pytest.raises(PlanError, match=r"HAB\).* hat\.hab"):
        lowpeft.adapt(root, "stereo")
    assert [type(m) for m in root.modules()] == classes
    assert len(lowpeft.plan(root, SpatialConfig(target="layers.**.blocks.*.mlp")).sites) == 8


@pytest.mark.parametrize("recipe", ["stereo", "spatial"])
def test_a_forward_that_is_set_on_the_instance_of_a_site_is_refused(recipe: str) -> None:
    """Some tools replace `module.forward` on the instance, which would hide the adapted class's forward."""
    root = build("swinir")
    sites = [site.path for site in lowpeft.plan(root, recipe).sites]
    for path in sites:
        module = root.get_submodule(path)
        module.forward = module.forward
    with pytest.raises(PlanError, match="`forward`"):
        lowpeft.adapt(root, recipe)
    assert not any(SLOT in name.split(".") for name, _ in root.named_modules())


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 3, 3, padding=1)
        self.two = nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


@torch.no_grad()
def test_merging_into_a_shared_weight_is_refused() -> None:
    model, x = randomise_adapters(lowpeft.adapt(Tied().eval(), EVERYWHERE)), torch.rand(1, 3, 8, 8)
    adapted = model(x)
    with pytest.raises(PlanError, match="shared"):
        lowpeft.merge(model)
    assert torch.equal(model(x), adapted)


@pytest.mark.parametrize("name", by_default(["nafnet"], ["hat", "rcan", "nafnet", "edsr"]))
@torch.no_grad()
def test_a_new_adapter_changes_no_bit_of_a_channels_last_network(name: str) -> None:
    x = torch.cat(pairs_for(ROWS[name], 1)).contiguous(memory_format=torch.channels_last)
    expected = build(name).to(memory_format=torch.channels_last)(x.clone())
    model = lowpeft.adapt(build(name).to(memory_format=torch.channels_last), "stereo")
    model.to(memory_format=torch.channels_last)
    assert torch.equal(torch.cat(model(x[:1], x[1:])), expected)


def test_adapting_around_an_adapted_network_is_refused() -> None:
    outer = Body(lowpeft.adapt(build("edsr"), "spatial", name="inner"))
    with pytest.raises(PlanError, match=r"body .*restore"):
        lowpeft.adapt(outer, "spatial", name="outer")
    assert list(lowpeft.adapter_parameters(outer, name="inner"))


class Pair(NamedTuple):
    """What a stage returns: features and something else."""

    features: Tensor
    mean: Tensor


class PairStage(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Pair:
        return Pair(x + self.conv(x), x.mean())


class PairNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.ModuleList(PairStage(8) for _ in range(4))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for stage in self.stages:
            x = stage(x).features
        return self.tail(x)


@torch.no_grad()
def test_a_stage_that_returns_a_named_tuple_keeps_its_type() -> None:
    root, x = PairNetwork().eval(), torch.rand(2, 3, 8, 12)
    expected = root(x)
    model = lowpeft.adapt(root, "stereo")
    assert torch.equal(torch.cat(model(x[:1], x[1:])), expected)
    assert type(root.stages[1](torch.rand(2, 8, 4, 4))) is Pair


# --- Third parties ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GainConfig(AdapterConfig):
    """A gain per channel."""

    kind: ClassVar[str] = "gain"

    start: float = 0.0


class Gain(FeatureAdapter):
    """x + gain * x."""

    kind = "gain"

    def __init__(self, channels: int, config: GainConfig) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def delta(self, features: Features) -> Tensor:
        return features.from_channels_last(features.channels_last * self.gain)


@dataclass(frozen=True, kw_only=True)
class ShiftConfig(AdapterConfig):
    """One number that is added to a weight."""

    kind: ClassVar[str] = "shift"


class Shift(WeightAdapter):
    """W + a number."""

    kind = "shift"

    def __init__(self, layer: Layer, config: ShiftConfig) -> None:
        super().__init__()
        self.shape = layer.shape("weight")
        self.number = nn.Parameter(torch.zeros(()))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        return (("weight",),) if isinstance(module, nn.Conv2d) else ()

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"weight": self.number.expand(self.shape)}


class ForeignBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.foreign_conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.foreign_conv(x)


class Foreign(nn.Module):
    """A network that lowpeft does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign_head = nn.Conv2d(3, 8, 3, padding=1)
        self.foreign_blocks = nn.Sequential(*(ForeignBlock(8) for _ in range(4)))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.foreign_blocks(self.foreign_head(x)))


FOREIGN = Family(
    name="foreign",
    title="Foreign",
    signature=(("foreign_head", "foreign_blocks.*.foreign_conv"),),
    places=tuple(
        Place(name=name, path="foreign_blocks.{stage}.foreign_conv", channels="weight", layout=Layout.NCHW)
        for name in ("attention", "stage")
    ),
)


def foreign() -> nn.Module:
    torch.manual_seed(9)
    return Foreign().eval()


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("config", "module"), [(GainConfig, Gain), (ShiftConfig, Shift)], ids=["feature kind", "weight kind"]
)
def test_a_kind_of_a_third_party_works_end_to_end(config: type, module: type, tmp_path: Path) -> None:
    lowpeft.register_adapter(config, module)
    recipe = tmp_path / "third.toml"
    recipe.write_text(f'schema = 1\nname = "third"\n[[adapter]]\nkind = "{config.kind}"\ntarget = "layers.*.conv"\n')
    x, root = torch.rand(1, 3, 8, 12), build("hat")
    with torch.no_grad():
        expected = root(x)
        model = lowpeft.adapt(root, recipe)
        assert torch.equal(model(x), expected)
    step(model, x)
    model.eval()
    with torch.no_grad():
        trained = model(x)
        assert not torch.equal(trained, expected)
        lowpeft.save_adapter(model, tmp_path / "saved")
        assert torch.equal(lowpeft.load_adapter(build("hat"), tmp_path / "saved")(x), trained)
        assert lowpeft.summary(model).by_kind.keys() == {config.kind}
        assert torch.equal(lowpeft.restore(model)(x), expected)


@pytest.mark.usefixtures("registries")
def test_a_family_of_a_third_party_works_end_to_end(tmp_path: Path) -> None:
    lowpeft.register_family(FOREIGN)
    plan = lowpeft.plan(foreign(), "stereo")
    assert plan.family == "foreign"
    stereo_sites = [site.path for site in plan.sites if site.config.kind == "stereo"]
    assert stereo_sites == ["foreign_blocks.1.foreign_conv", "foreign_blocks.3.foreign_conv"]
    left, right = torch.rand(2, 1, 3, 8, 12)
    with torch.no_grad():
        expected = foreign()(torch.cat((left, right)))
        model = lowpeft.adapt(foreign(), "stereo")
        assert torch.equal(torch.cat(model(left, right)), expected)
    step(model, left, right)
    lowpeft.save_adapter(model.eval(), tmp_path / "saved")
    loaded = lowpeft.load_adapter(foreign(), tmp_path / "saved")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded(left, right), model(left, right), strict=True))


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("what", ["kind", "family"])
def test_a_name_is_registered_once(what: str) -> None:
    register: Callable[[], object] = {
        "kind": lambda: lowpeft.register_adapter(GainConfig, Gain),
        "family": lambda: lowpeft.register_family(FOREIGN),
    }[what]
    register()
    with pytest.raises(PlanError, match=r"taken|already"):
        register()


@pytest.mark.usefixtures("registries")
def test_two_families_that_fit_one_network_are_an_error() -> None:
    lowpeft.register_family(FOREIGN)
    lowpeft.register_family(dataclasses.replace(FOREIGN, name="foreign_too"))
    with pytest.raises(PlanError, match="foreign, foreign_too"):
        lowpeft.adapt(foreign(), "stereo")


def test_the_tables_are_as_before() -> None:
    assert "gain" not in {kind.name for kind in lowpeft.kinds.kinds()}
    assert "foreign" not in {family.name for family in lowpeft.families.families()}


# --- Mixed precision, compilation, export, data parallelism ----------------------------------------------------------


@pytest.mark.parametrize("name", by_default(["edsr", "swinir"], ["hat", "edsr", "swinir", "ipt"]))
@pytest.mark.parametrize("recipe", ["stereo", EVERYWHERE], ids=["stereo", "lora"])
def test_autocast_to_bf16_trains_and_keeps_adapters_in_fp32(name: str, recipe: object) -> None:
    model, (left, right) = randomise_adapters(lowpeft.adapt(build(name), recipe)).train(), pairs_for(ROWS[name], 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(left, right)[0] if isinstance(model, StereoModel) else model(left)
        loss = (out * torch.randn(out.shape)).float().mean()
    loss.backward()
    for parameter_name, parameter in lowpeft.adapter_parameters(model):
        assert parameter.dtype == torch.float32, parameter_name
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.dtype == torch.float32, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("recipe", ["stereo", EVERYWHERE], ids=["stereo", "lora"])
def test_adapters_of_a_bf16_base_are_fp32_and_train(recipe: object) -> None:
    model = lowpeft.adapt(build("hat").bfloat16(), recipe)
    left, right = (view.bfloat16() for view in pairs_for(ROWS["hat"], 1))
    inputs = (left, right) if isinstance(model, StereoModel) else (left,)
    assert {p.dtype for _, p in lowpeft.adapter_parameters(model)} == {torch.float32}
    found = gradients(randomise_adapters(model), *inputs)
    assert found.keys() == {name for name, _ in lowpeft.adapter_parameters(model)}
    assert {g.dtype for g in found.values()} == {torch.float32}


def test_a_new_adapter_changes_no_bit_under_autocast() -> None:
    left, right = pairs_for(ROWS["hat"], 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = build("hat")(torch.cat((left, right)))
        assert torch.equal(torch.cat(lowpeft.adapt(build("hat"), "stereo")(left, right)), expected)


GRAPHS = {"hat": "stereo", "swinir": "stereo", "edt": "stereo", "edsr": EVERYWHERE, "ipt": EVERYWHERE}
# Inductor and the exporter warn of their own inner workings.
graphs = pytest.mark.filterwarnings("ignore")
one_by_default = pytest.mark.parametrize(
    "name", [name if name == "edsr" else pytest.param(name, marks=pytest.mark.slow) for name in GRAPHS]
)


def images_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def farthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.slow
@graphs
@pytest.mark.parametrize("name", GRAPHS)
def test_a_compiled_model_is_one_graph_and_computes_the_same(name: str) -> None:
    torch.use_deterministic_algorithms(False)  # a guard of the compiler, not a matter of numbers on the CPU
    torch._dynamo.reset()
    model, (left, right) = randomise_adapters(lowpeft.adapt(build(name), GRAPHS[name])), pairs_for(ROWS[name], 1)
    inputs = (left, right) if isinstance(model, StereoModel) else (left,)
    with torch.no_grad():
        eager, compiled = model(*inputs), torch.compile(model, fullgraph=True)(*inputs)
        torch._dynamo.reset()
        exact = model.double()(*(view.double() for view in inputs))
    rounding, found = (max(map(farthest, images_of(one), images_of(exact))) for one in (eager, compiled))
    assert found <= 4 * rounding


@graphs
@one_by_default
@pytest.mark.slow
def test_a_compiled_model_trains_with_the_same_gradients(name: str) -> None:
    torch._dynamo.reset()
    model, (left, right) = randomise_adapters(lowpeft.adapt(build(name), GRAPHS[name])), pairs_for(ROWS[name], 1)
    inputs = (left, right) if isinstance(model, StereoModel) else (left,)
    eager = gradients(model, *inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    out = compiled(*inputs)
    out = torch.cat(out) if isinstance(out, tuple) else out
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).mean().backward()
    found = {n: p.grad for n, p in lowpeft.adapter_parameters(model)}
    for parameter_name, gradient in eager.items():
        torch.testing.assert_close(found[parameter_name], gradient, rtol=1e-4, atol=1e-5, msg=parameter_name)


@graphs
@one_by_default
def test_an_exported_model_computes_the_same(name: str) -> None:
    model, (left, right) = randomise_adapters(lowpeft.adapt(build(name), GRAPHS[name])), pairs_for(ROWS[name], 1)
    inputs = (left, right) if isinstance(model, StereoModel) else (left,)
    with torch.no_grad():
        exported = torch.export.export(model, inputs).module()
        torch.testing.assert_close(exported(*inputs), model(*inputs), rtol=1e-5, atol=1e-5 * ROWS[name].value_max)


DISTRIBUTED = """
import sys

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import lowpeft
import zoo

torch.set_num_threads(1)
rank, store, name, recipe = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
network = next(n for n in zoo.FAMILIES if n.name == name)
torch.manual_seed(0)
config = lowpeft.LoRAConfig(target="**", rank=1) if recipe == "lora" else recipe
model = lowpeft.adapt(network.build(), config).train()
ddp = DistributedDataParallel(model)
optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(ddp)], lr=1e-2)
torch.manual_seed(rank)
for _ in range(3):
    views = [network.value_max * torch.rand(1, network.channels, *network.input_px) for _ in range(2)]
    out = ddp(*views) if recipe == "stereo" else ddp(views[0])
    out = torch.cat(out) if isinstance(out, tuple) else out
    out.square().mean().backward()
    optimiser.step()
    optimiser.zero_grad()
total = sum(p.detach().double().sum() for _, p in lowpeft.adapter_parameters(ddp))
both = [torch.zeros_like(total) for _ in range(2)]
distributed.all_gather(both, total)
assert torch.equal(*both), both
distributed.destroy_process_group()
"""


@pytest.mark.slow  # as are the runs in two processes of tests/restoration/test_train_processes.py
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("edsr", "stereo"),
        ("hat", "stereo"),
        ("ipt", "lora"),
    ],
)
def test_two_processes_train_together_without_unused_parameters(name: str, recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISTRIBUTED]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), name, recipe],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


def test_a_copy_of_an_adapted_network_can_be_adapted_and_restored_by_itself() -> None:
    model = lowpeft.adapt(build("hat"), "spatial")
    twin = copy.deepcopy(model)
    lowpeft.restore(twin)
    assert any(SLOT in m._modules for m in model.modules())
    assert not any(SLOT in m._modules for m in twin.modules())
