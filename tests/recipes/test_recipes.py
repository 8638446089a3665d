"""Recipes: the bundled ones, round trips, strict keys, values that are refused, and overriding fields."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spandrel.architectures.HAT import HAT
from spandrel.architectures.SwinIR import SwinIR

import lowpeft
from lowpeft import (
    AdaLoRAConfig,
    AdaptFormerConfig,
    AdaptIRConfig,
    BitFitConfig,
    CoLoRAConfig,
    ConvpassConfig,
    DoRAConfig,
    FacTConfig,
    FishConfig,
    FullConfig,
    HoulsbyConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    LSTConfig,
    NormConfig,
    OFTConfig,
    ParallaxConfig,
    PfeifferConfig,
    PlanError,
    PrefixConfig,
    Recipe,
    SpatialConfig,
    SpectralConfig,
    SSFConfig,
    StereoConfig,
    TrainSettings,
    VeRAConfig,
    VPTConfig,
    load_recipe,
)
from lowpeft.demo import demo_backbone
from lowpeft.kinds import AdapterConfig, kinds
from lowpeft.recipes import (
    bundled,
    config_from_dict,
    config_to_dict,
    override,
    overview,
    recipe_from_dict,
    recipe_to_dict,
)
from lowpeft.recipes import write_toml as written

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

BUNDLED = pytest.mark.parametrize("name", bundled())
ADAPTING = pytest.mark.parametrize("name", [name for name in bundled() if load_recipe(name).adapters])
STEREO = load_recipe("stereo")


def bundled_text(name: str) -> str:
    return (resources.files("lowpeft.recipes") / f"{name}.toml").read_text(encoding="utf-8")


def table(**changes: Any) -> dict[str, Any]:
    """The plain values of a small recipe, some of them changed."""
    return {"schema": 1, "name": "small", "adapter": [{"kind": "spatial"}], **changes}


def toml(value: Any) -> str:
    """A value as TOML; JSON's notation is TOML's for all that recipes hold but tables and infinity."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def write_toml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text("".join(f"{k} = {toml(v)}\n" for k, v in values.items()), encoding="utf-8")
    return path


# --- The bundled recipes
@BUNDLED
def test_a_bundled_recipe_is_known_by_its_file_name(name: str) -> None:
    assert load_recipe(name).name == name


@BUNDLED
def test_a_bundled_recipe_says_what_it_is(name: str) -> None:
    assert load_recipe(name).summary


@BUNDLED
def test_a_bundled_recipe_says_whose_it_is(name: str) -> None:
    assert re.search(r", arXiv \d{4}\.\d{5}$|^lowpeft's own$", load_recipe(name).paper)


@BUNDLED
@pytest.mark.parametrize("word", ["command", "hardware", "expected", "source"])
def test_the_header_of_a_bundled_recipe_keeps_its_promise(name: str, word: str) -> None:
    header = list(itertools.takewhile(lambda line: line.startswith("#"), bundled_text(name).splitlines()))
    assert [line for line in header if re.match(rf"# {word} +\S", line)]


@BUNDLED
def test_the_command_of_a_bundled_recipe_names_the_recipe(name: str) -> None:
    assert re.search(rf"^# command +lowpeft train {re.escape(name)} ", bundled_text(name), re.MULTILINE)


