"""Swin2SR in the official layout and that of transformers: weights and adapters, both ways."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.Swin2SR import Swin2SR
from torch import Tensor, nn
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

import lowpeft
from lowpeft import AdapterError, FullConfig, LoRAConfig, PlanError, SpatialConfig, StereoConfig
from lowpeft.backbones.swin2sr import ROWS, convert_adapter, swin2sr_from_transformers, swin2sr_to_transformers
from lowpeft.core.observation.fingerprint import OTHER_WEIGHTS, fingerprint
from states import assert_same_tensors, tensors
from tiers import by_default
from zoo import image_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures")

OFFICIAL, TRANSFORMERS = "official", "transformers"
UPSAMPLERS = [
    ("pixelshuffle", 2),
    ("pixelshuffle", 3),
    ("pixelshuffle", 8),
    ("pixelshuffle_aux", 4),
    ("pixelshuffledirect", 2),
    ("pixelshuffledirect", 3),
    ("nearest+conv", 4),
    ("", 1),
]
MEAN_IN_ITS_TAIL = {"pixelshuffle_aux", ""}
"""Upsamplers for which transformers does not subtract the mean from the image that its tail uses."""

SIZES = {"embed_dim": 12, "window_size": 4, "mlp_ratio": 2.0, "depths": [2, 2], "num_heads": [2, 3]}
both_ways = pytest.mark.parametrize("made_on", [OFFICIAL, TRANSFORMERS])
# Recipes convert through one table, read in either direction: adapters go one way by default, and there and back.
one_way = pytest.mark.parametrize("made_on", by_default([OFFICIAL], [OFFICIAL, TRANSFORMERS]))


def randomised(network: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network.eval()


def official(upsampler: str = "pixelshuffle", upscale: int = 2, seed: int = 0, **sizes: object) -> nn.Module:
    network = Swin2SR(**{**SIZES, "img_size": 8, **sizes}, upsampler=upsampler, upscale=upscale)
    return randomised(network, seed)


def of_transformers(upsampler: str = "pixelshuffle", upscale: int = 2, seed: int = 1, **sizes: object) -> nn.Module:
    settings = {**SIZES, "image_size": 8, **sizes, "upsampler": upsampler, "upscale": upscale}
    if "in_chans" in settings:
        settings["num_channels"] = settings["num_channels_out"] = settings.pop("in_chans")
    return randomised(Swin2SRForImageSuperResolution(Swin2SRConfig(**settings)), seed)


BUILD = {OFFICIAL: official, TRANSFORMERS: of_transformers}


def copy_weights(source: nn.Module, target: nn.Module) -> nn.Module:
    """Put the weights of one layout into a network of the other; only buffers of the target may stay its own."""
    if isinstance(source, Swin2SR):
        target.load_state_dict(swin2sr_to_transformers(source.state_dict()))
    else:
        left = target.load_state_dict(swin2sr_from_transformers(source.state_dict()), strict=False)
        assert left.unexpected_keys == []
        assert set(left.missing_keys) <= {name for name, _ in target.named_buffers()}
    return target


def pair(made_on: str, **settings: object) -> tuple[nn.Module, nn.Module]:
    """A network of that layout, and one of the other with the same weights."""
    other = OFFICIAL if made_on == TRANSFORMERS else TRANSFORMERS
    source = BUILD[made_on](**settings)
    return source, copy_weights(source, BUILD[other](**settings))


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module, channels: int = 3) -> float:
    x = torch.rand(2, channels, 8, 12)
    return (image_of(a(x)) - image_of(b(x))).abs().max().item()


def without_mean(network: nn.Module) -> nn.Module:
    holder = network if isinstance(network, Swin2SR) else network.swin2sr
    holder.mean = torch.zeros_like(holder.mean)
    return network


# --- Weights ---------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(("upsampler", "upscale"), UPSAMPLERS)
def test_converted_weights_give_the_same_images(made_on: str, upsampler: str, upscale: int) -> None:
    source, target = pair(made_on, upsampler=upsampler, upscale=upscale)
    if upsampler in MEAN_IN_ITS_TAIL:
        assert difference(source, target) > 1e-3  # when this fails, transformers has changed: see the docstring
        source, target = without_mean(source), without_mean(target)
    assert difference(source, target) < 1e-5


@both_ways
@pytest.mark.parametrize("sizes", [{"qkv_bias": False}, {"in_chans": 1}], ids=str)
def test_networks_without_biases_or_colours_convert(made_on: str, sizes: dict[str, object]) -> None:
    source, target = pair(made_on, **sizes)
    assert difference(source, target, channels=sizes.get("in_chans", 3)) < 1e-5


@pytest.mark.parametrize(("upsampler", "upscale"), UPSAMPLERS)
def test_there_and_back_gives_every_parameter_bit_for_bit(upsampler: str, upscale: int) -> None:
    network = official(upsampler, upscale)
    back = swin2sr_from_transformers(swin2sr_to_transformers(network.state_dict()))
    assert_same_tensors(back, dict(network.named_parameters()))
    other = of_transformers(upsampler, upscale)
    back = swin2sr_to_transformers(swin2sr_from_transformers(other.state_dict()))
    assert_same_tensors(back, dict(other.named_parameters()))


def test_every_row_of_the_table_is_in_some_network() -> None:
    """No row is left over from another version of either library."""
    rows = {tuple(template.replace("#", "0").replace("*", "weight") for template in row) for row in ROWS}
    networks = [(official(u, s).state_dict(), of_transformers(u, s).state_dict()) for u, s in UPSAMPLERS]
    for side in (0, 1):
        used = set().union(*(states[side] for states in networks))
        assert {row[side] for row in rows} - used == set()


def test_weights_of_other_sizes_of_image_convert() -> None:
    """Masks depend on the size that a network was built for, so they are left behind."""
    source, target = official(img_size=16), of_transformers()
    assert any("attn_mask" in key for key in source.state_dict())
    assert difference(copy_weights(source, target), source) < 1e-5


def test_buffers_that_other_versions_save_are_dropped() -> None:
    network = of_transformers()
    state = {**dict(network.named_buffers()), **network.state_dict()}
    assert "swin2sr.mean" in state
    assert swin2sr_from_transformers(state).keys() == dict(official().named_parameters()).keys()


def test_converted_weights_can_be_written_to_safetensors(tmp_path: Path) -> None:
    save_file(swin2sr_to_transformers(official().state_dict()), tmp_path / "weights.safetensors")
    save_file(swin2sr_from_transformers(of_transformers().state_dict()), tmp_path / "weights.safetensors")


def test_all_unknown_keys_are_listed_in_one_error() -> None:
    state = {**official().state_dict(), "absolute_pos_embed": torch.zeros(1), "extra.weight": torch.zeros(1)}
    with pytest.raises(AdapterError) as caught:
        swin2sr_to_transformers(state)
    assert caught.value.problems == ("unknown: absolute_pos_embed", "unknown: extra.weight")


@pytest.mark.parametrize(
    ("convert", "network"),
    [
        (swin2sr_to_transformers, of_transformers),
        (swin2sr_from_transformers, official),
        (swin2sr_to_transformers, partial(official, resi_connection="3conv")),
        (swin2sr_from_transformers, partial(of_transformers, resi_connection="3conv")),
        (swin2sr_to_transformers, partial(official, "pixelshuffle_hf")),
    ],
    ids=["to, is", "from, is", "to, 3conv", "from, 3conv", "to, hf"],
)
def test_networks_of_one_layout_only_are_refused(convert: object, network: object) -> None:
    with pytest.raises(AdapterError) as caught:
        convert(network().state_dict())
    assert caught.value.problems
    assert all(problem.startswith("unknown: ") for problem in caught.value.problems)


def test_two_keys_that_would_become_one_are_refused() -> None:
    state = {**of_transformers("pixelshuffle").state_dict(), **of_transformers("", 1).state_dict()}
    with pytest.raises(AdapterError) as caught:
        swin2sr_from_transformers(state)
    assert set(caught.value.problems) == {"unknown: final_convolution.weight", "unknown: final_convolution.bias"}


def test_a_weight_that_lacks_a_part_is_refused() -> None:
    state = of_transformers().state_dict()
    lead = "swin2sr.encoder.stages.1.layers.0.attention.self"
    del state[f"{lead}.key.weight"]
    with pytest.raises(AdapterError) as caught:
        swin2sr_from_transformers(state)
    qkv = "layers.1.residual_group.blocks.0.attn.qkv.weight"
    assert caught.value.problems == (f"missing: {lead}.key.weight, a part of {qkv}",)


def test_a_weight_that_is_not_three_parts_is_refused() -> None:
    key = "layers.0.residual_group.blocks.0.attn.qkv.weight"
    with pytest.raises(AdapterError, match=rf"{key} of shape \(35, 12\)"):
        swin2sr_to_transformers({**official().state_dict(), key: torch.zeros(35, 12)})
    lead = "swin2sr.encoder.stages.1.layers.0.attention.self"
    with pytest.raises(AdapterError, match=f"{lead}.key.weight, .* of layers.1.*qkv.weight"):
        swin2sr_from_transformers({**of_transformers().state_dict(), f"{lead}.key.weight": torch.zeros(11, 12)})


# --- Adapters --------------------------------------------------------------------------------------------------------

NORM_AND_PROJECTION = {
    OFFICIAL: ["norm", "patch_embed.proj", "**.attn.proj", "**.mlp.fc1"],
    TRANSFORMERS: [
        "swin2sr.layernorm",
        "**.patch_embeddings.projection",
        "**.attention.output.dense",
        "**.inter*.dense",
    ],
}
WEIGHTS = {
    OFFICIAL: ["conv_*", "**.cpb_mlp.*", "**.attn.proj", "**.mlp.fc*"],
    TRANSFORMERS: ["**.*convolution*", "**.continuous_position_bias_mlp.*", "**.dense"],
}
BIASES = {
    OFFICIAL: ["**.q_bias", "**.logit_scale", "layers.*.conv", "**.norm1"],
    TRANSFORMERS: ["**.query.bias", "**.logit_scale", "swin2sr.encoder.stages.*.conv", "**.layernorm_before"],
}
RECIPES = {
    "stereo": lambda layout: "stereo",
    "stereo everywhere": lambda layout: [SpatialConfig(placement="both", reduction=2), StereoConfig(every=1)],
    "beside the mlp": lambda layout: SpatialConfig(placement="parallel"),
    "spatial, named": lambda layout: SpatialConfig(target=NORM_AND_PROJECTION[layout]),
    "lora": lambda layout: LoRAConfig(target=WEIGHTS[layout], rank=2),
    "full": lambda layout: FullConfig(target=BIASES[layout]),
}
every_recipe = pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("stereo", "beside the mlp"))) for name in RECIPES],
)


def trained(network: nn.Module, recipe: object) -> nn.Module:
    """The network with adapters, all of them with random values."""
    adapted = lowpeft.adapt(network, recipe)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(adapted):
            parameter.normal_(std=0.1)
    return adapted


@torch.no_grad()
def images(model: nn.Module) -> Tensor:
    """What the model makes of two fixed images."""
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(3))
    if isinstance(model, lowpeft.StereoModel):
        return torch.cat([image_of(view) for view in model(x[:1], x[1:])])
    return image_of(model(x))


def saved(made_on: str, recipe: object, folder: Path) -> tuple[nn.Module, nn.Module]:
    """A trained adapter in that folder; the model, and a network of the other layout with its base's weights."""
    source, target = pair(made_on)
    adapted = trained(source, recipe)
    lowpeft.save_adapter(adapted, folder, facts={"data": "none"})
    return adapted, target


