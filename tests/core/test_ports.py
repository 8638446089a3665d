"""The ports of the core, each proved by a kind, a family or a root part that is written here and not in the package."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import pickle
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lowpeft
from lowpeft import (
    AdapterConfig,
    BlockForward,
    Calibrator,
    Family,
    FeatureAdapter,
    Features,
    Forward,
    Layer,
    LoRAConfig,
    MultiViewModel,
    Place,
    PlanError,
    Ports,
    RootPart,
    SpatialConfig,
    VeRAConfig,
    WeightAdapter,
)
from lowpeft.core.operations.injection import install_forwards
from lowpeft.families import register_block_forward
from lowpeft.kinds import kinds
from lowpeft.ports.base import SLOT
from lowpeft.ports.layouts import Layout
from states import assert_same_tensors, randomise_adapters, tensors
from tiers import SORTS, by_default
from zoo import ROWS, build, image, image_of

pytestmark = pytest.mark.usefixtures("registries")


# --- A weight kind that starts from the weights and changes two parameters together ----------------------------------


@dataclass(frozen=True, kw_only=True)
class TurnConfig(AdapterConfig):
    """Weight and bias turned together, from directions that are taken from the weight."""

    kind: ClassVar[str] = "turn"
    steps: tuple[int, ...] = (1, 2)


class Turn(WeightAdapter):
    """A gain along the largest row of the weight, kept from the start, and on the bias."""

    kind = "turn"
    row: Tensor

    def __init__(self, layer: Layer, config: TurnConfig) -> None:
        super().__init__()
        self.layer = layer
        self.gain = nn.Parameter(torch.zeros(layer.matrix_shape[0]))
        self.register_buffer("row", torch.zeros(layer.matrix_shape[1]))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        return (("weight", "bias"),) if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None else ()

    def start(self, base: Mapping[str, Tensor]) -> None:
        rows = self.layer.rows(base["weight"])
        self.row.copy_(rows[rows.norm(dim=1).argmax()])

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {
            "weight": self.layer.from_rows(self.gain[:, None] * self.row, "weight"),
            "bias": self.gain * base["bias"],
        }


def test_a_weight_kind_changes_two_parameters_from_a_start_that_is_saved(tmp_path: Path) -> None:
    lowpeft.register_adapter(TurnConfig, Turn)
    model, x = lowpeft.adapt(build("hat"), TurnConfig(target="layers.*.conv", steps=[3, 4])), image("hat")
    with torch.no_grad():
        assert torch.equal(model(x), build("hat")(x))
    randomise_adapters(model)
    with torch.no_grad():
        expected = model(x)
        conv, site = model.layers[0].conv, lowpeft.adapter_state_dict(model)
        gain, row = (site[f"layers.0.conv.turn_weight_bias.{n}"] for n in ("gain", "row"))
        plain = conv._parameters["weight"] + (gain[:, None] * row).view(conv._parameters["weight"].shape)
        assert torch.equal(conv.weight, plain)
        assert torch.equal(conv.bias, conv._parameters["bias"] + gain * conv._parameters["bias"])
    lowpeft.save_adapter(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(lowpeft.load_adapter(build("hat"), tmp_path)(x), expected)
        assert lowpeft.merge(model).kept == ()
        assert torch.equal(model(x), expected)


# --- A start from data -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MeanConfig(AdapterConfig):
    """A rank-one change along the mean input of a layer, on as many outputs as have large gradients."""

    kind: ClassVar[str] = "mean"
    entries: int = 1


class MeanStart(Calibrator):
    """Keeps the mean input of every layer, and gives each the entries that the gradients of all layers decide."""

    wants = frozenset({"inputs", "gradients"})

    def __init__(self, adapters: Mapping[str, Any], configs: Mapping[str, Any]) -> None:
        super().__init__(adapters, configs)
        self.inputs: dict[str, list[Tensor]] = {}
        self.fisher: dict[str, Tensor] = {}
        self.images = 0

    def see(self, site: str, inputs: Tensor, outputs: Tensor) -> None:
        assert outputs.shape[0] == inputs.shape[0]
        self.inputs.setdefault(site, []).append(inputs.detach().mean())

    def see_gradients(self, site: str, gradients: Mapping[str, Tensor]) -> None:
        square = gradients["weight"].flatten(1).square().sum(1)
        self.fisher[site] = self.fisher.get(site, 0) + square

    def settle(self) -> Mapping[str, MeanConfig]:
        limit = torch.cat(list(self.fisher.values())).median()
        entries = {site: max(1, int((fisher > limit).sum())) for site, fisher in self.fisher.items()}
        return {site: dataclasses.replace(c, entries=entries[site]) for site, c in self.configs.items()}

    def fill(self, site: str, adapter: Any) -> None:
        adapter.mean.fill_(torch.stack(self.inputs[site]).mean())
        adapter.chosen.copy_(self.fisher[site].topk(len(adapter.chosen)).indices)


class Mean(WeightAdapter):
    kind = "mean"
    calibrator_class = MeanStart
    mean: Tensor
    chosen: Tensor

    def __init__(self, layer: Layer, config: MeanConfig) -> None:
        super().__init__()
        self.layer = layer
        self.size = nn.Parameter(torch.zeros(config.entries))
        self.register_buffer("mean", torch.ones(()))
        self.register_buffer("chosen", torch.zeros(config.entries, dtype=torch.long))

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        return (("weight",),) if isinstance(module, nn.Conv2d) else ()

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        rows = torch.zeros(self.layer.matrix_shape[0], device=self.size.device, dtype=self.size.dtype)
        rows = rows.index_add(0, self.chosen, self.size * self.mean)
        shape = self.layer.shape("weight")
        return {"weight": rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)}


def mean_model() -> nn.Module:
    lowpeft.register_adapter(MeanConfig, Mean)
    return lowpeft.adapt(build("edsr"), MeanConfig(target="body.*.body.*"))


def mean_batches(count: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        yield 255 * torch.rand(2, 3, 8, 12, generator=generator), 255 * torch.rand(2, 3, 16, 24, generator=generator)


def test_calibration_shows_inputs_and_gradients_of_single_images_and_settles_shapes(tmp_path: Path) -> None:
    model, x = mean_model(), image("edsr")
    before = {n: p.detach().clone() for n, p in model.named_parameters() if SLOT not in n.split(".")}
    assert lowpeft.calibrate(model, mean_batches(), loss=F.l1_loss) == {"mean": 12}
    assert_same_tensors({n: p for n, p in model.named_parameters() if SLOT not in n.split(".")}, before)
    assert all(p.requires_grad == (SLOT in n.split(".")) for n, p in model.named_parameters())
    sizes = {n: p.numel() for n, p in lowpeft.adapter_parameters(model)}
    assert len(set(sizes.values())) > 1
    assert lowpeft.summary(model).by_kind == {"mean": sum(sizes.values())}
    with torch.no_grad():
        assert torch.equal(model(x), build("edsr")(x))

    # the same, plainly: gradients of single images, their squares summed
    plain = build("edsr").requires_grad_(True)
    fisher: dict[str, Tensor] = {}
    for inputs, target in mean_batches():
        for i in range(2):
            plain.zero_grad()
            F.l1_loss(plain(inputs[i : i + 1]), target[i : i + 1]).backward()
            for path, module in plain.named_modules():
                if path.startswith("body.") and isinstance(module, nn.Conv2d):
                    fisher[path] = fisher.get(path, 0) + module.weight.grad.flatten(1).square().sum(1)
    for path in ("body.0.body.0", "body.3.body.2"):
        chosen = lowpeft.adapter_state_dict(model)[f"{path}.mean_weight.chosen"]
        assert torch.equal(chosen, fisher[path].topk(len(chosen)).indices)

    randomise_adapters(model)
    lowpeft.save_adapter(model, tmp_path)
    loaded = lowpeft.load_adapter(build("edsr"), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert not lowpeft.core.operations.calibration.needs_calibration(loaded)


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("no loss", "loss="),
        ("no batches", "no batches"),
        ("None", "NoneType"),
        ("meta", "values"),
        ("trained", "trained"),
        ("inference", "inference mode"),
    ],
)
def test_calibration_that_cannot_work_is_refused_and_changes_nothing(what: str, word: str) -> None:
    model = mean_model()
    if what == "trained":
        randomise_adapters(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    batches = None if what == "None" else list(mean_batches(0 if what == "no batches" else 1))
    if what == "meta":
        batches = [(x.to("meta"), target) for x, target in batches]
    with torch.inference_mode(what == "inference"), pytest.raises(PlanError, match=word):
        lowpeft.calibrate(model, batches, loss=None if what == "no loss" else F.l1_loss)
    assert_same_tensors(model.state_dict(), before)


def test_what_was_frozen_stays_frozen_in_a_calibrated_adapter() -> None:
    model = mean_model()
    frozen = next(name for name, _ in model.named_parameters() if SLOT in name.split("."))
    model.get_parameter(frozen).requires_grad_(False)
    lowpeft.calibrate(model, mean_batches(), loss=F.l1_loss)
    assert [n for n, p in model.named_parameters() if SLOT in n.split(".") and not p.requires_grad] == [frozen]


def test_an_error_in_a_calibrator_leaves_the_model_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mean_model()
    before, modules = {n: t.clone() for n, t in model.state_dict().items()}, list(model.modules())
    monkeypatch.setattr(MeanStart, "fill", lambda self, site, adapter: adapter.size.fill_(1.0))
    with pytest.raises(PlanError, match="start values of mean"):
        lowpeft.calibrate(model, mean_batches(), loss=F.l1_loss)
    assert_same_tensors(model.state_dict(), before)
    assert list(model.modules()) == modules


def test_kinds_without_a_start_from_data_need_no_batches() -> None:
    assert lowpeft.calibrate(lowpeft.adapt(build("hat"), "spatial"), []) == {}


# --- A block forward with ports, from outside ------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.GroupNorm(1, dim), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.mixer(self.mixer_norm(x))


class Foreign(nn.Module):
    """A network of a family that lowpeft does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign_head = nn.Conv2d(3, 8, 3, padding=1)
        self.foreign_blocks = nn.ModuleList(Block(8) for _ in range(4))
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.foreign_head(x)
        for block in self.foreign_blocks:
            x = block(x, scale=0.5)
        return self.tail(x)