@BUNDLED
def test_a_bundled_recipe_survives_a_dict(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


@BUNDLED
def test_a_bundled_recipe_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe


@BUNDLED
def test_a_bundled_recipe_survives_a_toml_file(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert load_recipe(write_toml(tmp_path / "copy.toml", recipe_to_dict(recipe))) == recipe


def test_the_stereo_recipe_is_that_of_the_paper() -> None:
    assert STEREO.adapters == (
        SpatialConfig(reduction=4, placement="attention"),
        StereoConfig(every=2, logit_scale=1.5),
    )


def test_the_stereo_recipe_trains_as_in_the_paper() -> None:
    t = STEREO.training
    assert (t.steps, t.batch, t.crop_height_px, t.crop_width_px) == (200_000, 3, 128, 320)
    assert (t.learning_rate, t.clip_norm) == (5e-4, 0.01)


@pytest.mark.parametrize("name", [each.name for each in overview() if each.mergeable])
def test_recipes_for_weights_train_as_the_stereo_recipe_does(name: str) -> None:
    """Their files name few settings, so this holds the defaults too; LoRA+ has two rates with the same mean."""
    recipe = load_recipe(name)
    rate = recipe.training.learning_rate * getattr(recipe.adapters[0], "b_rate", 1.0) ** 0.5
    assert dataclasses.replace(recipe.training, learning_rate=rate) == STEREO.training


@pytest.mark.parametrize(
    "name",
    [
        name if len(load_recipe(name).adapters) > 1 else pytest.param(name, marks=pytest.mark.slow)
        for name in bundled()
        if load_recipe(name).adapters
    ],
)
def test_recipes_start_as_the_network_itself(name: str) -> None:
    """On the demo's network, whose size is between the tiny ones of other tests and published ones."""
    base = demo_backbone()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = base.module(images)
        model = lowpeft.adapt(base, name)
        views = images.split(1) if load_recipe(name).views == 2 else (images,)
        got = model(*views)
    assert torch.equal(torch.cat(got) if isinstance(got, tuple) else got, wanted)


@pytest.mark.parametrize(
    ("name", "views"), [("stereo", 2), ("stereo-only", 2), ("parallax", 2), ("parallax-spatial", 2), ("spatial", 1)]
)
def test_recipes_with_stereo_adapters_take_two_views(name: str, views: int) -> None:
    assert load_recipe(name).views == views


# --- What can be a recipe
def test_a_config_alone_is_a_recipe() -> None:
    assert load_recipe(LoRAConfig(rank=2)) == Recipe(name="lora", adapters=(LoRAConfig(rank=2),))


def test_several_configs_are_a_recipe() -> None:
    recipe = load_recipe([SpatialConfig(), StereoConfig(), SpatialConfig(placement="mlp")])
    assert (recipe.name, len(recipe.adapters)) == ("spatial+stereo", 3)


def test_a_recipe_is_itself() -> None:
    assert load_recipe(STEREO) is STEREO


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_is_a_recipe(tmp_path: Path, as_text: bool) -> None:
    path = write_toml(tmp_path / "mine.toml", table())
    assert load_recipe(str(path) if as_text else path) == Recipe(name="small", adapters=(SpatialConfig(),))


@pytest.mark.parametrize("recipe", ["steroe", "stereo.toml", "no/such.toml", "", "."])
def test_an_unknown_recipe_is_refused_with_the_known_ones(recipe: str) -> None:
    with pytest.raises(PlanError, match=f"one of {', '.join(bundled())}"):
        load_recipe(recipe)


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(PlanError, match="did you mean 'stereo'"):
        load_recipe("steroe")


@pytest.mark.parametrize("recipe", [[], [3], [SpatialConfig(), "stereo"]])
def test_something_else_is_no_recipe(recipe: Any) -> None:
    with pytest.raises(PlanError, match=re.escape(repr(recipe))):
        load_recipe(recipe)


@pytest.mark.parametrize("recipe", [3, None])
def test_something_that_is_no_sequence_is_no_recipe(recipe: Any) -> None:
    with pytest.raises(PlanError, match=re.escape(repr(recipe))):
        load_recipe(recipe)


def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("schema = = 1", encoding="utf-8")
    with pytest.raises(PlanError, match=r"broken\.toml"):
        load_recipe(path)


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"broken\.toml"):
        load_recipe(path)


# --- Strict tables
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"schema": None}, "schema is None"),
        ({"sumary": "x"}, "'sumary' (did you mean 'summary'?)"),
        ({"name": 3}, "name must be a string, not 3"),
        ({"paper": 3}, "paper must be a string, not 3"),
        ({"papers": "x"}, "'papers' (did you mean 'paper'"),
        ({"adapter": []}, "[[adapter]]"),
        ({"adapter": {"kind": "spatial"}}, "[[adapter]]"),
        ({"adapter": [{"reduction": 4}]}, "'kind', not {'reduction': 4}"),
        ({"adapter": [{"kind": "spacial"}]}, "'spacial'"),
        ({"adapter": [{"kind": "spacial"}]}, "(did you mean 'spatial'"),
        ({"adapter": [{"kind": "spatial", "reductoin": 4}]}, "'reductoin' (did you mean 'reduction'?)"),
        ({"adapter": [{"kind": "spatial", "every": 2}]}, "'every'"),
        ({"adapter": [{"kind": "spatial", "reduction": 0}]}, "reduction must be a whole number of at least 1, not 0"),
        ({"training": {"step": 3}}, "'step' (did you mean 'steps'"),
        ({"training": {"steps": 0}}, "steps must be a whole number of at least 1, not 0"),
        ({"from_scratch": True}, "from_scratch"),
    ],
    ids=str,
)
def test_a_table_is_read_strictly(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError) as caught:
        recipe_from_dict(table(**changes))
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_a_recipe_without_a_paper_is_read_as_before() -> None:
    """Adapter files that were written before the field have none."""
    values = recipe_to_dict(STEREO)
    del values["paper"]
    assert recipe_from_dict(values) == dataclasses.replace(STEREO, paper="")


