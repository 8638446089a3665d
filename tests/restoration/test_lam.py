"""Local attribution maps: closed forms, where attribution can be, both views, and the command."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spandrel.architectures.DnCNN import DnCNN
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lowpeft
import zoo
from lowpeft import Backbone, DataError, MultiViewModel, StereoModel
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.cli import main
from lowpeft.demo import demo_backbone
from lowpeft.restoration.images import read_image, write_image
from lowpeft.restoration.lam.attribution import (
    EPSILON,
    LamSettings,
    Patch,
    attribute,
    blur,
    chunks,
    detect,
    diffusion_index,
)
from lowpeft.restoration.lam.picture import draw_attributions, heat
from states import backbone_of, facts, randomise_adapters

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

NETWORKS = {n.name: n for n in (*zoo.FAMILIES, *zoo.SPANDREL)}
PATCH = Patch(y_px=4, x_px=6, side_px=6)
FEW = LamSettings(steps=3)


def local() -> nn.Sequential:
    """One 3x3 convolution: an output pixel sees the 3x3 input pixels around its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))


def edsr() -> Backbone:
    return backbone_of(NETWORKS["edsr"])


def images(*shape: int, count: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)))


# --- The parts, against plain definitions
@pytest.mark.parametrize("sigma", [0.0, 0.024, 0.6, 1.2])
def test_the_blur_is_a_normalised_gaussian_with_a_reflected_border(sigma: float) -> None:
    (image,) = images(3, 7, 9, count=1)
    y, x = np.mgrid[-4:5, -4:5]
    kernel = np.exp(-(x**2 + y**2) / (2 * (sigma + 1e-5) ** 2))
    kernel /= kernel.sum()
    padded = np.pad(image.double().numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    wanted = [[[(c[i : i + 9, j : j + 9] * kernel).sum() for j in range(9)] for i in range(7)] for c in padded]
    torch.testing.assert_close(blur(image.double(), sigma), torch.tensor(np.array(wanted)), rtol=0, atol=1e-5)


def test_the_way_ends_at_the_image_itself() -> None:
    (image,) = images(3, 7, 9, count=1)
    assert torch.equal(blur(image, 0.0), image)


@pytest.mark.parametrize("patch", [Patch(y_px=1, x_px=2, side_px=3), Patch(y_px=5, x_px=7, side_px=3)], ids=str)
def test_the_detector_sums_the_lengths_of_colour_gradients(patch: Patch) -> None:
    (image,) = images(3, 8, 10, count=1)
    rows, columns = image.shape[-2:]
    wanted = 0.0
    for channel in image.double().tolist():
        for y in range(patch.y_px, patch.y_px + patch.side_px):
            for x in range(patch.x_px, patch.x_px + patch.side_px):
                across = channel[y][min(x + 1, columns - 1)] - channel[y][x]
                down = channel[min(y + 1, rows - 1)][x] - channel[y][x]
                wanted += (across**2 + down**2 + EPSILON) ** 0.5
    assert detect(image[None], patch).item() == pytest.approx(wanted, abs=1e-12)


def test_the_detector_has_a_gradient_where_the_patch_is_flat() -> None:
    image = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    detect(image, Patch(y_px=0, x_px=0, side_px=4)).sum().backward()
    assert torch.equal(image.grad, torch.zeros_like(image))


def test_the_diffusion_index_is_100_for_equal_values_and_100_over_n_for_a_single_one() -> None:
    assert diffusion_index(torch.full((4, 5), -0.3)) == pytest.approx(100)
    assert diffusion_index(F.one_hot(torch.tensor(7), 20)) == pytest.approx(100 / 20)
    assert diffusion_index(torch.zeros(4)) is None


def test_the_diffusion_index_follows_from_the_mean_difference() -> None:
    values = torch.randn(50, dtype=torch.float64)
    sizes = values.abs()
    gini = (sizes[:, None] - sizes).abs().mean() / (2 * sizes.mean())
    assert diffusion_index(values) == pytest.approx(100 * (1 - gini.item()))
    assert diffusion_index(7 * values) == pytest.approx(100 * (1 - gini.item()))


# --- The maps
class Ramp(nn.Module):
    """Gives a·x at column x of the output, a = Σ weight · image: the detector is then linear in the image."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, *size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        height, width = (2 * side for side in x.shape[-2:])
        slope = (x * self.weight).sum((1, 2, 3))
        return slope[:, None, None, None] * torch.arange(width).expand(3, height, width)


def test_a_linear_detector_gives_the_closed_form() -> None:
    """With D = 3 · side² · a, pixel i gets 3 · side² · Σ_c weight_i · (image − blurred image)_i, for any steps."""
    network = Ramp(9, 12)
    (image,) = images(3, 9, 12, count=1)
    image = image.double()
    wanted = 3 * PATCH.side_px**2 * (network.weight.detach() * (image - blur(image, 1.2))).sum(0)
    for steps in (1, 4):
        found = attribute(facts(network), image, patch=PATCH, settings=LamSettings(steps=steps))
        torch.testing.assert_close(found.maps[0], wanted, rtol=1e-9, atol=0)
        assert found.completeness_error < 1e-9


def test_the_maps_sum_to_the_change_of_the_detector_the_better_the_more_steps() -> None:
    network = smooth()
    (image,) = images(3, 16, 20, count=1)
    found = [
        attribute(facts(network), image, patch=PATCH, settings=LamSettings(steps=steps, chunk=20))
        for steps in (5, 20, 80, 320)
    ]
    errors = [each.completeness_error for each in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.2
    assert errors[3] < 0.01
    change = detect(network(image[None]), PATCH) - detect(network(blur(image, 1.2)[None]), PATCH)
    assert found[0].detector_sharp - found[0].detector_blurred == pytest.approx(change.item(), rel=1e-4)


def test_the_sum_is_that_of_the_definition() -> None:
    """Step by step, each gradient by itself, in float64."""
    network = smooth().double()
    (image,) = images(3, 11, 13, count=1)
    image, wanted = image.double(), torch.zeros(11, 13, dtype=torch.float64)
    for k in range(1, 8):
        now, before = (blur(image, 1.2 * (1 - step / 7)) for step in (k, k - 1))
        now.requires_grad_()
        (slope,) = torch.autograd.grad(detect(network(now[None]), PATCH), now)
        wanted += (slope * (now.detach() - before)).sum(0)
    found = attribute(facts(network), image, patch=PATCH, settings=LamSettings(steps=7))
    assert "tensor(" not in repr(found)
    torch.testing.assert_close(found.maps[0], wanted)


def test_attribution_stays_in_the_receptive_field() -> None:
    """HR rows 8 to 13 and their lower neighbour are LR rows 4 to 7, and see one more on each side; columns alike.

    The detector takes no diagonal difference, so nothing sees the lower right corner.
    """
    network = local()
    (image,) = images(3, 16, 20, count=1)
    patch = Patch(y_px=8, x_px=12, side_px=6)
    (found,) = attribute(facts(network), image, patch=patch, settings=FEW).maps
    inside = torch.zeros(16, 20, dtype=torch.bool)
    inside[3:9, 5:11] = True
    inside[8, 10] = False
    assert not found[~inside].any()
    assert (found[inside] != 0).all()


def test_shifting_the_image_shifts_the_map() -> None:
    network = smooth()
    image = torch.zeros(3, 30, 30)
    image[:, 10:18, 10:18] = torch.rand(3, 8, 8)
    (one,) = attribute(facts(network), image, patch=Patch(y_px=24, x_px=26, side_px=6)).maps
    (other,) = attribute(facts(network), image.roll((3, 5), (1, 2)), patch=Patch(y_px=30, x_px=36, side_px=6)).maps
    torch.testing.assert_close(other, one.roll((3, 5), (0, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 99])
def test_the_chunk_does_not_matter(chunk: int) -> None:
    network = smooth().double()
    (image,) = images(3, 11, 13, count=1)
    settings, calls = LamSettings(steps=7, chunk=chunk), []
    one = attribute(facts(network), image, patch=PATCH, settings=LamSettings(steps=7))
    other = attribute(facts(network), image, patch=PATCH, settings=settings, advance=calls.append)
    torch.testing.assert_close(other.maps[0], one.maps[0], rtol=1e-9, atol=1e-12)
    assert len(calls) == chunks(settings) == -(-8 // chunk)


def test_float32_is_enough() -> None:
    network = smooth()
    (image,) = images(3, 11, 13, count=1)
    (one,) = attribute(facts(network), image, patch=PATCH).maps
    (other,) = attribute(facts(network.double()), image, patch=PATCH).maps
    assert (one - other).abs().max() < 1e-4 * other.abs().max()


class Scaled(nn.Module):
    """A network of values 0..255 with values 0..1 in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * 255) / 255


