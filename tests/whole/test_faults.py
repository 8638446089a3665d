"""Faults that were found in what had landed, each with neighbours of the case (C-numbers are those of the reports)."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file
from spandrel.architectures.SwinIR import SwinIR
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

import lowpeft
from lowpeft import (
    DoRAConfig,
    FacTConfig,
    FishConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    ParallaxConfig,
    PlanError,
    Recipe,
    SpatialConfig,
    SSFConfig,
    StereoConfig,
    StereoModel,
    VeRAConfig,
)
from lowpeft.ports.base import SLOT
from lowpeft.recipes import TrainSettings
from lowpeft.restoration.training import train
from states import assert_same_tensors, randomise_adapters, tensors
from tiers import by_default
from training_runs import Samples
from zoo import ROWS, build, image, image_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

EVERYWHERE = LoRAConfig(target="**", rank=1)


# --- Checkpointing (C2, C3) ------------------------------------------------------------------------------------------

checkpointing = pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant:UserWarning")
RECIPES = {"spatial": SpatialConfig(), "stereo": StereoConfig(every=1), "lora": EVERYWHERE}


def swinir(*, use_checkpoint: bool) -> nn.Module:
    torch.manual_seed(7)
    sizes = {"img_size": 8, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
    return SwinIR(**sizes, mlp_ratio=2.0, upscale=2, upsampler="pixelshuffle", use_checkpoint=use_checkpoint).eval()


def switch(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = True


@checkpointing
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # when it is run for its sizes
@pytest.mark.parametrize("recipe", RECIPES)
def test_check_trainable_passes_what_backward_reaches_under_checkpointing(recipe: str) -> None:
    model = lowpeft.adapt(swinir(use_checkpoint=True), RECIPES[recipe])
    views = (torch.rand(1, 3, 8, 12),) * (2 if isinstance(model, StereoModel) else 1)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    lowpeft.check_trainable(model, *views)
    lowpeft.check_trainable(model)
    assert_same_tensors(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())


@checkpointing
@pytest.mark.parametrize("recipe", RECIPES)
def test_checkpointing_switched_on_after_adapt_trains_every_tensor(recipe: str) -> None:
    model = lowpeft.adapt(swinir(use_checkpoint=False), RECIPES[recipe])
    switch(model)
    before = {n: p.detach().clone() for n, p in lowpeft.adapter_parameters(model)}
    samples = Samples(crop_px=(16, 24), views=2 if isinstance(model, StereoModel) else 1)
    settings = TrainSettings(steps=2, batch=1, crop_height_px=16, crop_width_px=24, learning_rate=1e-2, clip_norm=0.0)
    train(model, samples, settings)
    assert [n for n, p in lowpeft.adapter_parameters(model) if torch.equal(p, before[n])] == []


def test_timms_switch_for_checkpointing_after_adapt_leaves_the_gradients_alone() -> None:
    def model() -> nn.Module:
        torch.manual_seed(7)
        sizes = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
        return randomise_adapters(lowpeft.adapt(SwinTransformer(**sizes, num_classes=0).eval(), "spatial")).train()

    plain, checkpointed, x = model(), model(), torch.rand(1, 3, 32, 32)
    checkpointed.set_grad_checkpointing(True)
    for network in (plain, checkpointed):
        network(x).square().sum().backward()
    gradients = dict(lowpeft.adapter_parameters(checkpointed))
    for name, parameter in lowpeft.adapter_parameters(plain):
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_the_input_of_a_network_that_does_not_checkpoint_needs_no_gradient() -> None:
    seen: list[bool] = []
    model = lowpeft.adapt(swinir(use_checkpoint=False), "spatial")
    model.conv_first.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    model(torch.rand(1, 3, 8, 12))
    assert seen == [False]


# --- Plans (C7) ------------------------------------------------------------------------------------------------------


def refused_and_untouched(root: nn.Module, plan: lowpeft.Plan) -> str:
    before = tensors(root), [type(m) for m in root.modules()], dict(root.state_dict())
    with pytest.raises(PlanError) as refusal:
        lowpeft.inject(root, plan)
    assert_same_tensors(tensors(root), before[0])
    assert [type(m) for m in root.modules()] == before[1]
    assert_same_tensors(root.state_dict(), before[2])
    return str(refusal.value)


@pytest.mark.parametrize("recipe", ["spatial", "stereo", "lora"])
def test_a_plan_is_not_carried_out_twice(recipe: str) -> None:
    root = build("hat")
    plan = lowpeft.plan(root, RECIPES[recipe])
    randomise_adapters(lowpeft.inject(root, plan))
    assert "'default' is attached already" in refused_and_untouched(root, plan)


@pytest.mark.parametrize("other", ["edsr", "swinir", "hat wider", "hat deeper"])
def test_a_plan_of_one_network_is_not_carried_out_on_another(other: str) -> None:
    sizes = {"img_size": 8, "num_heads": (2, 2, 2, 2), "window_size": 4, "mlp_ratio": 2.0, "upscale": 2}
    hat = type(build("hat"))
    makers: dict[str, Callable[[], nn.Module]] = {
        "hat wider": lambda: hat(**sizes, embed_dim=24, depths=(2,) * 4, squeeze_factor=1, num_feat=16).eval(),
        "hat deeper": lambda: hat(**sizes, embed_dim=12, depths=(3,) * 4, squeeze_factor=1, num_feat=16).eval(),
    }
    root = makers[other]() if other in makers else build(other)
    message = refused_and_untouched(root, lowpeft.plan(build("hat"), "stereo"))
    assert "HAT" in message


def test_a_plan_is_of_any_network_of_the_same_structure_and_of_an_adapted_one() -> None:
    plan = lowpeft.plan(build("hat"), "spatial")
    model = lowpeft.adapt(build("hat"), EVERYWHERE, name="first")
    assert lowpeft.inject(model, plan) is model
    assert set(lowpeft.summary(model).by_kind) == {"lora", "spatial"}


# --- Places (C9, C10) ------------------------------------------------------------------------------------------------


def timm_of_depths(*depths: int) -> nn.Module:
    heads = (2,) * len(depths)
    return SwinTransformer(img_size=64, embed_dim=8, depths=depths, num_heads=heads, window_size=2, num_classes=0)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("block=-1", [(0, 1), (1, 1), (2, 5), (3, 1)]),
        ("block=-2:", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 4), (2, 5), (3, 0), (3, 1)]),
        ("block=2:", [(2, 2), (2, 3), (2, 4), (2, 5)]),
        ("stage=-1 block=-1", [(3, 1)]),
        ("stage=2 block=-3,0", [(2, 0), (2, 3)]),
    ],
)
def test_negative_numbers_count_from_the_end_of_each_stage(target: str, wanted: list[tuple[int, int]]) -> None:
    plan = lowpeft.plan(timm_of_depths(2, 2, 6, 2).eval(), SpatialConfig(target=target, reduction=2))
    assert [(s.stage, s.block) for s in plan.sites] == wanted


def test_a_block_that_no_stage_has_is_an_error() -> None:
    with pytest.raises(PlanError, match="matches none"):
        lowpeft.plan(timm_of_depths(2, 2), SpatialConfig(target="block=2", reduction=2))


@pytest.mark.parametrize(
    ("name", "target", "lead"),
    [
        ("hat", "stage=0", "layers.0."),
        ("hat", "stage=-1", "layers.3."),
        ("hat", "stage=1 block=-1", "layers.1.residual_group.blocks.1."),
        ("swinir", "stage=0", "layers.0."),
        ("edt", "stage=2", "body.layers.2."),
        ("ipt", "stage=1", "body.encoder.layers.1."),
        ("nafnet", "stage=0", "encoders.0."),
        ("nafnet", "stage=2", "middle_blks."),
        ("rcan", "stage=3", "body.3."),
        ("dat", "stage=1", "layers.1."),
        ("compact", "stage=1", "body.4."),
    ],
)
@pytest.mark.parametrize("kind", by_default([LoRAConfig], [LoRAConfig, SSFConfig]), ids=["lora", "ssf"])
def test_places_choose_weights_too(kind: type, name: str, target: str, lead: str) -> None:
    options = {"rank": 1} if kind is LoRAConfig else {}
    everything = lowpeft.plan(build(name), kind(target="**", **options)).sites
    chosen = lowpeft.plan(build(name), kind(target=target, **options)).sites
    assert {s.path for s in chosen} == {s.path for s in everything if f"{s.path}.".startswith(lead)}
    assert chosen


# --- Merging (C18, C28) ----------------------------------------------------------------------------------------------


class WithStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("began", [True, False], ids=["began in train", "began in eval"])
def test_merging_leaves_every_flag_as_it_is(mode: bool, began: bool) -> None:
    torch.manual_seed(0)
    model = lowpeft.adapt(WithStatistics().train(began), EVERYWHERE).train(mode)
    randomise_adapters(model)
    flags = {n: m.training for n, m in model.named_modules() if SLOT not in n.split(".")}
    gradients = {n: p.requires_grad for n, p in model.named_parameters() if SLOT not in n.split(".")}
    expected = copy.deepcopy(model)(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    lowpeft.merge(model)
    assert {n: m.training for n, m in model.named_modules()} == flags
    assert {n: p.requires_grad for n, p in model.named_parameters()} == gradients
    found = model(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_merging_leaves_out_what_is_disabled() -> None:
    model, x = build("edsr"), image("edsr")
    lowpeft.adapt(model, EVERYWHERE, name="a")
    randomise_adapters(lowpeft.adapt(model, LoRAConfig(target="**", rank=2), name="b"))
    with lowpeft.disabled(model, name="b"):
        expected = model(x)
        lowpeft.merge(model)
        assert torch.equal(model(x), expected)
        with pytest.raises(PlanError, match="nothing can be merged"):
            lowpeft.merge(model)
    assert not torch.equal(model(x), expected)
    assert set(lowpeft.summary(model).by_kind) == {"lora"}
    assert list(lowpeft.adapter_parameters(model, name="b"))


@torch.no_grad()
def test_merging_under_an_adapter_that_depends_on_the_weight_is_refused_and_both_together_are_right() -> None:
    model, x = build("edsr"), image("edsr")
    lowpeft.adapt(model, EVERYWHERE, name="a")
    randomise_adapters(lowpeft.adapt(model, DoRAConfig(target="**", rank=1), name="b"))
    expected = model(x)
    with pytest.raises(PlanError, match="merge both together"):
        lowpeft.merge(model, name="a")
    assert torch.equal(model(x), expected)
    lowpeft.merge(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-3)


# --- Names, recipes, files (C28) -------------------------------------------------------------------------------------


def test_a_recipe_without_adapters_is_refused() -> None:
    model = build("hat").train()
    with pytest.raises(PlanError, match="adapters"):
        lowpeft.adapt(model, Recipe(name="x", adapters=()))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: nn.ModuleDict({"held": m})])
def test_adapter_parameters_have_the_names_of_the_model_that_is_passed(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(lowpeft.adapt(build("hat"), "stereo"))
    named = dict(model.named_parameters())
    found = dict(lowpeft.adapter_parameters(model))
    assert found
    assert all(named[name] is parameter for name, parameter in found.items())
    assert found.keys() == {name for name, p in named.items() if p.requires_grad}


def test_loading_reads_every_tensor_of_the_base_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowpeft.save_adapter(lowpeft.adapt(build("hat"), "stereo"), tmp_path)
    home, calls = importlib.import_module("lowpeft.core.observation.fingerprint"), []
    tensors = home.digests(build("hat"))
    real = home.digest
    monkeypatch.setattr(home, "digest", lambda tensor: calls.append(1) or real(tensor))
    root = build("hat")
    lowpeft.load_adapter(root, tmp_path)
    assert len(calls) == len(tensors)


FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("schema", ["schema1", "schema2"])
@pytest.mark.parametrize("name", ["hat", "swinir_light", "edsr"])
def test_an_adapter_file_of_every_schema_still_loads_and_computes_the_same(
    name: str, schema: str, tmp_path: Path
) -> None:
    held = load_file(FIXTURES / "schema1" / name / "expected.safetensors")  # what both must give
    root = build(name)
    weights = {k.removeprefix("base."): t for k, t in held.items() if k.startswith("base.")}
    assert root.load_state_dict(weights, strict=False).unexpected_keys == []
    model = lowpeft.load_adapter(root, FIXTURES / schema / name)
    x = held["input"]

    @torch.no_grad()
    def output(network: nn.Module) -> Tensor:
        if isinstance(network, StereoModel):
            return torch.cat([image_of(view) for view in network(x[:1].clone(), x[1:].clone())])
        return image_of(network(x.clone()))

    torch.testing.assert_close(output(model), held["output"], rtol=1e-5, atol=1e-6 * ROWS[name].value_max)
    lowpeft.save_adapter(model, tmp_path)
    twin = build(name)
    twin.load_state_dict(weights, strict=False)
    assert torch.equal(output(lowpeft.load_adapter(twin, tmp_path)), output(model))


# --- Export and compilation (C31, C35) -------------------------------------------------------------------------------

# The exporters and compilers warn of their own inner workings.
graphs = pytest.mark.filterwarnings("ignore")
KINDS = {
    "stereo": "stereo",
    "parallax": ParallaxConfig(disparities=(-1, 3), own_columns=3),
    "spatial": SpatialConfig(),
    "lora": EVERYWHERE,
    "dora": DoRAConfig(target="**", rank=1),
    "vera": VeRAConfig(target="**", rank=3),
    "loha": LoHaConfig(target="**", rank=1),
    "lokr": LoKrConfig(target="**", rank=1),
    "ia3": IA3Config(),
    "fact": FacTConfig(rank=2),
    "fish": FishConfig(share=0.05),
}


def small(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = randomise_adapters(lowpeft.adapt(build("compact"), KINDS[kind])).eval()
    x = image("compact", 2)
    return model, tuple(x.split(1)) if isinstance(model, StereoModel) else (x[:1],)


def joined(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat(output) if isinstance(output, tuple) else output


SLOW_TO_EXPORT = pytest.param("parallax", marks=pytest.mark.slow)


@graphs
@pytest.mark.parametrize("kind", [SLOW_TO_EXPORT if kind == "parallax" else kind for kind in KINDS])
def test_the_older_onnx_exporter_exports(kind: str) -> None:
    model, inputs = small(kind)
    with torch.no_grad():
        file = io.BytesIO()
        torch.onnx.export(model, inputs, file, dynamo=False)
    onnx.checker.check_model(onnx.load_from_string(file.getvalue()), full_check=True)


@graphs
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stereo", "parallax"])
@torch.no_grad()
def test_the_newer_onnx_exporter_exports_what_computes_the_same(kind: str) -> None:
    model, inputs = small(kind)
    program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    exported = program.exported_program.module()
    torch.testing.assert_close(joined(exported(*inputs)), joined(model(*inputs)), rtol=1e-5, atol=1e-5)


@graphs
@pytest.mark.parametrize("kind", ["stereo", SLOW_TO_EXPORT, pytest.param("dora", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_model_exported_for_all_sizes_runs_at_sizes_that_go_by_rows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = small(kind)
    sides = {2: torch.export.Dim("h", min=8, max=4096), 3: torch.export.Dim("w", min=8, max=4096)}
    monkeypatch.setattr("lowpeft.core.attachment.adding.ROW_CHUNK_BYTES", 100_000)
    exported = torch.export.export(model, inputs, dynamic_shapes=[sides] * len(inputs)).module()
    large = tuple(torch.rand(1, 3, 60, 84) for _ in inputs)
    assert 2 * 8 * 60 * 84 * 4 > 100_000
    torch.testing.assert_close(joined(exported(*large)), joined(model(*large)), rtol=1e-5, atol=1e-5)


@graphs
@torch.no_grad()
def test_a_compiled_model_is_one_graph() -> None:
    torch._dynamo.reset()
    model, inputs = small("stereo")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(joined(compiled(*inputs)), joined(model(*inputs)), rtol=1e-5, atol=1e-5)


@graphs
def test_a_model_is_traced() -> None:
    model, inputs = small("lora")
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs, check_trace=False)
        torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)


# --- What prints (C29) -----------------------------------------------------------------------------------------------


def test_an_opened_network_prints_as_one_line() -> None:
    backbone = lowpeft.describe(build("hat"))
    for text in (str(backbone), repr(backbone), repr(dataclasses.replace(backbone, scale=3))):
        assert "\n" not in text
        assert len(text) < 400


# --- What two readers found in the second edition of the core --------------------------------------------------------


class Wide(nn.Module):
    """A x1 network for values 0..255."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.tail(self.body(self.head(x / 255)))).clamp(0, 255)


