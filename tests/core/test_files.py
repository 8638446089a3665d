"""The adapter file: round trips, what it holds, what is refused, and that a killed save leaves old or new."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import AdapterError, FullConfig, LoRAConfig, LowpeftError, PlanError, SpatialConfig, StereoConfig
from lowpeft.core.files import reading
from lowpeft.core.files.contents import CARD, CONFIG, METADATA_KEY, MOST_ADAPTERS, MOST_SITES, TENSORS
from tiers import by_default
from zoo import ROWS

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")


def network(name: str = "swinir", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ROWS[name].build()


class Plain(nn.Module):
    """Small and quick, of no family, with a statistics buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.norm, self.exit = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(torch.relu(self.norm(self.entry(x))))


def plain(seed: int = 0) -> Plain:
    torch.manual_seed(seed)
    return Plain().eval()


LORA = LoRAConfig(target="**", rank=2)
ON_PLAIN = [LORA, FullConfig(target="exit"), SpatialConfig(target="entry"), StereoConfig(target="entry", every=1)]


def trained(model: nn.Module, recipe: Any = "stereo", *, seed: int = 1, **options: Any) -> nn.Module:
    """The model with adapters that hold random values."""
    adapted = lowpeft.adapt(model, recipe, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(adapted, name=options.get("name")):
            parameter.normal_(std=0.1, generator=generator)
    return adapted


def state_of(model: nn.Module) -> dict[str, object]:
    """All that adapting changes, as plain values."""
    modules = {p: (type(m), m.training, list(m.__dict__), list(m._modules)) for p, m in model.named_modules()}
    values = {
        n: (t.requires_grad, t.dtype, t.detach().flatten().tolist())
        for n, t in model.state_dict(keep_vars=True).items()
    }
    return {"modules": modules, "tensors": values}


def refused(model: nn.Module, folder: Path, error: type[LowpeftError] = AdapterError, **options: Any) -> LowpeftError:
    """The error that loading raises; the model must be as before."""
    before = state_of(model)
    with pytest.raises(error) as caught:
        lowpeft.load_adapter(model, folder, **options)
    assert state_of(model) == before
    return caught.value


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def rewrite(
    folder: Path, *, config: Callable[[dict[str, Any]], object] | None = None, **changes: Tensor | None
) -> Path:
    """Change an adapter folder as somebody could who knows the format: tensors (None removes) and both configs."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        values = json.loads(file.metadata()[METADATA_KEY])
    tensors = load_file(folder / TENSORS)
    for key, tensor in changes.items():
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    if config is not None:
        config(values)
    text = json.dumps(values)
    save_file(tensors, folder / TENSORS, {METADATA_KEY: text})
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA adapter of `plain()`."""
    return lowpeft.save_adapter(trained(plain(), LORA), tmp_path / "adapter")


# --- Round trips
@pytest.mark.parametrize(
    "recipe",
    by_default(  # weights, two views, tokens, a side network; every kind survives in the test below
        ["lora", "stereo", "vpt", "lst"],
        ["lora", "full", *(row.name for row in lowpeft.recipes.overview() if row.mergeable is False)],
    ),
)
@pytest.mark.parametrize("name", by_default(["swinir"], ["swinir", "hat"]))
def test_a_loaded_adapter_computes_what_the_saved_one_did(name: str, recipe: str, tmp_path: Path) -> None:
    images = [torch.rand(1, 3, 8, 12) for _ in range(2 if lowpeft.load_recipe(recipe).views > 1 else 1)]
    adapted = trained(network(name), recipe)
    lowpeft.save_adapter(adapted, tmp_path)
    loaded = lowpeft.load_adapter(network(name), tmp_path)
    with torch.no_grad():
        assert all(map(torch.equal, loaded(*images), adapted(*images)))


@pytest.mark.parametrize("config", ON_PLAIN, ids=lambda c: c.kind)
def test_every_kind_survives_the_file(config: Any, tmp_path: Path) -> None:
    adapted = trained(plain(), config)
    loaded = lowpeft.load_adapter(plain(), lowpeft.save_adapter(adapted, tmp_path))
    assert same(lowpeft.adapter_state_dict(loaded), lowpeft.adapter_state_dict(adapted))


def test_a_loaded_adapter_is_summed_up_as_the_saved_one(tmp_path: Path) -> None:
    adapted = trained(network())
    loaded = lowpeft.load_adapter(network(), lowpeft.save_adapter(adapted, tmp_path))
    found, wanted = lowpeft.summary(loaded), lowpeft.summary(adapted)
    assert found.facts.notes == ("the facts are from the adapter file",)
    facts = dataclasses.replace(found.facts, notes=wanted.facts.notes)
    assert dataclasses.replace(found, facts=facts) == wanted


def test_saving_a_loaded_adapter_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = lowpeft.save_adapter(lowpeft.load_adapter(plain(), folder), tmp_path / "again" / folder.name)
    assert [n for n in (TENSORS, CONFIG, CARD) if (again / n).read_bytes() != (folder / n).read_bytes()] == []


def test_restore_after_loading_gives_the_base_back(folder: Path) -> None:
    model = plain()
    before = state_of(model)
    lowpeft.restore(lowpeft.load_adapter(model, folder))
    assert state_of(model) == before


def test_a_stereo_adapter_loads_as_a_stereo_model_around_the_object(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network()), tmp_path)
    model = network()
    loaded = lowpeft.load_adapter(model, tmp_path)
    assert isinstance(loaded, lowpeft.StereoModel)
    assert loaded.backbone is model