def test_all_problems_of_a_table_are_listed_at_once() -> None:
    rows = [{"kind": "spatial", "reduction": 0}, {"kind": "lorra"}, {"kind": "stereo", "evry": 2}]
    with pytest.raises(PlanError) as caught:
        recipe_from_dict(table(schema=9, extra=1, adapter=rows, training={"stps": 1}))
    words = ("schema", "extra", "reduction", "lorra", "evry", "stps")
    assert [w for w in words if not any(w in p for p in caught.value.problems)] == []


def test_a_bad_value_of_training_is_listed_beside_other_problems() -> None:
    with pytest.raises(PlanError) as caught:
        recipe_from_dict(table(extra=1, training={"steps": 0}))
    assert [w for w in ("extra", "steps") if not any(w in p for p in caught.value.problems)] == []


def test_the_file_is_named_in_the_error(tmp_path: Path) -> None:
    path = write_toml(tmp_path / "mine.toml", table(extra=1))
    with pytest.raises(PlanError, match=r"mine\.toml"):
        load_recipe(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": 3},
        {"adapter": [1]},
        {"adapter": [{"kind": 1}]},
        {"adapter": [{"kind": ["spatial"]}]},
        {"adapter": [{"kind": "spatial", "target": 3}]},
        {"adapter": [{"kind": "lora", "alpha": "x"}]},
        {"training": {"betas": 0.9}},
        {"training": {"betas": ["a", "b"]}},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_a_plan_error(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        recipe_from_dict(table(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"summary": 3},
        {"freeze_statistics": "no"},
        {"from_scratch": 1},
        {"schema": True},
        {"adapter": [{"kind": "spatial", "target": [1]}]},
        {"adapter": [{"kind": "stereo", "logit_scale": True}]},
        {"adapter": [{"kind": "lora", "alpha": True}]},
        {"training": {"steps": True}},
        {"training": {"learning_rate": True}},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_not_taken(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        recipe_from_dict(table(**changes))


# --- The configs of the kinds
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (SpatialConfig, "reduction", 0),
        (SpatialConfig, "reduction", -4),
        (SpatialConfig, "reduction", 4.0),
        (SpatialConfig, "reduction", "4"),
        (SpatialConfig, "reduction", True),
        (SpatialConfig, "reduction", None),
        (SpatialConfig, "placement", "atention"),
        (SpatialConfig, "placement", None),
        (SpatialConfig, "placement", "stage"),
        (StereoConfig, "every", 0),
        (StereoConfig, "every", 1.5),
        (StereoConfig, "every", False),
        (StereoConfig, "logit_scale", 0),
        (StereoConfig, "logit_scale", -1.5),
        (StereoConfig, "logit_scale", INF),
        (StereoConfig, "logit_scale", NAN),
        (StereoConfig, "logit_scale", "1.5"),
        (StereoConfig, "logit_scale", None),
        (LoRAConfig, "rank", 0),
        (LoRAConfig, "rank", -1),
        (LoRAConfig, "rank", 2.0),
        (LoRAConfig, "rank", True),
        (LoRAConfig, "alpha", 0),
        (LoRAConfig, "alpha", -1.0),
        (LoRAConfig, "alpha", INF),
        (LoRAConfig, "alpha", NAN),
        (TrainSettings, "steps", 0),
        (TrainSettings, "steps", 2.5),
        (TrainSettings, "batch", 0),
        (TrainSettings, "crop_height_px", 0),
        (TrainSettings, "crop_width_px", "320"),
        (TrainSettings, "warmup_steps", -1),
        (TrainSettings, "seed", -1),
        (TrainSettings, "learning_rate", -1e-4),
        (TrainSettings, "learning_rate", 0),
        (TrainSettings, "learning_rate", NAN),
        (TrainSettings, "learning_rate", INF),
        (TrainSettings, "learning_rate", "5e-4"),
        (TrainSettings, "weight_decay", -1),
        (TrainSettings, "final_learning_rate", NAN),
        (TrainSettings, "clip_norm", -0.01),
        (TrainSettings, "schedule", "cosin"),
        (TrainSettings, "schedule", 3),
        (TrainSettings, "loss", "l2"),
        (TrainSettings, "precision", "fp16"),
        (TrainSettings, "accumulate", 0),
        (TrainSettings, "workers", -1),
        (TrainSettings, "keep_checkpoints", 0),
        (TrainSettings, "save_every_steps", -1),
        (TrainSettings, "validate_every_steps", True),
        (TrainSettings, "ema_decay", 1.0),
        (TrainSettings, "ema_decay", -0.5),
        (TrainSettings, "ema_decay", "0.9"),
        (TrainSettings, "ema_decay", NAN),
        (TrainSettings, "milestone_factor", 0),
        (TrainSettings, "milestone_factor", INF),
        (TrainSettings, "milestones", (5,)),
        (TrainSettings, "milestones", (5, 5)),
        (TrainSettings, "milestones", (0, 5)),
        (TrainSettings, "milestones", (5.0,)),
        (TrainSettings, "milestones", 5),
        (TrainSettings, "betas", (0.9,)),
        (TrainSettings, "betas", (0.9, 1.0)),
        (TrainSettings, "betas", (-0.1, 0.9)),
        (TrainSettings, "betas", (0.9, NAN)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(config: type, field: str, value: Any) -> None:
    with pytest.raises(PlanError, match=field) as caught:
        config(**{field: value})
    assert repr(value) in str(caught.value)


def test_milestones_go_with_multistep_and_only_with_it() -> None:
    settings = TrainSettings(schedule="multistep", milestones=[10, 20])  # type: ignore[arg-type]  # as TOML gives them
    assert settings.milestones == (10, 20)
    with pytest.raises(PlanError) as caught:
        TrainSettings(schedule="multistep")
    assert caught.value.problems == ("schedule 'multistep' needs milestones",)
    with pytest.raises(PlanError, match="'multistep', not 'cosine'"):
        TrainSettings(milestones=(10,))


def test_every_training_setting_is_described() -> None:
    assert [f.name for f in dataclasses.fields(TrainSettings) if not f.metadata.get("help")] == []


def test_all_bad_training_settings_are_listed() -> None:
    with pytest.raises(PlanError) as caught:
        TrainSettings(steps=0, clip_norm=-1, schedule="x")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: k.name)
def test_a_config_is_frozen(kind: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.config().target = "x"


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: k.name)
@pytest.mark.parametrize("target", ["a.*", ["a.*"], ("a.*",)], ids=str)
def test_a_target_is_kept_as_a_tuple(kind: Any, target: Any) -> None:
    assert kind.config(target=target) == kind.config(target=("a.*",))


# --- Round trips of configs
positive = st.floats(min_value=1e-6, max_value=1e6)
targets = st.none() | st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3)
CONFIGS: dict[type[AdapterConfig], st.SearchStrategy[AdapterConfig]] = {
    SpatialConfig: st.builds(
        SpatialConfig,
        target=targets,
        reduction=st.integers(1, 64),
        placement=st.sampled_from(["attention", "mlp", "both", "parallel", "parallel_both"]),
    ),
    StereoConfig: st.builds(StereoConfig, target=targets, every=st.integers(1, 9), logit_scale=positive),
    ParallaxConfig: st.builds(
        ParallaxConfig,
        target=targets,
        every=st.integers(1, 9),
        disparities=st.tuples(st.integers(-9, 0), st.integers(2, 99)),
        own_columns=st.integers(1, 9),
        channels=st.integers(1, 64),
        spread=st.floats(1e-6, 1000),
    ),
    LoRAConfig: st.builds(LoRAConfig, target=targets, rank=st.integers(1, 64), alpha=st.none() | positive),
    FullConfig: st.builds(FullConfig, target=targets),
    DoRAConfig: st.builds(DoRAConfig, target=targets, rank=st.integers(1, 64), detach_norm=st.booleans()),
    SSFConfig: st.builds(SSFConfig, target=targets),
    ConvpassConfig: st.builds(
        ConvpassConfig,
        target=targets,
        hidden=st.integers(1, 64),
        scale=positive,
        dropout=st.floats(0, 0.9),
        kernel_init=st.sampled_from(["xavier", "identity"]),
        beside=st.sampled_from(["both", "attention", "mlp"]),
    ),
    HoulsbyConfig: st.builds(HoulsbyConfig, target=targets, hidden=st.integers(1, 64)),
    PfeifferConfig: st.builds(PfeifferConfig, target=targets, hidden=st.integers(1, 64)),
    AdaptFormerConfig: st.builds(
        AdaptFormerConfig,
        target=targets,
        hidden=st.integers(1, 64),
        scale=positive,
        learn_scale=st.booleans(),
        dropout=st.floats(0, 0.9),
        input=st.sampled_from(["normed", "raw"]),
    ),
    AdaptIRConfig: st.builds(
        AdaptIRConfig,
        target=targets,
        reduction=st.integers(1, 64),
        hidden=st.none() | st.integers(1, 64),
        gate_reduction=st.integers(1, 16),
        amplitude_bias=st.sampled_from(["smooth", "paper"]),
        phase_scale=st.booleans(),
    ),
    LSTConfig: st.builds(
        LSTConfig, target=targets, hidden=st.integers(1, 64), skip_stages=st.none() | st.integers(0, 9)
    ),
    SpectralConfig: st.builds(SpectralConfig, target=targets, hidden=st.integers(1, 64), bands=st.integers(2, 64)),
    VeRAConfig: st.builds(VeRAConfig, target=targets, rank=st.integers(1, 64), start=positive, seed=st.integers(0, 9)),
    LoHaConfig: st.builds(LoHaConfig, target=targets, rank=st.integers(1, 64), alpha=st.none() | positive),
    LoKrConfig: st.builds(LoKrConfig, target=targets, rank=st.integers(1, 64), factor=st.just(-1) | st.integers(1, 64)),
    OFTConfig: st.builds(OFTConfig, target=targets, block=st.integers(2, 256), share=st.booleans()),
    AdaLoRAConfig: st.builds(
        AdaLoRAConfig,
        target=targets,
        rank=st.integers(1, 8),
        initial_rank=st.none() | st.integers(8, 64),
        warmup=st.floats(0, 0.4) | st.integers(1, 99),
        final=st.floats(0, 0.4) | st.integers(1, 99),
        betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
        orthogonal=st.just(0) | positive,
    ),
    CoLoRAConfig: st.builds(CoLoRAConfig, target=targets, rank=st.integers(1, 64), beta=st.none() | positive),
    IA3Config: st.builds(
        IA3Config, target=targets, side=st.sampled_from(["output", "input"]), rows=st.sampled_from([None, "k,v"])
    ),
    BitFitConfig: st.builds(BitFitConfig, target=targets),
    PrefixConfig: st.builds(PrefixConfig, target=targets, tokens=st.integers(1, 64)),
    VPTConfig: st.builds(VPTConfig, target=targets, tokens=st.integers(1, 64)),
    NormConfig: st.builds(NormConfig, target=targets),
    FacTConfig: st.builds(
        FacTConfig, target=targets, form=st.sampled_from(["tt", "tk"]), rank=st.integers(1, 64), scale=positive
    ),
    FishConfig: st.builds(
        FishConfig,
        target=targets,
        share=st.floats(1e-6, 0.5),
        cap=st.floats(0.5, 1),
        entries=st.none() | st.integers(1, 10**6),
    ),
}
settings_of_training = st.builds(
    TrainSettings,
    steps=st.integers(1, 10**6),
    learning_rate=st.floats(1e-9, 1),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    schedule=st.sampled_from(["cosine", "constant"]),
    loss=st.sampled_from(["l1", "charbonnier", "mse"]),
    precision=st.sampled_from(["no", "bf16"]),
    ema_decay=st.floats(0, 0.9999),
    milestone_factor=positive,
    accumulate=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
)
settings_with_milestones = st.builds(
    TrainSettings,
    schedule=st.just("multistep"),
    milestones=st.sets(st.integers(1, 10**6), min_size=1, max_size=4).map(lambda steps: tuple(sorted(steps))),
)
adapting = st.builds(
    Recipe,
    name=st.text(min_size=1, max_size=8),
    adapters=st.lists(st.one_of(*CONFIGS.values()), min_size=1, max_size=3).map(tuple),
    summary=st.text(max_size=20),
    paper=st.text(max_size=20),
    freeze_statistics=st.booleans(),
    training=settings_of_training | settings_with_milestones,
)
from_scratch = st.builds(
    Recipe,
    name=st.text(min_size=1, max_size=8),
    adapters=st.just(()),
    from_scratch=st.just(True),
    training=settings_of_training,
)
recipes = adapting | from_scratch


def test_every_kind_takes_part_in_the_round_trips() -> None:
    assert set(CONFIGS) == {k.config for k in kinds()}


@given(st.one_of(*CONFIGS.values()))
def test_a_config_survives_json(config: AdapterConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@given(recipes)
def test_a_recipe_survives_its_text_as_toml(recipe: Recipe) -> None:
    assert recipe_from_dict(tomllib.loads(written(recipe_to_dict(recipe)))) == recipe


@given(recipes)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe)))) == recipe


