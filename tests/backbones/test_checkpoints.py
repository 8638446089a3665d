"""Checkpoints as people have them: every form opens with the right tensors, or gives one error that says what it is."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV2
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import lowpeft
from lowpeft import LowpeftError, load_backbone
from lowpeft.cli import main
from lowpeft.core.observation.fingerprint import OTHER_WEIGHTS
from lowpeft.demo import demo_backbone
from tiers import by_default
from zoo import ROWS

State = dict[str, Tensor]


@functools.cache
def network(seed: int, name: str = "rcan") -> nn.Module:
    torch.manual_seed(seed)
    return ROWS[name].build()


@functools.cache
def output(seed: int) -> Tensor:
    with torch.no_grad():
        return network(seed)(image())


def image() -> Tensor:
    return 255 * torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


RAW, EMA = 1, 2
"""Seeds of the network as the last step left it, and of its average."""


def state(seed: int, *prefixes: str) -> State:
    return {"".join(prefixes) + key: tensor for key, tensor in network(seed).state_dict().items()}


def opened(path: Path, **options: Any) -> tuple[str, tuple[str, ...]]:
    """Which of the two networks a file gives, by its output; and the notes."""
    backbone = load_backbone(path, **options)
    with torch.no_grad():
        y = backbone.module(image())
    which = [name for name, seed in (("raw", RAW), ("ema", EMA)) if torch.equal(y, output(seed))]
    return " ".join(which) or "neither", backbone.notes


def test_the_two_networks_differ() -> None:
    assert not torch.equal(output(RAW), output(EMA))


# --- What training code writes beside a network
OTHER_NETWORK = {"conv0.weight": torch.ones(4, 3, 3, 3), "conv0.bias": torch.ones(4)}


def optimizer() -> dict[str, Any]:
    """What Adam keeps, after a step."""
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    adam = torch.optim.Adam(weights)
    sum(w.sum() for w in weights).backward()
    adam.step()
    return adam.state_dict()


def averaged() -> State:
    """As `torch.optim.swa_utils.AveragedModel` saves it."""
    return AveragedModel(network(EMA)).state_dict()


def mmengine() -> dict[str, Any]:
    """EMAHook swaps when it saves: the average is where the network is sought, the raw weights are in `ema_…`."""
    raw = {"steps": torch.tensor(7)} | state(RAW, "module.generator.")
    return {"meta": {"epoch": 3}, "state_dict": state(EMA, "generator."), "ema_state_dict": raw}


def lit_ema() -> State:
    """As LitEma registers its buffers: no dots in names, parameters alone."""
    shadow = {"model_ema." + key.replace(".", ""): p.detach() for key, p in network(EMA).named_parameters()}
    return shadow | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(5)}


def shadow_params() -> dict[str, Any]:
    """As diffusers' EMAModel gives it."""
    return {"decay": 0.99, "optimization_step": 7, "shadow_params": [p.detach() for p in network(EMA).parameters()]}


def ema_pytorch() -> State:
    """ema_pytorch keeps the network itself beside the average."""
    counters = {"initted": torch.tensor(True), "step": torch.tensor(9)}
    return counters | state(RAW, "online_model.") | state(EMA, "ema_model.")


@dataclass(frozen=True)
class Both:
    """Content with averaged and raw weights: where the one and the other are."""

    content: Callable[[], object]
    ema: str
    raw: str


