"""Self-ensemble: what each pass does to views and results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Backbone, MultiViewModel, StereoModel, enhance
from lowpeft.restoration.inference import Tiling
from lowpeft.restoration.inference.passes import IMAGE_PASSES, PAIR_PASSES, VIEW_PASSES, Pass, passes
from states import backbone_of, facts, randomise_adapters

HEIGHT, WIDTH = 20, 28


def network(name: str = "edsr") -> Backbone:
    return backbone_of(next(n for n in zoo.FAMILIES if n.name == name))


def views(count: int = 2) -> tuple[Tensor, ...]:
    return tuple(0.3 + 0.4 * torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)))


def test_a_pair_has_the_six_passes_of_asteisr_and_an_image_the_eight_of_the_square() -> None:
    assert len(PAIR_PASSES) == 6
    assert all(p.swap == p.flip_columns for p in PAIR_PASSES), "a mirrored left camera stands on the right"
    assert not any(p.transpose for p in PAIR_PASSES), "disparities stay horizontal"
    assert len({(p.transpose, p.flip_rows, p.flip_columns) for p in IMAGE_PASSES}) == 8
    assert all(p.channels is None and not p.swap for p in IMAGE_PASSES)


def test_models_of_other_views_keep_them_in_their_order() -> None:
    assert set(VIEW_PASSES) == {Pass(), Pass(flip_rows=True), Pass(channels=(2, 1, 0)), Pass(channels=(1, 2, 0))}
    network = nn.Conv2d(3, 3, 1)
    for model, wanted in (
        (network, IMAGE_PASSES),
        (StereoModel(network), PAIR_PASSES),
        (MultiViewModel(network, views=2), VIEW_PASSES),
        (MultiViewModel(network, views=3), VIEW_PASSES),
    ):
        assert passes(model, 3, ensemble=True) == wanted
        assert passes(model, 3, ensemble=False) == (Pass(),)


def test_grey_images_have_no_colours_to_permute() -> None:
    found = passes(StereoModel(nn.Conv2d(1, 1, 1)), 1, ensemble=True)
    assert found == PAIR_PASSES[:4]


def test_separate_images_have_the_passes_of_images() -> None:
    backbone, (one, other) = network(), views()
    together = enhance(backbone, one, other, ensemble=True)
    for found, image in zip(together, (one, other), strict=True):
        torch.testing.assert_close(found, enhance(backbone, image, ensemble=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("transform", [*PAIR_PASSES, *IMAGE_PASSES[1:]], ids=str)
def test_a_result_is_turned_back_part_by_part(transform: Pass) -> None:
    """Whatever a pass does to the views, `add` undoes, also for a part and with padding at the bottom and right."""
    count = 2 if transform.swap else 1
    images = tuple(v[None] for v in views(count))
    seen = tuple(nn.functional.pad(v, (0, 3, 0, 5)) for v in transform.apply(images))
    sums = tuple(torch.zeros_like(v) for v in images)
    for top in range(0, seen[0].shape[-2], 8):
        for left in (0, 12):
            part = tuple(v[..., top : top + 8, left : 12 if left == 0 else None] for v in seen)
            transform.add(part, sums, top=top, left=left)
    assert all(torch.equal(total, view) for total, view in zip(sums, images, strict=True))


def by_hand(model: StereoModel, left: Tensor, right: Tensor, scale: float = 255.0) -> tuple[Tensor, Tensor]:
    """ASteISR's six passes, written out."""

    def go(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return tuple(v[0] / scale for v in model(one[None] * scale, other[None] * scale))

    lefts, rights = [], []
    for results in (go(left, right), tuple(v.flip(-2) for v in go(left.flip(-2), right.flip(-2)))):
        lefts.append(results[0])
        rights.append(results[1])
    for dims in ([-1], [-2, -1]):
        mirrored_right, mirrored_left = go(right.flip(dims), left.flip(dims))
        lefts.append(mirrored_left.flip(dims))
        rights.append(mirrored_right.flip(dims))
    for order, back in (([2, 1, 0], [2, 1, 0]), ([1, 2, 0], [2, 0, 1])):
        one, other = go(left[order], right[order])
        lefts.append(one[back])
        rights.append(other[back])
    return torch.stack(lefts).mean(0).clamp(0, 1), torch.stack(rights).mean(0).clamp(0, 1)


def test_the_ensemble_of_a_pair_is_the_mean_of_six_passes() -> None:
    backbone = network()
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    left, right = views()
    found = enhance(model, left, right, ensemble=True)
    for one, other in zip(found, by_hand(model, left, right), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    plain = enhance(model, left, right)
    assert not torch.allclose(found[0], plain[0], atol=1e-4)


def test_the_ensemble_of_an_image_is_the_mean_of_eight_passes() -> None:
    backbone = network("swinir")
    (image,) = views(1)
    found = enhance(backbone, image, ensemble=True)
    wanted = []
    for turns in range(4):
        for flip in (False, True):
            seen = torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1))
            back = torch.rot90(enhance(backbone, seen), -turns, (-2, -1))
            wanted.append(back.flip(-1) if flip else back)
    torch.testing.assert_close(found, torch.stack(wanted).mean(0), rtol=0, atol=1e-6)


class Gain(nn.Module):
    """As many times its input as the number of calls so far, and out of 0..1 in between."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.weight * (3.0 if self.calls == 1 else -1.0 / 7)


def test_the_mean_is_taken_before_the_clamp() -> None:
    module = Gain()
    backbone = facts(module, scale=1)
    (image,) = views(1)
    found = enhance(backbone, image, ensemble=True)
    torch.testing.assert_close(found, image * (3 - 1) / 8, rtol=0, atol=1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    backbone = network()
    backbone.module.bfloat16()
    left, right = views()
    found = enhance(backbone, left, right, ensemble=True)
    assert {view.dtype for view in found} == {torch.float32}


@pytest.mark.parametrize("ensemble", [False, True])
def test_an_ensemble_in_strips_is_the_ensemble_of_the_whole(ensemble: bool) -> None:
    """Height and width are multiples of the alignment, so strips lie alike in every pass."""
    backbone = network()
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    left, right = views()
    whole = enhance(model, left, right, ensemble=ensemble)
    tiling = Tiling(strip_px=4, context_px=20, align_px=4)
    strips = enhance(model, left, right, ensemble=ensemble, tiling=tiling)
    for one, other in zip(strips, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_ensemble_of_crops_is_the_mean_over_the_ways_to_turn_the_image() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-2:] == (8, 8)
            return (x * self.weight).repeat_interleave(2, -1).repeat_interleave(2, -2)

    module = Fixed()
    backbone = facts(module, fixed_px=8)
    (image,) = views(1)
    found = enhance(backbone, image, ensemble=True)
    torch.testing.assert_close(found, image.repeat_interleave(2, 1).repeat_interleave(2, 2), rtol=0, atol=1e-6)
