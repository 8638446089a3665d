"""Bytes and FLOPs of `benchmarks/counting.py`: against counts by hand, and meta tensors against real ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import counting
import lowpeft
import zoo

FLOAT = 4


class Steps(nn.Module):
    """Three linear layers with a GELU after each."""

    def __init__(self, *, recompute: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (
                checkpoint(lambda x, f=layer: F.gelu(f(x)), x, use_reentrant=False)
                if self.recompute
                else F.gelu(layer(x))
            )
        return x


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sum()


def test_kept_bytes_are_those_of_what_backward_needs() -> None:
    """Of full training, the inputs of the last two layers and of every GELU, and the loss."""
    x, weights = torch.rand(16, 8), 3 * 64 * FLOAT
    assert counting.kept_bytes(partial(loss_of, Steps(), x)) == (5 * x.nbytes + FLOAT, 5 * x.nbytes + FLOAT + weights)


def test_frozen_linear_layers_keep_nothing() -> None:
    model, x = Steps().requires_grad_(False), torch.rand(16, 8, requires_grad=True)
    assert counting.kept_bytes(partial(loss_of, model, x))[0] == 3 * x.nbytes + FLOAT


def test_checkpointing_keeps_the_inputs_alone_and_is_seen_to_compute_twice() -> None:
    x = torch.rand(16, 8, requires_grad=True)
    plain, again = (partial(loss_of, Steps(recompute=r), x) for r in (False, True))
    assert counting.kept_bytes(again)[0] == 2 * x.nbytes + FLOAT
    one = 2 * 16 * 8 * 8
    assert counting.flops(plain) == (3 * one, 9 * one)
    assert counting.flops(again) == (3 * one, 12 * one)


def test_the_peak_is_what_is_alive_at_once() -> None:
    x = torch.rand(16, 8)
    assert counting.peak_bytes(lambda: [x + 1, x + 2]) == 2 * x.nbytes
    assert counting.peak_bytes(lambda: (x + 1).sum() + (x + 2).sum()) == x.nbytes + 2 * FLOAT
    model = Steps().requires_grad_(False)
    with torch.no_grad():
        assert counting.peak_bytes(partial(model, x)) == 3 * x.nbytes  # a layer's input, its output, that of GELU


@pytest.mark.parametrize("groups", [1, 4])
def test_flops_of_a_convolution_and_its_gradients(groups: int) -> None:
    layer, x = nn.Conv2d(8, 16, 3, padding=1, groups=groups), torch.rand(2, 8, 5, 7, requires_grad=True)
    forward = 2 * (2 * 5 * 7) * 16 * (8 // groups) * 9
    assert counting.flops(lambda: layer(x).sum()) == (forward, 3 * forward)
    assert counting.flops(lambda: layer(x.detach()).sum()) == (forward, 2 * forward)
    assert counting.forward_flops(lambda: layer(x)) == forward


def test_the_optimizer_has_two_moments_and_a_step() -> None:
    layer = nn.Linear(8, 3)
    before = layer.weight.detach().clone()
    assert counting.optimizer_bytes(list(layer.parameters())) == 2 * (27 * FLOAT) + 2 * FLOAT
    assert torch.equal(layer.weight, before)


def test_kernels_of_attention() -> None:
    q = torch.rand(1, 2, 16, 8)
    trained_bias = torch.zeros(1, 2, 16, 16, requires_grad=True)
    flash = counting.attention_kernels(lambda: F.scaled_dot_product_attention(q, q, q))
    assert flash == {"_scaled_dot_product_flash_attention_for_cpu": 1}
    assert counting.attention_kernels(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=trained_bias)) == {
        counting.MATH: 1
    }


# --- Meta tensors
def figures(loss: Callable[[], Tensor], model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for measure in (counting.kept_bytes, counting.step_peak_bytes, counting.flops, counting.attention_kernels):
        model.zero_grad(set_to_none=True)
        found.append(measure(loss))
    return found


@pytest.mark.parametrize("mask", ["none", "frozen", "trained"])
def test_attention_of_meta_tensors_is_counted_as_on_the_cpu(mask: str) -> None:
    counts = []
    for device in ("cpu", "meta"):
        x = torch.ones(2, 2, 64, 8, device=device, requires_grad=True)
        bias = torch.ones(1, 2, 64, 64, device=device, requires_grad=mask == "trained")
        given = None if mask == "none" else bias
        module = nn.Module()
        loss = lambda x=x, given=given: F.scaled_dot_product_attention(x, 2 * x, 3 * x, attn_mask=given).sum()  # noqa: E731
        with counting.attention_as_on_cpu():
            counts.append(figures(loss, module))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "recipe", [None, "stereo", *(pytest.param(r, marks=pytest.mark.slow) for r in ("spatial", "parallax"))]
)
@pytest.mark.parametrize("network", ["hat", "swinir"])
@pytest.mark.slow
def test_meta_tensors_count_as_real_ones(network: str, recipe: str | None) -> None:
    (row,) = (n for n in zoo.FAMILIES if n.name == network)
    counts = []
    for device in ("cpu", "meta"):
        model = row.build()
        if recipe:
            model = lowpeft.adapt(model, recipe, **({"every": 1} if recipe == "stereo" else {}))
        x = torch.rand(2, row.channels, *row.input_px).to(device)
        model = counting.on_meta(model) if device == "meta" else model

        def loss(model: nn.Module = model, x: Tensor = x) -> Tensor:
            two = isinstance(model, lowpeft.MultiViewModel)
            return (torch.cat(model(x[:1], x[1:])) if two else model(x)).sum()

        with counting.attention_as_on_cpu():
            counts.append(figures(loss, model.eval()))
    if recipe is None:  # the CPU's gradient of a weight may be laid out otherwise, and is copied at the peak
        assert counts[0].pop(1) >= counts[1].pop(1)
    assert counts[0] == counts[1]
