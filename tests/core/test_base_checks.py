"""Whether a network is the base of an adapter file: its weights, its index buffers, its precision, what it computes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowpeft
from lowpeft import AdapterError
from lowpeft.core.files.contents import CONFIG, METADATA_KEY, TENSORS
from lowpeft.core.observation.figures import Figures, figures_from_dict, figures_of
from states import randomise_adapters
from tiers import by_default
from unfamiliar import Plain, Residual
from zoo import build, image, image_of


def saved(network: nn.Module, folder: Path, recipe: str = "lora") -> Path:
    """The folder of an adapter for a copy of the network."""
    return lowpeft.save_adapter(randomise_adapters(lowpeft.adapt(copy.deepcopy(network), recipe)), folder)


def figures(network: nn.Module) -> Figures | None:
    return figures_of(network.eval(), lowpeft.describe(network))


def refusal(network: nn.Module, folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        lowpeft.load_adapter(network, folder)
    assert not lowpeft.core.attachment.record.is_adapted(network)
    return str(caught.value)


# --- what no weight is -----------------------------------------------------------------------------------------------


def value_range(root: Any) -> None:
    root.img_range = 255.0


def padding(root: Any) -> None:
    root.conv_first.padding_mode = "reflect"


def activation(root: Any) -> None:
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.ReLU())


def epsilon(root: Any) -> None:
    for module in root.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def constant(root: Any) -> None:
    for module in root.modules():
        if hasattr(module, "conv_scale"):
            module.conv_scale = 0.02


@pytest.mark.parametrize(
    "change", by_default([value_range, activation], [value_range, padding, activation, epsilon, constant])
)
def test_a_network_of_the_same_weights_that_computes_something_else_is_another_base(
    change: Callable[[Any], None], tmp_path: Path
) -> None:
    network = build("hat")
    saved(network, tmp_path)
    change(network)
    assert "the weights are the same, but the output" in refusal(network, tmp_path)
    lowpeft.load_adapter(network, tmp_path, force=True)


def test_a_base_that_gives_nan_is_another_one(tmp_path: Path) -> None:
    network = build("rcan")
    saved(network, tmp_path)
    network.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    assert "NaN or infinity" in refusal(network, tmp_path)


def test_autocast_around_loading_changes_nothing(tmp_path: Path) -> None:
    network = build("rcan")
    saved(network, tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowpeft.load_adapter(network, tmp_path)
    assert lowpeft.core.attachment.record.is_adapted(network)


@pytest.mark.parametrize("changes", [{"step": 1e308}, {"step": 1}, {"step": 0}, {"values": [[float("nan")]]}])
def test_figures_that_would_check_nothing_are_refused(changes: dict[str, object]) -> None:
    found = figures(build("rcan"))
    assert found is not None
    assert figures_from_dict(found.as_dict()) == found
    with pytest.raises(AdapterError, match="record"):
        figures_from_dict(found.as_dict() | changes)


@pytest.mark.parametrize("recipe", ["stereo", "lora"])
def test_the_same_network_is_known_whatever_stands_beside(recipe: str, tmp_path: Path) -> None:
    """An adapter that acts, and flags, are not the base's."""
    network = build("swinir")
    saved(network, tmp_path, recipe)
    network.train()
    model = randomise_adapters(lowpeft.adapt(network, "spatial", name="other"))
    lowpeft.load_adapter(model, tmp_path, name="loaded")
    assert lowpeft.core.attachment.record.attached_names(network) == ["other", "loaded"]


def test_a_network_that_takes_no_image_has_no_figures(tmp_path: Path) -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    saved(Vectors(), tmp_path)
    assert lowpeft.read_adapter(tmp_path).output is None


class Noisy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn_like(x)