def test_the_value_range_of_the_network_does_not_matter() -> None:
    backbone = edsr()
    (image,) = images(3, 11, 13, count=1)
    scaled = Scaled(backbone.module)
    (one,) = attribute(facts(scaled), image, patch=PATCH, settings=FEW).maps
    (other,) = attribute(backbone, image, patch=PATCH, settings=FEW).maps
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


class Padded(nn.Module):
    """Pads 13x21 px to 16x24 by itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(F.pad(x, (0, 3, 0, 3), mode="reflect"))[..., :26, :42]


def test_what_padding_repeats_counts_for_the_pixel_itself() -> None:
    network = smooth()
    (image,) = images(3, 13, 21, count=1)
    corner = Patch(y_px=20, x_px=36, side_px=6)
    padded = Padded(network)
    (one,) = attribute(facts(padded), image, patch=corner).maps
    (other,) = attribute(facts(network, size_multiple=8), image, patch=corner).maps
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["hat", "swinir", "swin2sr", "edt", "rcan", "plksr", "swin2sr_hf"])
def test_networks_of_many_kinds_are_attributed(name: str) -> None:
    """PLKSR writes in place in eval mode, where autograd cannot follow."""
    network = NETWORKS[name]
    (image,) = images(3, *network.input_px, count=1)
    backbone = backbone_of(network)
    found = attribute(backbone, image, patch=PATCH, settings=FEW)
    assert found.maps[0].shape == image.shape[-2:]
    assert not any(m.training for m in backbone.module.modules())


def test_bicubic_which_has_no_parameters_is_attributed() -> None:
    """The cubic of 4x4 px and the detector's neighbours bound where its attribution can be."""
    network = nn.Upsample(scale_factor=2, mode="bicubic")
    (image,) = images(3, 16, 20, count=1)
    patch = Patch(y_px=16, x_px=20, side_px=4)
    (found,) = attribute(facts(network), image, patch=patch, settings=FEW).maps
    assert found[8:10, 10:12].all()
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[5:13, 7:15] = True
    assert not found[~inside].any()