BOTH = {
    "BasicSR": Both(lambda: {"params": state(RAW), "params_ema": state(EMA)}, "params_ema", "params"),
    "the average first": Both(lambda: {"params_ema": state(EMA), "params": state(RAW)}, "params_ema", "params"),
    "params-ema": Both(lambda: {"params": state(RAW), "params-ema": state(EMA)}, "params-ema", "params"),
    "timm": Both(
        lambda: {"state_dict": state(RAW), "optimizer": optimizer(), "state_dict_ema": state(EMA)},
        "state_dict_ema",
        "state_dict",
    ),
    "timm's ModelEmaV2": Both(
        lambda: {"model": state(RAW), "model_ema": ModelEmaV2(network(EMA)).state_dict()}, "model_ema.module", "model"
    ),
    "net and net_ema": Both(lambda: {"net": state(RAW), "net_ema": state(EMA)}, "net_ema", "net"),
    "model and ema": Both(lambda: {"model": state(RAW), "ema": state(EMA), "step": 3}, "ema", "model"),
    "module in ema": Both(lambda: {"model": state(RAW), "ema": {"module": state(EMA)}}, "ema.module", "model"),
    "DataParallel in both": Both(
        lambda: {"model": state(RAW, "module."), "ema": state(EMA, "module.")}, "ema.module", "model.module"
    ),
    "ema_state_dict": Both(
        lambda: {"state_dict": state(RAW), "ema_state_dict": state(EMA)}, "ema_state_dict", "state_dict"
    ),
    "a decay in the name": Both(lambda: {"model": state(RAW), "ema_0.9999": state(EMA)}, "ema_0.9999", "model"),
    "MMEngine's EMAHook": Both(mmengine, "state_dict.generator", "ema_state_dict.module.generator"),
    "MMagic": Both(
        lambda: {
            "state_dict": state(RAW, "generator.")
            | state(EMA, "generator_ema.")
            | {"step_counter": torch.tensor([5]), "data_preprocessor.mean": torch.zeros(3, 1, 1)},
            "message_hub": {"log_scalars": {}},
        },
        "state_dict.generator_ema",
        "state_dict.generator",
    ),
    "Lightning": Both(
        lambda: {"state_dict": state(RAW, "model.") | state(EMA, "model_ema."), "pytorch-lightning_version": "2.5.0"},
        "state_dict.model_ema",
        "state_dict.model",
    ),
    "Lightning around AveragedModel": Both(
        lambda: {"state_dict": state(RAW, "net_g.") | {f"ema_model.{k}": t for k, t in averaged().items()}},
        "state_dict.ema_model.module",
        "state_dict.net_g",
    ),
    "Lightning's WeightAveraging": Both(
        lambda: {
            "state_dict": state(EMA, "net."),
            "current_model_state": state(RAW, "net."),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        "state_dict.net",
        "current_model_state.net",
    ),
    "LitEma": Both(
        lambda: {"state_dict": state(RAW, "model.") | lit_ema()}, "state_dict.model_ema", "state_dict.model"
    ),
    "EMAModel": Both(lambda: {"model": state(RAW), "ema": shadow_params()}, "ema.shadow_params", "model"),
    "ema_pytorch": Both(
        lambda: {"step": 9, "model": state(RAW), "opt": optimizer(), "ema": ema_pytorch()}, "ema.ema_model", "model"
    ),
    "a list as an average": Both(
        lambda: {"model": state(RAW), "ema": [p.detach() for p in network(EMA).parameters()]}, "ema", "model"
    ),
    "an average and its decay": Both(lambda: {"model": state(RAW), "ema": (state(EMA), 0.999)}, "ema.0", "model"),
    "an average that a callback keeps": Both(
        lambda: {
            "state_dict": state(RAW, "model."),
            "callbacks": {"EMACallback": {"weights": state(EMA)}, "ModelCheckpoint": {"best": torch.ones(1)}},
        },
        "callbacks.EMACallback.weights",
        "state_dict.model",
    ),
    "modelEMA": Both(lambda: {"model": state(RAW), "modelEMA": state(EMA)}, "modelEMA", "model"),
    "AveragedModel beside it": Both(
        lambda: {"model": state(RAW), "swa_model": averaged()}, "swa_model.module", "model"
    ),
    "StyleGAN's": Both(
        lambda: {"g": state(RAW), "d": OTHER_NETWORK, "g_ema": state(EMA), "d_optim": optimizer()}, "g_ema", "g"
    ),
    "netG_ema": Both(
        lambda: {"netG": state(RAW), "netD": OTHER_NETWORK, "netD_ema": OTHER_NETWORK, "netG_ema": state(EMA)},
        "netG_ema",
        "netG",
    ),
    "generator_ema": Both(
        lambda: {"generator": state(RAW), "discriminator": OTHER_NETWORK, "generator_ema": state(EMA)},
        "generator_ema",
        "generator",
    ),
    "compiled, in DDP": Both(
        lambda: {"params": state(RAW, "module._orig_mod."), "params_ema": state(EMA, "module._orig_mod.")},
        "params_ema.module._orig_mod",
        "params.module._orig_mod",
    ),
}


@pytest.mark.parametrize("form", by_default(list(BOTH)[::2], BOTH))
def test_the_average_is_taken_and_said_and_raw_weights_on_request(form: str, tmp_path: Path) -> None:
    path, case = tmp_path / "network.pth", BOTH[form]
    torch.save(case.content(), path)
    note = (
        f"weights: the averaged ones (EMA), under {case.ema}; weights='raw' (--raw-weights) takes the raw ones, under "
    )
    assert opened(path) == ("ema", (note + case.raw,))
    which, notes = opened(path, weights="raw")
    assert which == "raw"
    assert len(notes) == 1
    assert notes[0].startswith(f"weights: the raw ones, under {case.raw}, as asked; averaged ones (EMA) are under ")


AVERAGED_ALONE: dict[str, tuple[Callable[[], object], str]] = {
    "params_ema": (lambda: {"params_ema": state(EMA)}, "params_ema"),
    "empty raw ones": (lambda: {"params": {}, "params_ema": state(EMA)}, "params_ema"),
    "AveragedModel": (averaged, "module"),
    "ema and an optimizer": (lambda: {"ema": state(EMA), "optimizer": optimizer()}, "ema"),
}


@pytest.mark.parametrize("form", AVERAGED_ALONE)
def test_raw_weights_that_are_not_there_are_refused(form: str, tmp_path: Path) -> None:
    path, (content, place) = tmp_path / "network.pth", AVERAGED_ALONE[form]
    torch.save(content(), path)
    assert opened(path) == ("ema", (f"weights: the averaged ones (EMA), under {place}",))
    with pytest.raises(LowpeftError, match=r"leave it out to take these") as caught:
        load_backbone(path, weights="raw")
    assert caught.value.problems == (f"under {place}: {len(state(EMA))} tensors",)


RAW_ALONE: dict[str, Callable[[], object]] = {
    "bare": lambda: state(RAW),
    "params": lambda: {"params": state(RAW)},
    "state_dict": lambda: {"state_dict": state(RAW), "epoch": 3, "optimizer": optimizer(), "lr": 0.1},
    "model_state_dict": lambda: {"model_state_dict": state(RAW), "optimizer_state_dict": optimizer()},
    "model": lambda: {"model": state(RAW), "optimizer": optimizer(), "iteration": 7},
    "parameters, not tensors": lambda: dict(network(RAW).named_parameters()) | dict(network(RAW).named_buffers()),
    "a single key": lambda: {"my_weights": state(RAW)},
    "a name of one's own and an optimizer": lambda: {"upscaler": state(RAW), "optimizer": optimizer()},
    "two levels": lambda: {"state_dict": {"model": state(RAW)}},
    "netG": lambda: {"netG": state(RAW), "netD": OTHER_NETWORK},
    "generator": lambda: {"generator": state(RAW), "discriminator": OTHER_NETWORK},
    "g": lambda: {"d": OTHER_NETWORK, "g": state(RAW)},
    "net_g": lambda: {"net_g": state(RAW), "net_d": OTHER_NETWORK},
    "G_state_dict": lambda: {"epoch": 1, "G_state_dict": state(RAW), "D_state_dict": OTHER_NETWORK},
    "DataParallel": lambda: state(RAW, "module."),
    "compiled": lambda: state(RAW, "_orig_mod."),
    "DDP in a compiled one, in a trainer": lambda: {"params": state(RAW, "net_g.", "_orig_mod.", "module.")},
    "compiled in DDP in a trainer": lambda: {"params": state(RAW, "module.", "_orig_mod.", "net_g.")},
    "Lightning": lambda: {"state_dict": state(RAW, "model."), "callbacks": {"x": {"y": torch.ones(2)}}},
    "Lightning and a loss": lambda: {"state_dict": state(RAW, "net_g.") | {"loss.vgg.weight": torch.zeros(2, 2)}},
    "a prefix of one's own": lambda: state(RAW, "upscaler."),
    "a decay that is no average": lambda: {"params": state(RAW), "ema": 0.999, "ema_decay": torch.tensor(0.999)},
    "counters of an average that never was": lambda: {"model": state(RAW), "ema": {"num_updates": torch.tensor(0)}},
    "the same twice": lambda: {"params": state(RAW), "state_dict": state(RAW)},
}


@pytest.mark.parametrize("form", by_default(list(RAW_ALONE)[::2], RAW_ALONE))
def test_a_state_dict_is_found_however_it_is_wrapped(form: str, tmp_path: Path) -> None:
    path = tmp_path / "network.ckpt"
    torch.save(RAW_ALONE[form](), path)
    assert opened(path) == ("raw", ())
    assert opened(path, weights="raw") == ("raw", ())


NOT_UNDERSTOOD: dict[str, tuple[Callable[[], object], str]] = {
    "names alone": (lambda: {"params": state(RAW), "params_ema": dict.fromkeys(state(EMA))}, "params_ema"),
    "nothing": (lambda: {"params": state(RAW), "params_ema": {}}, "params_ema"),
    "pairs": (lambda: {"model": state(RAW), "ema": list(state(EMA).items())}, "ema"),
    "groups": (lambda: {"model": state(RAW), "ema": {"state": [list(state(EMA).values())]}}, "ema"),
    "an optimizer's": (
        lambda: {"state_dict": state(RAW), "optimizer_states": [{"ema": list(state(EMA).values())}]},
        "optimizer_states.0.ema",
    ),
}


@pytest.mark.parametrize("form", NOT_UNDERSTOOD)
def test_an_average_that_is_not_understood_is_told(form: str, tmp_path: Path) -> None:
    path, (content, place) = tmp_path / "network.pth", NOT_UNDERSTOOD[form]
    torch.save(content(), path)
    which, notes = opened(path)
    assert which == "raw"
    assert len(notes) == 1
    assert notes[0].endswith(f"because the averaged ones (EMA) under {place} cannot be read")


def test_an_average_that_is_cut_short_names_the_raw_weights(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save({"params": state(RAW), "params_ema": dict(list(state(EMA).items())[:-1])}, path)
    with pytest.raises(
        LowpeftError, match=r"\(EMA\), under params_ema \(weights='raw' \(--raw-weights\) takes raw ones"
    ):
        load_backbone(path)


def test_a_single_bit_that_is_wrong_in_a_tensor_is_found(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save(state(RAW), path)
    content = bytearray(path.read_bytes())
    weight = next(t for t in state(RAW).values() if t.numel() > 100).numpy().tobytes()
    content[content.index(weight) + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(LowpeftError, match=r"network/data/\d+ has a wrong checksum"):
        load_backbone(path)


def test_a_file_without_checksums_opens(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(RAW), tmp_path / "network.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert opened(tmp_path / "network.pth") == ("raw", ())


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LowpeftError, match="File name too long"):
        load_backbone(tmp_path / ("a" * 5000))


# --- How files are written; their suffix has no say
def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def flat(content: dict[str, State]) -> State:
    return {f"{key}.{name}": tensor for key, tensors in content.items() for name, tensor in tensors.items()}


def with_metadata(content: dict[str, State], path: Path) -> None:
    save_file(flat(content), path, metadata={"format": "pt", "architecture": "none"})


WRITERS = {
    "zip": torch.save,
    "legacy": legacy,
    "safetensors": lambda content, path: save_file(flat(content), path),
    "safetensors with metadata": with_metadata,
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_content_of_a_file_decides(writer: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"network{suffix}"
    WRITERS[writer]({"params": state(RAW), "params_ema": state(EMA)}, path)
    assert opened(path)[0] == "ema"
    assert opened(path, weights="raw")[0] == "raw"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "55000_G.pth", "55000_E.pth"])
def test_a_bare_state_dict_opens_under_any_name(name: str, tmp_path: Path) -> None:
    torch.save(state(RAW), tmp_path / name)
    assert opened(tmp_path / name) == ("raw", ())


@pytest.mark.parametrize("name", ["edt", "hat", "ipt"])
def test_families_of_every_reader_are_found_in_wrappers(name: str, tmp_path: Path) -> None:
    build = functools.partial(network, name=name) if name != "edt" else tiny_edt
    raw, ema = (build(seed).state_dict() for seed in (RAW, EMA))
    content = {f"model.{k}": t for k, t in raw.items()} | {f"ema_model.module.{k}": t for k, t in ema.items()}
    torch.save({"state_dict": content}, tmp_path / "network.ckpt")
    for choice, wanted in (("raw", raw), ("ema", ema)):
        loaded = load_backbone(tmp_path / "network.ckpt", weights=choice).module.state_dict()
        assert [k for k in wanted if not torch.equal(wanted[k], loaded[k])] == []


@functools.cache
def tiny_edt(seed: int) -> nn.Module:
    from lowpeft.backbones.networks import EDT, EDTConfig

    torch.manual_seed(seed)
    return EDT(EDTConfig(tasks=("sr_x2",), features=2, dim=60, depths=(2,), heads=6)).eval()


# --- Weights that cannot be told
NO_DOTS = "their names have lost their dots (LitEma)"
NO_NAMES = "they are a list of tensors without names (EMAModel)"
UNTOLD: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "two networks": (
        lambda: {"params": state(RAW), "model": state(EMA)},
        (f"under params: {len(state(RAW))} tensors", "under model"),
    ),
    "two averages": (
        lambda: {"model": state(RAW), "ema_0.999": state(EMA), "ema_0.9999": state(3)},
        ("under ema_0.999:", "under ema_0.9999:"),
    ),
    "EMAModel alone": (shadow_params, ("under shadow_params", NO_NAMES, "weights='raw'")),
    "EMAModel beside another network": (
        lambda: {"model": OTHER_NETWORK, "ema": shadow_params()},
        ("under ema.shadow_params", NO_NAMES),
    ),
    "LitEma beside another network": (
        lambda: {"state_dict": lit_ema() | {f"model.{k}": t for k, t in OTHER_NETWORK.items()}},
        ("under state_dict.model_ema", NO_DOTS),
    ),
    "an average of something else": (
        lambda: {"model": state(RAW), "model_ema": OTHER_NETWORK},
        ("of its averaged weights (EMA), under model_ema", "weights='raw' (--raw-weights)", "no architecture"),
    ),
}


@pytest.mark.parametrize("form", UNTOLD)
def test_weights_that_cannot_be_told_are_refused(form: str, tmp_path: Path) -> None:
    content, words = UNTOLD[form]
    torch.save(content(), tmp_path / "network.pth")
    with pytest.raises(LowpeftError, match="is not a checkpoint that can be opened") as caught:
        load_backbone(tmp_path / "network.pth")
    assert [word for word in words if word not in str(caught.value)] == []


def test_another_choice_of_weights_is_refused(tmp_path: Path) -> None:
    torch.save(state(RAW), tmp_path / "network.pth")
    with pytest.raises(LowpeftError, match=r"weights .*'eam' \(did you mean 'ema'\?\)"):
        load_backbone(tmp_path / "network.pth", weights="eam")


@pytest.mark.parametrize(
    "content",
    [{}, [torch.zeros(3)], torch.zeros(3), {"params": {}}, {"conv_first.weight": "x"}, {"step": torch.tensor(3)}],
    ids=lambda c: type(c).__name__,
)
def test_content_without_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "network.pth")
    with pytest.raises(LowpeftError, match="is not a checkpoint of a network"):
        load_backbone(tmp_path / "network.pth")


def test_state_dicts_that_nothing_tells_apart_are_listed(tmp_path: Path) -> None:
    torch.save({"student": state(RAW), "teacher": state(EMA)}, tmp_path / "network.pth")
    with pytest.raises(LowpeftError, match="student, teacher"):
        load_backbone(tmp_path / "network.pth")


def first_weight(change: Callable[[Tensor], Tensor]) -> State:
    key = next(key for key, tensor in state(RAW).items() if tensor.ndim == 4)
    return state(RAW) | {key: change(state(RAW)[key])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to(torch.complex64), "complex64"),
        (lambda t: (t * 127).to(torch.int8), "int8"),
        (lambda t: t > 0, "bool"),
        (lambda t: t * torch.nan, "NaN or infinity"),
        (lambda t: t + torch.inf, "NaN or infinity"),
        (lambda t: t.to_sparse(), "sparse"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: torch.nested.nested_tensor([t[0], t[1]]), "nested"),
    ],
    ids=["complex", "int8", "bool", "nan", "inf", "sparse", "quantised", "meta", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested:UserWarning", "ignore:torch.quantize_per:UserWarning")
def test_tensors_that_are_no_weights_are_refused(
    change: Callable[[Tensor], Tensor], words: str, tmp_path: Path
) -> None:
    for content in (first_weight(change), {"params": state(RAW), "params_ema": first_weight(change)}):
        torch.save(content, tmp_path / "network.pth")
        with pytest.raises(LowpeftError, match=words):
            load_backbone(tmp_path / "network.pth")


def test_a_list_of_averages_has_no_place_for_masks(tmp_path: Path) -> None:
    """SwinIR's state dict holds float masks, and `parameters()`, whose order such a list has, none."""
    torch.manual_seed(EMA)
    averaged = ROWS["swinir"].build()
    raw = {key: tensor + 1 if tensor.is_floating_point() else tensor for key, tensor in averaged.state_dict().items()}
    assert any(key.endswith("attn_mask") for key in raw)
    torch.save({"model": raw, "ema": {"shadow_params": list(averaged.parameters())}}, tmp_path / "network.pth")
    found = load_backbone(tmp_path / "network.pth").module
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), averaged.parameters(), strict=True))


