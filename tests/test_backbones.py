"""Opening checkpoints: formats, the facts that come back, and files that are no checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Backbone, LowpeftError, load_backbone

ROWS = {n.name: n for n in zoo.ALL}
State = dict[str, Tensor]


def write_pth(state: State, folder: Path) -> Path:
    torch.save(state, folder / "network.pth")
    return folder / "network.pth"


def write_params(state: State, folder: Path) -> Path:
    torch.save({"params": state}, folder / "network.pth")
    return folder / "network.pth"


def write_params_ema(state: State, folder: Path) -> Path:
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"params": other, "params_ema": state}, folder / "network.pth")
    return folder / "network.pth"


def write_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "network.safetensors")
    return folder / "network.safetensors"


FORMATS = [write_pth, write_params, write_params_ema, write_safetensors]


def saved(name: str, folder: Path) -> tuple[nn.Module, Path]:
    """A tiny network, and the file that holds its weights."""
    module = ROWS[name].build()
    return module, write_pth(module.state_dict(), folder)


# --- What is opened
@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("name", ["hat", "rcan", "swinir"])
def test_the_module_has_the_weights_that_were_saved(
    name: str, write: Callable[[State, Path], Path], tmp_path: Path
) -> None:
    state = ROWS[name].build().state_dict()
    loaded = load_backbone(write(state, tmp_path)).module.state_dict()
    assert [k for k in state if not torch.equal(state[k], loaded[k])] == []


@pytest.mark.parametrize("name", ["hat", "swinir"])
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


def test_the_value_range_of_ipt_is_that_of_its_module(tmp_path: Path) -> None:
    assert load_backbone(saved("ipt", tmp_path)[1]).value_range == (0.0, 255.0)


# --- What is refused
class Payload:
    """A pickle that makes a file when it is opened carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_pickle_with_a_payload_is_refused_and_does_not_run(save: Any, suffix: str, tmp_path: Path) -> None:
    path, marker = tmp_path / f"network{suffix}", tmp_path / "marker"
    save({"params": Payload(marker)}, path)
    with pytest.raises(LowpeftError, match="is not a checkpoint"):
        load_backbone(path)
    assert not marker.exists()


def test_the_payload_of_these_tests_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["nothing.pth", ".", "folder.pth"])
def test_what_is_not_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(LowpeftError, match="no checkpoint file at"):
        load_backbone(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ".txt", ""])
@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", b"\x80\x02.", b"PK\x03\x04", bytes(4096)], ids=repr)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"network{suffix}"
    path.write_bytes(content)
    with pytest.raises(LowpeftError, match=r"is not a checkpoint .*: .") as caught:
        load_backbone(path)
    assert f"network{suffix} is not" in str(caught.value)


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(write: Callable[[State, Path], Path], share: float, tmp_path: Path) -> None:
    path = write(ROWS["swinir"].build().state_dict(), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(LowpeftError, match="is not a checkpoint"):
        load_backbone(path)


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.zeros(3)}, {}, [torch.zeros(3)], torch.zeros(3), {"params": {}}, {"conv_first.weight": "x"}],
    ids=lambda c: type(c).__name__,
)
def test_tensors_of_no_known_architecture_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "network.pth")
    with pytest.raises(LowpeftError, match="is not a checkpoint"):
        load_backbone(tmp_path / "network.pth")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    state = ROWS["swinir"].build().state_dict()
    del state["layers.1.conv.weight"]
    with pytest.raises(LowpeftError, match="is not a checkpoint"):
        load_backbone(write_pth(state, tmp_path))


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
