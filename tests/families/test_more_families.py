"""Families with attention and MLP in each block, and networks of two views: sites, identity at the start, gradients."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import LoRAConfig, PlanError, SpatialConfig, StereoConfig, StereoModel, describe
from lowpeft.families import find_places, recognise
from states import randomise_adapters
from zoo import image_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

BLOCKS = {
    "atd": 4 * 2,
    "craft": 4 * 3,
    "dat": 4 * 2,
    "dctlsa": 6 * 4,
    "ditn": 4 * 2,
    "hitsir": 4 * 2,
    "hitsng": 4 * 2,
    "hitsrf": 4 * 2,
    "restormer": 8 * 2,
    "timm_swin_features": 4 * 2,
    "timm_swin_v2_features": 4 * 2,
    "uformer": 9 * 2,
}
"""Blocks of attention and an MLP that see the whole image, groups times blocks in each; DITN's ITLs see patches."""
STAGES = {**dict.fromkeys(BLOCKS, 4), "dctlsa": 6, "ditn": 8, "restormer": 8, "uformer": 9}

NAMES = sorted(BLOCKS)
FIRST = {"dat", "restormer"}
"""Windows of tokens and a U-shape of images: the others are of these sorts, or hold their shortcut in the block."""
PLACEMENTS = ("attention", "mlp", "both", "parallel", "parallel_both")


@functools.cache
def pristine(name: str) -> lowpeft.Backbone:
    """The network with its facts: read it, never write it."""
    return describe(zoo.build(name))


def fresh(name: str) -> lowpeft.Backbone:
    return copy.deepcopy(pristine(name))


@functools.cache
def expected(name: str) -> Tensor:
    with torch.no_grad():
        return image_of(pristine(name).module(zoo.image(name, 2)))


def run(model: nn.Module, name: str) -> Tensor:
    x = zoo.image(name, 2)
    if isinstance(model, StereoModel):
        return torch.cat([image_of(view) for view in model(x[:1], x[1:])])
    return image_of(model(x))


def without_gradient(model: nn.Module, name: str) -> list[str]:
    """The adapter parameters that a training step would not move."""
    out = run(randomise_adapters(model, std=0.05).train(), name)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).mean().backward()
    return [n for n, p in lowpeft.adapter_parameters(model) if p.grad is None or not p.grad.any()]