def foreign() -> nn.Module:
    torch.manual_seed(9)
    return Foreign().eval()


def block_forward(block: Any, ports: Ports, x: Tensor, scale: float = 1.0) -> Tensor:
    size, normed = (x.shape[2], x.shape[3]), block.mixer_norm(x)
    out = x + scale * block.mixer(normed)
    delta = ports.delta("beside", normed, Layout.NCHW, size)
    return out if delta is None else out + delta


def blocks(**changes: Any) -> BlockForward:
    plain = {
        "name": "foreign.block",
        "forward": block_forward,
        "ports": frozenset({"beside"}),
        "example": lambda block: (torch.rand(1, 8, 6, 4),),
    }
    return BlockForward(**(plain | changes))


def foreign_family(block: BlockForward) -> Family:
    return Family(
        name="foreign",
        title="Foreign",
        signature=(("foreign_head", "foreign_blocks.*.mixer"),),
        places=(
            Place(
                name="somewhere_else",
                path="foreign_blocks.{stage}",
                channels="mixer.weight",
                block=block.name,
                port="beside",
            ),
        ),
        blocks=(block,),
    )


@dataclass(frozen=True, kw_only=True)
class BesideConfig(AdapterConfig):
    kind: ClassVar[str] = "beside"

    @property
    def places(self) -> tuple[str, ...]:
        return ("somewhere_else",)