@one_way
@every_recipe
def test_a_converted_adapter_gives_the_same_images(made_on: str, recipe: str, tmp_path: Path) -> None:
    adapted, target = saved(made_on, RECIPES[recipe](made_on), tmp_path / "a")
    before = images(target)
    assert convert_adapter(tmp_path / "a", tmp_path / "b", target) == tmp_path / "b"
    found = images(lowpeft.load_adapter(target, tmp_path / "b"))
    torch.testing.assert_close(found, images(adapted), rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


@one_way
@every_recipe
def test_an_adapter_converted_there_and_back_is_the_first(made_on: str, recipe: str, tmp_path: Path) -> None:
    adapted, target = saved(made_on, RECIPES[recipe](made_on), tmp_path)
    first = lowpeft.read_adapter(tmp_path)
    convert_adapter(tmp_path, tmp_path, target)
    convert_adapter(tmp_path, tmp_path, adapted)  # an adapted base will do
    last = lowpeft.read_adapter(tmp_path)
    assert_same_tensors(last.tensors, first.tensors)
    assert (set(last.sites), last.recipe, last.base) == (set(first.sites), first.recipe, first.base)


@both_ways
def test_a_converted_adapter_is_that_of_its_new_base(made_on: str, tmp_path: Path) -> None:
    adapted, target = saved(made_on, "stereo", tmp_path / "a")
    convert_adapter(tmp_path / "a", tmp_path / "b", target)
    first, found = lowpeft.read_adapter(tmp_path / "a"), lowpeft.read_adapter(tmp_path / "b")
    assert replace(found.base, rounded=None) == fingerprint(target)
    assert found.recipe == first.recipe
    assert found.facts == {"data": "none", "converted from": first.base.model}
    assert set(found.sites) == set(lowpeft.plan(target, "stereo").sites)
    with pytest.raises(AdapterError, match=str(tmp_path / "b")) as caught:
        lowpeft.load_adapter(adapted.backbone, tmp_path / "b", name="second")
    assert caught.value.problems


@both_ways
def test_converting_leaves_the_network_as_it_was(made_on: str, tmp_path: Path) -> None:
    _, target = saved(made_on, "stereo", tmp_path / "a")
    target.train()
    before = tensors(target), [type(m) for m in target.modules()], [p.requires_grad for p in target.parameters()]
    convert_adapter(tmp_path / "a", tmp_path / "b", target)
    assert_same_tensors(tensors(target), before[0])
    assert [type(m) for m in target.modules()] == before[1]
    assert [p.requires_grad for p in target.parameters()] == before[2]
    assert all(m.training for m in target.modules())


@one_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_adapters_of_bases_of_other_precision_convert(made_on: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source, target = pair(made_on)
    lowpeft.save_adapter(trained(source.to(dtype), "spatial"), tmp_path / "a")
    with pytest.raises(AdapterError) as caught:
        convert_adapter(tmp_path / "a", tmp_path / "b", target)
    assert caught.value.problems == (OTHER_WEIGHTS,)
    convert_adapter(tmp_path / "a", tmp_path / "b", target.to(dtype))
    lowpeft.load_adapter(target, tmp_path / "b")


def test_a_grey_network_has_no_mean(tmp_path: Path) -> None:
    source, target = pair(TRANSFORMERS, in_chans=1)
    lowpeft.save_adapter(trained(source, "spatial"), tmp_path)
    convert_adapter(tmp_path, tmp_path, target)
    lowpeft.load_adapter(target, tmp_path)


UNMATCHED = {
    "fused": (OFFICIAL, LoRAConfig(target=["**.qkv", "**.attn.proj"], rank=2), "**.qkv.weight"),
    "parts": (TRANSFORMERS, LoRAConfig(target="**.key", rank=2), "**.key.weight"),
    "part with a bias": (TRANSFORMERS, SpatialConfig(target="**.query"), "**.query"),
    "attention": (OFFICIAL, SpatialConfig(target="**.attn"), "**.attn"),
    "mlp": (OFFICIAL, SpatialConfig(target="**.mlp"), "**.mlp"),
}


@pytest.mark.parametrize("case", UNMATCHED)
def test_sites_without_a_counterpart_are_refused_and_all_are_listed(case: str, tmp_path: Path) -> None:
    made_on, recipe, unmatched = UNMATCHED[case]
    _, target = saved(made_on, recipe, tmp_path / "a")
    with pytest.raises(AdapterError) as caught:
        convert_adapter(tmp_path / "a", tmp_path / "b", target)
    last = unmatched.removeprefix("**")
    names = [".".join((site.path, *site.attachment.tensors)) for site in lowpeft.read_adapter(tmp_path / "a").sites]
    wanted = {f"the {recipe.kind} adapter on {name} has no counterpart" for name in names if name.endswith(last)}
    assert len(wanted) == 4
    assert set(caught.value.problems) == wanted
    assert not (tmp_path / "b").exists()


def test_the_attention_of_a_network_without_biases_has_no_counterpart_either(tmp_path: Path) -> None:
    """Both modules have the same direct parameters, but only the official one includes the output projection."""
    source, target = pair(OFFICIAL, qkv_bias=False)
    lowpeft.save_adapter(trained(source, SpatialConfig(target="**.attn")), tmp_path)
    with pytest.raises(AdapterError, match=r"layers\.0.*\.attn has no counterpart"):
        convert_adapter(tmp_path, tmp_path, target)


@both_ways
def test_a_base_with_other_weights_is_refused(made_on: str, tmp_path: Path) -> None:
    _, target = saved(made_on, "stereo", tmp_path / "a")
    with torch.no_grad():
        next(target.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(AdapterError) as caught:
        convert_adapter(tmp_path / "a", tmp_path / "b", target)
    assert caught.value.problems == (OTHER_WEIGHTS,)
    assert not (tmp_path / "b").exists()


@both_ways
def test_a_base_of_another_size_is_refused_with_every_reason(made_on: str, tmp_path: Path) -> None:
    saved(made_on, "stereo", tmp_path / "a")
    other = BUILD[TRANSFORMERS if made_on == OFFICIAL else OFFICIAL](depths=[2], num_heads=[2])
    with pytest.raises(AdapterError) as caught:
        convert_adapter(tmp_path / "a", tmp_path / "b", other)
    without = [problem for problem in caught.value.problems if problem.endswith("has no counterpart")]
    assert len(without) == 3  # two blocks and one group are missing
    assert len(caught.value.problems) == 5  # number of parameters, structure


@both_ways
def test_a_base_that_is_no_whole_network_of_the_other_layout_is_refused(made_on: str, tmp_path: Path) -> None:
    adapted, target = saved(made_on, "stereo", tmp_path / "a")
    part = nn.ModuleDict({"net": target}) if made_on == TRANSFORMERS else target.swin2sr
    for base in (lowpeft.restore(adapted), part, nn.Sequential(target), nn.Conv2d(3, 3, 1)):
        with pytest.raises(AdapterError, match=r"made on a .*Swin2SR"):
            convert_adapter(tmp_path / "a", tmp_path / "b", base)
    with pytest.raises(PlanError):
        convert_adapter(tmp_path / "a", tmp_path / "b", "weights.pth")


def test_adapters_of_other_families_are_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1))
    lowpeft.save_adapter(trained(network, SpatialConfig(target="0")), tmp_path)
    with pytest.raises(AdapterError, match=r"Swin2SR and Swin2SR \(transformers\)"):
        convert_adapter(tmp_path, tmp_path / "b", official())


def test_a_converted_adapter_keeps_the_range_the_start_from_data_and_what_is_said(tmp_path: Path) -> None:
    first = official("pixelshuffledirect")
    other = copy_weights(first, of_transformers("pixelshuffledirect"))
    ours, theirs = (lowpeft.describe(network, value_range=(0, 255)) for network in (first, other))
    model = lowpeft.adapt(ours, "eva", target="**.mlp.fc1")
    batches = [255 * torch.rand(2, 3, 8, 8) for _ in range(3)]
    lowpeft.calibrate(model, batches)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.add_(0.01)
    image = 255 * torch.rand(1, 3, 8, 8)
    lowpeft.save_adapter(model, tmp_path / "a", about=lowpeft.About(license="mit"))
    lowpeft.convert_adapter(tmp_path / "a", tmp_path / "b", theirs)
    adapter = lowpeft.read_adapter(tmp_path / "b")
    assert adapter.network is not None
    assert (adapter.network.value_range, adapter.about.license, adapter.calibrated) == ((0, 255), "mit", True)
    loaded = lowpeft.load_adapter(theirs, tmp_path / "b")
    lowpeft.calibrate(loaded, batches)  # nothing is left to learn from data
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).reconstruction, model(image), rtol=0, atol=0.05)
    with pytest.raises(AdapterError, match="values"):
        lowpeft.convert_adapter(tmp_path / "a", tmp_path / "c", lowpeft.describe(other, value_range=(0, 1)))


def test_a_kind_with_a_part_on_the_root_is_converted(tmp_path: Path) -> None:
    first = official("pixelshuffledirect")
    other = copy_weights(first, of_transformers("pixelshuffledirect"))
    model = lowpeft.adapt(first, "vera", target="**.mlp.*")
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.add_(0.01)
    lowpeft.save_adapter(model, tmp_path / "a")
    lowpeft.convert_adapter(tmp_path / "a", tmp_path / "b", other)
    loaded, image = lowpeft.load_adapter(other, tmp_path / "b"), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).reconstruction, model(image), rtol=0, atol=1e-4)
