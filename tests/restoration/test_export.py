"""`lowpeft export`: files that other programs open, and that compute what the adapted network computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spandrel import ModelLoader
from spandrel.architectures.DnCNN import DnCNN
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

import lowpeft
from lowpeft.cli import main
from lowpeft.core.padding import pad_to
from lowpeft.errors import LowpeftError, PlanError
from lowpeft.restoration.exporting import export_onnx, export_state_dict
from lowpeft.restoration.exporting.onnx_graph import Graph
from lowpeft.restoration.exporting.result import HALF_TOLERANCE, random_images
from lowpeft.restoration.inference import local_pooling
from lowpeft.restoration.inference.network import run_padded
from states import randomise_adapters
from tiers import by_default

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures")

STEREO = lowpeft.StereoConfig(every=1, target="body")
PARALLAX = lowpeft.ParallaxConfig(every=1, target="body", disparities=(-1, 5), own_columns=4, channels=2)
LORA = lowpeft.LoRAConfig(target="**", rank=1)


class Tiny(nn.Module):
    """Doubles the sides; takes sides in multiples of 4 px only, as networks with windows do."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, stride=4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU())
        self.up = nn.Conv2d(4, 3 * 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing() and any(side % 4 for side in x.shape[-2:]):
            raise ValueError("sides must be multiples of 4")
        return nn.functional.pixel_shuffle(self.up(self.body(self.down(x))), 8)


class SizeInside(Tiny):
    """The same, with a number in the graph that is that of the traced size alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(x.shape[-1])


class OtherInGraphs(Tiny):
    """The same, but twice as bright in a graph."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if torch.jit.is_tracing() else 1)


class Folding(Tiny):
    """The same, with an operator that ONNX has since version 18."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.fold(nn.functional.unfold(x, 2, stride=2), x.shape[-2:], 2, stride=2))


class Plain(Tiny):
    """The same, with tensors that are no part of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self._gain = [torch.rand(1)]
        self.register_buffer("shift", torch.rand(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self._gain[0] + self.shift


class LargeInside(Tiny):
    """The same, with another result above 64 px."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[-1] <= 64 else 2 * super().forward(x)


class HugeInside(Tiny):
    """The same, with another result at sizes that no test of a graph reaches."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[-1] <= 9000 else 2 * super().forward(x)


class DarkInside(Tiny):
    """The same, with another result for dark images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.mean() > 0.25 else 2 * super().forward(x)


class GuardInside(Tiny):
    """The same, with a look at values that no image in range has."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.max() <= 2 else super().forward(x / 255)


class Pooled(Tiny):
    """The same, with channel attention."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(ChannelAttention())


class ChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pool(x)


def tiny(kind: type[nn.Module] = Tiny, **facts: object) -> lowpeft.Backbone:
    torch.manual_seed(1)
    known = {"scale": 2, "channels": 3, "size_multiple": 4, "value_range": (0, 1), **facts}
    return lowpeft.describe(kind().eval(), **known)


def denoiser() -> nn.Module:
    """A network that spandrel knows, the smallest of them."""
    torch.manual_seed(1)
    return DnCNN(in_nc=3, out_nc=3, nc=4, nb=17, act_mode="R").eval()


def adapted(base: object, config: object = LORA) -> nn.Module:
    return randomise_adapters(lowpeft.adapt(base, config)).eval()


def outputs_of(path: Path, *images: Tensor) -> list[Tensor]:
    """What onnxruntime makes of images."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [torch.from_numpy(r) for r in session.run(None, {n: i.numpy() for n, i in zip(names, images, strict=True)})]


# --- State dicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@torch.no_grad()
def test_spandrel_opens_what_is_exported(suffix: str, tmp_path: Path) -> None:
    base = denoiser()
    keys = {key: tensor.shape for key, tensor in base.state_dict().items()}
    model = adapted(base)
    exported = export_state_dict(model, tmp_path / f"merged{suffix}")
    descriptor = ModelLoader().load_from_file(exported.path)
    assert {key: tensor.shape for key, tensor in descriptor.model.state_dict().items()} == keys
    x = torch.rand(1, 3, 12, 16)
    torch.testing.assert_close(descriptor.model(x), model(x), rtol=0, atol=1e-5)
    assert (model(x) - denoiser()(x)).abs().max() > 1e-3  # the adapter does something
    assert exported.program == "spandrel"
    assert exported.difference <= 1e-5
    assert lowpeft.list_adapters(model) == ["default"]
    assert [p.name for p in tmp_path.iterdir()] == [f"merged{suffix}"]


def test_half_precision_is_half_the_size_and_says_how_far_off_it_is(tmp_path: Path) -> None:
    model = adapted(denoiser())
    full, half = (export_state_dict(model, tmp_path / f"{h}.safetensors", half=h) for h in (False, True))
    assert {t.dtype for t in load_file(half.path).values()} == {torch.float16}
    assert half.bytes < 0.7 * full.bytes
    assert full.difference < half.difference <= half.tolerance == HALF_TOLERANCE
    assert half.figures()["difference"] == half.difference
    with safe_open(half.path, framework="pt") as file:
        assert file.metadata()["base_sha256"]


def test_a_network_of_ones_own_is_compared_in_its_own_code(tmp_path: Path) -> None:
    exported = export_state_dict(adapted(tiny()), tmp_path / "own.pth")
    assert "own code" in exported.program
    assert torch.load(exported.path, weights_only=True).keys() == Tiny().state_dict().keys()


def test_tensors_that_are_not_in_the_file_are_named(tmp_path: Path) -> None:
    base, path = tiny(Plain), tmp_path / "plain.pth"
    assert "code must make the same: _gain, shift" in str(export_state_dict(base, path))
    path.unlink()
    with pytest.raises(LowpeftError, match=r"was not written.*differs by[\s\S]*_gain, shift"):
        export_state_dict(base, path, anew=Plain)
    assert list(tmp_path.iterdir()) == []
    assert export_state_dict(tiny(), path, anew=Tiny).notes == ()


def test_a_network_whose_code_does_not_take_the_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LowpeftError, match=r"own code does not take its tensors[\s\S]*unexpected: down.weight"):
        export_state_dict(tiny(), tmp_path / "own.pth", anew=lambda: nn.Conv2d(3, 3, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".onnx"])
def test_a_full_disk_leaves_no_file(suffix: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    base, export = tiny(), export_onnx if suffix == ".onnx" else export_state_dict
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(LowpeftError):
            export(base, tmp_path / f"full{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [STEREO, lowpeft.SpatialConfig(target="body")])
def test_adapters_that_are_no_weights_are_refused_with_what_to_do(config: object, tmp_path: Path) -> None:
    model = adapted(tiny(), config)
    with pytest.raises(PlanError, match=r"--onnx.*keep the adapter"):
        export_state_dict(model, tmp_path / "merged.pth")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    base = tiny()
    with torch.no_grad():
        base.module.up.bias[0] = 1e6
    with pytest.raises(LowpeftError, match=r"up.bias .*65,504"):
        export_state_dict(base, tmp_path / "half.pth", half=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["merged.onnx", "folder.pth", "missing/merged.pth", "adapter/merged.pth"])
def test_paths_that_do_not_fit_are_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    with pytest.raises(LowpeftError, match=r"must end in|is a folder|no folder|folder of an adapter"):
        export_state_dict(tiny(), tmp_path / path)


def test_a_file_that_computes_something_else_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "merged.pth"
    path.write_bytes(b"old")
    monkeypatch.setattr("lowpeft.restoration.exporting.state_dict.merged_copy", lambda network: tiny().module)
    with pytest.raises(LowpeftError, match=r"was not written.*differs by"):
        export_state_dict(adapted(tiny()), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts", [{"min_px": 20}, {"square": True}, {"value_range": (-1, 1)}, {"output_range": (-1, 1)}]
)
@pytest.mark.parametrize("size", [(8, 12), (1, 3), (5, 30)])
@torch.no_grad()
def test_the_graph_pads_and_converts_as_inference_does(facts: dict[str, object], size: tuple[int, int]) -> None:
    base = tiny(**facts)
    images = random_images(base, size)
    (expected,), (found,) = run_padded(base.module, images, base), Graph(base.module, base)(*images)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_onnxruntime_computes_the_same_at_any_size(tmp_path: Path) -> None:
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = adapted(tiny())
    exported = export_onnx(model, tmp_path / "merged.onnx")
    assert exported.inputs == {"image": ["batch", 3, "height", "width"]}
    assert exported.outputs == {"result": ["batch", 3, "result_height", "result_width"]}
    x = torch.rand(3, 3, 9, 70)
    (found,) = outputs_of(exported.path, x)
    torch.testing.assert_close(found, model(pad_to(x, 12, 72))[..., :18, :140], rtol=0, atol=1e-5)
    props = {p.key: p.value for p in onnx.load(exported.path).metadata_props}
    assert props["scale"] == "2"
    assert props["value_range"] == "0..1"
    assert props["size_multiple"] == "4"
    assert len(props["base_sha256"]) == 64


@pytest.mark.parametrize("config", by_default([STEREO], [STEREO, PARALLAX]))
@torch.no_grad()
def test_adapters_that_cannot_be_merged_are_part_of_the_graph(config: lowpeft.AdapterConfig, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = adapted(tiny(), config)
    exported = export_onnx(model, tmp_path / "stereo.onnx")
    assert list(exported.inputs) == ["left", "right"]
    assert list(exported.outputs) == ["left_result", "right_result"]
    assert exported.notes == (f"not merged, so part of the graph: {config.kind}",)
    for width in (4, 24, 88):  # 1, 6 and 22 columns of features
        views = torch.rand(2, 3, 16, width), torch.rand(2, 3, 16, width)
        for found, expected in zip(outputs_of(exported.path, *views), model(*views), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_parallax_adapter_is_exported_for_one_size_and_in_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_onnx(adapted(tiny(), PARALLAX), tmp_path / "stereo.onnx", fixed=(16, 24), half=True)
    assert 1e-6 < exported.difference <= HALF_TOLERANCE


@torch.no_grad()
def test_half_precision_takes_and_returns_float32(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_onnx(adapted(tiny()), tmp_path / "half.onnx", half=True)
    (found,) = outputs_of(exported.path, torch.rand(1, 3, 8, 8))
    assert found.dtype == torch.float32
    assert 1e-6 < exported.difference <= HALF_TOLERANCE


@torch.no_grad()
def test_a_graph_that_is_right_at_one_size_alone_is_refused_and_exported_for_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    base, path = tiny(SizeInside), tmp_path / "fixed.onnx"
    with pytest.raises(LowpeftError, match=r"not right at every size.*--fixed HxW"):
        export_onnx(base, path)
    assert list(tmp_path.iterdir()) == []
    exported = export_onnx(base, path, fixed=(10, 13))
    assert exported.inputs == {"image": ["batch", 3, 10, 13]}
    assert exported.outputs == {"result": ["batch", 3, 20, 26]}
    assert "10x13 px only" in str(exported)
    assert exported.sizes == ((10, 13),)


@pytest.mark.parametrize(("kind", "said"), [(LargeInside, "160x96 px"), (DarkInside, "for a dark image.*torch.where")])
def test_a_graph_that_is_wrong_for_large_or_dark_images_is_refused(
    kind: type[nn.Module], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(LowpeftError, match=said):
        export_onnx(tiny(kind), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (HugeInside, r"decides by sizes \(test_export.py:\d+\): larger images than 160x96 px were not tried"),
        (GuardInside, r"decides by values of the image \(test_export.py:\d+\)"),
    ],
)
def test_what_the_code_decides_by_its_input_is_said(kind: type[nn.Module], note: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported = export_onnx(tiny(kind), tmp_path / "x.onnx")
    assert re.search(note, str(exported))
    assert exported.sizes[-1] == (160, 96)


def test_comparisons_that_take_too_long_are_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("lowpeft.restoration.exporting.onnx_comparison.MOST_S", 0)
    exported = export_onnx(tiny(), tmp_path / "x.onnx")
    assert "not compared for images of 160x96 px" in str(exported)
    assert "not compared for dark, bright and smooth images" in str(exported)
    assert len(exported.sizes) == 3


def test_local_pools_are_exported_for_one_size_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    base = tiny(Pooled)
    with local_pooling(base, 300):
        with pytest.raises(LowpeftError, match=r"local_pooling.*--fixed HxW"):
            export_onnx(base, tmp_path / "x.onnx")
        assert export_onnx(base, tmp_path / "x.onnx", fixed=(16, 20)).inputs == {"image": ["batch", 3, 16, 20]}


@pytest.mark.parametrize(
    ("half", "advice"), [(False, r"Try another version"), (True, r"Leave out half \(--half\), or try another version")]
)
def test_a_graph_that_computes_something_else_is_refused(half: bool, advice: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(LowpeftError, match=rf"something else: .*at most .*\)\. {advice}"):
        export_onnx(tiny(OtherInGraphs), tmp_path / "x.onnx", half=half)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@torch.no_grad()
def test_a_graph_that_is_wrong_for_batches_takes_one_image(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    sizes = {"img_size": 8, "embed_dim": 4, "depths": (2,), "num_heads": (1,), "window_size": 4, "mlp_ratio": 1.0}
    base = lowpeft.describe(SwinIR(**sizes, upscale=2, upsampler="pixelshuffledirect").eval(), scale=2, channels=3)
    exported = export_onnx(base, tmp_path / "swinir.onnx")
    assert exported.inputs["image"] == [1, 3, "height", "width"]
    assert "one image at a time" in exported.notes


def test_an_operator_that_onnx_has_not_is_named_and_no_graph_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(LowpeftError, match=r"cannot be exported .*col2im.*--opset 20"):
        export_onnx(tiny(Folding), tmp_path / "x.onnx")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("config", [lowpeft.SpectralConfig(target="body"), lowpeft.AdaptIRConfig(target="body")])
def test_fourier_transforms_are_in_no_graph(config: lowpeft.AdapterConfig, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(LowpeftError, match=r"fft.*No later version has it: run the network in lowpeft"):
        export_onnx(adapted(tiny(), config), tmp_path / "x.onnx")


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(LowpeftError, match=r"opset 99") as caught:
        export_onnx(tiny(), tmp_path / "x.onnx", opset=99, fixed=(0, 4))
    assert len(caught.value.problems) == 2


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network's file, and an adapter's folder."""
    monkeypatch.chdir(tmp_path)
    save_file(denoiser().state_dict(), tmp_path / "base.safetensors")
    base = lowpeft.load_backbone(tmp_path / "base.safetensors")
    lowpeft.save_adapter(adapted(base), tmp_path / "adapter")
    return tmp_path


def test_the_command_writes_and_reports(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "--weights", "base.safetensors", "--torch", "merged.pth"]
    assert main([*command, "--adapter", "adapter"]) == 0
    assert capsys.readouterr().out.startswith("merged.pth: 0.0")
    assert main([*command, "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["path"] == "merged.pth"
    assert file["difference"] == 0
    assert file["bytes"] == (files / "merged.pth").stat().st_size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--torch FILE, --onnx FILE, or both"),
        (("--torch", "base.safetensors", "--fixed", "8x8"), "replace the frozen network's own file"),
        (("--torch", "adapter/adapter_model.safetensors", "--adapter", "adapter"), "folder of an adapter"),
        (("--torch", "a.pth", "--onnx", "b.pth"), "--onnx: b.pth must end in .onnx"),
        (("--torch", "missing/a.pth", "--onnx", "b.onnx"), "--torch: there is no folder missing"),
        (("--torch", "a.pth", "--opset", "17"), "--opset is about ONNX"),
        (("--torch", "a.pth", "--force"), "--force needs an adapter"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], said: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in files.iterdir()}
    assert main(["export", "--weights", "base.safetensors", *options]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in files.iterdir()} == before


def test_weights_that_were_written_before_a_graph_failed_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("lowpeft.restoration.exporting.onnx_comparison.largest_difference", lambda *images: 1.0)
    assert main(["export", "--weights", "base.safetensors", "--torch", "a.pth", "--onnx", "b.onnx"]) == 2
    assert "a.pth was written, but the graph of" in capsys.readouterr().err
    assert sorted(path.name for path in files.iterdir()) == ["a.pth", "adapter", "base.safetensors"]


def test_a_graph_that_cannot_be_asked_for_is_refused_before_the_weights_are_written(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    command = ["export", "--weights", "base.safetensors", "--torch", "a.pth", "--onnx", "b.onnx", "--opset", "99"]
    assert main(command) == 2
    assert "opset 99" in capsys.readouterr().err
    assert not (files / "a.pth").exists()


def test_the_command_opens_the_file_in_a_network_that_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = ("--network-fact", "scale=2", "--network-fact", "size_multiple=4", "--network-fact", "value_range=[0,1]")
    assert main(["export", "--network", "test_export:Plain", *facts, "--torch", "a.pth"]) == 2
    assert "_gain, shift" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
