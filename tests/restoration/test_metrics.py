"""PSNR, SSIM, and the protocols that tables are made by."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from bicubic_anchors import COLUMNS, PRINTED, row
from lowpeft.errors import DataError
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import by_bicubic, measure
from lowpeft.restoration.images import read_image
from lowpeft.restoration.inference import peak_bytes
from lowpeft.restoration.metrics import LEFT_CUT_PX, PROTOCOLS, psnr, ssim


def noise(seed: int, height: int = 6, width: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_psnr_is_that_of_scikit_image(one: int, other: int) -> None:
    a, b = noise(one), noise(other + 2**31)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=255), abs=1e-9)


def test_equal_images_have_infinite_psnr() -> None:
    assert psnr(noise(0), noise(0)) == math.inf


def test_float_images_are_rounded_to_eight_bits_first() -> None:
    hr = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert psnr(torch.full((3, 4, 4), 100.4 / 255), hr) == math.inf


def test_values_out_of_range_are_clipped_first() -> None:
    assert psnr(torch.full((3, 4, 4), 1.7), torch.full((3, 4, 4), 255, dtype=torch.uint8)) == math.inf


def test_one_level_everywhere_is_48_db() -> None:
    hr = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    assert psnr(hr + 1, hr) == pytest.approx(20 * math.log10(255))


def test_the_border_is_shaved_on_all_four_sides() -> None:
    hr = noise(0)
    sr = hr.clone()
    for edge in (sr[:, :2], sr[:, -2:], sr[:, :, :2], sr[:, :, -2:]):
        edge += 1
    assert psnr(sr, hr, border_px=2) == math.inf
    assert psnr(sr, hr, border_px=1) < math.inf


@pytest.mark.parametrize(
    ("sr", "hr", "border_px", "message"),
    [
        (noise(0), noise(0)[:, :5], 0, r"\(3, 6, 9\) and \(3, 5, 9\)"),
        (noise(0)[None], noise(0)[None], 0, r"\(3, H, W\).*\(1, 3, 6, 9\)"),
        (noise(0)[:2], noise(0)[:2], 0, r"\(3, H, W\).*\(2, 6, 9\)"),
        (noise(0).float(), noise(0), 0, r"0\.\.1, .*divide"),
        (noise(0), noise(0), 3, "3 px .*9x6 px"),
        (noise(0), noise(0), -1, "-1 px .*9x6 px"),
        (torch.full((3, 6, 9), math.nan), noise(0), 0, "NaN"),
        (noise(0).int(), noise(0), 0, r"torch\.int32"),
    ],
)
def test_psnr_refuses(sr: torch.Tensor, hr: torch.Tensor, border_px: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        psnr(sr, hr, border_px=border_px)


def test_luma_counts_a_grey_error_less_by_its_narrower_range() -> None:
    """BT.601 maps 0..255 to 16..235, so an error that is equal in R, G and B shrinks to 219/255."""
    hr = torch.randint(0, 250, (3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sr = hr + 5
    assert psnr(sr, hr, channels="y") == pytest.approx(psnr(sr, hr) + 20 * math.log10(255 / 219), abs=1e-6)


def test_luma_weighs_green_most() -> None:
    hr = torch.zeros(3, 8, 8, dtype=torch.uint8)
    values = []
    for channel in range(3):
        sr = hr.clone()
        sr[channel] = 10
        values.append(psnr(sr, hr, channels="y"))
    assert values[1] < values[0] < values[2]
    assert 10 ** (-values[1] / 20) * 255 == pytest.approx(10 * 128.553 / 255)


# --- SSIM
def test_ssim_is_that_of_scikit_image_on_8_bit_rgb() -> None:
    """NAFNet's `calculate_skimage_ssim` has scikit-image's defaults: 7x7, uniform, sample covariance."""
    a, b = noise(0, 30, 40), noise(1, 30, 40)
    wanted = structural_similarity(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), channel_axis=2)
    assert ssim(a, b) == pytest.approx(wanted, abs=1e-12)
    assert ssim(a, a) == 1


def test_ssim_has_the_formula_of_wang() -> None:
    """One window of 7x7, written out, with covariance over 48."""
    a, b = (noise(seed, 7, 7).double() for seed in (0, 1))
    values = []
    for x, y in zip(a, b, strict=True):
        x, y = x.flatten(), y.flatten()
        covariance = ((x - x.mean()) * (y - y.mean())).sum() / 48
        one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        numerator = (2 * x.mean() * y.mean() + one) * (2 * covariance + two)
        values.append(numerator / ((x.mean() ** 2 + y.mean() ** 2 + one) * (x.var() + y.var() + two)))
    assert ssim(a.to(torch.uint8), b.to(torch.uint8)) == pytest.approx(float(torch.stack(values).mean()), abs=1e-12)


def test_ssim_on_luma_has_the_gaussian_window_of_11() -> None:
    a, b = noise(0, 11, 11), noise(1, 11, 11)
    ramp = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    weights = ramp[:, None] * ramp
    weights = weights / weights.sum()
    luma = torch.tensor((65.481, 128.553, 24.966), dtype=torch.float64)[:, None, None] / 255
    x, y = ((v * luma).sum(0) + 16 for v in (a, b))
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x, var_y = (weights * x**2).sum() - mean_x**2, (weights * y**2).sum() - mean_y**2
    covariance = (weights * x * y).sum() - mean_x * mean_y
    one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wanted = (2 * mean_x * mean_y + one) * (2 * covariance + two)
    wanted = wanted / ((mean_x**2 + mean_y**2 + one) * (var_x + var_y + two))
    assert ssim(a, b, channels="y") == pytest.approx(float(wanted), abs=1e-10)


@pytest.mark.parametrize("channels", ["rgb", "y"])
@pytest.mark.parametrize("height", [128, 129, 134, 135, 138, 139, 300])
def test_images_are_compared_strip_by_strip_as_if_at_once(
    channels: str, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = noise(0, height, 20), noise(1, height, 20)
    found = [metric(a, b, channels=channels) for metric in (psnr, ssim)]
    monkeypatch.setattr("lowpeft.restoration.metrics.STRIP_ROWS", 10**6)
    assert found == pytest.approx([metric(a, b, channels=channels) for metric in (psnr, ssim)], abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_large_images_are_not_widened_at_once(metric: Callable[..., float]) -> None:
    a, b = noise(0, 4000, 16), noise(1, 4000, 16)
    assert peak_bytes(lambda: metric(a, b)) < 3 * a.nbytes


def test_ssim_shaves_and_rounds_as_psnr_does() -> None:
    hr = noise(0, 20, 20)
    sr = hr.clone()
    sr[:, :3] = 0
    assert ssim(sr, hr, border_px=3) == 1
    assert ssim((hr.float() + 0.4) / 255, hr) == 1


@pytest.mark.parametrize(("channels", "window"), [("rgb", 7), ("y", 11)])
def test_an_image_smaller_than_the_window_is_refused(channels: str, window: int) -> None:
    small = noise(0, window - 1, 30)
    with pytest.raises(DataError, match=rf"30x{window - 1} px .*{window}x{window} px"):
        ssim(small, small, channels=channels)
    with pytest.raises(DataError, match=rf"22x5 px .*{window}x{window} px"):
        ssim(noise(0, 13, 30), noise(0, 13, 30), border_px=4, channels=channels)


# --- Protocols
def pair(width: int = 100) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Results of two views, wrong by 1 in the columns that are cut off, and by 4 (left) or 16 (right) elsewhere; HR."""
    hr = tuple(noise(seed, 20, width) // 2 for seed in (0, 1))
    sr = tuple(view + error for view, error in zip(hr, (4, 16), strict=True))
    for one, other in zip(sr, hr, strict=True):
        one[..., :LEFT_CUT_PX] = other[..., :LEFT_CUT_PX] + 1
    return sr, hr


def decibels(mean_squared: float) -> float:
    return 10 * math.log10(255**2 / mean_squared)


def figures(name: str, scale: int = 4) -> dict[str, float]:
    sr, hr = pair()
    views = PROTOCOLS[name].views
    return {c.name: c.measure(sr[:views], hr[:views], scale) for c in PROTOCOLS[name].columns}


def test_left_of_the_literature_is_the_left_view_without_its_left_columns() -> None:
    found = figures("literature")
    sr, hr = pair()
    assert found["PSNR Left"] == pytest.approx(decibels(16))
    assert found["SSIM Left"] == pytest.approx(ssim(sr[0][..., 64:], hr[0][..., 64:]))


def test_left_of_asteisr_is_the_mean_of_both_views_without_their_left_columns() -> None:
    found = figures("asteisr")
    sr, hr = pair()
    assert found["PSNR Left"] == pytest.approx((decibels(16) + decibels(256)) / 2)
    cut = [ssim(a[..., 64:], b[..., 64:]) for a, b in zip(sr, hr, strict=True)]
    assert found["SSIM Left"] == pytest.approx(sum(cut) / 2)


@pytest.mark.parametrize("name", ["literature", "asteisr"])
def test_the_mean_of_the_views_is_of_decibels_over_whole_views(name: str) -> None:
    whole = [decibels((64 * 1 + 36 * error**2) / 100) for error in (4, 16)]
    assert figures(name)["PSNR (L+R)/2"] == pytest.approx(sum(whole) / 2)


def test_single_images_are_compared_on_luma_without_a_border_as_wide_as_the_scale() -> None:
    sr, hr = pair()
    found = figures("single-image", scale=3)
    assert found["PSNR Y"] == psnr(sr[0], hr[0], border_px=3, channels="y")
    assert found["SSIM Y"] == ssim(sr[0], hr[0], border_px=3, channels="y")


def test_views_no_wider_than_what_left_leaves_out_are_refused() -> None:
    sr, hr = pair(64)
    with pytest.raises(DataError, match=r"64 .*64"):
        PROTOCOLS["literature"].columns[0].measure(sr, hr, 4)


def test_unknown_protocols_get_a_hint() -> None:
    with pytest.raises(DataError, match="did you mean 'asteisr'"):
        PROTOCOLS.find("asteis")
    assert all(PROTOCOLS.find(name).name == name for name in PROTOCOLS)


# --- Against print
@pytest.mark.slow
@pytest.mark.real_data
def test_bicubic_on_kitti_2015_has_the_printed_figures(data_root: Path) -> None:
    """PSNR as printed. The printed SSIM of bicubic is not scikit-image's, but another one reproduces it."""
    found = row(data_root, "KITTI 2015", 4)
    printed = dict(zip(COLUMNS, PRINTED["KITTI 2015", 4], strict=True))
    for name in ("PSNR Left", "PSNR (L+R)/2"):
        assert found["literature"][name] == pytest.approx(printed[name], abs=0.005)
    other = found["SSIM of unrounded bicubic, population covariance"]
    for name in ("SSIM Left", "SSIM (L+R)/2"):
        assert other[name] == pytest.approx(printed[name], abs=0.0005)
        assert printed[name] - 0.0025 < found["literature"][name] < printed[name]
    assert found["asteisr"]["PSNR Left"] - found["literature"]["PSNR Left"] > 0.5


@pytest.mark.real_data
@pytest.mark.parametrize(("scale", "printed"), [(2, (33.66, 0.9299)), (3, (30.39, 0.8682)), (4, (28.42, 0.8104))])
def test_bicubic_on_set5_has_the_printed_figures(data_root: Path, scale: int, printed: tuple[float, float]) -> None:
    """The first tables rounded luma to 8 bits, which makes up to 0.02 dB and 0.001 of difference."""
    examples = []
    for path in sorted((data_root / "single" / "Set5" / f"x{scale}").glob("*_HR.png")):
        lr, hr = read_image(path.with_name(path.name.replace("_HR", "_LR"))), read_image(path)
        hr = hr[:, : lr.shape[1] * scale, : lr.shape[2] * scale]
        examples.append(Example(path.stem, (lr[:, : hr.shape[1] // scale, : hr.shape[2] // scale],), (hr,)))
    found = measure(by_bicubic(scale), examples, scale=scale, protocol=PROTOCOLS["single-image"]).means()
    assert found["PSNR Y"] == pytest.approx(printed[0], abs=0.02)
    assert found["SSIM Y"] == pytest.approx(printed[1], abs=0.001)
