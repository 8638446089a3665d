"""Memory modes of `lowpeft.optimize` on a CUDA device: less is allocated, and no attention stores its scores."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lowpeft
from counting import MATH, attention_kernels
from states import randomise_adapters

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MODES = ("keep", "rebuild", "checkpoint")
NO_MATH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


def hat() -> nn.Module:
    """One group of HAT-L's blocks, whose heads have 30 channels, with a tail without a kink: its sign would flip."""
    from cost_rows import hat_l

    base = hat_l(1)
    for module in base.modules():
        if isinstance(module, nn.LeakyReLU):
            module.negative_slope = 1.0
    return base


def step(model: nn.Module) -> tuple[list[Tensor], int, int]:
    """The gradients of the adapters, and the bytes that are allocated before and at the peak of backward."""
    generator = torch.Generator().manual_seed(1)
    left, right = torch.rand(2, 1, 3, 32, 64, generator=generator).cuda().unbind()
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = torch.cat(model(left, right)).square().mean()
    kept = torch.cuda.memory_allocated() - before
    loss.backward()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    gradients = [p.grad for _, p in lowpeft.adapter_parameters(model)]
    return [g for g in gradients if g is not None], kept, peak


def adapted() -> nn.Module:
    model = lowpeft.adapt(hat(), "stereo", every=1).train()
    return randomise_adapters(model, std=0.02).cuda()


def test_modes_keep_less_and_give_the_same_gradients() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    plain = adapted()
    step(copy.deepcopy(plain))  # the workspaces of cuBLAS and cuDNN are allocated once
    wanted, *most = step(plain)
    kept, peaks = [most[0]], [most[1]]
    for mode in MODES:
        model = lowpeft.optimize(adapted(), memory=mode)
        gradients, now, peak = step(model)
        kept.append(now)
        peaks.append(peak)
        assert len(gradients) == len(wanted) > 0
        assert max(((a - b).norm() / b.norm()).item() for a, b in zip(gradients, wanted, strict=True)) < 1e-4, mode
    assert kept == sorted(kept, reverse=True)
    assert max(peaks[1:]) < peaks[0]


@pytest.mark.parametrize("mode", MODES)
def test_no_attention_runs_in_the_math_kernel(mode: str) -> None:
    model = lowpeft.optimize(adapted(), memory=mode)
    x = torch.rand(2, 3, 32, 64, device="cuda")
    kernels = attention_kernels(lambda: model(x[:1], x[1:]))
    assert kernels
    assert MATH not in kernels
    with sdpa_kernel(NO_MATH):  # raises where no other kernel takes the call, in the recomputed forward, too
        torch.cat(model(x[:1], x[1:])).mean().backward()