def test_an_average_inside_a_lightning_module_is_found_under_any_name(tmp_path: Path) -> None:
    inside = {f"model.{k}": t for k, t in state(RAW).items()} | {f"copy.module.{k}": t for k, t in state(EMA).items()}
    torch.save({"state_dict": inside | {"copy.n_averaged": torch.tensor(3)}}, tmp_path / "network.pth")
    assert opened(tmp_path / "network.pth")[0] == "ema"


# --- Files that are no checkpoint
def written(save: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.pth"))
    return file.getvalue()


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2_000_000))
    return file.getvalue()


def torchscript() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is out of use, and such files are about
        module = torch.jit.trace(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4))
        return written(lambda file: torch.jit.save(module, file))


def onnx_model() -> bytes:
    graph = onnx.helper.make_graph([], "g", [], [])
    return onnx.helper.make_model(graph, producer_name="pytorch").SerializeToString()


def torch_file() -> bytes:
    return written(lambda file: torch.save(state(RAW), file))


def legacy_file() -> bytes:
    return written(lambda file: legacy(state(RAW), file))


def safetensors_file() -> bytes:
    from safetensors.torch import save

    return save(state(RAW))


def picture(kind: str) -> bytes:
    return written(lambda file: Image.new("RGB", (4, 4)).save(file, kind))


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4cac19\nsize 67108864\n"
PAGE = "an HTML page"
OTHER = "only PyTorch weights"
CUT = "damaged or truncated"
BROKEN = "damaged, truncated"
NO_CHECKPOINT: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "empty": (lambda: b"", ("it is empty",)),
    "zeros": (lambda: bytes(4096), ("it is zeros", "download")),
    "HTML": (lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>", (PAGE,)),
    "HTML after a blank line": (lambda: b"\n\n<html lang='en'>\n", (PAGE,)),
    "XML": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", (PAGE,)),
    "LFS": (lambda: LFS, ("a git-LFS pointer to a file of 67,108,864 bytes", "git lfs pull")),
    "PNG": (lambda: picture("PNG"), ("an image (PNG)",)),
    "JPEG": (lambda: picture("JPEG"), ("an image (JPEG)",)),
    "WebP": (lambda: picture("WEBP"), ("an image (WebP)",)),
    "text": (lambda: b"hello\nworld\n", ("it is text, which begins 'hello",)),
    "text that is cut in a letter": (("x" * 4095 + "ü" * 9).encode, ("it is text",)),
    "JSON": (lambda: json.dumps({"embed_dim": 60}).encode(), ("it is JSON",)),
    "an index": (lambda: b'{"weight_map": {"a": "model-1.bin"}}', ("a checkpoint in several files",)),
    "zip": (lambda: zipped("a/x.png", "a/y.png"), ("a zip archive with a/x.png, a/y.png",)),
    "zip of nothing": (zipped, ("an unknown format",)),
    "zip, cut off": (lambda: b"PK\x03\x04", (CUT,)),
    "zip bomb": (bomb, ("more than 16 times its size",)),
    "tar": (tarred, ("tar, an archive",)),
    "gzip": (lambda: gzip.compress(torch_file()), ("gzip, an archive",)),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04", ("7z, an archive",)),
    "TorchScript": (torchscript, ("a TorchScript archive", "torch.jit.load(path).state_dict()")),
    "torch.export": (lambda: zipped("m/archive_format", "m/models/model.json"), ("a program of torch.export",)),
    "ONNX": (onnx_model, ("an ONNX model", OTHER)),
    "SavedModel": (lambda: b"\x08\x01\x12\x90\x05\x0a\x04", ("a SavedModel of TensorFlow", OTHER)),
    "TensorFlow's index": (
        lambda: bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        ("of a TensorFlow checkpoint", OTHER),
    ),
    "Keras": (lambda: zipped("config.json", "model.weights.h5"), ("a model of Keras", OTHER)),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), ("an HDF5 file", OTHER)),
    "npz": (lambda: zipped("conv.npy", "bias.npy"), ("a file of NumPy arrays (npz)", OTHER)),
    "npy": (lambda: b"\x93NUMPY\x01\x00v\x00{'descr'", ("a NumPy array", OTHER)),
    "MATLAB": (lambda: b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(90), ("a MATLAB file", OTHER)),
    "noise": (lambda: bytes(range(1, 250)), ("01 02 03 04 05 06 07 08",)),
    "a cut torch file": (lambda: torch_file()[: len(torch_file()) // 2], (CUT,)),
    "a torch file without its end": (lambda: torch_file()[:-30], (CUT,)),
    "a cut legacy file": (lambda: legacy_file()[: len(legacy_file()) // 2], (BROKEN,)),
    "the start of a legacy file": (lambda: legacy_file()[:40], (BROKEN,)),
    "a cut safetensors file": (lambda: safetensors_file()[: len(safetensors_file()) // 2], (BROKEN,)),
    "the start of a safetensors file": (lambda: safetensors_file()[:300], (BROKEN,)),
    "a pickle": (
        lambda: pickle.dumps({"conv.weight": [1.0]}),
        ("a pickle that torch.save did not write",),
    ),
    "a whole network": (
        lambda: written(lambda file: torch.save(nn.Conv2d(3, 3, 1), file)),
        ("a pickle", "torch.nn.modules.conv.Conv2d", ".state_dict()", "weights_only=False"),
    ),
    "a class beside the weights": (
        lambda: written(lambda file: torch.save({"params": state(RAW), "args": Options()}, file)),
        ("a pickle", f"{__name__}.Options", "weights_only=False"),
    ),
}
ON_CODE = {"a whole network", "a class beside the weights"}


class Options:
    """Settings of a training run, as people pickle them beside the weights."""


@pytest.mark.parametrize("form", NO_CHECKPOINT)
def test_what_is_no_checkpoint_is_named(form: str, tmp_path: Path) -> None:
    content, words = NO_CHECKPOINT[form]
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"network{suffix}"
        path.write_bytes(content())
        with pytest.raises(LowpeftError, match=r"is not a checkpoint .*: .") as caught:
            load_backbone(path)
        text = str(caught.value)
        assert text.startswith(str(path))
        assert [word for word in words if word not in text] == []
        assert ("weights_only" in text) is (form in ON_CODE)
        assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "words"),
    [("nothing.pth", ""), ("folder.pth", ": it is a folder$"), (".", "a folder with a.pth, b.safetensors$")],
)
def test_what_is_not_a_file_is_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    for file in ("a.pth", "b.safetensors", "notes.txt"):
        (tmp_path / file).touch()
    with pytest.raises(LowpeftError, match="no checkpoint file at .*" + words):
        load_backbone(tmp_path / name)


class Payload:
    """A pickle that makes a file when it is opened carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


SAVERS = {"zip": torch.save, "legacy": legacy, "pickle": lambda thing, path: path.write_bytes(pickle.dumps(thing))}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("saver", SAVERS)
def test_a_pickle_with_a_payload_is_refused_and_does_not_run(saver: str, suffix: str, tmp_path: Path) -> None:
    path, marker = tmp_path / f"network{suffix}", tmp_path / "marker"
    SAVERS[saver]({"params": Payload(marker)}, path)
    with pytest.raises(LowpeftError, match=r"is not a checkpoint .* it is a pickle"):
        load_backbone(path)
    assert not marker.exists()


def test_the_payload_of_these_tests_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


# --- Hostile content
def inside_itself() -> dict[str, Any]:
    content: dict[str, Any] = {"params": state(RAW)}
    content["model"] = content["state_dict"] = content
    return content


def thousandfold() -> dict[str, Any]:
    """Each dict holds the next one forty times: 40^8 ways in few bytes."""
    inner: dict[str, Any] = dict(OTHER_NETWORK)
    for _ in range(8):
        inner = {f"model_{number}": inner for number in range(40)}
    return inner


def deep(levels: int) -> bytes:
    """A legacy file of dicts in dicts, written by hand, because the pickler would reach its limit."""
    start = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    nested = b"\x80\x02" + b"}X\x05\x00\x00\x00model" * levels + b"}" + b"s" * levels + b"."
    return start + nested + pickle.dumps([], 2)


def demo_weights(**expanded: int) -> dict[str, Tensor]:
    """The weights of the demo network, and tensors of one value, expanded to a first side."""
    tensors = dict(demo_backbone().module.state_dict())
    return tensors | {name: torch.zeros(1).expand(side, 3, 3, 3) for name, side in expanded.items()}


def many_levels() -> dict[str, Tensor]:
    """A NAFNet of a level for each tensor more, each twice as wide as the one before."""
    released = Path(__file__).resolve().parents[2] / "adapters" / "denoiser" / "network.safetensors"
    return load_file(released) | {f"encoders.{level}.0.norm1.weight": torch.zeros(1) for level in range(12)}


def many_records() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(61_000):
            archive.writestr(f"archive/data/{number}", b"")
    return file.getvalue()


def many_keys() -> bytes:
    one = torch.ones(1)
    return written(lambda file: torch.save({f"layers.{n}.weight": one for n in range(51_000)}, file))


HOSTILE: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "a dict in itself": (lambda: written(lambda file: torch.save(inside_itself(), file)), None),
    "nothing but itself": (
        lambda: written(lambda file: torch.save(only_itself(), file)),
        "is not a checkpoint of a network",
    ),
    "the same dict again and again": (
        lambda: written(lambda file: torch.save(thousandfold(), file)),
        "50,000",
    ),
    "dicts 100,000 deep": (lambda: deep(100_000), "is not a checkpoint of a network"),
    "very many keys": (many_keys, "50,000"),
    "very many records": (many_records, "zip archive with 61,000"),
    "tensors larger than the file": (
        lambda: written(lambda file: torch.save(demo_weights(**{"conv_first.weight": 10**6}), file)),
        "'conv_first.weight' is a broadcast tensor",
    ),
    "levels that double": (lambda: written(lambda file: torch.save(many_levels(), file)), "far more values than"),
    "a layer of a number without end": (
        lambda: written(lambda file: torch.save(demo_weights(**{"layers.99999999.norm1.weight": 1}), file)),
        "numbered as of far more layers",
    ),
    "very many places": (
        lambda: written(lambda file: torch.save({f"net_{n}": OTHER_NETWORK for n in range(70)}, file)),
        "more than 64",
    ),
    "a prefix a thousand times": (
        lambda: written(lambda file: torch.save(state(RAW, "module." * 1000), file)),
        "no architecture",
    ),
}
MOST_SECONDS = 20
"""Each takes less than two on a quiet machine; what this holds off never ended."""


def only_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize("form", HOSTILE)
def test_hostile_content_ends_in_bounded_time(form: str, tmp_path: Path) -> None:
    content, words = HOSTILE[form]
    path = tmp_path / "network.pth"
    path.write_bytes(content())
    begun = time.process_time()
    if words is None:
        assert opened(path)[0] == "raw"
    else:
        with pytest.raises(LowpeftError, match=words):
            load_backbone(path)
    assert time.process_time() - begun < MOST_SECONDS


# --- On the command line
def test_the_command_line_takes_raw_weights_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "network.pth"
    torch.save({"params": state(RAW), "params_ema": state(EMA)}, path)
    assert main(["plan", "spatial", "--weights", str(path)]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("weights: the averaged ones (EMA), under params_ema; ") == 1
    assert main(["plan", "spatial", "--weights", str(path), "--raw-weights"]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("weights: the raw ones, under params, as asked") == 1
    assert main(["plan", "spatial", "--weights", "demo", "--raw-weights"]) == 2
    assert "the demo network has one set of weights" in capsys.readouterr().err


def test_the_command_line_says_in_its_report_which_weights_were_taken_and_what_was_forced(tmp_path: Path) -> None:
    path, data = tmp_path / "network.pth", tmp_path / "data"
    torch.save({"params": state(RAW), "params_ema": state(EMA)}, path)
    adapter = lowpeft.save_adapter(lowpeft.adapt(load_backbone(path), "spatial"), tmp_path / "adapter")
    data.mkdir()
    Image.new("RGB", (64, 64), (90, 120, 150)).save(data / "one.png")
    options = ["--adapter", str(adapter), "--data", str(data), "--protocol", "single-image", "--device", "cpu"]
    call = ["evaluate", "--weights", str(path), *options, "--out", str(tmp_path / "out")]
    assert main(call) == 0
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert report["weights"].startswith("the averaged ones (EMA), under params_ema")
    assert main([*call, "--raw-weights"]) == 2
    assert main([*call, "--raw-weights", "--force"]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert (report["weights"].partition(",")[0], report["force"]) == ("the raw ones", True)


def test_the_command_line_opens_half_precision_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.pth"
    torch.save({key: tensor.half() for key, tensor in state(RAW).items()}, path)
    assert main(["plan", "spatial", "--weights", str(path)]) == 2
    assert "--allow-half" in capsys.readouterr().err
    assert main(["plan", "spatial", "--weights", str(path), "--allow-half"]) == 0


def test_an_adapter_made_on_the_average_does_not_load_on_raw_weights(tmp_path: Path) -> None:
    path = tmp_path / "network.pth"
    torch.save({"params": state(RAW), "params_ema": state(EMA)}, path)
    folder = lowpeft.save_adapter(lowpeft.adapt(load_backbone(path), "spatial"), tmp_path / "adapter")
    lowpeft.load_adapter(load_backbone(path), folder)
    with pytest.raises(lowpeft.AdapterError) as caught:
        lowpeft.load_adapter(load_backbone(path, weights="raw"), folder)
    assert caught.value.problems == (OTHER_WEIGHTS,)