def wide() -> nn.Module:
    torch.manual_seed(2)
    return Wide().eval()


def test_the_value_range_is_in_the_adapter_file_and_another_one_is_refused(tmp_path: Path) -> None:
    model = randomise_adapters(lowpeft.adapt(lowpeft.describe(wide(), value_range=(0, 255)), "spatial"))
    lowpeft.save_adapter(model, tmp_path)
    x = torch.rand(3, 9, 13)
    loaded = lowpeft.load_adapter(wide(), tmp_path)
    assert torch.equal(lowpeft.enhance(loaded, x), lowpeft.enhance(model, x))
    with pytest.raises(lowpeft.AdapterError, match=r"values \(0\.0, 255\.0\).* \(0\.0, 1\.0\)"):
        lowpeft.load_adapter(lowpeft.describe(wide()), tmp_path)


def test_facts_that_are_given_for_an_adapted_network_count(tmp_path: Path) -> None:
    model, x = randomise_adapters(lowpeft.adapt(wide(), "spatial")), torch.rand(3, 9, 13)
    described = lowpeft.describe(model, value_range=(0, 255))
    assert lowpeft.describe(described).value_range == (0.0, 255.0)
    with torch.no_grad():
        expected = (model(x[None] * 255) / 255).clamp(0, 1)[0]
    torch.testing.assert_close(lowpeft.enhance(described, x), expected, rtol=0, atol=1e-6)
    lowpeft.adapt(described, EVERYWHERE, name="second")
    torch.testing.assert_close(lowpeft.enhance(model, x), expected, rtol=0, atol=1e-6)