@settings(max_examples=15)
@given(
    st.sampled_from(ON_PLAIN),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.floats(allow_nan=False), max_size=3),
)
def test_any_values_and_facts_survive_the_file(config: Any, value: float, facts: dict[str, str | float]) -> None:
    adapted = lowpeft.adapt(plain(), config)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(adapted):
            parameter.fill_(value)
    with tempfile.TemporaryDirectory() as place:
        lowpeft.save_adapter(adapted, place, facts=facts)
        read = lowpeft.read_adapter(place)
    assert same(
        {k: read.tensors[k] for k in sorted(read.tensors)}, dict(sorted(lowpeft.adapter_state_dict(adapted).items()))
    )
    assert (read.facts, read.recipe.adapters) == (facts, (config,))


# --- What is in the folder
def test_the_folder_holds_three_files(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted([TENSORS, CONFIG, CARD])


def test_the_file_holds_the_adapters_tensors_only(tmp_path: Path) -> None:
    adapted = trained(network())
    lowpeft.save_adapter(adapted, tmp_path)
    held = load_file(tmp_path / TENSORS)
    names = [n.removeprefix("backbone.") for n, _ in lowpeft.adapter_parameters(adapted)]
    assert set(held) == {n.replace(".lowpeft.default.", ".") for n in names}


def test_keys_start_with_paths_of_base_modules(tmp_path: Path) -> None:
    paths = {p for p, _ in network().named_modules()}
    lowpeft.save_adapter(trained(network()), tmp_path)
    sites = {re.split(r"\.(?:spatial|stereo)", k)[0] for k in load_file(tmp_path / TENSORS)}
    assert sites
    assert sites <= paths


def test_the_config_is_also_in_the_metadata_of_the_tensors(folder: Path) -> None:
    with safe_open(folder / TENSORS, framework="pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY]) == json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def test_the_config_says_schema_version_recipe_sites_and_base(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert (config["schema"], config["lowpeft"], config["recipe"]["name"]) == (2, lowpeft.__version__, "lora")
    assert [path for group in config["sites"] for path, _, _ in group["places"]] == ["entry", "exit"]
    assert set(config["base"]) == {"model", "parameters", "structure", "weights", "indices", "rounded"}
    assert set(config["output"]) == {"shape", "step", "values"}


def test_the_tensors_take_the_adapters_bytes_and_little_more(tmp_path: Path) -> None:
    adapted = trained(network("hat"))
    lowpeft.save_adapter(adapted, tmp_path)
    tensors = lowpeft.adapter_state_dict(adapted)
    most = lowpeft.summary(adapted).adapter_bytes + 1000 * len(tensors)
    assert lowpeft.summary(adapted).adapter_bytes <= (tmp_path / TENSORS).stat().st_size < most


def test_no_file_of_the_folder_is_a_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        with pytest.raises(Exception, match=r".+"):
            pickle.loads(path.read_bytes())


# --- The model card
def card(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, text = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize(("recipe", "stereo"), [("stereo", True), ("spatial", False)])
def test_the_front_matter_of_the_card_is_true(recipe: str, stereo: bool, tmp_path: Path) -> None:
    front, _ = card(lowpeft.save_adapter(trained(network(), recipe), tmp_path))
    assert (front["library_name"], front["pipeline_tag"]) == ("lowpeft", "image-to-image")
    assert ("stereo-super-resolution" in front["tags"]) is stereo


def test_the_figures_of_the_card_are_those_of_the_plan(tmp_path: Path) -> None:
    plan = lowpeft.plan(network())
    _, text = card(lowpeft.save_adapter(trained(network()), tmp_path))
    for kind in ("spatial", "stereo"):
        counts = [s.parameters for s in plan.sites if s.config.kind == kind]
        assert f"| {kind} | {len(counts)} | {sum(counts):,} |" in text
    assert f"| parameters | {plan.base_parameters:,} |" in text
    assert f"{4 * plan.parameters / 1e6:.2f} MB" in text


def test_the_card_names_the_base_and_its_hashes(folder: Path) -> None:
    base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base"]
    _, text = card(folder)
    assert [v for v in ("Plain", base["structure"], base["weights"]) if v not in text] == []


@pytest.mark.parametrize(
    ("recipe", "call"),
    [
        ("stereo", "left_sr, right_sr = lowpeft.enhance(model, left, right)"),
        ("spatial", "restored = lowpeft.enhance(model, image)"),
    ],
)
def test_the_card_shows_the_call_that_works(recipe: str, call: str, tmp_path: Path) -> None:
    assert call in card(lowpeft.save_adapter(trained(network(), recipe), tmp_path))[1]


def test_the_names_on_the_card_fit_a_network_that_does_not_enlarge(tmp_path: Path) -> None:
    front, text = card(lowpeft.save_adapter(trained(network("nafnet"), "stereo"), tmp_path))
    assert "left_restored, right_restored = lowpeft.enhance(model, left, right)" in text
    assert ("stereo" in front["tags"], "stereo-super-resolution" in front["tags"]) == (True, False)


def test_the_card_shows_the_facts_and_nothing_without_them(tmp_path: Path) -> None:
    adapted = trained(plain(), LORA)
    assert "## Facts" not in card(lowpeft.save_adapter(adapted, tmp_path / "a"))[1]
    _, text = card(lowpeft.save_adapter(adapted, tmp_path / "b", facts={"data": "Flickr1024", "PSNR, dB": 24.43}))
    assert "## Facts\n\n| | |\n|---|---|\n| data | Flickr1024 |\n| PSNR, dB | 24.43 |\n" in text


@pytest.mark.parametrize("fact", ["KITTI | Middlebury", "two\nlines"])
def test_a_fact_stays_in_its_cell(fact: str, tmp_path: Path) -> None:
    _, text = card(lowpeft.save_adapter(trained(plain(), LORA), tmp_path, facts={"data": fact}))
    (row,) = [line for line in text.splitlines() if line.startswith("| data |")]
    assert row.replace(r"\|", "").count("|") == 3


# --- The wrong base
class Renamed(SwinIR):
    """Another class with the same parameters."""


def rebuilt(cls: type[nn.Module], **changes: Any) -> nn.Module:
    """`network("swinir")` as an instance of that class, where the shapes allow it with the same weights."""
    model = cls(**{**zoo._SWIN, "upsampler": "pixelshuffle", **changes}).eval()
    own, theirs = model.state_dict(), network().state_dict()
    model.load_state_dict({k: theirs[k] if k in theirs and theirs[k].shape == v.shape else v for k, v in own.items()})
    return model


def one_weight_changed() -> nn.Module:
    model = network()
    with torch.no_grad():
        model.layers[2].conv.weight[0, 0, 0, 0] += 1e-3
    return model


# Sites and shapes fit, so that force=True can attach the adapter.
WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "class": (lambda: rebuilt(Renamed), "the adapter was made for SwinIR, this network is Renamed"),
    "structure": (lambda: rebuilt(SwinIR, upsampler="pixelshuffledirect"), "names or shapes of the parameters differ"),
    "one weight": (one_weight_changed, "the structure is the same"),
    "all weights": (lambda: network(seed=5), "the structure is the same"),
    "all weights, in another dtype": (
        lambda: network(seed=5).double(),
        "the structure is the same",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_base_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    build, reason = WRONG[case]
    lowpeft.save_adapter(trained(network()), tmp_path)
    error = refused(build(), tmp_path)
    assert "force=True" in str(error)
    assert [p for p in error.problems if reason in p]


@pytest.mark.parametrize("case", by_default(["class", "all weights, in another dtype"], WRONG))
def test_force_attaches_to_a_wrong_base_whose_shapes_fit(case: str, tmp_path: Path) -> None:
    adapted = trained(network())
    lowpeft.save_adapter(adapted, tmp_path)
    loaded = lowpeft.load_adapter(WRONG[case][0](), tmp_path, force=True)
    assert same(
        {k: v.float() for k, v in lowpeft.adapter_state_dict(loaded).items()}, lowpeft.adapter_state_dict(adapted)
    )


def test_a_statistics_buffer_is_part_of_the_base(folder: Path) -> None:
    model = plain()
    model.norm.running_mean += 1
    assert "weights (or their dtype) differ" in str(refused(model, folder))


def test_masks_that_depend_on_the_image_size_are_no_part_of_the_base(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network(), "spatial"), tmp_path)
    model = rebuilt(SwinIR, img_size=16)
    assert [b for b, v in model.named_buffers() if b.endswith("attn_mask") and v.shape[0] != 4]
    assert lowpeft.load_adapter(model, tmp_path) is model


def test_a_hat_adapter_is_refused_on_swinir(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network("hat")), tmp_path)
    error = refused(network("swinir"), tmp_path)
    assert "the adapter was made for HAT, this network is SwinIR" in error.problems
    assert "if its sites fit" in error.message


def test_a_hat_adapter_is_refused_on_swinir_with_force_too(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network("hat")), tmp_path)
    error = refused(network("swinir"), tmp_path, PlanError, force=True)
    assert "layers.0.residual_group.blocks.0 is a SwinTransformerBlock, the adapter is for a HAB" in error.problems


def test_force_refuses_another_width(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network()), tmp_path)
    refused(rebuilt(SwinIR, embed_dim=24), tmp_path, PlanError, force=True)