class Beside(FeatureAdapter):
    """A depthwise convolution: needs rows."""

    kind = "beside"
    needs_rows = True
    row_local = False

    def __init__(self, channels: int, config: BesideConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        nn.init.zeros_(self.conv.weight)

    def delta(self, features: Features) -> Tensor:
        return features.from_rows(self.conv(features.rows.movedim(-1, 1)).movedim(1, -1))


def test_a_place_of_any_name_at_a_port_of_a_foreign_block(tmp_path: Path) -> None:
    lowpeft.register_family(foreign_family(blocks()))
    lowpeft.register_adapter(BesideConfig, Beside)
    x = torch.rand(2, 3, 8, 12)
    model = lowpeft.adapt(foreign(), BesideConfig(target=None))
    with torch.no_grad():
        assert torch.equal(model(x), foreign()(x))
        randomise_adapters(model)
        block, state = foreign().foreign_blocks[1], lowpeft.adapter_state_dict(model)
        inside = torch.rand(2, 8, 8, 12)
        kernel = state["foreign_blocks.1.beside_beside.conv.weight"]
        plain = block(inside, scale=0.5) + F.conv2d(block.mixer_norm(inside), kernel, padding=1, groups=8)
        torch.testing.assert_close(model.foreign_blocks[1](inside, scale=0.5), plain, rtol=1e-6, atol=1e-6)
        lowpeft.save_adapter(model, tmp_path)
        assert torch.equal(lowpeft.load_adapter(foreign(), tmp_path)(x), model(x))


def test_a_block_forward_that_computes_something_else_is_refused_when_planned() -> None:
    wrong = blocks(forward=lambda block, ports, x, scale=1.0: block_forward(block, ports, x, scale) + 1e-6)
    lowpeft.register_family(foreign_family(wrong))
    lowpeft.register_adapter(BesideConfig, Beside)
    with pytest.raises(PlanError, match=r"Block\)"):
        lowpeft.plan(foreign(), BesideConfig())


# --- Forwards that are close, not bit-equal, with or without adapters in them ----------------------------------------


def close_forward(block: Any, ports: Ports, x: Tensor, scale: float = 1.0) -> Tensor:
    return block_forward(block, ports, x, scale) * (1 + 1e-6)


def test_a_close_forward_runs_without_adapters_serves_their_ports_and_is_taken_out() -> None:
    exact = blocks()
    lowpeft.register_family(foreign_family(exact))
    lowpeft.register_adapter(BesideConfig, Beside)
    register_block_forward(blocks(name="foreign.fast", forward=close_forward, exact=False))
    root, x = foreign(), torch.rand(1, 3, 8, 12)
    paths = {f"foreign_blocks.{i}": "foreign.fast" for i in range(4)}
    with torch.no_grad():
        expected = root(x)
        install_forwards(root, paths)
        fast = root(x)
        assert not torch.equal(fast, expected)
        torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)
        model = lowpeft.adapt(root, BesideConfig())
        assert torch.equal(model(x), fast)
        randomise_adapters(model)
        both = model(x)
        assert not torch.allclose(both, fast, atol=1e-4)
        lowpeft.restore(root, "default")
        assert torch.equal(root(x), fast)
        lowpeft.restore(root)
        assert torch.equal(root(x), expected)
        adapted = randomise_adapters(lowpeft.adapt(root, BesideConfig()))
        torch.testing.assert_close(adapted(x), both, rtol=1e-5, atol=1e-5)
    assert type(root.foreign_blocks[0]) is not Block
    lowpeft.restore(root)
    assert type(root.foreign_blocks[0]) is Block


