"""PSNR by the stereo SR protocol."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio

from lowpeft.errors import DataError
from lowpeft.images import bicubic_upscale, mod_crop, read_image
from lowpeft.metrics import pair_psnr, psnr


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


def test_the_views_are_averaged_in_db() -> None:
    hr = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    apart = pair_psnr(hr + 1, hr + 10, hr, hr)
    assert apart == pytest.approx(20 * math.log10(255) - 10)  # the common squared error would give 31.1 dB


@pytest.mark.parametrize(
    ("sr", "hr", "border_px", "message"),
    [
        (noise(0), noise(0)[:, :5], 0, r"one shape, got \(3, 6, 9\) and \(3, 5, 9\)"),
        (noise(0)[None], noise(0)[None], 0, r"expected images \(3, H, W\)"),
        (noise(0)[:1], noise(0)[:1], 0, r"expected images \(3, H, W\)"),
        (noise(0), noise(0), 3, "leaves nothing"),
        (noise(0), noise(0), -1, "leaves nothing"),
        (torch.full((3, 6, 9), math.nan), noise(0), 0, "NaN"),
        (noise(0).int(), noise(0), 0, "expected a float image"),
    ],
)
def test_psnr_refuses(sr: torch.Tensor, hr: torch.Tensor, border_px: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        psnr(sr, hr, border_px=border_px)


@pytest.mark.real_data
def test_bicubic_on_kitti_2015_is_the_printed_figure(data_root: Path) -> None:
    """24.38 dB at x4 is the (L+R)/2 row of bicubic in the tables, as in the README of Stereo-Image-SR."""
    values = []
    for index in range(20):
        paths = [f"kitti2015sr_{index:06d}_{side}.png" for side in "LR"]
        hr = [mod_crop(read_image(data_root / "stereo" / "test" / path), 4) for path in paths]
        sr = [bicubic_upscale(read_image(data_root / "stereo" / "test_lr_x4_matlab" / path), 4) for path in paths]
        values.append(pair_psnr(*sr, *hr))
    assert sum(values) / len(values) == pytest.approx(24.38, abs=0.005)


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