# --- Overriding
def test_a_field_of_one_adapter_is_overridden() -> None:
    assert override(STEREO, {"every": 1}).adapters == (SpatialConfig(), StereoConfig(every=1))


def test_fields_of_a_kind_are_overridden() -> None:
    changed = override(STEREO, {"spatial": {"reduction": 8, "target": "stage=0"}})
    assert changed.adapters == (SpatialConfig(reduction=8, target="stage=0"), StereoConfig())


def test_several_overrides_apply_together() -> None:
    changed = override(STEREO, {"stereo": {"every": 1}, "reduction": 2, "logit_scale": 1.0})
    assert changed.adapters == (SpatialConfig(reduction=2), StereoConfig(every=1, logit_scale=1.0))


def test_the_recipes_freezing_of_statistics_can_be_changed() -> None:
    assert override(STEREO, {}).freeze_statistics is True
    assert override(STEREO, {"freeze_statistics": False}) == dataclasses.replace(STEREO, freeze_statistics=False)
    with pytest.raises(PlanError, match=r"freeze_statistics .*'no'"):
        override(STEREO, {"freeze_statistics": "no"})


def test_train_also_adds_full_training_of_these_modules() -> None:
    assert override(STEREO, {"train_also": ["conv_last"]}).adapters == (
        *STEREO.adapters,
        FullConfig(target="conv_last"),
    )