def test_force_refuses_a_network_that_lacks_a_site(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network()), tmp_path)
    error = refused(rebuilt(SwinIR, depths=[2] * 3, num_heads=[2] * 3), tmp_path, PlanError, force=True)
    assert "the network has no module layers.3.conv" in error.problems


def test_force_refuses_a_weight_of_another_shape(folder: Path) -> None:
    model = plain()
    model.exit = nn.Conv2d(8, 6, 3, 1, 1)
    error = refused(model, folder, PlanError, force=True)
    assert error.problems == ("exit has no parameter weight of shape (3, 8, 3, 3)",)


# --- Damaged files
A = "entry.lora_weight.a"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({A: None}, f"missing: {A}"),
        ({"entry.lora_weight.c": torch.zeros(1)}, "unknown: entry.lora_weight.c (did you mean 'entry.lora_weight."),
        ({A: torch.zeros(3, 27)}, f"{A} has shape (3, 27), the model needs (2, 27)"),
        ({A: torch.full((2, 27), float("nan"))}, f"{A} contains NaN or infinity"),
        ({A: torch.full((2, 27), float("-inf"))}, f"{A} contains NaN or infinity"),
        ({A: torch.zeros(2, 27, dtype=torch.int32)}, f"{A} is torch.int32, the model needs torch.float32"),
        ({A: torch.zeros(2, 27)}, "the tensors differ from those that were saved (their checksum differs)"),
        ({A: None, "x": torch.zeros(1)}, "unknown: x"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_changed_tensors_are_refused(changes: dict[str, Tensor | None], problem: str, folder: Path) -> None:
    error = refused(plain(), rewrite(folder, **changes))
    assert [p for p in error.problems if p.startswith(problem)]


def test_all_problems_of_the_tensors_are_listed_at_once(folder: Path) -> None:
    nan, b = torch.full((3, 2), float("nan")), "exit.lora_weight.b"
    error = refused(
        plain(), rewrite(folder, **{A: None, "x.y": torch.zeros(1), b: nan, "exit.lora_weight.a": torch.zeros(1)})
    )
    starts = (
        f"missing: {A}",
        "unknown: x.y",
        f"{b} contains NaN",
        "exit.lora_weight.a has shape (1,)",
        "the tensors differ",
    )
    assert [s for s in starts if not any(p.startswith(s) for p in error.problems)] == []


def test_each_problem_of_the_tensors_is_listed_once(folder: Path) -> None:
    error = refused(plain(), rewrite(folder, **{A: torch.full((2, 27), float("nan"))}))
    assert len(set(error.problems)) == len(error.problems)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 2000, -100, -4, -1])
