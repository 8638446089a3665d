"""Frozen convolutions and batch norms: torch's results and gradients, without keeping the input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft.core.attachment.specialise import facets_of

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 9)),
    "3d": (lambda: nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5)),
    "stride, dilation": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2), (2, 4, 9, 8)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 7, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=4), (2, 4, 7, 9)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), (2, 4, 7, 9)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 9)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2), (2, 4, 5, 6)),
    "output padding": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=1, dilation=3, output_padding=2), (2, 4, 5, 6)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2), (2, 4, 3, 3, 3)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (2, 4, 7, 9)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (8, 4)),
    "batch norm, not affine": (lambda: nn.BatchNorm3d(4, affine=False), (2, 4, 3, 4, 5)),
}

PLAIN: dict[str, Callable[[], nn.Module]] = {
    "reflect": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "own forward": lambda: Doubled(4, 4, 1),
}


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Before(nn.Module):
    """A layer behind another operation, so that its input could be freed."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * 1.5)  # type: ignore[no-any-return]


def network(layer: nn.Module) -> Before:
    for name, buffer in layer.named_buffers():
        if name.startswith("running"):
            buffer.uniform_(0.5, 2.0)
    return Before(layer).eval().requires_grad_(False)


def step(model: Before, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the input."""
    x = x.clone().requires_grad_()
    output = model(x)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return output.detach(), torch.autograd.grad(output, x, seed)[0]


def kept_bytes(model: Before, x: Tensor) -> int:
    """Bytes that the layer saves for backward, but for parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x.clone().requires_grad_())
    return sum(seen.values())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients_are_torchs_and_nothing_is_kept(name: str, memory_format: torch.memory_format) -> None:
    make, shape = LAYERS[name]
    model, x = network(make()), torch.randn(shape)
    if len(shape) == 4:
        x = x.contiguous(memory_format=memory_format)
    output, gradient = step(model, x)
    least = x.numel() * x.element_size() if "batch norm" not in name else 1
    assert kept_bytes(model, x) >= least
    lowpeft.optimize(model)
    assert facets_of(model.layer).lean
    lean_output, lean_gradient = step(model, x)
    if "batch norm" in name:  # x·s + t rounds differently
        torch.testing.assert_close(lean_output, output, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(lean_output, output)
    torch.testing.assert_close(lean_gradient, gradient, rtol=1e-6, atol=1e-6)
    assert lean_output.stride() == output.stride()
    assert kept_bytes(model, x) < 200  # a factor and a shift per channel


@pytest.mark.parametrize("name", PLAIN)
def test_other_layers_stay_as_they_are(name: str) -> None:
    model, x = network(PLAIN[name]()), torch.randn(2, 4, 6, 6)
    before = step(model, x)
    lowpeft.optimize(model)
    assert not facets_of(model.layer).lean
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), before, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_padding_that_differs_on_both_sides() -> None:
    model, x = network(nn.Conv2d(4, 4, 4, padding="same")), torch.randn(2, 4, 6, 6)
    before = step(model, x)
    lowpeft.optimize(model)
    assert not facets_of(model.layer).lean
    assert all(torch.equal(a, b) for a, b in zip(step(model, x), before, strict=True))


def test_a_layer_that_is_trained_gets_its_gradient() -> None:
    model, x = network(nn.Conv2d(4, 6, 3)), torch.randn(2, 4, 6, 6)
    lowpeft.optimize(model)
    model.layer.requires_grad_(True)
    model(x.requires_grad_()).sum().backward()
    assert model.layer.weight.grad is not None


def test_a_layer_whose_weight_an_adapter_changes_keeps_its_input() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)).eval()
    lowpeft.optimize(model)
    assert [facets_of(m).lean for m in model] == [True, True, True]
    lowpeft.adapt(model, lowpeft.LoRAConfig(target="1"))
    assert [facets_of(m).lean for m in model] == [True, False, True]
    lowpeft.restore(model, "default")
    assert [facets_of(m).lean for m in model] == [True, True, True]


def test_a_batch_norm_in_training_mode_uses_the_batch() -> None:
    model, x = network(nn.BatchNorm2d(4)), torch.randn(2, 4, 6, 6)
    lowpeft.optimize(model)
    model.layer.train()
    assert abs(model(x.requires_grad_()).mean()) < 1e-6


def test_arguments_beyond_the_input_and_unbatched_inputs() -> None:
    model = network(nn.ConvTranspose2d(4, 6, 3, stride=2))
    lowpeft.optimize(model)
    x = torch.randn(4, 5, 5, requires_grad=True)
    assert model.layer(x).shape == (6, 11, 11)
    assert model.layer(x[None], output_size=[12, 12]).shape == (1, 6, 12, 12)
    assert model.layer(input=x[None]).shape == (1, 6, 11, 11)


def test_autocast_runs_the_layer_in_half_precision_and_returns_gradients_in_the_inputs_dtype() -> None:
    model, x = network(nn.Conv2d(4, 6, 3)), torch.randn(2, 4, 6, 6)
    found = []
    for optimised in (False, True):
        if optimised:
            lowpeft.optimize(model)
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model.layer(given)
        output.float().sum().backward()
        assert output.dtype == torch.bfloat16
        assert given.grad is not None
        assert given.grad.dtype == torch.float32
        found.append((output, given.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-2)


def test_second_order_gradients_are_refused() -> None:
    model, x = network(nn.Conv2d(4, 6, 3)), torch.randn(2, 4, 6, 6, requires_grad=True)
    lowpeft.optimize(model)
    with pytest.raises(lowpeft.PlanError, match="first-order"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