def test_the_recipe_itself_stays_as_it_is() -> None:
    override(STEREO, {"every": 1, "train_also": "**"})
    assert load_recipe("stereo") == STEREO


def test_no_override_changes_nothing() -> None:
    assert override(STEREO, {}) == STEREO


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"target": "stage=0"}, "(spatial, stereo)"),
        ({"target": "stage=0"}, "spatial={'target'"),
        ({"evry": 1}, "'evry' (did you mean 'every'?)"),
        ({"rank": 4}, "'rank'"),
        ({"spatial": {"every": 1}}, "'every'"),
        ({"lora": {"rank": 4}}, "'lora'"),
        ({"kind": "lora"}, "'kind'"),
        ({"training": {"steps": 1}}, "'training'"),
    ],
    ids=str,
)
def test_an_override_that_does_not_fit_is_refused(overrides: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError) as caught:
        override(STEREO, overrides)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def test_all_overrides_that_do_not_fit_are_listed() -> None:
    with pytest.raises(PlanError) as caught:
        override(STEREO, {"evry": 1, "target": "**", "spatial": {"x": 1}})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("overrides", [{"every": 0}, {"spatial": {"reduction": 0}}], ids=str)
def test_an_overridden_value_is_checked_as_any_other(overrides: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"(every|reduction) .* 0"):
        override(STEREO, overrides)