# --- Both views
@pytest.mark.parametrize(("view", "other"), [("left", 1), ("right", 0)])
def test_a_single_image_network_takes_nothing_from_the_other_view(view: str, other: int) -> None:
    backbone = edsr()
    patch = dataclasses.replace(PATCH, view=view)
    found = attribute(backbone, *images(3, 11, 13), patch=patch, settings=FEW)
    assert not found.maps[other].any()
    assert found.maps[1 - other].any()
    assert found.share_other_view == 0
    assert found.diffusion_indices[other] is None


def train_one_step(model: StereoModel) -> None:
    optimiser = torch.optim.AdamW([p for _, p in lowpeft.adapter_parameters(model)], lr=1e-3)
    left, right = images(2, 3, 8, 12)
    wanted = torch.rand(2, 3, 16, 24) * 255
    outputs = model(left * 255, right * 255)
    sum((o - wanted).abs().mean() for o in outputs).backward()
    optimiser.step()


@pytest.mark.parametrize("view", ["left", "right"])
def test_the_other_view_counts_from_the_first_step_of_training_on(view: str) -> None:
    backbone, patch = edsr(), dataclasses.replace(PATCH, view=view)
    model = lowpeft.adapt(backbone, "stereo")
    pair = images(3, 11, 13)
    new = attribute(model, *pair, patch=patch, settings=FEW)
    assert new.share_other_view == 0
    assert not new.maps[1 if view == "left" else 0].any()
    train_one_step(model)
    trained = attribute(model, *pair, patch=patch, settings=FEW)
    assert 0 < trained.share_other_view < 1
    with lowpeft.disabled(model):
        frozen = attribute(model, *pair, patch=patch, settings=FEW)
    assert frozen.share_other_view == 0
    assert all(torch.equal(a, b) for a, b in zip(frozen.maps, new.maps, strict=True))