class Sorted(Plain):
    """Turns over where a value is rounded."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * ((x * 2**24).round() % 2)


@pytest.mark.parametrize("make", [Noisy, Sorted])
def test_an_output_that_no_other_machine_would_repeat_is_not_recorded(make: type[nn.Module]) -> None:
    assert figures(make()) is None
    assert figures(Plain()) is not None


def test_what_cannot_be_copied_is_saved_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(root: nn.Module) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory")

    network = build("edsr")
    monkeypatch.setattr("lowpeft.core.observation.figures.twin_of", no_memory)
    assert lowpeft.read_adapter(saved(network, tmp_path)).output is None
    monkeypatch.undo()
    saved(network, tmp_path)
    monkeypatch.setattr("lowpeft.core.observation.figures.twin_of", no_memory)
    lowpeft.load_adapter(network, tmp_path)


def test_figures_are_those_of_exact_arithmetic() -> None:
    network = build("hat")
    rounded, exact = figures(network), figures(network.double())
    assert rounded is not None
    assert exact is not None
    for one, other in zip(rounded.values, exact.values, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


# --- index buffers ---------------------------------------------------------------------------------------------------


class Shifts(Residual):
    """Rolls its channels by an index that the state dict holds."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("order", torch.arange(dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, self.order])


def test_index_buffers_are_the_bases_and_counters_are_not(tmp_path: Path) -> None:
    network = Plain(Shifts)
    saved(network, tmp_path)
    network.stages[1].seen += 3
    lowpeft.restore(lowpeft.load_adapter(network, tmp_path))
    network.stages[1].order.copy_(network.stages[1].order.flip(0))
    assert "integer buffers" in refusal(network, tmp_path)


def test_index_buffers_that_change_while_an_adapter_is_trained_are_not_lost_in_silence(tmp_path: Path) -> None:
    network = lowpeft.adapt(Plain(Shifts), "lora")
    network.stages[0].order.copy_(network.stages[0].order.flip(0))
    with pytest.raises(AdapterError, match=r"stages\.0\.order of the base"):
        lowpeft.save_adapter(network, tmp_path)


@pytest.mark.filterwarnings("ignore:.*quantiz.* deprecated")
def test_quantised_layers_are_refused_before_they_are_compared(tmp_path: Path) -> None:
    network = build("swinir")
    saved(network, tmp_path)
    quantised = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    for call in (lambda: lowpeft.load_adapter(quantised, tmp_path), lambda: lowpeft.adapt(quantised, "lora")):
        with pytest.raises(lowpeft.LowpeftError, match=r"adapt the network before it is quantised|another base"):
            call()


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_adapter_loads_on_its_base_in_half_precision_and_says_so(dtype: torch.dtype, tmp_path: Path) -> None:
    network = build("edsr")
    saved(network, tmp_path)
    half = lowpeft.load_adapter(copy.deepcopy(network).to(dtype), tmp_path)
    whole = lowpeft.load_adapter(copy.deepcopy(network), tmp_path)
    x = image("edsr") / 255
    with torch.no_grad():
        rounded, exact = image_of(half(x.to(dtype))).float(), image_of(whole(x))
    assert (rounded - exact).abs().max() < 2 * torch.finfo(dtype).eps * exact.abs().max()
    (note,) = [n for n in lowpeft.core.attachment.record.record_of(half).plans["default"].notes if "rounded" in n]
    assert note.endswith(f"here they are rounded to {str(dtype).removeprefix('torch.')}")
    assert note in str(lowpeft.summary(half))


def test_an_adapter_of_a_half_base_loads_on_the_whole_one(tmp_path: Path) -> None:
    network = build("edsr")
    saved(copy.deepcopy(network).bfloat16(), tmp_path)
    model = lowpeft.load_adapter(network, tmp_path)
    assert any(
        "here they are not" in note for note in lowpeft.core.attachment.record.record_of(model).plans["default"].notes
    )


WAYS = {
    "as they were": lambda network: network,
    "bfloat16": lambda network: network.bfloat16(),
    "float16": lambda network: network.half(),
    "bfloat16 held in float32": lambda network: network.bfloat16().float(),
    "float16 held in float32": lambda network: network.half().float(),
    "float64": lambda network: network.double(),
}