def test_every_row_is_counted() -> None:
    assert set(BLOCKS) <= zoo.LATER


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FIRST)) for n in NAMES])
def test_adapters_at_all_placements_start_as_the_base_and_are_trained(name: str) -> None:
    model = lowpeft.adapt(fresh(name), [SpatialConfig(placement="both"), StereoConfig(every=1)])
    model = lowpeft.adapt(model, SpatialConfig(placement="parallel"), name="beside")
    with torch.no_grad():
        assert torch.equal(run(model, name), expected(name))
    assert without_gradient(model, name) == []


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_spatial_adapters_of_one_placement_start_as_the_base_and_are_trained(name: str, placement: str) -> None:
    model = lowpeft.adapt(fresh(name), SpatialConfig(placement=placement))
    with torch.no_grad():
        assert torch.equal(run(model, name), expected(name))
    assert without_gradient(model, name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_stereo_adapters_start_as_the_base_and_are_trained(name: str) -> None:
    model = lowpeft.adapt(fresh(name), "stereo")
    with torch.no_grad():
        assert torch.equal(run(model, name), expected(name))
    assert without_gradient(model, name) == []


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_site_for_every_block_and_stage(name: str) -> None:
    root = pristine(name).module
    found = recognise(root)
    assert found is not None
    counts = {p: len(find_places(root, found, p)) for p in ("attention", "mlp", "parallel", "parallel_attention")}
    assert counts == dict.fromkeys(counts, BLOCKS[name])
    assert len(find_places(root, found, "stage")) == STAGES[name]


def stages_and_blocks(name: str, place: str = "attention") -> list[tuple[int | None, int | None, str]]:
    root = pristine(name).module
    found = recognise(root)
    assert found is not None
    return [(p.stage, p.block, p.path) for p in find_places(root, found, place)]


def test_blocks_of_dctlsa_are_counted_through() -> None:
    found = [(stage, block) for stage, block, _ in stages_and_blocks("dctlsa")]
    assert found == [(stage, block) for stage in range(6) for block in range(4)]
    assert stages_and_blocks("dctlsa")[-1][2] == "B6.body.1.transformer_body.0.blocks.1"


def test_the_two_sorts_of_blocks_of_craft_share_their_stages() -> None:
    found = stages_and_blocks("craft")
    assert found[:3] == [
        (0, 0, "layers.0.residual_group.srwa_blocks.0"),
        (0, 1, "layers.0.residual_group.srwa_blocks.1"),
        (0, 2, "layers.0.residual_group.hf_blocks.0.attn"),
    ]
    assert {(stage, path) for stage, _, path in stages_and_blocks("craft", "stage")} == {
        (i, f"layers.{i}.conv") for i in range(4)
    }
    plan = lowpeft.plan(pristine("craft"), SpatialConfig(target="stage=1 block=-1"))
    assert [site.path for site in plan.sites] == ["layers.1.residual_group.hf_blocks.0.attn"]


def test_stages_of_ditn_are_its_layers_of_whole_images() -> None:
    paths = [(stage, path) for stage, _, path in stages_and_blocks("ditn", "stage")]
    assert paths == [(2 * i + j, f"UFONE.{i}.SALs.{j}") for i in range(4) for j in range(2)]


@pytest.mark.parametrize("name", ["restormer", "uformer"])
@torch.no_grad()
def test_stages_of_u_shapes_come_in_the_order_in_which_they_run(name: str) -> None:
    root, order = fresh(name).module, []
    paths = [path for _, _, path in stages_and_blocks(name, "stage")]
    for path in paths:
        root.get_submodule(path).register_forward_hook(lambda *_, path=path: order.append(path))
    root(zoo.image(name))
    assert order == paths


@torch.no_grad()
def test_a_refined_dictionary_of_atd_is_the_base_s() -> None:
    """The check of blocks compares the first output alone."""
    root, seen = fresh("atd").module, []
    layers = [root.get_submodule(path) for _, _, path in stages_and_blocks("atd")]
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    run(root, "atd")
    base = list(seen)
    lowpeft.adapt(root, SpatialConfig())
    seen.clear()  # of what copies of the network were tried with
    run(root, "atd")
    assert len(base) == len(layers)
    assert all(torch.equal(a, b) for a, b in zip(base, seen, strict=True))


def test_a_fork_of_the_shifted_blocks_of_craft_is_refused() -> None:
    """They differ from the others by a list."""
    root = fresh("craft").module
    for i in range(4):
        block = root.get_submodule(f"layers.{i}.residual_group.srwa_blocks.1")
        base = type(block)

        def forward(self: nn.Module, *args: object, _base: type = base) -> Tensor:
            return 1.01 * _base.forward(self, *args)

        block.__class__ = type(base.__name__, (base,), {"forward": forward})
    with pytest.raises(PlanError, match=r"layers\.0\.residual_group\.srwa_blocks\.1 .*SRWAB.* craft\.srwab"):
        lowpeft.plan(root, SpatialConfig())


# --- Networks of two views -------------------------------------------------------------------------------------------

TWO = [network.name for network in zoo.TWO_VIEWS]


@pytest.mark.parametrize("name", TWO)
def test_a_network_of_two_views_takes_six_channels(name: str) -> None:
    found = pristine(name)
    assert (found.family, found.scale, found.channels) == (name, 2, 6)


@pytest.mark.parametrize(
    "config", [*(SpatialConfig(placement=p) for p in PLACEMENTS), LoRAConfig(target="**")], ids=str
)
@pytest.mark.parametrize("name", TWO)
def test_adapters_on_a_network_of_two_views_start_as_the_base_and_are_trained(name: str, config: object) -> None:
    model = lowpeft.adapt(fresh(name), config)
    with torch.no_grad():
        assert torch.equal(run(model, name), expected(name))
    assert without_gradient(model, name) == []


@pytest.mark.parametrize("name", TWO)
def test_blocks_of_a_network_of_two_views_are_sites(name: str) -> None:
    assert [(stage, block, path) for stage, block, path in stages_and_blocks(name, "mlp")] == [
        (0, i, f"body.{i}.module.blk") for i in range(4)
    ]


@pytest.mark.parametrize("name", TWO)
@torch.no_grad()
def test_an_adapter_of_a_network_of_two_views_acts_on_both(name: str) -> None:
    model = randomise_adapters(lowpeft.adapt(fresh(name), SpatialConfig(target="block=-1")))
    change = (run(model, name) - expected(name)).abs().amax((0, 2, 3))
    assert change[:3].any()
    assert change[3:].any()


@pytest.mark.parametrize("name", TWO)
def test_a_network_of_two_views_has_no_place_for_stereo_adapters(name: str) -> None:
    with pytest.raises(PlanError, match="has no place 'stage'"):
        lowpeft.adapt(fresh(name), "stereo")