def test_truncated_tensors_are_refused(length: int, folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:length])
    assert f"{TENSORS} cannot be read" in str(refused(plain(), folder))


@pytest.mark.parametrize("length", [0, 1, 100, -3])
def test_a_truncated_config_is_refused(length: int, folder: Path) -> None:
    text = (folder / CONFIG).read_text(encoding="utf-8")
    (folder / CONFIG).write_text(text[:length], encoding="utf-8")
    assert f"{CONFIG} differs from the config in {TENSORS}" in str(refused(plain(), folder))


@pytest.mark.parametrize("name", [TENSORS, CONFIG])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    left = ", ".join(sorted(path.name for path in folder.iterdir()))
    assert str(refused(plain(), folder)).endswith(f"is not an adapter folder: {name} missing; it holds {left}")


@pytest.mark.parametrize("place", ["nothing", "a/b/c"])
def test_a_folder_that_does_not_exist_is_refused(place: str, tmp_path: Path) -> None:
    assert "no such folder" in str(refused(plain(), tmp_path / place))


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    assert f"{TENSORS} and {CONFIG} missing; it is empty" in str(refused(plain(), tmp_path))


def test_a_changed_config_is_refused(folder: Path) -> None:
    text = (folder / CONFIG).read_text(encoding="utf-8")
    (folder / CONFIG).write_text(text.replace('"rank": 2', '"rank": 3'), encoding="utf-8")
    assert f"{CONFIG} differs from the config in {TENSORS}" in str(refused(plain(), folder))


def test_a_config_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe{}")
    assert f"{CONFIG} cannot be read" in str(refused(plain(), folder))


def test_tensors_of_something_else_are_refused(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / TENSORS)
    assert f"{TENSORS} has no config of lowpeft" in str(refused(plain(), folder))


