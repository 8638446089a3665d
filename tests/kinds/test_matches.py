"""Where adapters of two views look: `matches` on features whose right answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowpeft import FeatureAdapter, Features, Layout, StereoConfig
from lowpeft.kinds import Convpass, ConvpassConfig, Kind, StereoAdapter, kinds, matching
from lowpeft.ports.layouts import Matches

CHANNELS, HEIGHT, WIDTH = 16, 5, 24


def sure_adapter(gain: float = 3.0) -> StereoAdapter:
    """A stereo adapter whose queries are its normalised features times a gain."""
    adapter = StereoAdapter(CHANNELS, StereoConfig())
    with torch.no_grad():
        for query in (adapter.query_left, adapter.query_right):
            query.weight.copy_(gain * torch.eye(CHANNELS))
            query.bias.zero_()
    return adapter


def shifted_pairs(*shifts: int) -> Tensor:
    """Features (N,H,W,C) of one pair for each shift: what is in column x on the left is in column x - shift on the
    right."""
    lefts = torch.randn(len(shifts), HEIGHT, WIDTH, CHANNELS, generator=torch.Generator().manual_seed(0))
    return torch.stack([v for left, d in zip(lefts, shifts, strict=True) for v in (left, left.roll(-d, dims=1))])


@pytest.mark.parametrize("layout", [Layout.NHWC, Layout.NCHW, Layout.NLC])
def test_shifted_features_are_found_in_both_views(layout: Layout) -> None:
    rows = shifted_pairs(3, 5)
    values = {Layout.NHWC: rows, Layout.NCHW: rows.permute(0, 3, 1, 2), Layout.NLC: rows.flatten(1, 2)}[layout]
    disparity, confidence = sure_adapter().matches(Features(values, layout, (HEIGHT, WIDTH), views=2))
    assert disparity.shape == confidence.shape == (4, HEIGHT, WIDTH)
    for pair, d in enumerate((3, 5)):
        assert (disparity[2 * pair, :, d:] == d).all()  # the match of the leftmost columns is outside the right view
        assert (disparity[2 * pair + 1, :, : WIDTH - d] == d).all()
    assert confidence.min() > 0.9


def test_confidence_is_the_largest_weight_of_the_softmax() -> None:
    adapter, features = sure_adapter(0.3), Features(shifted_pairs(2), Layout.NHWC, (HEIGHT, WIDTH), views=2)
    left, right = (adapter.norm_left(v) * 0.3 for v in features.rows_by_view)
    weights = (adapter.scale * left @ right.transpose(-1, -2)).softmax(dim=-1).amax(dim=-1)
    torch.testing.assert_close(adapter.matches(features).confidence[:1], weights)
    assert weights.max() < 0.5


@pytest.mark.parametrize("entries", [3 * WIDTH * WIDTH, 7 * WIDTH], ids=["3 rows", "7 columns"])
def test_blocks_change_nothing(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, features = sure_adapter(0.3), Features(shifted_pairs(2, 4), Layout.NHWC, (HEIGHT, WIDTH), views=2)
    whole = adapter.matches(features)
    monkeypatch.setattr(matching, "BLOCK_ENTRIES", entries)  # neither divides the 10 rows or the 24 columns
    torch.testing.assert_close(adapter.matches(features), whole)


@pytest.mark.parametrize("kind", [k for k in kinds() if issubclass(k.module, FeatureAdapter) and k.config().views == 2])
def test_every_kind_of_two_views_can_tell(kind: Kind) -> None:
    features = Features(shifted_pairs(3, 5), Layout.NHWC, (HEIGHT, WIDTH), views=2)
    found = kind.module(CHANNELS, kind.config()).matches(features)
    assert {tuple(values.shape) for values in found} == {(4, HEIGHT, WIDTH)}
    assert 0 <= found.confidence.min() <= found.confidence.max() <= 1
    column = torch.arange(WIDTH)
    left, right = (column - found.disparity[0::2], column + found.disparity[1::2])  # the columns of the other view
    for matched in (left, right):
        assert 0 <= matched.min() <= matched.max() <= WIDTH - 1


def test_only_kinds_that_look_can_tell() -> None:
    features = Features(shifted_pairs(2), Layout.NHWC, (HEIGHT, WIDTH), views=2)
    assert Convpass(CHANNELS, ConvpassConfig()).matches(features) is None
    assert isinstance(sure_adapter().matches(features), Matches)
