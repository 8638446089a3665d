"""Opening checkpoints: the facts that come back, and tensors that are refused; test_checkpoints.py has the files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.IPT import IPT
from torch import Tensor, nn

import lowpeft
from lowpeft import Backbone, LowpeftError, load_backbone
from lowpeft.backbones.networks import EDT, EDTConfig
from tiers import by_default
from zoo import ROWS

State = dict[str, Tensor]


def write_pth(state: State, folder: Path) -> Path:
    torch.save(state, folder / "network.pth")
    return folder / "network.pth"


def write_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "network.safetensors")
    return folder / "network.safetensors"


def saved(name: str, folder: Path) -> tuple[nn.Module, Path]:
    """A tiny network, and the file that holds its weights."""
    module = ROWS[name].build()
    return module, write_pth(module.state_dict(), folder)


# --- What is opened
@pytest.mark.parametrize("name", by_default(["swinir"], ["hat", "swinir"]))
def test_the_module_computes_what_the_network_did(name: str, tmp_path: Path) -> None:
    module, path = saved(name, tmp_path)
    x = torch.rand(1, 3, 8, 12)
    with torch.no_grad():
        assert torch.equal(load_backbone(path).module(x), module(x))


@pytest.mark.parametrize("name", ["hat", "rcan", "swinir", "swinir_3conv", "swin2sr"])
def test_the_facts_are_those_of_the_network(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    module, path = saved(name, tmp_path)
    backbone = load_backbone(path)
    assert (backbone.scale, backbone.channels) == (row.scale, row.channels)
    assert backbone.parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "family"), [("hat", "hat"), ("swinir", "swinir"), ("swin2sr", "swin2sr")])
def test_the_family_of_a_known_network_is_named(name: str, family: str, tmp_path: Path) -> None:
    backbone = load_backbone(saved(name, tmp_path)[1])
    assert (backbone.family, backbone.architecture.lower()) == (family, name)


def test_a_network_of_no_family_is_opened_all_the_same(tmp_path: Path) -> None:
    assert load_backbone(saved("compact", tmp_path)[1]).family is None


@pytest.mark.parametrize("name", ["hat", "swinir", "compact"])
def test_the_module_takes_images_of_the_stated_range_and_size(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    backbone = load_backbone(saved(name, tmp_path)[1])
    low, high = backbone.value_range
    x = low + (high - low) * torch.rand(1, backbone.channels, *(7 * backbone.size_multiple,) * 2)
    y = backbone.module(x)
    assert y.shape[-2:] == (x.shape[-2] * row.scale, x.shape[-1] * row.scale)


def test_the_module_is_trainable_and_in_eval_mode(tmp_path: Path) -> None:
    module = load_backbone(saved("swinir", tmp_path)[1]).module
    assert not any(m.training for m in module.modules())
    assert all(p.requires_grad and not p.is_inference() for p in module.parameters())


def test_gradients_reach_the_weights(tmp_path: Path) -> None:
    module = load_backbone(saved("swinir", tmp_path)[1]).module
    module(torch.rand(1, 3, 8, 12)).mean().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_is_text_or_a_path(as_text: bool, tmp_path: Path) -> None:
    path = saved("swinir", tmp_path)[1]
    assert load_backbone(str(path) if as_text else path).scale == 2


def test_a_backbone_can_be_adapted_as_it_is(tmp_path: Path) -> None:
    backbone = load_backbone(saved("swinir", tmp_path)[1])
    assert lowpeft.adapt(backbone, "stereo").backbone is backbone.module


def test_a_backbone_is_a_value() -> None:
    assert Backbone.__dataclass_params__.frozen


# --- EDT, which spandrel does not know
def tiny_edt(*tasks: str) -> EDT:
    """As thin as a published width allows: the number of heads is inferred from the width."""
    torch.manual_seed(0)
    return EDT(EDTConfig(tasks=tasks or ("sr_x2",), features=2, dim=60, depths=(2,), heads=6)).eval()


def test_an_edt_opens_without_spandrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "spandrel"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "lowpeft.backbones.spandrel_reader", raising=False)
    assert load_backbone(write_pth(tiny_edt().state_dict(), tmp_path)).architecture == "EDT"
    with pytest.raises(LowpeftError, match="needs spandrel"):
        load_backbone(write_pth({"conv_first.weight": torch.zeros(3)}, tmp_path))


def test_the_facts_of_an_edt(tmp_path: Path) -> None:
    network = tiny_edt("sr_x3")
    backbone = load_backbone(write_pth(network.state_dict(), tmp_path))
    facts = (backbone.family, backbone.scale, backbone.value_range, backbone.size_multiple, backbone.channels)
    assert facts == ("edt", 3, (0.0, 1.0), 24, 3)
    assert (backbone.fixed_px, backbone.tasks) == (None, ())
    assert backbone.parameters == sum(p.numel() for p in network.parameters())
    x = torch.rand(1, 3, 10, 30)
    with torch.no_grad():
        assert torch.equal(backbone.module(x), network(x))


def test_a_denoising_edt_has_scale_1_and_halves_its_sides_twice(tmp_path: Path) -> None:
    backbone = load_backbone(write_pth(tiny_edt("dn_g25").state_dict(), tmp_path))
    assert (backbone.scale, backbone.size_multiple) == (1, 96)


def test_one_task_of_several_can_be_kept(tmp_path: Path) -> None:
    network = tiny_edt("sr_x2", "sr_x3", "sr_x4")
    path = write_pth(network.state_dict(), tmp_path)
    everything = load_backbone(path)
    assert (everything.scale, everything.tasks) == (4, ("sr_x2", "sr_x3", "sr_x4"))
    one = load_backbone(path, task="sr_x3")
    assert (one.scale, one.tasks) == (3, everything.tasks)
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(one.module(x), network(x)[1])
    with pytest.raises(LowpeftError, match="no task 'sr_x5'; its tasks are sr_x2, sr_x3, sr_x4"):
        load_backbone(path, task="sr_x5")


# --- IPT
def test_the_facts_of_an_ipt(tmp_path: Path) -> None:
    backbone = load_backbone(saved("ipt", tmp_path)[1])
    assert (backbone.family, backbone.scale, backbone.value_range) == ("ipt", 2, (0.0, 255.0))
    assert (backbone.fixed_px, backbone.tasks) == (48, ())


@pytest.mark.parametrize(("task", "index", "scale"), [(None, 1, 4), ("0_x2", 0, 2), ("2_x1", 2, 1)])
def test_an_ipt_for_several_tasks_runs_the_one_that_is_asked_for(
    task: str | None, index: int, scale: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = IPT(n_feats=4, num_heads=12, num_layers=2, scale=[2, 4, 1], num_queries=3).eval()
    backbone = load_backbone(write_pth(network.state_dict(), tmp_path), task=task)
    assert (backbone.scale, backbone.tasks) == (scale, ("0_x2", "1_x4", "2_x1"))
    network.set_scale(index)
    x = 255 * torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(backbone.module(x), network(x))


def test_a_task_of_a_network_with_a_single_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LowpeftError, match=r"'sr_x2' .*HAT"):
        load_backbone(saved("hat", tmp_path)[1], task="sr_x2")


# --- Masks, whose size is that of the training crop
def without_masks(state: State) -> State:
    return {key: tensor for key, tensor in state.items() if "attn_mask" not in key}


def with_other_masks(state: State) -> State:
    """As after training on crops of 5 by 3 windows."""
    return {k: t.new_ones(15, *t.shape[1:]) if "attn_mask" in k else t for k, t in state.items()}


@pytest.mark.parametrize("change", [without_masks, with_other_masks])
@pytest.mark.parametrize("name", by_default(["swinir"], ["swinir", "swin2sr", "edt"]))
def test_masks_are_dropped_and_computed_anew(name: str, change: Callable[[State], State], tmp_path: Path) -> None:
    network = tiny_edt() if name == "edt" else ROWS[name].build()
    state = change(network.state_dict())
    assert state.keys() != network.state_dict().keys() or change is with_other_masks
    module = load_backbone(write_pth(state, tmp_path)).module
    for size in ((8, 12), (32, 32), (48, 48)):
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(module(x), network(x), rtol=0, atol=1e-6)


# --- What is refused
def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {new if key == old else key: tensor for key, tensor in state.items()}


WRONG: dict[str, tuple[str, Callable[[State], State], tuple[str, ...]]] = {
    "one key renamed": (
        "swinir",
        renamed("layers.1.conv.weight", "layers.1.convolution.weight"),
        ("SwinIR", "missing: layers.1.conv.weight", "unknown: layers.1.convolution.weight"),
    ),
    "a key renamed by which it is recognised": (
        "swinir",
        renamed("layers.0.residual_group.blocks.0.norm1.weight", "layers.0.residual_group.blocks.0.norm_1.weight"),
        (
            "the nearest is SwinIR",
            "missing: layers.0.residual_group.blocks.0.norm1.weight",
            "did you mean 'layers.0.residual_group.blocks.0.norm_1.weight'",
        ),
    ),
    "a key renamed from which its shape is read": (
        "hat",
        renamed("conv_last.weight", "conv_final.weight"),
        ("the nearest is HAT", "missing: conv_last.weight", "did you mean", "lowpeft.adapt("),
    ),
    "a wrong shape": (
        "swinir",
        lambda state: state | {"layers.1.conv.weight": torch.zeros(3, 3, 3, 3)},
        ("SwinIR", "size mismatch for layers.1.conv.weight"),
    ),
    "EDT, one key renamed": (
        "edt",
        renamed("body.conv_after_body.weight", "body.conv_after.weight"),
        (
            "EDT",
            "missing: body.conv_after_body.weight",
            "unknown: body.conv_after.weight",
        ),
    ),
    "transformers' Swin2SR": (
        "swin2sr_hf",
        lambda state: state,
        ("transformers' Swin2SR", "Swin2SRForImageSuperResolution.from_pretrained"),
    ),
    "no super-resolution network": (
        "swinir",
        lambda state: {"encoder.layer.0.attention.self.query.weight": torch.zeros(4, 4)},
        ("no architecture", "1 tensors (encoder.layer.0.attention.self.query.weight", "lowpeft.adapt("),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_that_fit_no_network_are_named(case: str, tmp_path: Path) -> None:
    name, change, words = WRONG[case]
    state = tiny_edt().state_dict() if name == "edt" else ROWS[name].build().state_dict()
    with pytest.raises(LowpeftError, match="is not a checkpoint that can be opened") as caught:
        load_backbone(write_pth(change(state), tmp_path))
    assert [w for w in words if w not in str(caught.value)] == []


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_refused_unless_it_is_asked_for(
    dtype: torch.dtype, write: Callable[[State, Path], Path], tmp_path: Path
) -> None:
    state = ROWS["swinir"].build().state_dict()
    half = {k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()}
    path = write(half, tmp_path)
    with pytest.raises(LowpeftError, match=f"{dtype}.*allow_half=True"):
        load_backbone(path)
    loaded = load_backbone(path, allow_half=True).module.state_dict()
    assert [k for k in half if "mask" not in k and not torch.equal(loaded[k], half[k].to(state[k].dtype))] == []


def test_an_adapter_file_is_refused(tmp_path: Path) -> None:
    folder = lowpeft.save_adapter(lowpeft.adapt(ROWS["swinir"].build(), "spatial"), tmp_path / "adapter")
    with pytest.raises(LowpeftError, match="is not a checkpoint"):
        load_backbone(folder / "adapter_model.safetensors")


# --- Public checkpoints
REAL = {
    "CRAFT_x4.pth": ("CRAFT", 4, 753_344),
    "DCTLSA_x2.pt": ("DCTLSA", 2, 867_472),
    "DCTLSA_x3.pt": ("DCTLSA", 3, 874_912),
    "DCTLSA_x4.pt": ("DCTLSA", 4, 885_328),
    "DITN_Real_x4.pth": ("DITN", 4, 444_112),
}


@pytest.mark.real_data
@pytest.mark.parametrize("file", REAL)
def test_a_public_checkpoint_opens(file: str, data_root: Path) -> None:
    backbone = load_backbone(data_root / "weights" / file)
    assert (backbone.architecture, backbone.scale, backbone.parameters) == REAL[file]


@pytest.mark.real_data
@pytest.mark.parametrize("file", REAL)
def test_a_public_checkpoint_enlarges_by_its_scale(file: str, data_root: Path) -> None:
    backbone = load_backbone(data_root / "weights" / file)
    height, width = (n * max(16, backbone.size_multiple) for n in (1, 2))
    with torch.no_grad():
        sr = backbone.module(torch.rand(1, backbone.channels, height, width))
    assert sr.shape[-2:] == (height * backbone.scale, width * backbone.scale)