def test_a_stereo_adapter_looks_along_rows() -> None:
    """One stereo adapter on one stage of 3x3 convolutions: rows of the other view far from the patch cannot count."""
    backbone = edsr()
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"), std=0.3)
    pair = images(3, 40, 16)
    found = attribute(model, *pair, patch=Patch(y_px=0, x_px=8, side_px=4), settings=FEW)
    other = found.maps[1]
    assert other[:3].abs().sum(0).gt(0).all()
    assert not other[-8:].any()


def test_the_maps_of_a_pair_sum_to_the_change_of_the_detector() -> None:
    backbone = edsr()
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    found = attribute(model, *images(3, 11, 13), patch=PATCH, settings=LamSettings(steps=200, chunk=20))
    assert found.share_other_view > 0
    assert found.completeness_error < 0.03


def test_the_figures_of_a_pair_follow_from_its_maps() -> None:
    backbone = edsr()
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    found = attribute(model, *images(3, 11, 13), patch=PATCH, settings=FEW)
    left, right = (m.abs() for m in found.maps)
    assert found.share_other_view == pytest.approx((right.sum() / (left.sum() + right.sum())).item())
    assert max(m.max() for m in found.normalised) == 1
    torch.testing.assert_close(found.normalised[1], right / torch.max(left.max(), right.max()))
    assert found.diffusion_index == pytest.approx(diffusion_index(torch.stack((left, right))))
    printed = str(found)
    assert "6x6 HR px at row 4, column 6 of the left view" in printed
    assert f"{found.share_other_view:.5g}" in printed
    assert set(found.figures()) >= {"share_other_view", "diffusion_index_left", "diffusion_index_right"}


class Shared(MultiViewModel):
    """Gives every view the sum of all results, weighted by its number."""

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        total = sum((i + 1) * self.backbone(view) for i, view in enumerate(views))
        return (total,) * len(views)


