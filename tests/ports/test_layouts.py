"""Feature layouts: to image rows and back, and finding the height and width of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowpeft.errors import PlanError
from lowpeft.ports.layouts import Features, Layout, find_size, square_size

N, H, W, C = 2, 3, 5, 4
SHAPES = {
    Layout.NCHW: (N, C, H, W),
    Layout.NHWC: (N, H, W, C),
    Layout.NLC: (N, H * W, C),
    Layout.LNC: (H * W, N, C),
}
EVERY = pytest.mark.parametrize("layout", list(SHAPES))


def features(layout: Layout) -> Tensor:
    """The value at image n, row h, column w, channel c is 1000 n + 100 h + 10 w + c, in whatever layout."""
    n, h, w, c = (torch.arange(size) for size in (N, H, W, C))
    rows = 1000 * n[:, None, None, None] + 100 * h[:, None, None] + 10 * w[:, None] + c
    if layout is Layout.NCHW:
        return rows.permute(0, 3, 1, 2)
    if layout is Layout.NHWC:
        return rows
    tokens = rows.reshape(N, H * W, C)
    return tokens if layout is Layout.NLC else tokens.permute(1, 0, 2)


@EVERY
def test_the_dimensions_are_where_the_letters_stand(layout: Layout) -> None:
    shape = SHAPES[layout]
    assert features(layout).shape == shape
    assert (shape[layout.batch_dim], shape[layout.channel_dim]) == (N, C)


@EVERY
def test_rows_are_image_row_column_channel(layout: Layout) -> None:
    assert torch.equal(Features(features(layout), layout, (H, W)).rows, features(Layout.NHWC))


@EVERY
def test_rows_go_back_to_the_layout(layout: Layout) -> None:
    x = Features(features(layout), layout, (H, W))
    assert torch.equal(x.from_rows(x.rows), x.values)


@EVERY
@pytest.mark.parametrize("views", [1, 2])
def test_views_are_neighbours_in_the_batch_and_go_back(layout: Layout, views: int) -> None:
    x = Features(features(layout), layout, (H, W), views)
    assert len(x.rows_by_view) == views
    assert all(torch.equal(rows, x.rows[i::views]) for i, rows in enumerate(x.rows_by_view))
    assert torch.equal(x.from_rows_by_view(x.rows_by_view), x.values)


@EVERY
def test_channels_go_last_and_back(layout: Layout) -> None:
    x = Features(features(layout), layout)
    assert x.channels_last.shape[-1] == C
    assert torch.equal(x.from_channels_last(x.channels_last), x.values)


@EVERY
def test_channels_last_is_a_view(layout: Layout) -> None:
    x = features(layout)
    assert Features(x, layout).channels_last.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize(("layout", "tokens"), [(k, k in (Layout.NLC, Layout.LNC)) for k in Layout])
def test_tokens_are_the_layouts_with_one_position_axis(layout: Layout, tokens: bool) -> None:
    assert layout.is_tokens is tokens


@pytest.mark.parametrize("layout", [Layout.NLC, Layout.LNC])
@pytest.mark.parametrize("size", [None, (H, W + 1), (1, 1), (0, 0)])
def test_tokens_without_a_size_that_fits_are_refused(layout: Layout, size: tuple[int, int] | None) -> None:
    with pytest.raises(PlanError, match="image rows"):
        _ = Features(features(layout), layout, size).rows


@pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC])
def test_maps_need_no_size(layout: Layout) -> None:
    assert Features(features(layout), layout).rows.shape == (N, H, W, C)


def test_windows_have_no_rows_and_no_dimension_that_counts_images() -> None:
    windows = Features(torch.zeros(6, H * W, C), Layout.WLC, (H, W))
    assert windows.channels_last is windows.values
    with pytest.raises(PlanError, match="image rows"):
        _ = windows.rows
    with pytest.raises(PlanError, match="WLC"):
        _ = Layout.WLC.batch_dim


@given(st.sampled_from(list(SHAPES)), *[st.integers(1, 4)] * 4)
def test_every_shape_survives_the_round_trip(layout: Layout, n: int, h: int, w: int, c: int) -> None:
    rows = torch.arange(n * h * w * c).view(n, h, w, c)
    laid_out = Features(torch.empty(0), layout, (h, w)).from_rows(rows)
    assert torch.equal(Features(laid_out, layout, (h, w)).rows, rows)


# --- Finding the size
TOKENS = torch.zeros(N, H * W, C)


@pytest.mark.parametrize(
    "arguments",
    [
        [TOKENS, (H, W)],
        [TOKENS, [H, W]],
        [TOKENS, torch.Size([H, W])],
        [TOKENS, H, W],
        [TOKENS, "window", H, W],
        [8, H, W],
        [TOKENS, (8, 8), (H, W)],
        [TOKENS, None, (H, W), None],
        [TOKENS, (H, W), (W, H)],  # the first pair that fits
    ],
    ids=str,
)
def test_the_size_is_found(arguments: list[object]) -> None:
    assert find_size(arguments, H * W) == (H, W)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [TOKENS],
        [TOKENS, (H, W + 1)],
        [TOKENS, (H * W,)],
        [TOKENS, (1, H, W)],
        [TOKENS, (float(H), float(W))],
        [H, TOKENS, W],  # not next to each other
        [H, (8, 8), W],
        [H, None, W],
        [H, True, W],
        [True, H * W],
        ["3", "5"],
    ],
    ids=str,
)
def test_no_size_is_found(arguments: list[object]) -> None:
    assert find_size(arguments, H * W) is None


def test_a_bool_in_a_pair_is_no_side() -> None:
    assert find_size([(True, H * W)], H * W) is None


@pytest.mark.parametrize("arguments", [[(-H, -W)], [-H, -W]], ids=str)
def test_sides_are_not_negative(arguments: list[object]) -> None:
    assert find_size(arguments, H * W) is None


@given(st.integers(1, 30), st.integers(1, 30))
def test_every_size_is_found_again(height: int, width: int) -> None:
    assert find_size([TOKENS, (height, width)], height * width) == (height, width)
    assert find_size([TOKENS, height, width], height * width) == (height, width)


@pytest.mark.parametrize(("tokens", "size"), [(1, (1, 1)), (256, (16, 16)), (15, None), (255, None), (2, None)])
def test_a_square_number_of_tokens_is_a_square(tokens: int, size: tuple[int, int] | None) -> None:
    assert square_size(tokens) == size


@given(st.integers(1, 10**9))
def test_only_square_numbers_are_squares(side: int) -> None:
    assert square_size(side * side) == (side, side)
    assert square_size(side * side + 1) is None