def test_a_forward_that_is_not_even_close_or_lacks_a_used_port_is_not_installed() -> None:
    lowpeft.register_family(foreign_family(blocks()))
    lowpeft.register_adapter(BesideConfig, Beside)
    register_block_forward(blocks(name="foreign.wrong", forward=lambda b, p, x, scale=1.0: 1.1 * x, exact=False))
    register_block_forward(blocks(name="foreign.bare", ports=frozenset(), exact=False))
    root = foreign()
    with pytest.raises(PlanError, match=r"foreign_blocks\.0 .* foreign\.wrong"):
        install_forwards(root, {"foreign_blocks.0": "foreign.wrong"})
    assert type(root.foreign_blocks[0]) is Block
    lowpeft.adapt(root, BesideConfig())
    with pytest.raises(PlanError, match="beside"):
        install_forwards(root, {"foreign_blocks.0": "foreign.bare"})


# --- Shared tensors and a part at the root ---------------------------------------------------------------------------


def test_shared_matrices_are_one_tensor_saved_once_and_part_of_copies(tmp_path: Path) -> None:
    model, x = randomise_adapters(lowpeft.adapt(build("hat"), VeRAConfig(target="**.qkv", rank=5))), image("hat")
    shared = [n for n in lowpeft.adapter_state_dict(model) if n.startswith("vera_root.")]
    assert shared == ["vera_root.a", "vera_root.b"]
    assert not any(n.endswith((".a", ".b")) and "vera_root" in n for n, _ in lowpeft.adapter_parameters(model))
    twin = copy.deepcopy(model)
    part = twin._modules[SLOT].get_submodule("default.vera_root")
    assert {id(p.root_part) for p in twin.modules() if isinstance(p, lowpeft.kinds.VeRA)} == {id(part)}
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        assert torch.equal(twin(x), expected)
        part.a.zero_()
        assert torch.equal(model(x), expected)
    lowpeft.save_adapter(model, tmp_path)
    assert {"vera_root.a", "vera_root.b"} <= load_file(tmp_path / "adapter_model.safetensors").keys()
    other = lowpeft.load_adapter(build("hat"), tmp_path)
    with torch.no_grad():
        assert torch.equal(other(x), expected)


