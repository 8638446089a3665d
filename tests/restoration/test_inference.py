"""Whole images through networks: value range, padding, and chopping where a network takes one size only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from spandrel.architectures.IPT import IPT
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import lowpeft
import zoo
from lowpeft import Backbone, DataError, MultiViewModel, StereoModel, enhance
from lowpeft.core.observation.describe import image_facts
from lowpeft.restoration.inference import Tiling, reach_px
from lowpeft.restoration.inference.boxes import crop_starts
from lowpeft.restoration.inference.network import run
from states import backbone_of, facts, randomise_adapters
from tiers import by_default

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

EDSR = next(n for n in zoo.FAMILIES if n.name == "edsr")


def ipt(scale: int = 2) -> Backbone:
    torch.manual_seed(0)
    module = IPT(n_feats=4, num_heads=2, num_layers=2, scale=[scale]).eval()
    return facts(module, scale=scale, value_range=(0.0, 255.0), fixed_px=48)


def edsr() -> Backbone:
    return backbone_of(EDSR)


def stereo(backbone: Backbone) -> StereoModel:
    return randomise_adapters(lowpeft.adapt(backbone, "stereo"))


def images(*shape: int, count: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)))


class Enlarge(nn.Module):
    """Repeats every pixel, and remembers what it saw; `only_px` refuses other sizes as IPT does."""

    def __init__(self, scale: int = 2, only_px: int | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.scale, self.only_px = scale, only_px
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.only_px is not None and x.shape[-2:] != (self.only_px, self.only_px):
            raise RuntimeError(f"only {self.only_px}")
        self.seen.append(x)
        return self.gain * x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


# --- Any size, any form
@pytest.mark.parametrize("multiple", [1, 8, 32])
@pytest.mark.parametrize("shape", [(3, 13, 21), (2, 3, 5, 7), (1, 3, 1, 1)], ids=str)
def test_a_pair_of_any_size_is_padded_and_cut_back(shape: tuple[int, ...], multiple: int) -> None:
    left, right = images(*shape)
    backbone = dataclasses.replace(edsr(), size_multiple=multiple)
    views = enhance(stereo(backbone), left, right)
    for view in views:
        assert view.shape == (*shape[:-2], 2 * shape[-2], 2 * shape[-1])
        assert view.min() >= 0
        assert view.max() <= 1


def test_padding_is_as_much_as_the_network_needs_and_no_more() -> None:
    network = Enlarge()
    enhance(facts(network, size_multiple=8), images(3, 16, 20)[0])
    assert [x.shape for x in network.seen] == [(1, 3, 16, 24)]


def test_one_image_goes_through_a_single_image_network() -> None:
    network = Enlarge()
    (image,) = images(3, 9, 11, count=1)
    found = enhance(facts(network), image)
    assert torch.equal(found, image.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_users_see_0_to_1_whatever_the_network_takes() -> None:
    backbone = edsr()
    (image,) = images(3, 8, 12, count=1)
    with torch.no_grad():
        wanted = (backbone.module(image[None] * 255) / 255).clamp(0, 1)[0]
    found = enhance(backbone, image)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_training_and_inference_share_the_value_range() -> None:
    backbone = edsr()
    left, right = images(1, 3, 8, 12)
    with torch.no_grad():
        wanted = backbone.module(torch.cat((left, right)) * 255) / 255
        found = torch.cat(run(backbone.module, (left, right), image_facts(backbone)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_mode_is_put_back_also_after_a_failure() -> None:
    backbone = edsr()
    model = stereo(backbone).train()
    enhance(model, *images(3, 8, 8))
    assert model.training
    wrong = stereo(lowpeft.describe(edsr(), scale=3)).train()
    with pytest.raises(DataError, match="16x16 px"):
        enhance(wrong, *images(3, 8, 8))
    assert wrong.training


def test_every_module_keeps_its_mode() -> None:
    """An adapted network in train mode has a frozen base in eval mode above adapters in train mode."""
    backbone = edsr()
    model = lowpeft.adapt(backbone, "spatial").train()
    before = {m: m.training for m in model.modules()}
    assert len(set(before.values())) == 2
    enhance(model, *images(3, 8, 8, count=1))
    assert {m: m.training for m in model.modules()} == before
    reach_px(model)
    assert {m: m.training for m in model.modules()} == before


def test_transformers_outputs_are_unpacked() -> None:
    network = next(n for n in zoo.FAMILIES if n.family == "swin2sr_transformers")
    (image,) = images(3, *network.input_px, count=1)
    backbone = backbone_of(network)
    assert backbone.output == "reconstruction"
    assert enhance(backbone, image).shape[-1] == network.scale * network.input_px[1]


# --- Chopping
@pytest.mark.parametrize(
    ("length", "starts"),
    [(48, [0]), (49, [0, 1]), (72, [0, 24]), (100, [0, 24, 48, 52]), (200, [0, 24, 48, 72, 96, 120, 144, 152])],
)
def test_crops_stand_half_a_crop_apart_and_end_at_the_border(length: int, starts: list[int]) -> None:
    assert crop_starts(length, 48) == starts


@pytest.mark.parametrize("size", [(48, 48), (100, 200), (49, 48), (30, 70), (5, 5)], ids=str)
def test_chopping_gives_what_a_local_network_gives_at_once(size: tuple[int, int]) -> None:
    network = Enlarge(only_px=48)
    (image,) = images(3, *size, count=1)
    found = enhance(facts(network, fixed_px=48), image)
    wanted = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_an_image_of_the_fixed_size_is_not_chopped() -> None:
    backbone = ipt()
    left, right = images(3, 48, 48)
    model = stereo(backbone)
    with torch.no_grad():
        wanted = [(view[0] / 255).clamp(0, 1) for view in model(left[None] * 255, right[None] * 255)]
    found = enhance(model, left, right)
    for view, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", by_default([2], [2, 4]))
def test_the_result_does_not_depend_on_the_chunk_size(scale: int) -> None:
    backbone = ipt(scale)
    left, right = images(3, 100, 200)
    model = stereo(backbone)
    everything = len(crop_starts(100, 48)) * len(crop_starts(200, 48))
    first, *others = [
        torch.stack(enhance(model, left, right, tiling=Tiling(chunk=chunk))) for chunk in (1, 3, everything)
    ]
    assert first.shape == (2, 3, 100 * scale, 200 * scale)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-6)


def test_a_batch_gives_what_its_pairs_give_one_by_one() -> None:
    backbone = ipt()
    left, right = images(2, 3, 50, 60)
    model = stereo(backbone)
    together = enhance(model, left, right, tiling=Tiling(chunk=5))
    for i in range(2):
        alone = enhance(model, left[i], right[i])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many[i], one, rtol=0, atol=1e-6)


class PairOf(StereoModel):
    """Runs a single-image network on each view, and remembers the pairs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def forward(self, left: Tensor, right: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.pairs.append((left, right))
        return self.backbone(left), self.backbone(right)


def test_both_views_are_cut_at_the_same_coordinates() -> None:
    """The right view is the left one plus 0.5, so a pair of crops from one place differs by just that."""
    model = PairOf(Enlarge(only_px=48))  # its facts are measured, on a copy
    (left,) = images(3, 100, 200, count=1)
    left = left / 2
    enhance(model, left, left + 0.5, tiling=Tiling(chunk=7))
    assert [len(crops) for crops, _ in model.pairs] == [7, 7, 7, 7, 4]
    for crops, others in model.pairs:
        torch.testing.assert_close(others, crops + 0.5, rtol=0, atol=1e-6)


def test_views_chopped_in_lock_step_see_each_other() -> None:
    backbone = ipt()
    left, right = images(3, 60, 80)
    model = stereo(backbone)
    one, _ = enhance(model, left, right)
    other, _ = enhance(model, left, right.flip(-1))
    assert not torch.equal(one, other)


# --- More than two views
class MeanOf(MultiViewModel):
    """Gives each view's result with the mean of all results added; remembers how many views it got."""

    def __init__(self, network: nn.Module, views: int) -> None:
        super().__init__(network, views=views)
        self.seen: list[Tensor] = []

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(views[0])
        results = [self.backbone(view) for view in views]
        return tuple((result + sum(results) / len(results)) / 2 for result in results)


def test_a_model_of_three_views_gets_them_together() -> None:
    model, views = MeanOf(Enlarge(), 3), images(3, 9, 13, count=3)
    found = enhance(model, *views)
    wanted = [(view + sum(views) / 3) / 2 for view in views]
    assert isinstance(found, tuple)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.repeat_interleave(2, 1).repeat_interleave(2, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_views_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"^{count} views? .*MeanOf.* 3 views"):
        enhance(MeanOf(Enlarge(), 3), *images(3, 9, 13, count=count))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        AveragedModel,
        # Compilation takes seconds; tests/core/test_wrappers.py has it by default.
        pytest.param(lambda model: torch.compile(model, backend="eager"), marks=pytest.mark.slow),
    ],
)
def test_a_stereo_model_stays_one_inside_what_wraps_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = stereo(edsr())
    wanted = enhance(model, *images(3, 8, 12), ensemble=True)
    wrapped = wrap(model)
    assert all(map(torch.equal, enhance(wrapped, *images(3, 8, 12), ensemble=True), wanted))
    with pytest.raises(DataError, match=r"^1 view .*StereoModel.* 2 views"):
        enhance(wrapped, *images(3, 8, 12, count=1))