class To01(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * 255) / 255


def test_a_wrapper_of_ones_own_has_facts_of_its_own() -> None:
    inner = randomise_adapters(lowpeft.adapt(lowpeft.describe(wide(), value_range=(0, 255)), "spatial"))
    x = torch.rand(3, 9, 13)
    torch.testing.assert_close(lowpeft.enhance(To01(inner), x), lowpeft.enhance(inner, x), rtol=0, atol=1e-6)


def test_describing_a_model_of_several_views_keeps_it_one() -> None:
    stereo, views = lowpeft.adapt(build("edsr"), "stereo"), torch.rand(2, 3, 9, 13)
    described = lowpeft.describe(stereo)
    assert described.module is stereo
    for a, b in zip(lowpeft.enhance(described, *views), lowpeft.enhance(stereo, *views), strict=True):
        assert torch.equal(a, b)


def test_facts_are_used_when_stages_are_looked_for() -> None:
    class Fixed(Wide):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2:] != (40, 40):
                raise ValueError("40x40 px only")
            return super().forward(x)

    with pytest.raises(PlanError):
        lowpeft.plan(Fixed().eval(), "stereo")
    backbone = lowpeft.describe(Fixed().eval(), example=torch.rand(1, 3, 40, 40))
    assert backbone.fixed_px == 40
    assert lowpeft.plan(backbone, "stereo").sites