@pytest.mark.parametrize(
    ("made_on", "here", "words"),
    [
        ("as they were", "float16 held in float32", "here they are rounded to float16"),
        ("as they were", "bfloat16 held in float32", "here they are rounded to bfloat16"),
        ("as they were", "float64", "on the same weights in another dtype"),
        ("float16 held in float32", "as they were", "rounded to float16; here they are not"),
        ("float16 held in float32", "float16", "on the same weights in another dtype"),
        ("bfloat16", "bfloat16 held in float32", "on the same weights in another dtype"),
    ],
)
def test_rounded_weights_are_known_whatever_holds_them(made_on: str, here: str, words: str, tmp_path: Path) -> None:
    network = build("edsr")
    saved(WAYS[made_on](copy.deepcopy(network)), tmp_path)
    model = lowpeft.load_adapter(WAYS[here](network), tmp_path)
    assert [
        note.endswith(words) for note in lowpeft.core.attachment.record.record_of(model).plans["default"].notes
    ] == [True]


def test_weights_rounded_in_two_ways_are_two_checkpoints(tmp_path: Path) -> None:
    network = build("edsr")
    saved(copy.deepcopy(network).half().float(), tmp_path)
    assert "another checkpoint" in refusal(network.bfloat16().float(), tmp_path)


def test_what_was_attached_by_force_stays_known(tmp_path: Path) -> None:
    saved(build("edsr"), tmp_path)
    other = build("edsr")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    forced = lowpeft.load_adapter(other, tmp_path, force=True)
    assert "attached by force, though its base was another one: the structure" in str(lowpeft.summary(forced))


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    network = build("edsr")
    saved(network, tmp_path)
    before = torch.get_rng_state()
    lowpeft.load_adapter(network, tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_are_the_same_only_when_rounded_are_another_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    network = build("edsr")
    saved(network, tmp_path)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1 + (2**-20 if dtype == torch.float32 else 2**-3))
    assert "another checkpoint" in refusal(network.to(dtype), tmp_path)


# --- files -----------------------------------------------------------------------------------------------------------


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The folder with another config."""
    with safe_open(folder / TENSORS, framework="pt") as file:
        config = json.loads(file.metadata()[METADATA_KEY])
    change(config)
    save_file(load_file(folder / TENSORS), folder / TENSORS, {METADATA_KEY: json.dumps(config)})
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def without_new_entries(config: dict[str, Any]) -> None:
    del config["output"], config["base"]["indices"], config["base"]["rounded"]


def test_a_file_with_the_old_fingerprint_is_checked_by_the_old_rule(tmp_path: Path) -> None:
    network = Plain(Shifts)
    rewritten(saved(network, tmp_path), without_new_entries)
    network.stages[1].order.copy_(network.stages[1].order.flip(0))
    lowpeft.load_adapter(network, tmp_path)
    with torch.no_grad():
        network = Plain(Shifts)
    assert "another checkpoint" in refusal(network, tmp_path)


@pytest.mark.parametrize(
    "output",
    [
        3,
        {},
        {"shape": [1, 3, 8, 8], "step": 1e-7, "values": "ab"},
        {"shape": [1, 3, 8, 10**6], "step": 1e-7, "values": [[0.0]]},
        {"shape": [1, 3, 8], "step": 1e-7, "values": [[0.0]]},
        {"shape": [1, 3, 8, 8], "step": None, "values": [[0.0]]},
    ],
    ids=str,
)
def test_figures_that_lowpeft_does_not_write_are_refused(output: object, tmp_path: Path) -> None:
    rewritten(saved(Plain(), tmp_path), lambda config: config.update(output=output))
    with pytest.raises(AdapterError, match="record of the output of its base"):
        lowpeft.read_adapter(tmp_path)


def test_the_base_is_described_once_however_often_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = figures_of
    monkeypatch.setattr("lowpeft.core.files.saving.figures_of", lambda *args: calls.append(1) or real(*args))
    model = lowpeft.adapt(build("edsr"), "lora")
    for _ in range(3):
        lowpeft.save_adapter(model, tmp_path)
    assert len(calls) == 1
    lowpeft.merge(randomise_adapters(model))
    lowpeft.save_adapter(lowpeft.adapt(model, "lora"), tmp_path)
    assert len(calls) == 2