def test_one_flipped_bit_anywhere_in_the_tensors_is_found(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    unnoticed = []
    for position in range(0, len(content), len(content) // 97):
        (folder / TENSORS).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            lowpeft.read_adapter(folder)
        except AdapterError:
            continue
        unnoticed.append(position)
    assert unnoticed == []


def test_the_last_tensor_byte_is_under_the_checksum(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    assert "their checksum differs" in str(refused(plain(), folder))


class Payload:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", [TENSORS, CONFIG, f".{CONFIG}.0.part", f".{TENSORS}.0.part", "adapter_model.bin"])
@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_in_the_folder_is_never_opened(save: Any, name: str, folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    save(Payload(marker), folder / name)
    if name in (TENSORS, CONFIG):
        refused(plain(), folder)
    else:
        lowpeft.load_adapter(plain(), folder)
    assert not marker.exists()


def set_in(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: Any) -> None:
        for step in path[:-1]:
            config = config[step]
        config[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_in("schema", to=3), r"schema 3; .* reads 1 and 2"),
        (set_in("schema", to=True), "schema True"),
        (set_in("schema", to=None), "schema None"),
        (set_in("recipe", "schema", to=7), "schema is 7, this version of lowpeft reads 1"),
        (set_in("recipe", "colour", to="red"), "the recipe has an unknown key 'colour'"),
        (set_in("recipe", "training", "stps", to=3), r"\[training\] has an unknown key 'stps' \(did you mean 'steps'"),
        (set_in("recipe", "adapter", 0, "kind", to="hola"), r"no adapter kind 'hola'"),
        (set_in("recipe", "adapter", 0, "rnk", to=2), "the lora adapter has an unknown key 'rnk'"),
        (set_in("sites", 0, "adapter", "kind", to="hola"), "no adapter kind 'hola'"),
        (set_in("sites", 0, "adapter", "rank", to=0), "rank must be a whole number of at least 1, not 0"),
        (set_in("sites", 0, "attachment", "layout", to="CHW"), "'CHW' is not a valid Layout"),
        (set_in("sites", 0, "attachment", "code", to="x"), "unexpected keyword argument 'code'"),
        (set_in("tensors", to={}), "KeyError: 'sha256'"),
        (lambda c: c.pop("sites"), "KeyError: 'sites'"),
        (lambda c: c.pop("base"), "KeyError: 'base'"),
    ],
)
def test_a_config_that_lowpeft_does_not_write_is_refused(change: Any, problem: str, folder: Path) -> None:
    assert re.search(problem, str(refused(plain(), rewrite(folder, config=change))))


def test_a_record_of_the_base_with_other_fields_is_refused(folder: Path) -> None:
    error = refused(plain(), rewrite(folder, config=set_in("base", "extra", to=1)))
    assert any("'extra'" in problem for problem in error.problems)


def test_problems_of_config_and_tensors_are_listed_together(folder: Path) -> None:
    nan = torch.full((2, 27), float("nan"))
    error = refused(plain(), rewrite(folder, config=set_in("recipe", "colour", to="red"), **{A: nan}))
    assert [w for w in ("colour", "NaN", "checksum") if not any(w in p for p in error.problems)] == []


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values in a config, containers included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for k, v in items for p in ((*path, k), *leaves(v, (*path, k)))]


@pytest.mark.parametrize("junk", [None, [], "x", -1, [[]]], ids=repr)
@pytest.mark.parametrize(
    "config", [LORA, pytest.param(StereoConfig(target="entry", every=1), marks=pytest.mark.slow)], ids=lambda c: c.kind
)
@pytest.mark.slow
def test_junk_anywhere_in_a_config_is_taken_or_refused_on_purpose(config: Any, junk: Any, tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(plain(), config), tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    surprises = []
    for path in leaves(values):
        changed = json.loads(json.dumps(values))
        set_in(*path, to=junk)(changed)
        model = plain()
        before = state_of(model)
        try:
            lowpeft.load_adapter(
                model, rewrite(tmp_path, config=lambda c, to=changed: (c.clear(), c.update(to))), force=True
            )
        except LowpeftError:
            if state_of(model) != before:
                surprises.append(f"{path}: refused, but the model was changed")
        except Exception as error:  # noqa: BLE001  (whatever it is, it is a surprise)
            surprises.append(f"{path}: {type(error).__name__}: {error}")
    assert surprises == []


@pytest.mark.parametrize(
    "change",
    [
        set_in("sites", 0, "parameters", to=1),
        set_in("sites", 0, "places", 0, 1, to="x"),
        set_in("sites", 0, "places", 0, 2, to=-1),
        set_in("sites", 0, "attachment", "form", to="weigth"),
        set_in("sites", 0, "attachment", "form", to="output"),
        set_in("sites", 0, "attachment", "form", to="root"),
        set_in("sites", 0, "attachment", "views", to=2),
        set_in("sites", 0, "layer", "groups", to=0),
        set_in("sites", 0, "layer", "shapes", to=[]),
        set_in("sites", 0, "layer", "shapes", 0, 1, to=[2, 3]),
        set_in("sites", 0, "attachment", "source", to="x"),
        set_in("sites", 0, "attachment", "tensors", to=[]),
        set_in("sites", 0, "attachment", "tensors", to=None),
    ],
)
def test_a_site_that_lowpeft_does_not_write_is_refused(change: Any, folder: Path) -> None:
    refused(plain(), rewrite(folder, config=change))


def test_an_unknown_block_forward_is_refused(tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(network("hat"), "spatial"), tmp_path)
    rewrite(tmp_path, config=set_in("sites", 0, "attachment", "block", to="hat.hub"))
    with pytest.raises(LowpeftError, match=r"hat\.hub"):
        lowpeft.load_adapter(network("hat"), tmp_path)


# --- What is not saved
def untouched(folder: Path, act: Callable[[], object]) -> AdapterError:
    """The error of a save that is refused; the folder must be as before."""
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(AdapterError) as caught:
        act()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    return caught.value


def spoil_trainable(model: nn.Module) -> None:
    model.exit.bias.requires_grad_(True)


def spoil_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model._modules["entry"]._parameters["weight"][0] += 1e-3


def spoil_buffer(model: nn.Module) -> None:
    model.norm.running_var[3] *= 2


def spoil_adapter(model: nn.Module) -> None:
    with torch.no_grad():
        next(lowpeft.adapter_parameters(model))[1][0, 0] = float("nan")


SPOILS = [
    (spoil_trainable, "exit.bias of the base requires a gradient", "train_also=['exit.bias']"),
    (spoil_weight, "entry.weight of the base was changed", ""),
    (spoil_buffer, "norm.running_var of the base was changed", ""),
    (spoil_adapter, "entry.lora_weight.a contains NaN or infinity", ""),
]


@pytest.mark.parametrize(("spoil", "problem", "advice"), SPOILS, ids=lambda s: getattr(s, "__name__", ""))
def test_save_refuses_what_would_be_lost(spoil: Any, problem: str, advice: str, folder: Path) -> None:
    adapted = trained(plain(), LORA)
    spoil(adapted)
    error = untouched(folder, lambda: lowpeft.save_adapter(adapted, folder))
    assert [p for p in error.problems if problem in p and advice in p]


def test_save_lists_all_that_would_be_lost(folder: Path) -> None:
    adapted = trained(plain(), LORA)
    for spoil, *_ in SPOILS:
        spoil(adapted)
    error = untouched(folder, lambda: lowpeft.save_adapter(adapted, folder))
    assert len(error.problems) == len(SPOILS)


def test_the_advice_of_a_refused_save_works(tmp_path: Path) -> None:
    adapted = trained(plain(), [LORA, FullConfig(target="exit.bias")])
    loaded = lowpeft.load_adapter(plain(), lowpeft.save_adapter(adapted, tmp_path))
    assert torch.equal(loaded.exit.bias, adapted.exit.bias)


def test_moving_the_model_to_another_dtype_is_no_change_of_the_base(tmp_path: Path) -> None:
    adapted = trained(plain(), LORA).double()
    assert lowpeft.save_adapter(adapted, tmp_path) == tmp_path


def test_a_model_without_adapters_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Plain"):
        lowpeft.save_adapter(plain(), tmp_path)


# --- Writing
def test_saving_over_an_adapter_replaces_it(folder: Path, tmp_path: Path) -> None:
    other = trained(plain(), FullConfig(target="entry"), seed=9)
    lowpeft.save_adapter(other, folder)
    fresh = lowpeft.save_adapter(other, tmp_path / "fresh" / folder.name)  # the card names the folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in fresh.iterdir()}


def test_folders_above_are_made(tmp_path: Path) -> None:
    place = lowpeft.save_adapter(trained(plain(), LORA), tmp_path / "a" / "b")
    assert lowpeft.read_adapter(place).recipe.name == "lora"


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    lowpeft.save_adapter(trained(plain(), LORA), tmp_path)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match=r"cannot write .*file"):
        lowpeft.save_adapter(trained(plain(), LORA), tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for this user")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(AdapterError, match=str(tmp_path)):
        lowpeft.save_adapter(trained(plain(), LORA), tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000], ids=["NUL", "long"])
def test_a_path_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    model = trained(plain(), LORA)
    with pytest.raises(AdapterError):
        lowpeft.save_adapter(model, tmp_path / name)
    for place in (tmp_path / name, name, f"owner/{name}"):
        with pytest.raises(AdapterError):
            lowpeft.load_adapter(plain(), place)
    with pytest.raises(AdapterError):
        lowpeft.read_adapter(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [numpy.float32(1), {1}, "\ud800"], ids=["NumPy", "set", "half a character"])
def test_facts_that_cannot_be_written_leave_the_old_adapter(value: Any, folder: Path) -> None:
    untouched(folder, lambda: lowpeft.save_adapter(trained(plain(), LORA), folder, facts={"a": value}))


def test_a_file_that_cannot_be_replaced_is_an_adapter_error(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "kept")
    (folder / TENSORS).mkdir()
    with pytest.raises(AdapterError, match=str(folder)):
        lowpeft.save_adapter(trained(plain(), LORA, seed=2), folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


# --- Killed saves
def marked(value: float, recipe: Any = LORA) -> nn.Module:
    """An adapter all of whose values are the same."""
    adapted = lowpeft.adapt(plain(), recipe)
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(adapted):
            parameter.fill_(value)
    return adapted


def save_marked(value: float, folder: Path) -> None:
    lowpeft.save_adapter(marked(value), folder, facts={"value": value})


def mark_of(folder: Path) -> float:
    """The value of an adapter that is whole: its tensors and its config are of one save."""
    adapter = lowpeft.read_adapter(folder)
    values = {v for t in adapter.tensors.values() for v in t.unique().tolist()}
    assert values == {adapter.facts["value"]}
    return values.pop()


STEPS = [(step, call) for step, count in (("fsync", 3), ("replace", 3)) for call in range(count)]


def interrupt(patch: pytest.MonkeyPatch, step: str, call: int, error: BaseException) -> None:
    """Make that call of os.fsync or Path.replace raise."""
    home = os if step == "fsync" else Path
    real, calls = getattr(home, step), iter(range(99))

    def broken(*args: Any) -> Any:
        if next(calls) == call:
            raise error
        return real(*args)

    patch.setattr(home, step, broken)


class Killed(BaseException):
    """The process is gone: nothing catches it."""


@pytest.mark.parametrize("error", [OSError("disk full"), Killed()], ids=repr)
@pytest.mark.parametrize(("step", "call"), STEPS)
def test_a_save_that_stops_at_a_step_leaves_the_old_or_the_new_adapter(
    step: str, call: int, error: BaseException, tmp_path: Path
) -> None:
    save_marked(1.0, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, call, error)
        with pytest.raises((AdapterError, Killed)):
            save_marked(2.0, tmp_path)
    assert mark_of(tmp_path) == (2.0 if (step, call) in [("replace", 1), ("replace", 2)] else 1.0)


@pytest.mark.parametrize("file", [CONFIG, CARD])
def test_a_save_that_cannot_write_a_file_leaves_the_old_adapter(file: str, tmp_path: Path) -> None:
    save_marked(1.0, tmp_path)
    real = Path.write_text

    def broken(self: Path, text: str, **options: Any) -> int:
        real(self, text[:20], **options)
        if self.name.startswith(f".{file}."):
            raise OSError("disk full")
        return real(self, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", broken)
        with pytest.raises(AdapterError, match="disk full"):
            save_marked(2.0, tmp_path)
    assert mark_of(tmp_path) == 1.0


@pytest.mark.parametrize(("step", "call"), [*STEPS[:3], ("replace", 0)])
def test_two_saves_that_stop_one_after_the_other_leave_a_whole_adapter(step: str, call: int, tmp_path: Path) -> None:
    save_marked(1.0, tmp_path)
    for value, where in ((2.0, ("replace", 1)), (3.0, (step, call))):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, *where, Killed())
            with pytest.raises(Killed):
                save_marked(value, tmp_path)
    assert mark_of(tmp_path) == 2.0


@pytest.mark.parametrize(("step", "call"), STEPS)
def test_the_save_after_one_that_stopped_is_whole(step: str, call: int, tmp_path: Path) -> None:
    save_marked(1.0, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, call, Killed())
        with pytest.raises(Killed):
            save_marked(2.0, tmp_path)
    for left in tmp_path.glob(".*.part"):
        os.utime(left, (0, 0))  # younger ones may be of a save that goes on
    save_marked(3.0, tmp_path)
    assert mark_of(tmp_path) == 3.0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([TENSORS, CONFIG, CARD])


@pytest.mark.parametrize(("step", "call"), STEPS[:-1])
def test_a_first_save_that_stops_leaves_no_half_adapter(step: str, call: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, call, Killed())
        with pytest.raises(Killed):
            save_marked(1.0, tmp_path)
    with pytest.raises(AdapterError, match="is not an adapter folder"):
        lowpeft.read_adapter(tmp_path)


def test_a_first_save_that_stops_before_its_card_is_in_place_is_whole(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, *STEPS[-1], Killed())
        with pytest.raises(Killed):
            save_marked(1.0, tmp_path)
    assert mark_of(tmp_path) == 1.0


# --- Several adapters
def two_adapters() -> nn.Module:
    return trained(trained(plain(), LORA, name="a"), FullConfig(target="exit"), name="b", seed=2)


def test_one_of_several_adapters_is_saved_by_name(tmp_path: Path) -> None:
    model = two_adapters()
    lowpeft.save_adapter(model, tmp_path, name="b")
    assert same(
        lowpeft.read_adapter(tmp_path).tensors, dict(sorted(lowpeft.adapter_state_dict(model, name="b").items()))
    )


def test_several_adapters_need_a_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"\(a, b\).*name="):
        lowpeft.save_adapter(two_adapters(), tmp_path)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"'c'.*: a, b"):
        lowpeft.save_adapter(two_adapters(), tmp_path, name="c")


