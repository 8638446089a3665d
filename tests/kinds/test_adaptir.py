"""AdaptIR and spectral adapters: formulas, counts, starts, statistics, frequencies near zero, whole images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_kinds import count
from torch import Tensor, nn

import lowpeft
from lowpeft import (
    AdapterConfig,
    AdaptIRConfig,
    DataError,
    FeatureAdapter,
    Features,
    Layout,
    PlanError,
    SpectralConfig,
    Tiling,
)
from lowpeft.kinds import AdaptIR, Spectral
from lowpeft.kinds.amplitude_phase import SMALL, AmplitudePhase
from reference import frequencies as reference
from states import randomise_adapters
from zoo import FAMILIES

NETWORKS = {network.name: network for network in FAMILIES}
SIZE = (4, 5)
EDT = {"reduction": 14, "gate_reduction": 4}

every_layout = pytest.mark.parametrize("layout", [Layout.NCHW, Layout.NHWC, Layout.NLC, Layout.LNC], ids=str)
both_kinds = pytest.mark.parametrize("config", [AdaptIRConfig(), SpectralConfig()], ids=lambda c: c.kind)


def swinir() -> nn.Module:
    torch.manual_seed(7)
    return NETWORKS["swinir"].build()


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(adapter: FeatureAdapter, std: float = 0.5) -> Any:
    """The adapter in float64 with random parameters and statistics."""
    torch.manual_seed(1)
    adapter.double()
    for name, tensor in adapter.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5 if "running" in name else std * torch.randn(tensor.shape))
    return adapter


def features_of(rows: Tensor, layout: Layout) -> Features:
    tokens = rows.flatten(1, 2)
    values = {
        Layout.NCHW: rows.permute(0, 3, 1, 2),
        Layout.NHWC: rows,
        Layout.NLC: tokens,
        Layout.LNC: tokens.transpose(0, 1),
    }[layout]
    return Features(values, layout, tuple(rows.shape[1:3]))


# --- Formulas and counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("amplitude_bias", ["smooth", "paper"])
@every_layout
@torch.no_grad()
def test_adaptir_is_its_formula(layout: Layout, amplitude_bias: Any, training: bool) -> None:
    config = AdaptIRConfig(hidden=4, gate_reduction=2, amplitude_bias=amplitude_bias)
    adapter = filled(AdaptIR(6, config)).train(training)
    small = SMALL if amplitude_bias == "smooth" else None
    for rows in (noise(2, *SIZE, 6), noise(1, 6, 5, 6), noise(1, 14, 2, 6), noise(2, 1, 7, 6)):
        wanted = reference.adaptir(rows, adapter.state_dict(), training=training, smooth=small)
        features = features_of(rows, layout)
        torch.testing.assert_close(adapter.delta(features), features.from_rows(wanted), rtol=0, atol=1e-12)


@torch.no_grad()
def test_adaptir_without_the_factor_of_the_phase_is_its_formula() -> None:
    adapter = filled(AdaptIR(6, AdaptIRConfig(hidden=4, phase_scale=False))).eval()
    rows = noise(2, *SIZE, 6)
    wanted = reference.adaptir(rows, adapter.state_dict(), training=False, smooth=SMALL)
    torch.testing.assert_close(adapter.delta(features_of(rows, Layout.NHWC)), wanted, rtol=0, atol=1e-12)
    assert count(adapter) == count(AdaptIR(6, AdaptIRConfig(hidden=4))) - 4


@every_layout
@torch.no_grad()
def test_spectral_is_its_formula(layout: Layout) -> None:
    adapter = filled(Spectral(6, SpectralConfig(hidden=3, bands=4)))
    for rows in (noise(2, *SIZE, 6), noise(1, 6, 3, 6), noise(2, 1, 1, 6)):
        features = features_of(rows, layout)
        wanted = features.from_rows(reference.spectral(rows, adapter.state_dict()))
        torch.testing.assert_close(adapter.delta(features), wanted, rtol=0, atol=1e-12)


def published(c: int, h: int, r: int, m: int) -> int:
    """Parameters of one AdaptIR module of the authors' code."""
    return 2 * c * h + 12 * h + h * r + 9 * r + 2 * h * (h // 2) + h // 2 + 2 * h * m + m + 2


def test_adaptir_has_the_authors_numbers_of_parameters() -> None:
    assert published(576, 24, 12, 3) == 29_069
    assert published(180, 12, 6, 3) == 4_817
    assert count(AdaptIR(576, AdaptIRConfig())) == 29_069
    assert count(AdaptIR(180, AdaptIRConfig(**EDT))) == 4_817
    assert {n: b.numel() for n, b in AdaptIR(576, AdaptIRConfig()).named_buffers()} == {
        "norm.running_mean": 24,
        "norm.running_var": 24,
        "norm.num_batches_tracked": 1,
    }


@pytest.mark.parametrize(("name", "mlp"), [("ipt", ".linear2"), ("edt", ".mlp")])
def test_adaptir_is_beside_the_mlp_of_every_block(name: str, mlp: str) -> None:
    network = NETWORKS[name].build()
    blocks = sum(path.endswith(mlp) for path, _ in network.named_modules())
    plan = lowpeft.plan(network, "adaptir")
    assert {site.attachment.port for site in plan.sites} == {"parallel"}
    assert len(plan.sites) == blocks


@pytest.mark.parametrize("channels", [1, 8, 24, 55, 180, 191])
def test_narrow_networks_have_at_least_8_hidden_channels_and_a_gate(channels: int) -> None:
    for fields in ({}, EDT):
        config = AdaptIRConfig(**fields)
        h = max(8, channels // config.reduction)
        adapter = AdaptIR(channels, config)
        assert count(adapter) == published(channels, h, h // 2, max(1, h // config.gate_reduction))
    assert count(AdaptIR(channels, AdaptIRConfig(hidden=1))) == 2 * channels + 12 + 1 + 9 + 2 + 1 + 2 + 1 + 2


def test_spectral_has_the_number_of_parameters_of_its_formula() -> None:
    assert count(Spectral(180, SpectralConfig())) == 2 * 180 * 8 + 180 + 64
    assert count(Spectral(6, SpectralConfig(hidden=3, bands=5))) == 36 + 6 + 15


# --- Starts and training ---------------------------------------------------------------------------------------------


@both_kinds
@torch.no_grad()
def test_a_new_adapter_changes_no_bit(config: Any) -> None:
    x = torch.rand(2, 3, 8, 12)
    expected = swinir()(x)
    model = lowpeft.adapt(swinir(), config)
    assert torch.equal(model(x), expected)
    assert torch.equal(model.train()(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), swinir()(x))
    assert not torch.equal(randomise_adapters(model)(x), expected)


def moved(adapter: FeatureAdapter, steps: int) -> set[str]:
    """Names of the parameters whose gradient was above rounding in one of the steps."""
    optimiser = torch.optim.SGD(adapter.parameters(), lr=1e-2)
    found = set()
    rows = noise(2, *SIZE, 12)
    for step in range(steps):
        optimiser.zero_grad()
        (adapter.delta(features_of(rows, Layout.NHWC)) * noise(*rows.shape, seed=step)).sum().backward()
        found |= {name for name, p in adapter.named_parameters() if p.grad.abs().max() > 1e-9}
        optimiser.step()
    return found


def test_adaptir_is_trained_from_the_third_step_but_for_two_biases_that_cancel() -> None:
    torch.manual_seed(0)
    names = {name for name, _ in AdaptIR(12, AdaptIRConfig()).named_parameters()}
    assert moved(AdaptIR(12, AdaptIRConfig()).double(), 1) == {"up.weight"}
    gate = {"local_gate.0.weight", "local_gate.0.bias"}
    assert moved(AdaptIR(12, AdaptIRConfig()).double(), 2) == names - AdaptIR.zero_gradients - gate
    assert moved(AdaptIR(12, AdaptIRConfig()).double(), 3) == names - AdaptIR.zero_gradients


def test_spectral_is_trained_from_the_second_step() -> None:
    torch.manual_seed(0)
    assert moved(Spectral(12, SpectralConfig()).double(), 1) == {"gate"}
    assert moved(Spectral(12, SpectralConfig()).double(), 2) == {"gate", "filter", "down.weight", "up.weight"}


@both_kinds
def test_check_trainable_passes(config: Any) -> None:
    lowpeft.check_trainable(lowpeft.adapt(swinir(), config), torch.rand(2, 3, 8, 12))


def test_a_new_frequency_branch_is_the_absolute_value() -> None:
    z = noise(2, 3, 5, 6, dtype=torch.float32)
    torch.testing.assert_close(AmplitudePhase(3, smooth=True, phase_scale=True)(z), z.abs(), rtol=0, atol=2e-6)


@both_kinds
def test_the_saved_file_has_all_that_the_output_depends_on(config: Any, tmp_path: Path) -> None:
    model = randomise_adapters(lowpeft.adapt(swinir(), config)).train()
    for seed in range(3):
        model(noise(2, 3, 8, 12, dtype=torch.float32, seed=seed))
    means = [b for name, b in model.named_buffers() if name.endswith("norm.running_mean") and b.any()]
    assert bool(means) == (config.kind == "adaptir")
    x = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        expected = model.eval()(x)
    lowpeft.save_adapter(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(lowpeft.load_adapter(swinir(), tmp_path)(x), expected)


def test_a_single_position_in_training_is_refused_with_the_reason() -> None:
    adapter = AdaptIR(12, AdaptIRConfig())
    with pytest.raises(PlanError, match=r"one map of 1x1 positions .*larger batch"):
        adapter.delta(features_of(torch.rand(1, 1, 1, 12), Layout.NHWC))
    assert adapter.delta(features_of(torch.rand(2, 1, 1, 12), Layout.NHWC)).isfinite().all()
    assert adapter.eval().delta(features_of(torch.rand(1, 1, 1, 12), Layout.NHWC)).isfinite().all()


# --- Precision, and frequencies near zero ----------------------------------------------------------------------------


def branch(*, smooth: bool = True, bias: float = 0.0, scale: float = 1.0, channels: int = 4) -> AmplitudePhase:
    module = AmplitudePhase(channels, smooth=smooth, phase_scale=True)
    with torch.no_grad():
        module.amplitude_bias.fill_(bias)
        module.phase.fill_(scale)
    return module


@pytest.mark.parametrize("smooth", [True, False])
@torch.no_grad()
def test_frequencies_are_float32_under_autocast(smooth: bool) -> None:
    z, module = noise(2, 4, 16, 24, dtype=torch.float32), branch(smooth=smooth, bias=0.05, scale=1.05)
    expected = module(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(z), expected)
        low = module(z.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, module(z.bfloat16().float()).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@both_kinds
@torch.no_grad()
def test_an_adapter_of_half_precision_runs(config: Any, dtype: torch.dtype) -> None:
    adapter = lowpeft.kinds.get_kind(config.kind).module(12, config)
    filled(adapter, std=0.3).eval()
    rows = noise(2, *SIZE, 12)
    expected = adapter.delta(features_of(rows, Layout.NHWC))
    low = adapter.to(dtype).delta(features_of(rows.to(dtype), Layout.NHWC))
    assert low.dtype == dtype
    assert (low.double() - expected).norm() < 0.1 * expected.norm()


def gradient_with_a_bin_of(size: float, module: AmplitudePhase) -> Tensor:
    """The gradient of the branch's input, maps with one frequency of this amplitude among many of about 1."""
    spectrum = torch.fft.rfft2(noise(1, 1, 16, 16), norm="ortho")
    spectrum[..., 3, 5] = size * (0.6 + 0.8j)
    z = torch.fft.irfft2(spectrum, s=(16, 16), norm="ortho").requires_grad_()
    (module.double()(z) * noise(1, 1, 16, 16, seed=2)).sum().backward()
    return z.grad


def test_a_small_amplitude_makes_a_huge_gradient_unless_its_bias_is_smooth() -> None:
    usual = gradient_with_a_bin_of(1e-9, branch(channels=1)).abs().max()
    sharp = gradient_with_a_bin_of(1e-9, branch(smooth=False, bias=0.05, channels=1)).abs().max()
    smooth = gradient_with_a_bin_of(1e-9, branch(bias=0.05, channels=1)).abs().max()
    assert sharp > 1e4 * usual
    assert smooth < 5 * usual
    large = [gradient_with_a_bin_of(1.0, branch(smooth=s, bias=0.05, channels=1)) for s in (True, False)]
    torch.testing.assert_close(*large, rtol=0, atol=1e-3 * float(large[1].abs().max()))


@pytest.mark.parametrize("smooth", [True, False])
def test_amplitudes_of_exactly_zero_have_finite_gradients(smooth: bool) -> None:
    module = branch(smooth=smooth, bias=0.05, scale=1.2)
    z = torch.zeros(1, 4, 8, 8, requires_grad=True)
    out = module(z)
    out.sum().backward()
    assert z.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    # The paper's bias has no phase there, and makes a bright point at the first position.
    assert out[0, 0, 0, 0].item() == pytest.approx(0.0 if smooth else 0.05 * 8)


@pytest.mark.parametrize(
    ("scale", "least", "most"), [(1.0, 0.0, 1e-12), (1.05, 0.08, 0.16), (1.2, 0.3, 0.6)], ids=["1", "1.05", "1.2"]
)
@torch.no_grad()
def test_any_factor_of_the_phase_but_1_depends_on_where_the_image_begins(
    scale: float, least: float, most: float
) -> None:
    module, z = branch(bias=0.05, scale=scale).double(), noise(8, 4, 16, 16)
    expected = module(z)
    shifted = module(z.roll((1, 1), (2, 3))).roll((-1, -1), (2, 3))
    change = (shifted - expected).norm() / expected.norm()
    assert least <= change <= most


@torch.no_grad()
def test_rounding_does_not_choose_the_phase_of_a_frequency_that_is_real() -> None:
    module, spectrum = branch(scale=1.2).double(), torch.fft.rfft2(noise(4, 4, 6, 6), norm="ortho")
    module.phase_bias.fill_(0.5)
    found = [module._changed(spectrum + sign * 1e-15j, width=6)[..., ::3, ::3] for sign in (1, -1)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_spectral_adapter_moves_with_the_image_and_turns_with_it() -> None:
    adapter, rows = filled(Spectral(6, SpectralConfig(hidden=3))), noise(2, 6, 6, 6)

    def delta(x: Tensor) -> Tensor:
        return adapter.delta(features_of(x, Layout.NHWC))

    for change in (lambda x: x.roll((1, 2), (1, 2)), lambda x: x.rot90(1, (1, 2)), lambda x: x.flip(2)):
        torch.testing.assert_close(delta(change(rows)), change(delta(rows)), rtol=0, atol=1e-12)


# --- Whole images, other places, export ------------------------------------------------------------------------------


@both_kinds
def test_images_are_not_cut_into_strips_unless_it_is_allowed(config: Any) -> None:
    base, image, tiling = swinir(), torch.rand(3, 32, 16), Tiling(strip_px=8, context_px=8, align_px=8)
    before, too_early = lowpeft.describe(base), lowpeft.describe(base, strips=True)
    assert lowpeft.enhance(base, image, tiling=tiling).shape == (3, 64, 32)
    model = randomise_adapters(lowpeft.adapt(base, config), std=0.5).eval()
    described = (before, too_early, lowpeft.describe(model), lowpeft.describe(before, min_px=8))
    for refused in (model, *described, nn.Sequential(model)):
        with pytest.raises(DataError, match=rf"{config.kind} adapters read the whole image.*strips=True"):
            lowpeft.enhance(refused, image, tiling=tiling)
    whole = lowpeft.enhance(before, image)
    allowed = lowpeft.describe(model, strips=True)
    assert (lowpeft.enhance(allowed, image, tiling=tiling) - whole).abs().max() > 1e-3
    lowpeft.restore(model)
    assert lowpeft.enhance(before, image, tiling=tiling).shape == (3, 64, 32)


def statistics(model: nn.Module) -> list[Tensor]:
    return [t.clone() for name, t in lowpeft.adapter_state_dict(model).items() if "running" in name]


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint", "ignore:None of the inputs have requires_grad")
def test_checkpointing_repeats_a_forward_without_counting_it_twice() -> None:
    found = []
    for checkpointing in (False, True):
        model = lowpeft.adapt(swinir(), AdaptIRConfig(hidden=4)).train()
        for module in model.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = checkpointing
        randomise_adapters(model)
        model(noise(2, 3, 16, 16, dtype=torch.float32)).square().mean().backward()
        found.append((statistics(model), [p.grad for _, p in lowpeft.adapter_parameters(model)]))
    for plain, repeated in zip(*found, strict=True):
        for one, other in zip(plain, repeated, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_frozen_adapter_keeps_its_statistics_and_uses_them() -> None:
    model, x = randomise_adapters(lowpeft.adapt(swinir(), AdaptIRConfig(hidden=4), name="a")), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        wanted = model.eval()(x)
    before = statistics(model)
    for _, parameter in lowpeft.adapter_parameters(model):
        parameter.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(model.train()(x), wanted)
    for old, new in zip(before, statistics(model), strict=True):
        assert torch.equal(old, new)


def test_a_batch_that_is_not_finite_leaves_the_statistics_finite() -> None:
    model = lowpeft.adapt(swinir(), AdaptIRConfig(hidden=4)).train()
    x = torch.rand(1, 3, 16, 16)
    model(x * torch.nan)
    assert all(t.isfinite().all() for t in statistics(model))
    before = statistics(model)
    model(x)
    assert not all(map(torch.equal, before, statistics(model)))


@both_kinds
def test_no_images_give_no_images(config: Any) -> None:
    adapter = filled({"adaptir": AdaptIR, "spectral": Spectral}[config.kind](8, config)).eval()
    assert adapter.delta(features_of(noise(0, *SIZE, 8), Layout.NCHW)).shape == (0, 8, *SIZE)


@dataclass(frozen=True, kw_only=True)
class MeanConfig(AdapterConfig):
    """The mean of the whole map."""

    kind: ClassVar[str] = "mean"


class Mean(FeatureAdapter):
    """`gain` times the mean of the whole map."""

    kind = "mean"
    needs_rows = True
    row_local = False
    whole_image = True

    def __init__(self, channels: int, config: MeanConfig) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def delta(self, features: Features) -> Tensor:
        rows = features.rows
        return features.from_rows(self.gain * rows.mean((1, 2), keepdim=True).expand_as(rows))


def test_strips_stay_refused_when_the_kind_was_taken_out_of_the_table(registries: None) -> None:
    lowpeft.register_adapter(MeanConfig, Mean)
    model = lowpeft.adapt(swinir(), [MeanConfig(), SpectralConfig()])
    lowpeft.unregister_adapter("mean")
    with pytest.raises(DataError, match="mean, spectral adapters read the whole image"):
        lowpeft.enhance(model, torch.rand(3, 48, 16), tiling=Tiling(strip_px=16))


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (AdaptIRConfig, {"reduction": 0}),
        (AdaptIRConfig, {"hidden": 0}),
        (AdaptIRConfig, {"gate_reduction": 0}),
        (AdaptIRConfig, {"gate_reduction": 2.5}),
        (AdaptIRConfig, {"amplitude_bias": "smoth"}),
        (AdaptIRConfig, {"phase_scale": 1}),
        (SpectralConfig, {"hidden": 0}),
        (SpectralConfig, {"bands": 1}),
    ],
)
def test_a_value_out_of_range_is_refused(config: type, fields: dict[str, object]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(PlanError, match=f"{name} must be .*{value}"):
        config(**fields)


@pytest.mark.parametrize(
    ("target", "reason"),
    [("attn", "cannot tell which axes"), ("mlp", "unknown height and width")],
    ids=["windows", "tokens"],
)
@both_kinds
def test_features_without_known_rows_are_refused(config: Any, target: str, reason: str) -> None:
    path = f"layers.0.residual_group.blocks.0.{target}"
    with pytest.raises(PlanError, match=rf"(?s){config.kind} adapters do not fit.*{path}.*{reason}"):
        lowpeft.plan(swinir(), type(config)(target=path))


class Alone(nn.Module):
    def __init__(self, adapter: FeatureAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter.delta(Features(x, Layout.NCHW, (x.shape[2], x.shape[3])))


@pytest.mark.slow
@both_kinds
@torch.no_grad()
def test_an_adapter_is_exported_for_maps_of_all_sizes(config: Any) -> None:
    alone = Alone(filled(lowpeft.kinds.get_kind(config.kind).module(12, config))).eval()
    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(alone, (noise(2, 12, 6, 8),), dynamic_shapes=(sides,)).module()
    other = noise(2, 12, 7, 10)
    torch.testing.assert_close(exported(other), alone(other), rtol=0, atol=1e-12)
