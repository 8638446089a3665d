"""The parallax adapter: attention in a band, its formula, its start, and what it does where views do not match."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import Features, Layout, ParallaxConfig, PlanError
from lowpeft.demo import demo_backbone, train_scenes
from lowpeft.kinds import ParallaxAdapter, band
from lowpeft.kinds.parallax import ParallaxCalibrator
from lowpeft.restoration.images import matlab_downscale, to_float

BANDS = [(-6, 1), (-1, 6), (-5, 5), (-50, 1), (0, 1), (-1, 0), (-3, 0)]


def columns_of(width: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Column x + low + j for each x and j, and whether it is inside."""
    columns = torch.arange(width)[:, None] + torch.arange(low, high + 1)
    return columns.clamp(0, width - 1), (columns >= 0) & (columns < width)


@pytest.mark.parametrize(("low", "high"), BANDS)
def test_a_band_is_cut_from_the_whole_attention_map(low: int, high: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 4, dtype=torch.float64) for _ in range(3))
    bias, (columns, inside) = torch.randn(2, 3, 17, dtype=torch.float64), columns_of(17, low, high)
    whole = query @ key.mT + bias[:, :, None]
    products = band.products(query, key, bias, low, high)
    wanted = whole.gather(-1, columns.expand(2, 3, -1, -1))
    assert torch.equal(band.inside(17, low, high, query.device), inside)
    torch.testing.assert_close(products[:, :, inside], wanted[:, :, inside])
    weights = products.masked_fill(~inside, -torch.inf).softmax(-1)
    torch.testing.assert_close(
        band.weighted_sum(weights, value, low, high), (weights[..., None] * value[:, :, columns]).sum(-2)
    )


# --- The formula -----------------------------------------------------------------------------------------------------


def random_adapter(**settings: object) -> ParallaxAdapter:
    torch.manual_seed(3)
    config = ParallaxConfig(disparities=(-1, 5), own_columns=3, channels=4, **settings)
    adapter = ParallaxAdapter(6, config).double()
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            parameter.normal_(std={"descriptor.weight": 0.05, "no_match": 0.005}.get(name, 0.5))
    return adapter


def similarity(z: Tensor, z_other: Tensor, y: int, x: int, shift: int) -> Tensor:
    """The mean over a neighbourhood of (H,W,K) of minus half the squared distance."""
    height, width = z.shape[:2]
    terms = []
    for row, column in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
        if 0 <= row < height and 0 <= column < width and 0 <= column + shift < width:
            terms.append(-(z[row, column] - z_other[row, column + shift]).square().sum() / 2)
    return torch.stack(terms).mean()


def mean_difference(
    z: Tensor, z_other: Tensor, x: Tensor, x_other: Tensor, no_match: Tensor, shifts: list[int]
) -> Tensor:
    height, width = z.shape[:2]
    result = torch.zeros_like(x)
    for row, column in itertools.product(range(height), range(width)):
        within = [s for s in shifts if 0 <= column + s < width]
        logits = [similarity(z, z_other, row, column, s) for s in within]
        weights = torch.stack([*logits, no_match]).softmax(0)
        for weight, shift in zip(weights, within, strict=False):
            result[row, column] += weight * (x_other[row, column + shift] - x[row, column])
    return result


@torch.no_grad()
def test_it_is_its_formula() -> None:
    adapter, x = random_adapter(), torch.randn(4, 4, 9, 6, dtype=torch.float64)
    z = [F.linear(F.layer_norm(view, (6,), eps=1e-6), 10 * adapter.descriptor.weight) for view in x]
    wanted = torch.zeros_like(x)
    for view in range(4):
        other, to_other = view ^ 1, [*range(-5, 2)] if view % 2 == 0 else [*range(-1, 6)]
        from_other = mean_difference(z[view], z[other], x[view], x[other], 100 * adapter.no_match[0], to_other)
        own = [shift for shift in range(-3, 4) if shift]
        from_own = mean_difference(z[view], z[view], x[view], x[view], 100 * adapter.no_match[1], own)
        wanted[view] = F.linear(from_other, adapter.other.weight) + F.linear(from_own, adapter.own.weight)
    found = adapter.delta(Features(x, Layout.NHWC, (4, 9), views=2))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@torch.no_grad()