def test_all_overridden_values_that_do_not_fit_are_listed() -> None:
    with pytest.raises(PlanError) as caught:
        override(STEREO, {"every": 0, "reduction": 0, "nope": 1})
    assert [w for w in ("every", "reduction", "nope") if w not in str(caught.value)] == []


def test_a_kind_that_a_recipe_holds_twice_is_refused_without_advice_to_repeat_the_call() -> None:
    twice = Recipe(name="twice", adapters=(SpatialConfig(), SpatialConfig(placement="mlp")))
    with pytest.raises(PlanError) as caught:
        override(twice, {"spatial": {"reduction": 2}})
    assert "spatial={'spatial'" not in str(caught.value)


def test_a_kind_without_a_mapping_gets_advice() -> None:
    with pytest.raises(PlanError) as caught:
        override(STEREO, {"spatial": 8})
    assert "did you mean 'spatial'" not in str(caught.value)


# --- The figures of the paper
SWIN = {"embed_dim": 180, "img_size": 64, "mlp_ratio": 2, "upscale": 4, "upsampler": "pixelshuffle"}
HAT_EXTRAS = {"window_size": 16, "compress_ratio": 3, "squeeze_factor": 30, "overlap_ratio": 0.5}


def groups(count: int) -> dict[str, Any]:
    return {"depths": [6] * count, "num_heads": [6] * count}


