"""Ladder side-tuning: its formula, that no gradient enters the frozen network, and networks of every shape."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
import zoo
from lowpeft import LoRAConfig, LSTConfig, PlanError
from lowpeft.core.operations.methods import kept_bytes
from lowpeft.demo import demo_backbone
from lowpeft.ports.base import SLOT
from reference.ladder import ladder_image
from states import randomise_adapters
from zoo import image_of

NETWORKS = {network.name: network for network in zoo.FAMILIES}


def build(name: str) -> nn.Module:
    torch.manual_seed(7)
    return NETWORKS[name].build()


def images(name: str, size: tuple[int, int] | None = None, count: int = 2) -> Tensor:
    network = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    return network.value_max * torch.rand(count, network.channels, *(size or network.input_px), generator=generator)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """What the network makes of a copy, because some write their input."""
    return image_of(model(x.clone()))


def parts_of(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = lowpeft.adapter_state_dict(model)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", ["rcan", "hitsir"])
def test_a_ladder_is_its_formula(name: str) -> None:
    base, x = build(name).double(), images(name, (8, 16)).double()
    model = randomise_adapters(lowpeft.adapt(build(name).double(), LSTConfig(hidden=5)))
    paths = [site.path for site in lowpeft.plan(base, LSTConfig()).sites if site.path]
    seen: list[Tensor] = []
    for path in paths:
        base.get_submodule(path).register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    rungs = [parts_of(model, f"{path}.lst.") for path in paths]
    with torch.no_grad():
        wanted = run(base, x)
        added = [ladder_image([h[i].movedim(0, -1) for h in seen], rungs, parts_of(model, "lst_root.")) for i in (0, 1)]
        found = run(model, x)
    torch.testing.assert_close(found - wanted, torch.stack(added).movedim(-1, 1), rtol=1e-9, atol=1e-9)
    assert float(torch.stack(added).abs().max()) > 0.01


@pytest.mark.parametrize("hidden", [1, 6])
def test_its_parameters_are_counted_by_the_formula(hidden: int) -> None:
    model = lowpeft.adapt(build("swinir"), LSTConfig(hidden=hidden))
    sites = [site for site in lowpeft.plan(build("swinir"), LSTConfig()).sites if site.path]
    outputs = 3 * (lowpeft.describe(build("swinir")).scale or 0) ** 2
    each = sum((s.shape[0] + 1) * hidden + 1 + 4 * hidden**2 + 13 * hidden for s in sites)
    assert lowpeft.summary(model).trainable == each + 9 * hidden * outputs + outputs + 3 * hidden


def outputs_with_a_gradient(model: nn.Module, x: Tensor) -> set[str]:
    """Paths of the modules of the frozen network whose outputs have a gradient."""
    found = set()
    handles = []
    for path, module in model.named_modules():
        if path and SLOT not in path.split("."):

            def look(module: nn.Module, args: object, output: object, path: str = path) -> None:
                if isinstance(output, Tensor) and output.requires_grad:
                    found.add(path)

            handles.append(module.register_forward_hook(look))
    run(model.train(), x).square().mean().backward()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", ["swinir", "rcan", "restormer"])
def test_no_gradient_goes_through_the_network(name: str) -> None:
    x = images(name)
    model = randomise_adapters(lowpeft.adapt(build(name), "lst"))
    assert not outputs_with_a_gradient(model, x)
    assert all(p.grad is not None and p.grad.any() for _, p in lowpeft.adapter_parameters(model))
    spatial = randomise_adapters(lowpeft.adapt(build(name), "spatial"))
    assert outputs_with_a_gradient(spatial, x)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint", "ignore:None of the inputs have requires_grad")
def test_checkpointing_lets_no_gradient_in_either() -> None:
    model = randomise_adapters(lowpeft.adapt(build("swinir"), "lst"))
    for module in model.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = True
    assert not outputs_with_a_gradient(model, images("swinir"))


def test_the_ladder_gives_a_beside_adapter_no_gradient() -> None:
    """A LoRA adapter gets the gradient of the network's own output, not the one through the ladder's features."""
    x = images("rcan")
    model = randomise_adapters(lowpeft.adapt(build("rcan"), LoRAConfig(target="body.**", rank=1), name="lora"))
    lora = [p for _, p in lowpeft.adapter_parameters(model)]
    alone = torch.autograd.grad(run(model, x).sum(), lora)
    model = lowpeft.adapt(model, LSTConfig(hidden=4), name="ladder")
    ladder = [p for _, p in lowpeft.adapter_parameters(model, name="ladder")]
    with torch.no_grad():
        for parameter in ladder:
            parameter.normal_()
    assert all(g.any() for g in torch.autograd.grad(run(model, x).sum(), ladder))
    for found, wanted in zip(torch.autograd.grad(run(model, x).sum(), lora), alone, strict=True):
        torch.testing.assert_close(found, wanted)


def test_it_keeps_a_fraction_of_what_full_fine_tuning_keeps() -> None:
    x = images("swinir", (24, 32))
    full = build("swinir").train().requires_grad_(True)
    ladder = lowpeft.adapt(build("swinir"), LSTConfig(hidden=2)).train()
    assert kept_bytes(ladder, lambda: run(ladder, x)) < 0.2 * kept_bytes(full, lambda: run(full, x))


@pytest.mark.parametrize("name", ["hat", "nafnet", "ipt"])
def test_images_of_odd_sizes_and_features_of_other_sizes_fit(name: str) -> None:
    size = None if name == "ipt" else (21, 34)
    base, x = build(name), images(name, size, 1)
    with torch.no_grad():
        wanted = run(base, x)
        model = lowpeft.adapt(base, LSTConfig(hidden=3))
        assert torch.equal(run(model, x), wanted)
        assert not torch.equal(run(randomise_adapters(model), x), wanted)
    lowpeft.check_trainable(model, x)


def test_it_is_saved_loaded_and_removed(tmp_path: Path) -> None:
    x = images("hat")
    model = randomise_adapters(lowpeft.adapt(build("hat"), LSTConfig(hidden=3)))
    with torch.no_grad():
        wanted = model(x)
        lowpeft.save_adapter(model, tmp_path)
        assert torch.equal(lowpeft.load_adapter(build("hat"), tmp_path)(x), wanted)
        with lowpeft.disabled(model):
            assert torch.equal(model(x), build("hat")(x))
        assert torch.equal(lowpeft.restore(model)(x), build("hat")(x))


@pytest.mark.parametrize("strength", [0.25, torch.tensor([0.0, 1.0])])
def test_its_strength_scales_what_it_adds(strength: float | Tensor) -> None:
    x = images("rcan")
    model = randomise_adapters(lowpeft.adapt(build("rcan"), LSTConfig(hidden=3)))
    with torch.no_grad():
        base, whole = run(build("rcan"), x), run(model, x)
        with lowpeft.using(model, {"default": strength}):
            found = run(model, x)
    factor = strength if isinstance(strength, float) else strength[:, None, None, None]
    torch.testing.assert_close(found, base + factor * (whole - base))


def test_it_runs_under_bf16_autocast_and_on_a_half_precision_base() -> None:
    x = images("rcan")
    model = randomise_adapters(lowpeft.adapt(build("rcan"), LSTConfig(hidden=3)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
    half = randomise_adapters(lowpeft.adapt(build("rcan").bfloat16(), LSTConfig(hidden=3)))
    half(x.bfloat16()).float().mean().backward()
    assert all(p.grad is not None for _, p in lowpeft.adapter_parameters(half))


def test_it_may_leave_out_early_stages() -> None:
    whole = lowpeft.plan(build("swinir"), LSTConfig())
    later = lowpeft.plan(build("swinir"), LSTConfig(skip_stages=2))
    assert len(later.sites) == len(whole.sites) - 2


def test_it_is_refused_where_there_is_no_image_to_add_to() -> None:
    with pytest.raises(PlanError, match=r"scale and channels of .* are not known"):
        lowpeft.adapt(build("timm_swin"), "lst")


@pytest.mark.parametrize("hidden", [0, 1.5, True])
def test_a_width_that_is_none_is_refused(hidden: object) -> None:
    with pytest.raises(PlanError, match="lst adapter: hidden must be a whole number of at least 1"):
        LSTConfig(hidden=hidden)


def test_a_budget_finds_its_width() -> None:
    planned = functools.partial(lowpeft.plan, demo_backbone(), "lst")
    assert planned(budget="5%").parameters < planned(budget="20%").parameters


class Padded(nn.Module):
    """Stages on patches of `patch` pixels, of an image that is padded to whole patches, or by a border on all sides."""

    def __init__(self, patch: int = 1, border: int = 0) -> None:
        super().__init__()
        self.patch, self.border = patch, border
        self.head = nn.Conv2d(3, 8, patch, stride=patch)
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(3))
        self.tail = nn.ConvTranspose2d(8, 3, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        around = self.border
        x = F.pad(x, (around, around + -width % self.patch, around, around + -height % self.patch), mode="replicate")
        y = self.head(x)
        for stage in self.stages:
            y = stage(y) + y
        return self.tail(y)[..., around : around + height, around : around + width]


@pytest.mark.parametrize(("patch", "size"), [(8, (49, 49)), (8, (49, 96)), (4, (9, 40))])
def test_a_padded_image_is_answered_where_it_is(patch: int, size: tuple[int, int]) -> None:
    """A change near the padded corner changes the ladder's image there, not elsewhere."""
    torch.manual_seed(3)
    model = randomise_adapters(lowpeft.adapt(Padded(patch).eval(), LSTConfig(hidden=4)))
    x = torch.rand(1, 3, *size)
    row, column = size[0] - 5, size[1] - 5
    moved = x.clone()
    moved[..., row, column] += 1

    def ladder(images: Tensor) -> Tensor:
        with lowpeft.disabled(model):
            base = model(images)
        return model(images) - base

    with torch.no_grad():
        change = (ladder(moved) - ladder(x)).abs().sum((0, 1))
    rows, columns = (change.sum(dim).argmax().item() for dim in (1, 0))
    assert abs(rows - row) <= 2 * patch
    assert abs(columns - column) <= 2 * patch


def test_features_that_are_not_on_the_images_grid_are_refused() -> None:
    with pytest.raises(PlanError, match="do not lie on the input image's grid"):
        lowpeft.plan(Padded(border=8).eval(), "lst")


def test_a_scale_that_is_not_the_networks_is_told() -> None:
    described = lowpeft.describe(build("swinir"), scale=1)
    model = lowpeft.adapt(described, LSTConfig(hidden=2))
    with pytest.raises(PlanError, match="described with scale 1"):
        model(images("swinir"))


def test_features_that_the_network_overwrites_later_are_read_as_they_were() -> None:
    class Overwriting(nn.Module):
        def __init__(self, *, in_place: bool) -> None:
            super().__init__()
            self.in_place, self.head, self.tail = in_place, nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
            self.stages = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.head(x)
            for stage in self.stages:
                y = stage(x)
                x = y.add_(x) if self.in_place else y + x
            return self.tail(x)

    found = []
    for in_place in (False, True):
        torch.manual_seed(2)
        model = randomise_adapters(lowpeft.adapt(Overwriting(in_place=in_place).eval(), LSTConfig(hidden=3)))
        with torch.no_grad():
            found.append(model(torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(*found)