def test_mirrored_and_swapped_views_give_the_mirrored_result() -> None:
    adapter, x = random_adapter(), torch.randn(2, 4, 9, 6, dtype=torch.float64)
    plain = adapter.delta(Features(x, Layout.NHWC, (4, 9), views=2))
    mirrored = adapter.delta(Features(x.flip(0, 2), Layout.NHWC, (4, 9), views=2))
    torch.testing.assert_close(mirrored.flip(0, 2), plain)


@torch.no_grad()
def test_features_that_are_the_same_everywhere_stay_as_they_are() -> None:
    adapter = random_adapter()
    x = torch.randn(6, dtype=torch.float64).expand(2, 4, 9, 6)
    assert adapter.delta(Features(x, Layout.NHWC, (4, 9), views=2)).abs().max() < 1e-12


@torch.no_grad()
def test_where_nothing_looks_alike_nothing_is_added() -> None:
    adapter, x = random_adapter(), torch.randn(2, 4, 9, 6, dtype=torch.float64)
    adapter.descriptor.weight.mul_(30)
    adapter.no_match.fill_(-0.01)
    assert adapter.delta(Features(x, Layout.NHWC, (4, 9), views=2)).abs().max() < 1e-12


def test_under_autocast_positions_are_compared_in_float32() -> None:
    adapter, x = random_adapter().float(), torch.randn(2, 4, 9, 6)
    features = Features(x, Layout.NHWC, (4, 9), views=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert adapter.describe(x).dtype == torch.float32
        torch.testing.assert_close(adapter.matches(features), adapter.float().matches(features))


# --- The start -------------------------------------------------------------------------------------------------------


def lr_pairs(count: int) -> list[tuple[Tensor, Tensor]]:
    """LR views of training scenes, (1,3,32,80)."""
    views = [(scene.left, scene.right) for scene in train_scenes(count, size_px=(64, 160))]
    return [(to_float(matlab_downscale(a, 2))[None], to_float(matlab_downscale(b, 2))[None]) for a, b in views]


def a_small_pair() -> list[tuple[Tensor, Tensor]]:
    """A part of one of these pairs, (1,3,16,48), for what does not depend on what the views show."""
    return [(left[..., :16, :48], right[..., :16, :48]) for left, right in lr_pairs(1)]


def parallax_adapters(model: object) -> list[ParallaxAdapter]:
    return [m for m in model.modules() if isinstance(m, ParallaxAdapter)]


@torch.no_grad()
def test_calibration_makes_the_first_stage_look_at_the_true_disparity() -> None:
    from lowpeft.restoration.evaluation import attended_disparity

    model = lowpeft.adapt(demo_backbone(), ParallaxConfig())
    pairs = lr_pairs(3)
    before = model(*pairs[0])
    assert lowpeft.calibrate(model, pairs[1:]) == {"parallax": 4}
    assert all(map(torch.equal, model(*pairs[0]), before))
    left, right = (view[0] for view in pairs[0])
    found = attended_disparity(model, left, right)[0].disparity_px[0]
    true = F.avg_pool2d(train_scenes(1, size_px=(64, 160))[0].disparity[None], 2)[0] / 2
    wrong = (found - true).abs()[:, 20:]  # the matches of the leftmost columns are outside the right view
    assert wrong.median() < 0.6
    assert (wrong < 1).float().mean() > 0.6


@pytest.mark.slow
def test_a_control_that_sees_each_view_twice_gets_a_useful_start() -> None:
    """Positions that are equal by construction do not count as matches that others have to reach."""
    control = lowpeft.adapt(demo_backbone(), ParallaxConfig())
    lowpeft.calibrate(control, [(left, left) for left, _ in lr_pairs(2)])
    assert all((adapter.no_match < -0.01).all() for adapter in parallax_adapters(control))


@pytest.mark.parametrize("seen", [0, 1], ids=["nothing", "the same everywhere"])
def test_calibration_needs_features_that_vary(seen: int) -> None:
    config = ParallaxConfig(disparities=(-1, 5), own_columns=3, channels=4)
    adapter = ParallaxAdapter(6, config)
    calibrator = ParallaxCalibrator({"layers.0": adapter}, {"layers.0": config})
    for _ in range(seen):
        calibrator.see_features("layers.0", Features(torch.ones(2, 4, 9, 6), Layout.NHWC, (4, 9), views=2))
    with pytest.raises(PlanError, match="layers"), torch.no_grad():
        calibrator.fill("layers.0", adapter)


def test_trained_adapters_are_not_calibrated_again() -> None:
    model, pairs = lowpeft.adapt(demo_backbone(), ParallaxConfig()), a_small_pair()
    lowpeft.calibrate(model, pairs)
    with torch.no_grad():
        parallax_adapters(model)[0].other.weight.normal_()
    with pytest.raises(PlanError, match="trained"):
        lowpeft.calibrate(model, pairs, name="default")


def test_batches_of_several_sizes_calibrate_together() -> None:
    model, ((left, right),) = lowpeft.adapt(demo_backbone(), ParallaxConfig()), a_small_pair()
    lowpeft.calibrate(model, [(left, right), (left[..., :8], right[..., :8])])
    assert all(p.isfinite().all() for adapter in parallax_adapters(model) for p in adapter.parameters())


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_band_that_is_wider_than_the_image_costs_nothing(width: int) -> None:
    adapter = ParallaxAdapter(6, ParallaxConfig(disparities=(-1, 10**6), own_columns=10**6)).double()
    x = torch.randn(2, 3, width, 6, dtype=torch.float64)
    assert adapter.delta(Features(x, Layout.NHWC, (3, width), views=2)).isfinite().all()


class Delta(nn.Module):
    """What an adapter adds to features (2,H,W,6) of two views."""

    def __init__(self, adapter: ParallaxAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter.delta(Features(x, Layout.NHWC, (x.shape[1], x.shape[2]), views=2))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
@torch.no_grad()
def test_what_is_traced_at_one_width_is_right_at_all() -> None:
    delta = Delta(random_adapter())
    traced = torch.jit.trace(delta, torch.randn(2, 3, 3, 6, dtype=torch.float64), check_trace=False)
    for width in (1, 3, 4, 9, 40):
        x = torch.randn(2, 3, width, 6, dtype=torch.float64)
        torch.testing.assert_close(traced(x), delta(x))


def test_pixels_that_are_not_finite_cannot_be_calibrated_on() -> None:
    model, ((left, right),) = lowpeft.adapt(demo_backbone(), ParallaxConfig()), a_small_pair()
    left[0, 0, 3, 3] = torch.nan
    with pytest.raises(PlanError, match="NaN"):
        lowpeft.calibrate(model, [(left, right)])


def test_a_narrow_image_has_no_whole_band_and_calibrates_all_the_same() -> None:
    model = lowpeft.adapt(demo_backbone(), ParallaxConfig(disparities=(-1, 200)))
    lowpeft.calibrate(model, a_small_pair())
    assert all(p.isfinite().all() for adapter in parallax_adapters(model) for p in adapter.parameters())


def test_an_adapter_that_is_off_is_calibrated_all_the_same() -> None:
    model, pairs = lowpeft.adapt(demo_backbone(), ParallaxConfig()), a_small_pair()
    with lowpeft.disabled(model):
        assert lowpeft.calibrate(model, pairs) == {"parallax": 4}
    other = lowpeft.adapt(demo_backbone(), ParallaxConfig())
    lowpeft.calibrate(other, pairs)
    states = [lowpeft.adapter_state_dict(each) for each in (model, other)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_logits_that_no_float_holds_are_refused() -> None:
    with pytest.raises(PlanError, match="spread"):
        ParallaxConfig(spread=1e300)


@pytest.mark.parametrize("disparities", [(1, 24), (-1, 1), (0.0, 3), (3,), 24, (0, True)])
def test_bad_ranges_are_refused(disparities: object) -> None:
    with pytest.raises(PlanError, match="disparities"):
        ParallaxConfig(disparities=disparities)