def parameters_by_kind(plan: lowpeft.Plan) -> dict[str, int]:
    kinds_here = dict.fromkeys(s.config.kind for s in plan.sites)
    return {k: sum(s.parameters for s in plan.sites if s.config.kind == k) for k in kinds_here}


def test_hat_l_has_the_figures_of_the_paper() -> None:
    plan = lowpeft.plan(HAT(**SWIN, **HAT_EXTRAS, **groups(12)), "stereo")
    assert plan.base_parameters == 40_846_575
    assert parameters_by_kind(plan) == {"spatial": 1_182_600, "stereo": 788_400}
    assert plan.parameters == 1_971_000


@pytest.mark.slow
@pytest.mark.parametrize("network", ["hat", "swinir"])
def test_six_groups_have_the_figures_of_the_paper(network: str) -> None:
    torch.manual_seed(0)
    model = HAT(**SWIN, **HAT_EXTRAS, **groups(6)) if network == "hat" else SwinIR(**SWIN, window_size=8, **groups(6))
    assert parameters_by_kind(lowpeft.plan(model, "stereo")) == {"spatial": 591_300, "stereo": 394_200}


def test_the_stereo_adapters_of_hat_l_are_on_every_second_group() -> None:
    plan = lowpeft.plan(HAT(**{**SWIN, "embed_dim": 12}, **{**HAT_EXTRAS, "squeeze_factor": 1}, **groups(12)), "stereo")
    sites = [s.path for s in plan.sites if s.config.kind == "stereo"]
    assert sites == [f"layers.{i}.conv" for i in (1, 3, 5, 7, 9, 11)]


@pytest.mark.parametrize("overrides", [{5: 1}, {"lora": {1: 2}}])
def test_overrides_whose_keys_are_not_strings_are_refused(overrides: dict[Any, Any]) -> None:
    with pytest.raises(PlanError) as caught:
        override(lowpeft.load_recipe("lora"), overrides)
    assert len(caught.value.problems) == 1


# --- Recipes from strangers
@pytest.mark.parametrize(
    "text",
    [
        b"x = " + b"[" * 10_000,
        b"x = " + b"9" * 5000,
        b"\xff",
        b"".join(b"k%d = 1\n" % number for number in range(200_000)),
        b"a" + b".a" * 100_000 + b" = 1",
        b"",
    ],
    ids=["deep", "a long number", "no text", "many keys", "many dots", "empty"],
)
def test_a_file_that_is_no_recipe_is_refused_at_once(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(text)
    with pytest.raises(lowpeft.PlanError) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("path", ["a\0b.toml", "x" * 5000 + ".toml"], ids=["NUL", "long"])
def test_a_path_that_no_file_can_have_is_no_recipe(path: str) -> None:
    with pytest.raises(lowpeft.PlanError):
        load_recipe(path)