def test_three_views_are_attributed_together() -> None:
    model = Shared(local(), views=3)
    (view,) = images(3, 16, 20, count=1)
    patch = Patch(y_px=8, x_px=12, side_px=6, view="2")
    found = attribute(model, view, view, view, patch=patch, settings=FEW)
    first, second, third = found.maps
    torch.testing.assert_close(second, 2 * first, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(third, 3 * first, rtol=1e-4, atol=1e-6)
    assert found.share_other_view == pytest.approx(4 / 6)
    assert found.views == ("1", "2", "3")
    assert found.where == "6x6 HR px at row 8, column 12 of view 2"
    assert {"diffusion_index_1", "diffusion_index_2", "diffusion_index_3"} <= found.figures().keys()
    picture = draw_attributions({"a": found}, [view] * 3, scale=2, notes=["a note"])
    assert picture.width >= 3 * 480
    with pytest.raises(DataError, match="'left': 1, 2, 3"):
        attribute(model, view, view, view, patch=PATCH, settings=FEW)
    with pytest.raises(DataError, match="3 views"):
        attribute(model, view, view, patch=PATCH, settings=FEW)


# --- What is left behind
@contextmanager
def plain() -> Iterator[None]:
    yield


@pytest.mark.parametrize("context", [plain, torch.no_grad, torch.inference_mode])
def test_the_model_is_as_it_was(context: type) -> None:
    model, wrong = (
        randomise_adapters(lowpeft.adapt(lowpeft.describe(edsr(), scale=scale), "stereo")).train() for scale in (2, 3)
    )
    train_one_step(model)
    both = nn.ModuleList([model, wrong])
    modes = [m.training for m in both.modules()]
    flags = [p.requires_grad for p in both.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in both.parameters()]
    assert len(set(flags)) == 2
    with context():
        pair = images(3, 11, 13)
        attribute(model, *pair, patch=PATCH, settings=FEW)
        with pytest.raises(DataError, match="26x22 px"):
            attribute(wrong, *pair, patch=PATCH, settings=FEW)
    assert modes == [m.training for m in both.modules()]
    assert flags == [p.requires_grad for p in both.parameters()]
    for parameter, grad in zip(both.parameters(), grads, strict=True):
        assert parameter.grad is grad or torch.equal(parameter.grad, grad)


class Checkpointed(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.network, x, use_reentrant=True)


def test_reentrant_checkpoints_are_attributed() -> None:
    network = smooth()
    (image,) = images(3, 11, 13, count=1)
    module = Checkpointed(network)
    (one,) = attribute(facts(network), image, patch=PATCH, settings=FEW).maps
    (other,) = attribute(facts(module), image, patch=PATCH, settings=FEW).maps
    torch.testing.assert_close(other, one)
    assert [p.grad for p in network.parameters()] == [None] * 4


# --- What is refused
class WithoutGradient(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)


class Constant(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * 0


class Overflowing(Checkpointed):
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * float("inf")


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [(WithoutGradient, "no gradient"), (Constant, "no pixel"), (Overflowing, "NaN or infinite")],
)
def test_networks_without_a_finite_gradient_are_refused(wrapper: type[nn.Module], words: str) -> None:
    module = wrapper(smooth())
    (image,) = images(3, 11, 13, count=1)
    with pytest.raises(DataError, match=words):
        attribute(facts(module), image, patch=PATCH, settings=FEW)


@pytest.mark.parametrize(
    ("shapes", "patch", "words"),
    [
        ([(3, 11, 13), (3, 11, 14)], PATCH, r"\(3, 11, 13\) and \(3, 11, 14\)"),
        ([(1, 3, 11, 13)], PATCH, r"\(C,H,W\).* \(1, 3, 11, 13\)"),
        ([(3, 11, 13), (11, 13)], PATCH, r"\(11, 13\)"),
        ([(4, 11, 13)], PATCH, r"3 channels.*\(4, 11, 13\)"),
        ([(3, 4, 13)], PATCH, r"13x4 px .* 9 px"),
        ([(3, 11, 13)], Patch(y_px=17, x_px=0, side_px=6), "26x22 px"),
        ([(3, 11, 13)], Patch(y_px=0, x_px=21, side_px=6), "26x22 px"),
        ([(3, 11, 13)], Patch(y_px=0, x_px=0, side_px=4, view="right"), "'right': left"),
        ([(3, 11, 13)] * 2, Patch(y_px=0, x_px=0, side_px=4, view="rigth"), "did you mean 'right'"),
    ],
)
def test_what_cannot_be_attributed_is_refused(shapes: list[tuple[int, ...]], patch: Patch, words: str) -> None:
    network = smooth()
    with pytest.raises(DataError, match=words):
        attribute(facts(network), *map(torch.rand, shapes), patch=patch, settings=FEW)


@pytest.mark.parametrize(
    ("patch", "named"),
    [
        (Patch(y_px=-1, x_px=0, side_px=6), ["y_px"]),
        (Patch(y_px=0.5, x_px=0, side_px=0), ["y_px", "side_px"]),
        (Patch(y_px=0, x_px=-2, side_px=4), ["x_px"]),
    ],
)
def test_a_patch_of_no_whole_pixels_is_refused_with_each_wrong_number(patch: Patch, named: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        attribute(facts(smooth()), torch.rand(3, 11, 13), patch=patch, settings=FEW)
    assert [problem.split()[0] for problem in refused.value.problems] == named


def test_uint8_and_a_missing_view_are_refused() -> None:
    backbone = edsr()
    with pytest.raises(DataError, match=r"torch\.uint8"):
        attribute(backbone, torch.zeros(3, 9, 9, dtype=torch.uint8), patch=PATCH)
    with pytest.raises(DataError, match="2 views"):
        attribute(lowpeft.adapt(backbone, "stereo"), torch.rand(3, 9, 9), patch=PATCH)


def test_images_that_are_not_finite_are_refused_as_such() -> None:
    backbone, image = edsr(), torch.rand(3, 9, 9)
    image[1, 2, 3] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        attribute(backbone, image, patch=PATCH)


def test_networks_of_fixed_size_take_no_other() -> None:
    network = NETWORKS["ipt"]
    backbone = lowpeft.describe(network.build())
    assert attribute(backbone, torch.rand(3, 48, 48), patch=PATCH, settings=FEW).maps
    with pytest.raises(DataError, match=r"48x48 px.*48x40 px"):
        attribute(backbone, torch.rand(3, 40, 48), patch=PATCH, settings=FEW)


def test_senseless_settings_are_refused_together() -> None:
    with pytest.raises(DataError) as refused:
        LamSettings(steps=0, sigma_px=-1, kernel_px=4, chunk=0)
    assert len(refused.value.problems) == 4


# --- Picture and command
def test_heat_is_the_grey_view_where_nothing_is_attributed() -> None:
    view = torch.full((3, 4, 4), 0.5)
    values = torch.zeros(4, 4, dtype=torch.float64)
    assert heat(view, values).unique().numel() == 1
    values[1, 2] = -2
    assert torch.equal(heat(view, values)[:, 1, 2], torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_holds_all_views_and_maps(count: int) -> None:
    network = smooth()
    views = images(3, 12, 16, count=count)
    found = attribute(facts(network), *views, patch=PATCH, settings=FEW)
    one = draw_attributions({"a": found}, views, scale=2, notes=["a note"])
    two = draw_attributions({"a": found, "b": found}, views, scale=2, notes=["a note"])
    assert two.width == one.width >= count * 480
    assert two.height - one.height >= 12 * 480 // 16


def test_the_outline_is_around_the_patch_also_of_less_than_a_pixel() -> None:
    network, view = smooth(), torch.zeros(3, 20, 480)
    view[:, 5:9, 5:9] = 1
    for side, shown in ((8, 4), (2, 1), (1, 1)):
        patch = Patch(y_px=10, x_px=12, side_px=side)
        found = attribute(facts(network), view, patch=patch, settings=FEW)
        picture = np.asarray(draw_attributions({"a": found}, [view], scale=2, notes=[]))
        rows, columns = (picture[: 20 + 30] == (0, 255, 255)).all(-1).nonzero()
        assert (rows.min(), columns.min()) == (12 + 18 + 5, 12 + 6)
        assert np.ptp(columns) == shown - 1


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair and a stereo adapter of the demo network that uses the other view."""
    folder = tmp_path_factory.mktemp("lam")
    for side, view in zip("LR", images(3, 16, 24), strict=True):
        write_image(view, folder / f"{side}.png")
    model = randomise_adapters(lowpeft.adapt(demo_backbone(), "stereo"))
    lowpeft.save_adapter(model, folder / "adapter", facts={"training": "none, random values"})
    return folder


ARGUMENTS = ["--weights", "demo", "--patch", "8", "12", "6", "--steps", "2", "--device", "cpu"]


def test_the_command_writes_figures_and_picture(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair, out = [str(work / "L.png"), str(work / "R.png")], work / "pair"
    code = main(["lam", *pair, *ARGUMENTS, "--view", "right", "--adapter", str(work / "adapter"), "--out", str(out)])
    assert code == 0
    printed = capsys.readouterr().out
    assert "adapted" in printed
    assert "frozen" in printed
    record = json.loads((out / "lam.json").read_text(), parse_constant=pytest.fail)
    assert record["figures"]["adapted"]["share_other_view"] > 0
    assert record["figures"]["frozen"]["share_other_view"] == 0
    assert record["figures"]["frozen"]["diffusion_index_left"] is None
    assert record["patch"] == {"y_px": 8, "x_px": 12, "side_px": 6, "view": "right"}
    assert read_image(out / "lam.png").shape[0] == 3
    maps = load_file(out / "lam.safetensors")
    assert maps.keys() == {"adapted.left", "adapted.right", "frozen.left", "frozen.right"}
    total = (maps["adapted.left"].sum() + maps["adapted.right"].sum()).item()
    assert total == pytest.approx(record["figures"]["adapted"]["sum_of_maps"])


def test_the_command_takes_one_image_of_a_single_image_network(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lam", str(work / "L.png"), *ARGUMENTS, "--out", str(work / "single")]) == 0
    assert "share" not in capsys.readouterr().out
    figures = json.loads((work / "single" / "lam.json").read_text())["figures"]
    assert figures.keys() == {"network"}
    assert figures["network"]["diffusion_index"] > 0


def test_the_record_names_the_task_of_a_network_for_several(work: Path) -> None:
    torch.manual_seed(0)
    network = EDT(EDTConfig(tasks=("sr_x2", "sr_x3"), features=2, dim=60, depths=(2, 2), heads=6))
    torch.save(network.state_dict(), work / "edt.pth")
    arguments = ["--weights", str(work / "edt.pth"), "--task", "sr_x3", *ARGUMENTS[2:], "--steps", "1"]
    assert main(["lam", str(work / "L.png"), *arguments, "--out", str(work / "edt")]) == 0
    assert json.loads((work / "edt" / "lam.json").read_text())["task"] == "sr_x3"


def test_a_grey_network_gets_grey_views_from_the_command(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = DnCNN(in_nc=1, out_nc=1, nc=4, nb=17, act_mode="R")
    save_file(network.state_dict(), work / "grey.safetensors")
    arguments = ["--weights", str(work / "grey.safetensors"), *ARGUMENTS[2:]]
    assert main(["lam", str(work / "L.png"), *arguments, "--out", str(work / "grey")]) == 0
    assert "lam.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{work}/L.png", *ARGUMENTS, "--patch", "30", "0", "16"], "48x32 px"),
        (["{work}/L.png", *ARGUMENTS, "--adapter", "{work}/adapter"], "2 views"),
        (["{work}/L.png", *ARGUMENTS, "--view", "right"], "'right'"),
        (["{work}/L.png", *ARGUMENTS, "--revision", "main"], "--revision"),
        (["{work}/L.png", *ARGUMENTS, "--steps", "0"], "steps"),
        (["{work}/L.png", *ARGUMENTS, "--out", "{work}/L.png"], "{work}/L.png"),
        (["{work}/none.png", *ARGUMENTS], "none.png"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(
    arguments: list[str], sentence: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in arguments else ["--out", "{work}/bad"]
    assert main(["lam", *(a.replace("{work}", str(work)) for a in [*arguments, *out])]) == 2
    message = capsys.readouterr().err
    assert "lowpeft lam: " in message
    assert sentence.replace("{work}", str(work)) in message
    assert not (work / "bad" / "lam.json").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["lam", "--help"])
    assert "examples:\n  lowpeft lam" in capsys.readouterr().out