def test_merging_every_site_takes_the_shared_part_out() -> None:
    model, x = randomise_adapters(lowpeft.adapt(build("hat"), VeRAConfig(target="**.qkv", rank=5))), image("hat")
    with torch.no_grad():
        expected = model(x)
        assert lowpeft.merge(model).kept == ()
        assert torch.equal(model(x), expected)
    assert not any(SLOT in n.split(".") for n, _ in model.named_modules())


def test_a_sequential_network_can_hold_a_shared_part() -> None:
    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)).eval()

    model, x = lowpeft.adapt(network(), VeRAConfig(target="**", rank=5)), torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), network()(x))
        assert len(model) == 3
        assert not torch.equal(randomise_adapters(model)(x), network()(x))


@dataclass(frozen=True, kw_only=True)
class SideConfig(AdapterConfig):
    """A side network: reads the stages, routes another adapter, and adds to the output."""

    kind: ClassVar[str] = "side"
    routes: str = "other"

    @property
    def places(self) -> tuple[str, ...]:
        return ("stage",)


class SidePart(RootPart):
    kind = "side"
    acts = True
    routes = True

    def __init__(self, shape: tuple[int, ...], config: SideConfig) -> None:
        super().__init__()
        self.routed = config.routes
        self.mix = nn.Parameter(torch.zeros(shape[0]))
        self.colour = nn.Parameter(torch.zeros(3))

    @classmethod
    def shape_for(cls, config: SideConfig, sites: Sequence[int | Layer]) -> tuple[int, ...]:
        return (len(sites),)

    def begin(self, forward: Forward) -> None:
        forward.strengths[self.routed] = forward.args[0].mean()

    def finish(self, forward: Forward, output: Tensor) -> Tensor:
        means = torch.stack([features.rows.detach().mean((1, 2, 3)) for _, features in forward.seen])
        return (self.mix[:, None] * means).sum(0)[:, None, None, None] + self.colour[:, None, None] * output


class SideReader(FeatureAdapter):
    kind = "side"
    root_part_class = SidePart
    reads_only = True

    def __init__(self, channels: int, config: SideConfig) -> None:
        super().__init__()

    def delta(self, features: Features) -> Tensor:
        raise NotImplementedError("a reader adds nothing")


def side_model(name: str = "hat") -> nn.Module:
    if "side" not in {kind.name for kind in kinds()}:
        lowpeft.register_adapter(SideConfig, SideReader)
    root = build(name)
    lowpeft.adapt(root, SpatialConfig(), name="other")
    return lowpeft.adapt(root, SideConfig(), name="side")


def test_a_root_part_reads_stages_sets_strengths_and_adds_to_the_output(tmp_path: Path) -> None:
    model, x = side_model(), image("hat", 2)
    with torch.no_grad():
        assert torch.equal(model(x), build("hat")(x))
        randomise_adapters(model)
        seen: list[Tensor] = []
        handles = [layer.conv.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in model.layers]
        found = model(x)
        for handle in handles:
            handle.remove()
        state = lowpeft.adapter_state_dict(model, name="side")
        with lowpeft.using(model, {"other": x.mean()}):
            plain = model(x)
        means = torch.stack([out.mean((1, 2, 3)) for out in seen])
        plain = plain * (1 + state["side_root.colour"][:, None, None])
        plain = plain + (state["side_root.mix"][:, None] * means).sum(0)[:, None, None, None]
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        lowpeft.save_adapter(model, tmp_path, name="side")
        lowpeft.restore(model, "side")
        assert torch.equal(lowpeft.load_adapter(model, tmp_path, name="side")(x), found)