def test_a_fork_of_a_later_block_alone_is_found() -> None:
    root = build("swinir")
    block = root.layers[1].residual_group.blocks[1]

    class Forked(type(block)):
        def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
            out = super().forward(x, x_size)
            return out if self.extra is None else out + self.extra(out)

    for layer in root.layers:
        for each in layer.residual_group.blocks:
            each.__class__ = Forked
            each.extra = None
    block.extra = nn.Linear(12, 12)
    with pytest.raises(PlanError, match=r"layers\.1\.residual_group\.blocks\.1 "):
        lowpeft.plan(root, "spatial")


@torch.no_grad()
def test_merging_under_a_disabled_adapter_that_depends_on_the_weight_is_refused_too() -> None:
    model = build("edsr")
    lowpeft.adapt(model, EVERYWHERE, name="a")
    randomise_adapters(lowpeft.adapt(model, DoRAConfig(target="**", rank=1), name="b"))
    with lowpeft.disabled(model, name="b"), pytest.raises(PlanError, match="merge both together"):
        lowpeft.merge(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_adapters_of_a_lower_dtype_do_not_round_the_base(dtype: torch.dtype) -> None:
    model, x = lowpeft.adapt(build("edsr"), EVERYWHERE), image("edsr")
    for piece in (m for m in model.modules() if isinstance(m, lowpeft.kinds.LoRA)):
        piece.to(dtype)
    assert torch.equal(model(x), build("edsr")(x))


def test_doctored_plans_are_refused() -> None:
    root = build("hat")
    plan = lowpeft.plan(root, EVERYWHERE)
    first = plan.sites[0]
    for change in ({"path": "no.such"}, {"module": "Other"}, {"key": "lora_bias"}, {"shape": (1, 2)}, {"config": None}):
        site = dataclasses.replace(first, **change)
        message = refused_and_untouched(root, dataclasses.replace(plan, sites=(site, *plan.sites[1:])))
        assert site.path in message
    with pytest.raises(PlanError, match="Plan from"):
        lowpeft.inject(root, "stereo")


class Several(nn.Module):
    """An image for each image, a figure for each, one for all, a table."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.net, self.form = build("edsr"), form

    def forward(self, x: Tensor) -> object:
        out = self.net(x)
        forms = {"dict": {"image": out, "mean": out.mean((1, 2, 3)), "loss": out.mean()}, "object": object()}
        return forms[self.form]


def test_outputs_that_are_tables_are_split_by_view_and_unknown_ones_refused() -> None:
    model = randomise_adapters(lowpeft.adapt(Several("dict").eval(), StereoConfig(target="net.body.*", every=2)))
    left, right = 255 * torch.rand(2, 3, 3, 8, 12)
    one, other = model(left, right)
    assert one["image"].shape == other["image"].shape == (3, 3, 16, 24)
    assert one["mean"].shape == (3,)
    assert one["loss"].dim() == 0
    model.backbone.form = "object"
    with pytest.raises(PlanError, match=r"object.*output="):
        model(left, right)


@pytest.mark.parametrize("views", [([1, 2],), (None,), (torch.rand(1, 3, 8, 12), torch.rand(1, 3, 8, 12).double())])
def test_views_that_are_none_are_refused(views: tuple[object, ...]) -> None:
    model = lowpeft.adapt(build("edsr"), "stereo")
    with pytest.raises(PlanError, match="views"):
        model(*views)


def test_a_model_of_views_whose_adapters_were_taken_out_says_so() -> None:
    model = lowpeft.adapt(build("edsr"), "stereo")
    lowpeft.restore(model)
    with pytest.raises(PlanError, match="2 views"):
        model(*torch.rand(2, 1, 3, 8, 12))


def test_a_network_whose_forward_was_replaced_is_not_adapted_for_several_views() -> None:
    root = build("edsr")
    root.forward = root.forward
    with pytest.raises(PlanError, match=r"EDSR .*forward"):
        lowpeft.adapt(root, "stereo")


def test_a_frozen_integer_parameter_does_not_decide_the_dtype_of_images() -> None:
    class Counted(Wide):
        def __init__(self) -> None:
            super().__init__()
            self.number = nn.Parameter(torch.zeros(1, dtype=torch.long), requires_grad=False)
            self._parameters.move_to_end("number", last=False) if hasattr(self._parameters, "move_to_end") else None

    network = Counted().eval()
    x = torch.rand(3, 9, 13)
    with torch.no_grad():
        expected = network(x[None]).clamp(0, 1)[0]
    torch.testing.assert_close(lowpeft.enhance(network, x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("limits", [(0, float("inf")), (float("nan"), 1), (1, 0)])
def test_a_value_range_without_an_end_is_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(PlanError, match="value_range"):
        lowpeft.describe(wide(), value_range=limits)


def test_a_dead_layer_in_one_draw_of_values_is_no_reason_to_refuse() -> None:
    """Random values of SSF silence the few channels of a tiny network behind a ReLU."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = lowpeft.adapt(ROWS["rcan"].build(), SSFConfig(target="**"))
        lowpeft.check_trainable(model, image("rcan"))
