"""Planning: the value and its table, that it never writes, how targets choose sites, and everything that is refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Backbone, FullConfig, LoRAConfig, PlanError, SpatialConfig, StereoConfig
from lowpeft.families import recognise
from tiers import by_default
from zoo import ROWS


def network(name: str) -> nn.Module:
    return ROWS[name].build()


class Stage(nn.Module):
    """x + conv(relu(norm(conv(x)))), with statistics that would move in training mode."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(dim, dim, 3, 1, 1), nn.BatchNorm2d(dim), nn.Conv2d(dim, dim, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.norm(self.one(x))))


class Unknown(nn.Module):
    """Of no family: `entry`, stages `trunk.0` … `trunk.3`, `exit`."""

    def __init__(self, *, dim: int = 8) -> None:
        super().__init__()
        self.entry, self.exit = nn.Conv2d(3, dim, 3, 1, 1), nn.Conv2d(dim, 3, 3, 1, 1)
        self.trunk = nn.Sequential(*(Stage(dim) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(self.trunk(self.entry(x)))


class Ambiguous(nn.Module):
    """Two sequences that could both be the stages."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.exit = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 3, 3, 1, 1)
        self.coarse = nn.ModuleList(Stage(8) for _ in range(3))
        self.fine = nn.ModuleList(Stage(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for stage in (*self.coarse, *self.fine):
            x = stage(x)
        return self.exit(x)


class Wrapper(nn.Module):
    """A user's own module around a known network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def paths(plan: lowpeft.Plan, kind: str | None = None) -> list[str]:
    return [s.path for s in plan.sites if kind in (None, s.config.kind)]


# --- The value
def test_a_plan_prints_its_totals_first() -> None:
    plan = lowpeft.plan(network("swinir"))
    share = 100 * plan.parameters / plan.base_parameters
    assert str(plan).splitlines()[0] == (
        f"'stereo' on SwinIR (swinir): {len(plan.sites)} sites, {plan.parameters:,} trained beside "
        f"{plan.base_parameters:,} frozen parameters ({share:.2f} %)"
    )


def test_a_plan_prints_one_row_per_site() -> None:
    plan = lowpeft.plan(network("swinir"))
    lines = str(plan).splitlines()
    header, *rows = lines[-len(plan.sites) - 1 :]
    assert header.split() == ["kind", "stage", "site", "class", "shape", "parameters"]
    assert [r.split()[2] for r in rows] == paths(plan)


def test_the_rows_of_a_plan_add_up_to_its_total() -> None:
    plan = lowpeft.plan(network("hat"))
    rows = str(plan).splitlines()[-len(plan.sites) :]
    assert sum(int(r.split()[-1].replace(",", "")) for r in rows) == plan.parameters


def test_a_weight_site_prints_its_parameter_and_shape() -> None:
    plan = lowpeft.plan(network("swinir"), LoRAConfig(target="conv_first", rank=2))
    assert str(plan).splitlines()[-1].split() == ["lora", "conv_first", "[weight]", "Conv2d", "12x3x3x3", "78"]


def test_a_network_of_no_family_prints_as_such() -> None:
    assert "(no known family)" in str(lowpeft.plan(Unknown()))


def test_the_totals_of_a_plan_are_those_of_the_adapted_model() -> None:
    model = network("swinir")
    plan = lowpeft.plan(model, "stereo")
    base = sum(p.numel() for p in model.parameters())
    summary = lowpeft.summary(lowpeft.adapt(model, "stereo"))
    assert (plan.base_parameters, plan.parameters) == (base, summary.trainable)


def test_a_plan_after_adapting_counts_the_base_only() -> None:
    model = network("swinir")
    base = lowpeft.plan(model).base_parameters
    adapted = lowpeft.adapt(model)
    assert lowpeft.plan(adapted, name="second").base_parameters == base


# --- Reads, never writes
def everything(root: nn.Module) -> dict[tuple[str, ...], object]:
    """Every attribute of every module, dictionaries (parameters, hooks, children) opened."""
    found: dict[tuple[str, ...], object] = {}
    for path, module in root.named_modules():
        found[path, "class"] = type(module)
        for name, value in module.__dict__.items():
            if isinstance(value, dict):
                found[path, name, "keys"] = str(list(value))
                found |= {(path, name, str(k)): v for k, v in value.items()}
            else:
                found[path, name] = value
    return found


def tensors(root: nn.Module) -> dict[str, tuple[object, ...]]:
    every = [*root.named_parameters(), *root.named_buffers()]
    return {n: (t.detach().clone(), t.dtype, t.requires_grad, t._version, t.grad) for n, t in every}


def assert_not_written(model: nn.Module, act: Callable[[], object]) -> None:
    attributes, values, random_state = everything(model), tensors(model), torch.get_rng_state()
    act()
    now = everything(model)
    assert list(now) == list(attributes)
    assert [k for k in now if now[k] is not attributes[k] and now[k] != attributes[k]] == []
    for name, (value, *rest) in tensors(model).items():
        assert torch.equal(value, values[name][0]), name
        assert rest == list(values[name][1:]), name
    assert torch.equal(torch.get_rng_state(), random_state)


NETWORKS = ["swinir", "hat", "swin2sr_hf", "ipt", "nafnet", "edsr", "esrgan", "drct", "compact"]


@pytest.mark.parametrize("training", by_default([True], [True, False]), ids=["training", "eval"])
@pytest.mark.parametrize("name", by_default(["swinir", "nafnet", "compact"], NETWORKS))  # two families, and none
def test_a_plan_writes_nothing(name: str, training: bool) -> None:
    model = network(name).train(training)

    def act() -> None:
        try:
            lowpeft.plan(model, "spatial")
        except PlanError:
            assert recognise(model) is None  # an ambiguous network of no family; the refusal may not write either

    assert_not_written(model, act)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_probing_writes_nothing(training: bool) -> None:
    model = Unknown().train(training)
    assert_not_written(model, lambda: lowpeft.plan(model, "stereo"))


def test_a_plan_on_an_adapted_model_writes_nothing() -> None:
    model = network("swinir")
    adapted = lowpeft.adapt(model)
    assert_not_written(model, lambda: lowpeft.plan(adapted, name="second"))


def test_probing_a_network_that_writes_its_own_weights_writes_nothing() -> None:
    model = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2)

    def act() -> None:
        with pytest.raises(PlanError, match=r"SPAN .*\bnetwork\.eval\(\)\(image\)"):
            lowpeft.plan(model, "spatial")

    assert_not_written(model, act)


def refuse_example(x: Tensor) -> Tensor:
    raise RuntimeError("not this size")


def never_runs() -> nn.Module:
    model = Unknown()
    model.trunk[2].forward = refuse_example
    return model


def swinir() -> nn.Module:
    return network("swinir")


# (network, recipe, overrides, values that the message names, in order)
REFUSED: list[tuple[Callable[[], nn.Module], Any, dict[str, Any], str]] = [
    (swinir, "stereo", {"stereo": {"target": "nope"}}, "'nope'"),
    (swinir, "stereo", {"every": 5}, "every=5.* 4 .*every=1"),
    (swinir, "stereo", {"stereo": {"target": "layers.0.conv"}}, "every=2.* 1 .*every=1"),
    (swinir, "spatial", {"reduction": 13}, "reduction 13.* 12"),
    (swinir, "spatial", {"target": []}, "pattern"),
    (swinir, "spatial", {"target": "stage=9"}, r"stage=9.*0\.\.3"),
    (swinir, "spatial", {"target": ["stage=0", "layers.0.residual_group.blocks.0.atn"]}, "1 of 2"),
    (swinir, LoRAConfig(target="conv_first", rank=13), {}, r"rank 13 .* 12\b.*\(12, 3, 3, 3\)"),
    (swinir, LoRAConfig(target="**.norm1"), {}, r"'\*\*\.norm1'.* \d+ .*lora"),
    (swinir, FullConfig(), {}, r"full .*target.*'\*\*'.* \d+ parameters"),
    (swinir, [SpatialConfig(), SpatialConfig()], {}, "two spatial adapters"),
    (swinir, "spatial", {"skip_stages": 4}, "skip_stages=4 leaves none of .* stage 3"),
    (swinir, "spatial", {"skip_stages": -1}, "skip_stages must be a whole number of at least 0, not -1"),
    (Unknown, "spatial", {"target": "entry", "skip_stages": 1}, "no stage that is known.*'!' pattern"),
    (Unknown, "spatial", {"target": ["entry", "nope"]}, "'nope'"),
    (Ambiguous, "stereo", {}, r"(?s)coarse\.0.*fine\.0"),
    (never_runs, "stereo", {}, r"\(2, 3, 32, 48\) and \d+ more: RuntimeError: not this size"),
    (lambda: nn.Sequential(nn.ReLU()), LoRAConfig(target="**"), {}, "Sequential .*lora"),
    (lambda: nn.Sequential(nn.ReLU()), "stereo", {}, "no floating-point parameters"),
    (lambda: nn.Conv2d(3, 3, 1), "stereo", {}, "no sequence of stages.*target="),
]


@pytest.mark.parametrize(("build", "recipe", "overrides", "message"), REFUSED, ids=[r[3][:40] for r in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    build: Callable[[], nn.Module], recipe: Any, overrides: dict[str, Any], message: str
) -> None:
    model = build()

    def act() -> None:
        with pytest.raises(PlanError, match=message):
            lowpeft.plan(model, recipe, **overrides)

    assert_not_written(model, act)


def test_adapt_refuses_with_the_words_of_plan() -> None:
    model = network("swinir")
    with pytest.raises(PlanError) as planned:
        lowpeft.plan(model, every=9)
    with pytest.raises(PlanError) as adapted:
        lowpeft.adapt(model, every=9)
    assert str(adapted.value) == str(planned.value)


# --- Names
@pytest.mark.parametrize("name", ["", ".", "a.b", "a-b", "a b", "1a", "a/b", "ä", "a\n"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(name: str) -> None:
    with pytest.raises(PlanError) as caught:
        lowpeft.plan(network("swinir"), name=name)
    (problem,) = caught.value.problems
    assert repr(name) in problem


@pytest.mark.parametrize(
    "name", ["a", "A1", "_private", "class", "default_2", "lowpeft", "features", "weights", "group"]
)
def test_a_word_is_a_name(name: str) -> None:
    model = network("swinir")
    lowpeft.adapt(model, "spatial", name=name)
    assert list(lowpeft.adapter_parameters(model, name=name))


@pytest.mark.parametrize("name", ["train", "training", "forward", "type", "half", "children"])
def test_a_word_that_every_torch_module_has_as_attribute_is_refused_by_plan(name: str) -> None:
    with pytest.raises(PlanError, match=f"attribute.* {name!r}|{name!r}.* attribute"):
        lowpeft.plan(network("swinir"), "spatial", name=name)


def test_a_name_that_is_attached_is_refused() -> None:
    adapted = lowpeft.adapt(network("swinir"), "spatial", name="a")
    with pytest.raises(PlanError, match=r"'a'.*name="):
        lowpeft.plan(adapted, LoRAConfig(target="conv_last", rank=1), name="a")


def test_a_second_name_is_allowed() -> None:
    adapted = lowpeft.adapt(network("swinir"), "spatial", name="a")
    assert paths(lowpeft.plan(adapted, "spatial", name="b")) == paths(lowpeft.plan(network("swinir"), "spatial"))


def test_a_name_is_free_again_after_restore() -> None:
    model = network("swinir")
    lowpeft.adapt(model, "spatial", name="a")
    lowpeft.restore(model)
    assert lowpeft.plan(model, "spatial", name="a").name == "a"


# --- What can be planned on
class Descriptor:
    """Holds a network the way spandrel's descriptors do."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


@pytest.mark.parametrize("thing", [None, "swinir", {"weight": torch.zeros(1)}, nn.Conv2d, torch.zeros(1)], ids=str)
def test_something_that_is_no_module_is_refused(thing: object) -> None:
    with pytest.raises(PlanError, match=rf"{type(thing).__name__}$"):
        lowpeft.plan(thing)


def test_a_descriptor_gets_the_hint_to_its_model() -> None:
    with pytest.raises(PlanError, match=r"Descriptor.*`\.model`"):
        lowpeft.plan(Descriptor(network("swinir")))


def test_a_backbone_is_planned_as_its_module() -> None:
    model = network("swinir")
    facts: dict[str, Any] = {"scale": 2, "value_range": (0.0, 1.0), "size_multiple": 1, "channels": 3}
    backbone = Backbone(module=model, architecture="SwinIR", family="swinir", **facts)
    assert dataclasses.replace(lowpeft.plan(backbone), facts=backbone.facts) == dataclasses.replace(
        lowpeft.plan(model), facts=backbone.facts
    )
    assert lowpeft.plan(backbone).facts == backbone.facts


def test_a_stereo_model_is_planned_as_its_backbone() -> None:
    stereo = lowpeft.adapt(network("swinir"), name="a")
    assert lowpeft.plan(stereo, "spatial", name="b") == lowpeft.plan(stereo.backbone, "spatial", name="b")


# --- Targets
def test_a_target_is_a_glob_over_paths() -> None:
    plan = lowpeft.plan(network("swinir"), "spatial", target="layers.0.residual_group.blocks.*.attn")
    assert paths(plan) == [f"layers.0.residual_group.blocks.{b}.attn" for b in (0, 1)]


def test_a_target_is_a_place() -> None:
    plan = lowpeft.plan(network("swinir"), "spatial", target="stage=1 block=-1")
    assert paths(plan) == ["layers.1.residual_group.blocks.1"]


def test_stage_zero_is_the_first_group_and_no_block_of_another() -> None:
    plan = lowpeft.plan(network("swinir"), "spatial", target="stage=0")
    assert {s.stage for s in plan.sites} == {0}
    assert all(p.startswith("layers.0.") for p in paths(plan))


def test_the_stages_of_stereo_adapters_are_the_groups() -> None:
    plan = lowpeft.plan(network("swinir"), StereoConfig(target="stage=1:3", every=1))
    assert paths(plan) == ["layers.1.conv", "layers.2.conv"]


@pytest.mark.parametrize(("every", "stages"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])], ids=str)
def test_every_counts_the_chosen_sites_from_the_end_of_each_run(every: int, stages: list[int]) -> None:
    plan = lowpeft.plan(network("swinir"), StereoConfig(every=every))
    assert paths(plan) == [f"layers.{s}.conv" for s in stages]


def test_every_counts_among_the_chosen_sites_only() -> None:
    plan = lowpeft.plan(network("swinir"), StereoConfig(target=["layers.*.conv", "!layers.1.conv"], every=2))
    assert paths(plan) == ["layers.2.conv"]


def test_early_stages_are_left_out() -> None:
    plan = lowpeft.plan(network("swinir"), "spatial", skip_stages=3)
    assert {site.stage for site in plan.sites} == {3}
    assert len(plan.sites) == len(lowpeft.plan(network("swinir"), "spatial", target="stage=3").sites)


@pytest.mark.parametrize("name", ["rcan", "edsr", "span"])
def test_a_block_of_one_branch_is_attention_and_mlp_in_one(name: str) -> None:
    both = lowpeft.plan(network(name), "spatial", placement="both")
    assert paths(both) == paths(lowpeft.plan(network(name), "spatial"))
    assert any("one branch" in note for note in both.notes)
    beside = lowpeft.plan(network(name), "spatial", placement="parallel_both")
    assert {site.attachment.source for site in beside.sites} == {"input"}
    assert len(beside.sites) == len(both.sites)


def test_spatial_and_stereo_adapters_can_have_targets_of_their_own() -> None:
    plan = lowpeft.plan(network("swinir"), spatial={"target": "stage=0"}, stereo={"target": "stage=3", "every": 1})
    assert paths(plan, "stereo") == ["layers.3.conv"]
    assert {s.stage for s in plan.sites if s.config.kind == "spatial"} == {0}


def test_train_also_plans_every_parameter_of_the_layers() -> None:
    plan = lowpeft.plan(network("swinir"), train_also=["conv_last"])
    assert [s.attachment.tensors for s in plan.sites if s.config.kind == "full"] == [("weight",), ("bias",)]


def test_a_weight_target_names_a_layer_or_all_layers_inside() -> None:
    model = network("swinir")
    (one,) = lowpeft.plan(model, LoRAConfig(target="layers.0.conv", rank=1)).sites
    inside = lowpeft.plan(model, LoRAConfig(target="layers.0", rank=1))
    assert one.path in paths(inside)
    assert all(p.startswith("layers.0.") for p in paths(inside))


def test_a_rank_that_is_too_large_names_the_layers() -> None:
    with pytest.raises(PlanError) as caught:
        lowpeft.plan(network("swinir"), LoRAConfig(target=["conv_first", "conv_last"], rank=13))
    assert [p for p in ("conv_first", "conv_last") if p not in str(caught.value)] == []


# --- Networks of no family
def test_the_stages_of_an_unknown_network_are_found() -> None:
    plan = lowpeft.plan(Unknown(), "stereo")
    assert (plan.family, paths(plan, "stereo")) == (None, ["trunk.1", "trunk.3"])


def test_an_ambiguous_network_is_refused_with_its_candidates_and_advice() -> None:
    with pytest.raises(PlanError, match=re.escape("lowpeft.adapt(model, 'stereo', spatial={'target': [")) as caught:
        lowpeft.plan(Ambiguous())
    assert [p.split(":")[0] for p in caught.value.problems] == ["coarse.0 … coarse.2", "fine.0 … fine.2"]


@pytest.mark.parametrize("target", [["fine.*"], ["re:fine.[0-2]"], ["fine.0", "fine.1", "fine.2"]], ids=str)
def test_an_ambiguous_network_works_with_a_target(target: list[str]) -> None:
    plan = lowpeft.plan(Ambiguous(), StereoConfig(target=target, every=1))
    assert paths(plan) == ["fine.0", "fine.1", "fine.2"]
    assert {s.shape for s in plan.sites} == {(8,)}


def test_modules_that_give_no_tensor_are_listed() -> None:
    with pytest.raises(PlanError) as caught:
        lowpeft.plan(Ambiguous(), StereoConfig(target=["coarse", "fine"], every=1))
    assert [p.split(" ")[0] for p in caught.value.problems] == ["coarse", "fine"]


def test_a_target_beside_the_familys_places_is_measured() -> None:
    plan = lowpeft.plan(network("swinir"), StereoConfig(target="conv_first", every=1))
    assert (paths(plan), plan.sites[0].shape, plan.sites[0].attachment.layout) == (["conv_first"], (12,), "NCHW")


# --- Families are recognised by names and structure
class Renamed(SwinIR):
    pass


def test_a_renamed_class_is_of_the_same_family() -> None:
    plan = lowpeft.plan(Renamed(**zoo._SWIN, upsampler="pixelshuffle"))
    assert (plan.model, plan.family) == ("Renamed", "swinir")


def copied(source: ModuleType, name: str) -> ModuleType:
    """The code of a module, run again as another module."""
    module = ModuleType(name)
    module.__dict__["__package__"] = source.__package__
    exec(compile(inspect.getsource(source), f"<{name}>", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(("name", "arguments"), [("SwinIR", {}), ("HAT", {"squeeze_factor": 1, "num_feat": 16})])
def test_a_copy_of_the_code_is_of_the_same_family(name: str, arguments: dict[str, Any]) -> None:
    original = sys.modules[getattr(importlib.import_module(f"spandrel.architectures.{name}"), name).__module__]
    model = getattr(copied(original, "my_networks"), name)(**zoo._SWIN, **arguments, upsampler="pixelshuffle")
    assert type(model).__module__ == "my_networks"
    plan = lowpeft.plan(model)
    assert (plan.family, paths(plan)) == (name.lower(), paths(lowpeft.plan(network(name.lower()))))


def test_a_network_inside_a_users_module_is_recognised() -> None:
    plan = lowpeft.plan(Wrapper(network("swinir")))
    assert plan.family == "swinir"
    assert paths(plan) == [f"net.{p}" for p in paths(lowpeft.plan(network("swinir")))]


def test_a_network_with_other_names_is_of_no_family() -> None:
    model = network("swinir")
    model.groups = model.layers
    del model.layers
    assert recognise(model) is None


def test_a_changed_copy_of_a_block_is_refused() -> None:
    model = network("hat")
    block = model.layers[1].residual_group.blocks[0]

    class Changed(type(block)):
        def forward(self, *args: Any) -> Tensor:
            return 2 * super().forward(*args)

    block.__class__ = Changed
    call = r"\n    lowpeft\.adapt\(model, 'spatial', target="
    message = r"layers\.1\.residual_group\.blocks\.0 \(.*Changed\) .* hat\.hab.*" + call
    with pytest.raises(PlanError, match=message):
        lowpeft.plan(model, "spatial")
    assert lowpeft.plan(model, SpatialConfig(target="layers.**.blocks.*.mlp")).sites


def test_an_attribute_with_the_reserved_name_is_refused() -> None:
    model = Unknown()
    model.trunk[1].lowpeft = "mine"
    with pytest.raises(PlanError, match=r"trunk\.1 .*'lowpeft'"):
        lowpeft.plan(model)