def test_merging_is_refused_beside_a_part_that_routes_and_leaves_one_that_only_acts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = side_model(), image("hat")
    lowpeft.adapt(model, LoRAConfig(target="**.qkv", rank=1), name="lora")
    randomise_adapters(model)
    with pytest.raises(PlanError, match="strengths"):
        lowpeft.merge(model)
    monkeypatch.setattr(SidePart, "begin", RootPart.begin)
    monkeypatch.setattr(SidePart, "routes", False)
    with torch.no_grad():
        expected = model(x)
        lowpeft.merge(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert set(lowpeft.summary(model).by_kind) == {"side", "spatial"}


def test_a_part_that_acts_stays_when_the_weights_of_its_kind_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Acting(lowpeft.kinds.vera.VeRAMatrices):
        acts = True

        def __init__(self, shape: tuple[int, ...], config: Any) -> None:
            super().__init__(shape, config)
            self.colour = nn.Parameter(torch.zeros(3))

        def finish(self, forward: Forward, output: Tensor) -> Tensor:
            return self.colour[:, None, None] * output

    monkeypatch.setattr(lowpeft.kinds.VeRA, "root_part_class", Acting)
    model, x = randomise_adapters(lowpeft.adapt(build("edsr"), VeRAConfig(target="body.**", rank=3))), image("edsr")
    with torch.no_grad():
        expected = model(x)
        lowpeft.merge(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-3)
    assert list(lowpeft.adapter_state_dict(model)) == ["vera_root.colour", "vera_root.a", "vera_root.b"]


@pytest.mark.parametrize("mistake", ["no such adapter", "not said"])
def test_a_part_sets_strengths_of_adapters_that_there_are_and_says_so(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = side_model()
    if mistake == "not said":
        monkeypatch.setattr(SidePart, "routes", False)
    else:
        lowpeft.restore(model, "other")
    with pytest.raises(PlanError, match=r"routes = True|attached: side"):
        model(image("hat"))


def test_a_root_part_is_trained_and_restored_like_any_adapter() -> None:
    model, x = side_model(), image("hat")
    lowpeft.check_trainable(model, x)
    model.train()(x).mean().backward()
    assert dict(lowpeft.adapter_parameters(model, name="side"))[f"{SLOT}.side.side_root.colour"].grad.any()
    assert lowpeft.restore(model) is model
    assert not any(SLOT in n.split(".") for n, _ in model.named_modules())
    with torch.no_grad():
        assert torch.equal(model(x), build("hat")(x))


@pytest.mark.parametrize(("whole", "reentrant"), [(True, True), (True, False), (False, False)])
def test_a_forward_with_a_router_is_repeated_with_the_strengths_that_it_set(whole: bool, reentrant: bool) -> None:
    model, x = randomise_adapters(side_model()).double(), image("hat", 2).double()
    blocks = [m for m in model.modules() if hasattr(m, "residual_group")]

    def gradients(*, repeated: bool) -> dict[str, Tensor]:
        model.zero_grad()
        for block in blocks if repeated and not whole else []:
            plain = type(block).forward.__get__(block)
            block.forward = functools.partial(checkpoint, plain, use_reentrant=reentrant)
        with lowpeft.using(model, {"side": 1.0, "other": 0.5}):
            if repeated and whole:
                out = checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
            else:
                out = model(x.clone().requires_grad_())
        out.square().mean().backward()
        for block in blocks:
            block.__dict__.pop("forward", None)
        return {n: p.grad.clone() for n, p in lowpeft.adapter_parameters(model) if p.grad is not None}

    wanted, found = gradients(repeated=False), gradients(repeated=True)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9)


def test_two_adapters_with_root_parts_act_each_for_itself_and_in_threads_of_their_own() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = randomise_adapters(side_model())
    inputs = [image("hat") * (0.2 + 0.2 * i) for i in range(4)]

    @torch.no_grad()
    def call(x: Tensor) -> Tensor:
        return model(x)

    serial = list(map(call, inputs))
    with ThreadPoolExecutor(max_workers=4) as pool:
        threaded = list(pool.map(call, inputs * 4))
    assert all(torch.equal(a, b) for a, b in zip(threaded, serial * 4, strict=True))


# --- Three views -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NeighboursConfig(AdapterConfig):
    kind: ClassVar[str] = "neighbours"
    views: int = 3

    @property
    def places(self) -> tuple[str, ...]:
        return ("stage",)


class Neighbours(FeatureAdapter):
    """Each view takes from the mean of the others; any number of views."""

    kind = "neighbours"
    needs_rows = True

    def __init__(self, channels: int, config: NeighboursConfig) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def delta(self, features: Features) -> Tensor:
        views = features.rows_by_view
        total = sum(views)
        return features.from_rows_by_view((total - view) / (len(views) - 1) * self.gain for view in views)


@pytest.mark.parametrize("name", by_default(["swinir", "edsr"], ["hat", "swinir", "edt", "timm_swin", "ipt", "edsr"]))
def test_an_adapter_for_three_views_mixes_scenes_and_nothing_else(name: str, tmp_path: Path) -> None:
    lowpeft.register_adapter(NeighboursConfig, Neighbours)
    views = image(name, 6).split(2)
    with torch.no_grad():
        base = [image_of(build(name)(v.clone())) for v in views]
        model = lowpeft.adapt(build(name), NeighboursConfig())
        assert type(model) is MultiViewModel
        assert model.views == 3
        for found, wanted in zip(model(*views), base, strict=True):
            torch.testing.assert_close(image_of(found), wanted, rtol=1e-5, atol=1e-5 * ROWS[name].value_max)
        randomise_adapters(model, std=0.3)
        together = model(*views)
        stacked = model(torch.stack(views, 1))
        assert torch.equal(stacked, torch.stack(together, 1))
        lowpeft.save_adapter(model, tmp_path)
        again = lowpeft.load_adapter(build(name), tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(again(*views), together, strict=True))
    grown = [v.clone().requires_grad_() for v in views]
    out = image_of(model(*grown)[0])[0]
    gradients = torch.autograd.grad((out * torch.randn(out.shape)).sum(), grown)
    assert all(g[0].any() and not g[1].any() for g in gradients)


def test_models_of_several_views_refuse_other_numbers_of_views() -> None:
    lowpeft.register_adapter(NeighboursConfig, Neighbours)
    model = lowpeft.adapt(build("edsr"), NeighboursConfig())
    with pytest.raises(PlanError, match="3 views"):
        model(torch.rand(1, 3, 8, 12), torch.rand(1, 3, 8, 12))
    with pytest.raises(PlanError, match="2 and 3"):
        lowpeft.adapt(model, "stereo", name="second")
    with pytest.raises(PlanError, match="2 and 4"):
        lowpeft.plan(build("edsr"), [lowpeft.StereoConfig(), NeighboursConfig(views=4)])
    with pytest.raises(PlanError, match=r"disabled\(model\)"):
        model.backbone(torch.rand(3, 3, 8, 12))


# --- Classes and configs ---------------------------------------------------------------------------------------------


def test_classes_of_networks_are_freed_with_them() -> None:
    def one() -> weakref.ref[type]:
        class Local(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.conv(x)

        model = Local().eval()
        lowpeft.adapt(model, LoRAConfig(target="**", rank=1))
        model(torch.rand(1, 3, 8, 8))
        lowpeft.restore(model)
        return weakref.ref(Local)

    references = [one() for _ in range(5)]
    gc.collect()
    assert [r for r in references if r() is not None] == []


def test_the_generated_class_of_a_class_is_always_the_same() -> None:
    one, two = (lowpeft.adapt(build("edsr"), LoRAConfig(target="**", rank=1)) for _ in range(2))
    assert type(one.head[0]) is type(two.head[0])


def test_lists_in_a_recipe_become_tuples_and_tables_are_refused(tmp_path: Path) -> None:
    lowpeft.register_adapter(TurnConfig, Turn)
    recipe = tmp_path / "turn.toml"
    recipe.write_text('schema = 1\nname = "t"\n[[adapter]]\nkind = "turn"\ntarget = "**"\nsteps = [3, 4]\n')
    plan = lowpeft.plan(build("edsr"), recipe)
    assert plan.recipe.adapters == (TurnConfig(target="**", steps=(3, 4)),)
    recipe.write_text('schema = 1\nname = "t"\n[[adapter]]\nkind = "turn"\ntarget = "**"\nsteps = { a = 1 }\n')
    with pytest.raises(PlanError, match="steps"):
        lowpeft.plan(build("edsr"), recipe)
    model = lowpeft.adapt(build("edsr"), TurnConfig(target="**", steps=(5,)))
    folder = lowpeft.save_adapter(model, tmp_path / "saved")
    assert lowpeft.read_adapter(folder).sites[0].config == TurnConfig(target="**", steps=(5,))


@pytest.mark.parametrize("kind", by_default(SORTS, [k.name for k in kinds()]))
def test_every_base_tensor_stays_as_it_is_while_a_kind_is_switched(kind: str) -> None:
    config = {k.name: k.config for k in kinds()}[kind]
    by_place = {k.name: {} for k in kinds() if not k.on_weights} | {"stereo": {"every": 1}, "norm": {}}
    targets = by_place.get(kind, {"target": "**.qkv"})
    model = randomise_adapters(lowpeft.adapt(build("hat"), config(**targets)))
    before = tensors(model)
    x = image("hat", 2)
    inputs = x.split(1) if isinstance(model, MultiViewModel) else (x,)
    with torch.no_grad():
        for strength in (1.0, 0.5, 0.0):
            lowpeft.set_strength(model, strength)
            model(*inputs)
        with lowpeft.disabled(model):
            model(*inputs)
    assert_same_tensors(tensors(model), before)


# --- Kinds that break their contract ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WrongConfig(AdapterConfig):
    kind: ClassVar[str] = "wrong"
    how: str = "shape"


class Wrong(WeightAdapter):
    kind = "wrong"

    def __init__(self, layer: Layer, config: WrongConfig) -> None:
        super().__init__()
        self.number, self.how = nn.Parameter(torch.zeros(())), config.how
        if config.how == "init":
            raise ValueError("in the constructor")

    @classmethod
    def groups(cls, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        return (("weight",),) if isinstance(module, nn.Conv2d) else ()

    def start(self, base: Mapping[str, Tensor]) -> None:
        if self.how == "start":
            raise ValueError("in the start")

    def change(self, base: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.how == "attribute":
            return {"weight": self.gian}
        shape = () if self.how == "shape" else base["weight"].shape
        name = "wieght" if self.how == "name" else "weight"
        return {name: (self.number + float(self.how == "not zero")).expand(shape)}


@pytest.mark.parametrize("how", ["shape", "name", "not zero", "attribute"])
def test_a_kind_that_breaks_its_contract_is_refused_when_it_is_attached(how: str) -> None:
    lowpeft.register_adapter(WrongConfig, Wrong)
    root = build("edsr")
    classes = [type(m) for m in root.modules()]
    expected = {"not zero": (PlanError, "must add nothing"), "attribute": (AttributeError, "gian")}
    error, message = expected.get(how, (PlanError, "change of weight by a wrong adapter"))
    with pytest.raises(error, match=message):
        lowpeft.adapt(root, WrongConfig(target="**", how=how))
    assert [type(m) for m in root.modules()] == classes


def test_an_attribute_error_in_a_change_is_not_taken_for_a_missing_weight() -> None:
    lowpeft.register_adapter(WrongConfig, Wrong)
    model = lowpeft.adapt(build("edsr"), WrongConfig(target="**", how="fine"))
    for module in model.modules():
        if isinstance(module, Wrong):
            module.how = "attribute"
    with pytest.raises(RuntimeError, match="gian"):
        model(image("edsr"))


def test_a_feature_kind_that_is_not_zero_when_new_is_refused() -> None:
    class Shifting(Beside):
        def delta(self, features: Features) -> Tensor:
            return super().delta(features) + 1

    lowpeft.register_adapter(BesideConfig, Shifting)
    with pytest.raises(PlanError, match="must add nothing"):
        lowpeft.adapt(build("edsr"), BesideConfig(target="body.*.body"))


def test_a_kind_whose_parts_are_not_written_is_refused_when_registered() -> None:
    class Half(RootPart):
        kind = "beside"

    class WithHalf(Beside):
        root_part_class = Half

    with pytest.raises(PlanError, match=r"Half .*shape_for"):
        lowpeft.register_adapter(BesideConfig, WithHalf)


@pytest.mark.parametrize("how", ["init", "start"])
def test_an_error_in_a_kinds_own_code_leaves_the_network_untouched(how: str) -> None:
    lowpeft.register_adapter(WrongConfig, Wrong)
    root = build("edsr")
    classes, before = [type(m) for m in root.modules()], tensors(root)
    with pytest.raises(ValueError, match="in the"):
        lowpeft.adapt(root, WrongConfig(target="**", how=how))
    assert [type(m) for m in root.modules()] == classes
    assert_same_tensors(tensors(root), before)
    assert all(p.requires_grad for p in root.parameters() if p.shape != (3, 3, 1, 1) and p.shape != (3,))
