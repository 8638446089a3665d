"""Tensors that are rebuilt in backward in place of being kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from lowpeft.errors import PlanError
from lowpeft.frozen.rebuilding import Level, note, rebuilding


class Chain:
    """y = sin(2x)·(2x), whose `2x` and `sin(2x)` are noted; counts how often each is made again."""

    def __init__(self, level: Level = Level.CHEAP) -> None:
        self.level = level
        self.made = {"double": 0, "sin": 0}

    def double(self, x: Tensor) -> Tensor:
        self.made["double"] += 1
        return 2 * x

    def sin(self, doubled: Tensor) -> Tensor:
        self.made["sin"] += 1
        return doubled.sin()

    def __call__(self, x: Tensor) -> Tensor:
        doubled = note(2 * x, self.double, x, level=self.level)
        wave = note(doubled.sin(), self.sin, doubled)
        self.refs = weakref.ref(doubled), weakref.ref(wave)
        return wave * doubled


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 7, dtype=torch.float64).requires_grad_()


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def gradient(x: Tensor) -> Tensor:
    """d/dx of sin(2x)·2x."""
    return (2 * (2 * x).cos() * 2 * x + 2 * (2 * x).sin()).detach()


def test_noted_tensors_are_made_again_once_each(x: Tensor) -> None:
    chain = Chain()
    with rebuilding(Level.CHEAP):
        y = chain(x)
    assert chain.made == {"double": 0, "sin": 0}
    (found,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, gradient(x))
    assert chain.made == {"double": 1, "sin": 1}  # the sine is made from the 2x that was made again


@pytest.mark.usefixtures("_no_collector")
def test_noted_tensors_are_freed_and_nothing_leaks(x: Tensor) -> None:
    chain = Chain()
    with rebuilding(Level.CHEAP):
        y = chain(x)
    assert [ref() for ref in chain.refs] == [None, None]
    (found,) = torch.autograd.grad(y.sum(), x)
    kept = weakref.ref(found)
    del found, y
    assert kept() is None


@pytest.mark.usefixtures("_no_collector")
def test_results_that_operations_keep_do_not_leak(x: Tensor) -> None:
    """An operation that keeps its own result (exp) has saved it before it can be noted."""
    with rebuilding(Level.CHEAP):
        wave = x.exp()
        y = note(wave, torch.exp, x) * 2
    storage = StorageWeakRef(wave.untyped_storage())
    assert not storage.expired()
    del wave, y
    assert storage.expired()


def test_a_product_is_kept_at_the_cheap_level(x: Tensor) -> None:
    for level, times in ((Level.CHEAP, 0), (Level.PRODUCTS, 1)):
        chain = Chain(Level.PRODUCTS)
        with rebuilding(level):
            y = chain(x)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], gradient(x))
        assert chain.made == {"double": times, "sin": 1}


def test_a_second_backward_makes_them_again(x: Tensor) -> None:
    chain = Chain()
    with rebuilding(Level.CHEAP):
        y = chain(x)
    for times in (1, 2):
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], gradient(x))
        assert chain.made == {"double": times, "sin": times}


def test_outside_nothing_is_noted(x: Tensor) -> None:
    chain = Chain()
    torch.testing.assert_close(torch.autograd.grad(chain(x).sum(), x)[0], gradient(x))
    with torch.no_grad(), rebuilding(Level.CHEAP):
        chain(x)
    assert chain.made == {"double": 0, "sin": 0}


def test_inside_other_hooks_nothing_is_rebuilt(x: Tensor) -> None:
    """Hooks do not nest: a rebuild inside a checkpoint would take its tensors away, and they would be kept."""
    chain, packed = Chain(), 0

    def block(given: Tensor) -> Tensor:
        with rebuilding(Level.PRODUCTS):
            return chain(given)

    def count(tensor: Tensor) -> Tensor:
        nonlocal packed
        packed += 1
        return tensor

    y = checkpoint(block, x, use_reentrant=False)
    assert [ref() for ref in chain.refs] == [None, None]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], gradient(x))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        y = block(x)
    assert packed > 0
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], gradient(x))
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        block(x)
    assert chain.made == {"double": 0, "sin": 0}


def test_a_source_that_was_written_to_is_refused() -> None:
    base = torch.rand(5, dtype=torch.float64, requires_grad=True)
    x = base * 1
    with rebuilding(Level.CHEAP):
        y = Chain()(x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(PlanError, match="changed in place"):
        y.sum().backward()


def test_second_order_gradients_are_refused(x: Tensor) -> None:
    with rebuilding(Level.CHEAP):
        y = Chain()(x)
    with pytest.raises(PlanError, match="first-order"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_tensors_are_made_again_under_the_autocast_of_the_forward() -> None:
    x, weight = torch.rand(3, 4, requires_grad=True), torch.rand(4, 4)
    dtypes = []

    def product(given: Tensor) -> Tensor:
        made = given @ weight
        dtypes.append(made.dtype)
        return made

    with torch.autocast("cpu", dtype=torch.bfloat16), rebuilding(Level.PRODUCTS):
        y = torch.nn.functional.gelu(note(product(x), product, x, level=Level.PRODUCTS))
    y.float().sum().backward()
    assert dtypes == [torch.bfloat16, torch.bfloat16]