def test_an_adapter_loads_under_another_name(folder: Path) -> None:
    model = lowpeft.load_adapter(plain(), folder, name="mine")
    assert same(lowpeft.adapter_state_dict(model, name="mine"), lowpeft.adapter_state_dict(trained(plain(), LORA)))


def test_a_name_that_is_attached_is_not_loaded_over(folder: Path) -> None:
    model = lowpeft.load_adapter(plain(), folder)
    assert "an adapter named 'default' is attached already" in str(refused(model, folder, PlanError))


def test_two_loaded_adapters_are_the_two_that_were_saved(tmp_path: Path) -> None:
    model, x = two_adapters(), torch.rand(1, 3, 6, 6)
    places = {n: lowpeft.save_adapter(model, tmp_path / n, name=n) for n in ("a", "b")}
    loaded = plain()
    for name, place in places.items():
        lowpeft.load_adapter(loaded, place, name=name)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("place", ["./owner/name", "/owner/name", "a/b/c", "name", Path("owner/name")], ids=repr)
def test_a_path_is_not_looked_up_on_the_hub(place: str | Path) -> None:
    with pytest.raises(AdapterError, match="is not an adapter folder"):
        lowpeft.load_adapter(plain(), place)


def test_a_revision_of_a_folder_is_refused(folder: Path) -> None:
    error = refused(plain(), folder, revision="abc", subfolder="x4")
    assert "revision= (--revision) and subfolder= (--subfolder): for Hub repositories only" in str(error)