def test_any_other_network_takes_views_as_separate_images() -> None:
    network, views = Enlarge(), images(3, 9, 13, count=3)
    found = enhance(facts(network), *views)
    assert [x.shape for x in network.seen] == [(3, 3, 9, 13)]
    for one, other in zip(found, views, strict=True):
        assert torch.equal(one, enhance(facts(network), other))


def test_no_view_at_all_is_refused() -> None:
    with pytest.raises(DataError):
        enhance(facts(Enlarge()))


def test_the_reach_of_a_model_of_three_views_is_that_of_its_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    assert reach_px(MeanOf(network, 3), align_px=1) == reach_px(network, align_px=1) == 1


class Counted(Enlarge):
    """Counts the calls of all its copies; facts are measured on a copy."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(x)


def test_facts_are_measured_once_for_a_call_and_not_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(model: object, *views: Tensor, **options: object) -> int:
        monkeypatch.setattr(Counted, "calls", 0)
        enhance(model, *views, **options)
        return Counted.calls

    many = {"ensemble": True, "tiling": Tiling(strip_px=4, align_px=1)}
    views = images(2, 3, 9, 13, count=3)
    measuring = calls(Counted(), views[0]) - calls(facts(Counted()), views[0])
    assert measuring > 0
    assert calls(Counted(), *views, **many) - calls(facts(Counted()), *views, **many) == measuring


# --- What is refused
@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (torch.rand(3, 8, 8), torch.rand(3, 8, 9), r"\(3, 8, 8\) and \(3, 8, 9\)"),
        (torch.rand(8, 8), torch.rand(8, 8), r"\(8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.rand(3, 0, 8), torch.rand(3, 0, 8), r"\(3, 0, 8\)"),
        (torch.rand(1, 8, 8), torch.rand(1, 8, 8), r"3 channels.*\(1, 8, 8\)"),
        (torch.rand(2, 6, 8, 8), torch.rand(2, 6, 8, 8), r"3 channels.*\(2, 6, 8, 8\)"),
        (torch.rand(3, 8, 8), None, "^1 view .*StereoModel.* 2 views"),
    ],
)
def test_what_is_no_pair_of_images_is_refused(left: Tensor, right: Tensor | None, words: str) -> None:
    backbone = edsr()
    views = (left,) if right is None else (left, right)
    with pytest.raises(DataError, match=words):
        enhance(stereo(backbone), *views)


def test_a_wrong_scale_is_refused() -> None:
    network = Enlarge()
    (image,) = images(3, 8, 8, count=1)
    with pytest.raises(DataError, match=r"16x16 px.*7"):
        enhance(facts(network, scale=7), image)


def test_a_network_for_several_tasks_is_refused_with_its_tasks() -> None:
    from lowpeft.backbones.networks import EDT, EDTConfig

    config = EDTConfig(tasks=("sr_x2", "sr_x3"), features=4, dim=16, heads=2, depths=(2,), image_px=24)
    network = EDT(config).eval()
    backbone = lowpeft.describe(network)
    (image,) = images(3, 24, 24, count=1)
    with pytest.raises(DataError, match="sr_x2, sr_x3"):
        enhance(backbone, image)
