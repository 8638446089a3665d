"""Local pools (TLC) instead of global ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import PlanError, enhance
from lowpeft.restoration.inference import local_pooling
from lowpeft.restoration.inference.pooling import LocalAvgPool2d, local_mean
from states import facts, randomise_adapters
from zoo import build


def pools(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]


def run(network: nn.Module, x: Tensor) -> Tensor:
    """RCAN writes its input."""
    with torch.no_grad():
        return network(x.clone())


def image(height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


# --- The mean of a window
def slow_mean(x: Tensor, rows: int, columns: int) -> Tensor:
    """Every position's window by itself; at the borders the nearest that lies inside."""
    height, width = x.shape[-2:]
    rows, columns = min(rows, height), min(columns, width)
    out = torch.empty_like(x)
    for y in range(height):
        for x0 in range(width):
            top = min(max(y - (height - (height - rows + 1)) // 2, 0), height - rows)
            left = min(max(x0 - (width - (width - columns + 1)) // 2, 0), width - columns)
            out[..., y, x0] = x[..., top : top + rows, left : left + columns].mean((-2, -1))
    return out


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_local_means_are_those_of_the_windows(height: int, width: int, rows: int, columns: int) -> None:
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = local_mean(x, (rows, columns)).expand_as(x)
    torch.testing.assert_close(found, slow_mean(x, rows, columns), rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [(8, 8), (9, 100)])
def test_a_window_that_covers_everything_is_the_global_pool(window: tuple[int, int]) -> None:
    x = torch.rand(2, 5, 8, 8)
    assert torch.equal(local_mean(x, window), F.adaptive_avg_pool2d(x, 1))


def test_means_of_large_maps_are_as_exact_as_those_of_small_ones() -> None:
    """Differences of cumulative sums would lose digits towards the bottom of the map."""
    x = torch.ones(1, 1, 4000, 8) + 1e-3 * torch.rand(1, 1, 4000, 8, generator=torch.Generator().manual_seed(0))
    found, wanted = (local_mean(v, (48, 5)) for v in (x, x.double()))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-7)


def test_half_precision_is_summed_in_float32() -> None:
    x = torch.full((1, 1, 64, 64), 7.0, dtype=torch.bfloat16)
    assert local_mean(x, (48, 48)).dtype == torch.bfloat16
    assert torch.equal(local_mean(x, (48, 48)), x)


# --- In networks
@pytest.mark.parametrize("name", ["hat", "rcan", "nafnet"])
def test_a_covering_window_changes_no_bit_and_a_small_one_does(name: str) -> None:
    network, x = build(name), image()
    with torch.no_grad():
        plain = run(network, x)
        with local_pooling(network, 1000) as count:
            assert torch.equal(run(network, x), plain)
        with local_pooling(network, 5):
            local = run(network, x)
        assert torch.equal(run(network, x), plain)
    assert count == len(pools(network)) > 0
    assert local.shape == plain.shape
    assert not torch.equal(local, plain)


def test_windows_shrink_with_the_features() -> None:
    """NAFNet halves the sides at each of its levels, so its pools see windows of 16, 8 and 4 positions."""
    network = build("nafnet")
    with local_pooling(network, (16, 32)):
        windows = {pool.lowpeft_window for pool in pools(network)}
    assert windows == {(16, 32), (8, 16), (4, 8)}


def test_classes_and_attributes_are_put_back_also_after_an_error() -> None:
    network = build("hat")
    before = [(type(p), dict(p.__dict__)) for p in pools(network)]

    def fails() -> None:
        with local_pooling(network, 8):
            assert {type(p) for p in pools(network)} == {LocalAvgPool2d}
            raise KeyError("of the user")

    with pytest.raises(KeyError):
        fails()
    assert [(type(p), p.__dict__) for p in pools(network)] == before


def test_blocks_may_be_nested() -> None:
    network, x = build("rcan"), image()
    with torch.no_grad():
        with local_pooling(network, 5):
            outer = run(network, x)
            with local_pooling(network, 9):
                assert not torch.equal(run(network, x), outer)
            assert torch.equal(run(network, x), outer)
        assert {type(p) for p in pools(network)} == {nn.AdaptiveAvgPool2d}


def test_an_adapted_network_keeps_its_adapters_and_gets_them_taken_out() -> None:
    base = build("hat")
    plain_state = {k: v.clone() for k, v in base.state_dict().items()}
    x, other = image(), image().flip(-1)
    model = randomise_adapters(lowpeft.adapt(base, "stereo"))
    with torch.no_grad():
        whole = model(x, other)
        with local_pooling(model, 7):
            local = model(x, other)
            with lowpeft.disabled(model):
                frozen_local = run(base, x)
            assert not torch.allclose(local[0], frozen_local, atol=1e-4)
            assert lowpeft.restore(model) is base
            torch.testing.assert_close(run(base, x), frozen_local, rtol=0, atol=1e-6)
    assert not torch.equal(local[0], whole[0])
    assert {type(p) for p in pools(base)} == {nn.AdaptiveAvgPool2d}
    assert all(torch.equal(v, plain_state[k]) for k, v in base.state_dict().items())


def test_copies_and_pickles_of_the_block_keep_local_pools() -> None:
    network, x = build("rcan"), image()
    with local_pooling(network, 5), torch.no_grad():
        wanted = run(network, x)
        copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    with torch.no_grad():
        assert all(torch.equal(run(c, x), wanted) for c in copies)
        assert not torch.equal(run(network, x), wanted)


def test_whole_images_run_with_local_pools() -> None:
    network = build("hat")
    backbone = facts(network, size_multiple=4)
    x = image(40, 50)[0]
    plain = enhance(backbone, x)
    with local_pooling(network):
        assert torch.equal(enhance(backbone, x), plain), "48x120 px cover 40x52"


# --- What is refused
def test_a_network_without_global_pools_is_refused() -> None:
    with pytest.raises(PlanError, match="AdaptiveAvgPool2d"), local_pooling(build("edsr"), 8):
        pass


def test_a_network_that_flattens_what_it_pools_is_refused_and_left_alone() -> None:
    network, x = build("dat"), image()
    with torch.no_grad():
        plain = run(network, x)
        with pytest.raises(PlanError), local_pooling(network, 8):
            pass
        assert torch.equal(run(network, x), plain)
    assert not any("lowpeft_window" in p.__dict__ for p in pools(network))


@pytest.mark.parametrize("window", [0, (4, 0)])
def test_an_empty_window_is_refused(window: int | tuple[int, int]) -> None:
    with pytest.raises(PlanError, match="0"), local_pooling(build("rcan"), window):
        pass