# --- Files from strangers
def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Write a changed config into both places."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    change(config)
    save_file(tensors, folder / TENSORS, {METADATA_KEY: json.dumps(config)})
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def many_places(config: dict[str, Any]) -> None:
    path, *rest = config["sites"][0]["places"][0]
    config["sites"][0]["places"] = [[f"{path}{number}", *rest] for number in range(MOST_SITES + 1)]


def same_place(config: dict[str, Any]) -> None:
    config["sites"][0]["places"] *= 4000


def long_name(config: dict[str, Any]) -> None:
    config["sites"][0]["places"][0][0] = "x" * 10_000_000


def many_adapters(config: dict[str, Any]) -> None:
    config["recipe"]["adapter"] *= MOST_ADAPTERS + 1


def huge_shape(config: dict[str, Any]) -> None:
    config["sites"][0]["layer"]["shapes"][0][1] = [10**400, 3]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (many_places, "20,002 sites"),
        (same_place, "more than once"),
        (long_name, "more than 1,000 characters"),
        (many_adapters, "1,001 adapters"),
        (huge_shape, "not what lowpeft writes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_config_above_its_limits_is_refused_at_once(
    change: Callable[[dict[str, Any]], None], says: str, folder: Path
) -> None:
    error = refused(plain(), edited(folder, change))
    assert says in str(error)
    assert len(str(error)) < 20_000


def test_sizes_are_checked_before_anything_is_read(folder: Path) -> None:
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(3_000_000_000)  # a sparse file
    assert "at most 16,777,216 are read" in str(refused(plain(), folder))
    with (folder / TENSORS).open("r+b") as file:
        file.write((2**40).to_bytes(8, "little"))
    assert "its header has 1,099,511,627,776 bytes" in str(refused(plain(), folder))


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = (folder / TENSORS).rename(tmp_path / "elsewhere.safetensors")
    (folder / TENSORS).symlink_to(outside)
    assert "out of its folder" in str(refused(plain(), folder))
    (folder / TENSORS).unlink()
    inside = outside.rename(folder / "kept.safetensors")
    (folder / TENSORS).symlink_to(inside)
    assert lowpeft.read_adapter(folder).recipe.name == "lora"


def test_a_link_to_a_device_or_in_a_circle_is_refused(folder: Path) -> None:
    (folder / CONFIG).unlink()
    for target in (os.devnull, CONFIG):
        (folder / CONFIG).symlink_to(target)
        assert "cannot be read" in str(refused(plain(), folder))
        (folder / CONFIG).unlink()


def test_fields_of_a_later_lowpeft_are_named_in_a_warning(folder: Path) -> None:
    edited(folder, lambda config: config.update(colours="red", lowpeft="9.1"))
    with pytest.warns(UserWarning, match=r"a later lowpeft \(9\.1\) wrote there is not used: colours"):
        assert lowpeft.read_adapter(folder).recipe.name == "lora"


def test_a_later_schema_is_refused_with_advice(folder: Path) -> None:
    edited(folder, lambda config: config.update(schema=3))
    assert "pip install -U lowpeft" in str(refused(plain(), folder))


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    lowpeft.save_adapter(trained(plain(), LORA), "~/adapter")
    assert (tmp_path / "adapter" / TENSORS).exists()
    assert lowpeft.read_adapter("~/adapter").recipe.name == "lora"


def test_a_reader_beside_a_saver_reads_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (folder / CONFIG).read_text(encoding="utf-8")
    (folder / CONFIG).write_text("{}", encoding="utf-8")
    real = reading.read_json

    def read_json(path: Path) -> dict[str, Any] | None:
        found = real(path)
        path.write_text(old, encoding="utf-8")  # the saver comes to its second file
        return found

    monkeypatch.setattr(reading, "read_json", read_json)
    assert lowpeft.read_adapter(folder).recipe.name == "lora"


def test_savers_and_readers_of_one_folder_see_whole_adapters(tmp_path: Path) -> None:
    save_marked(0.0, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        saves = [pool.submit(save_marked, float(value), tmp_path) for value in range(1, 9)]
        marks = [mark_of(tmp_path) for _ in range(20)]
        for save in saves:
            save.result()
    assert set(marks) <= set(map(float, range(9)))
    assert mark_of(tmp_path) in map(float, range(1, 9))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([TENSORS, CONFIG, CARD])


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs links")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_not_written(link: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a").mkdir()
    link(tmp_path / "victim", tmp_path / "a" / ".saving.lock")
    with pytest.raises(AdapterError, match="cannot write the adapter"):
        lowpeft.save_adapter(trained(plain(), LORA), tmp_path / "a")
    assert (tmp_path / "victim").read_text() == "mine"
