"""Networks of timm as backbones: `load_backbone("timm:NAME")`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import lowpeft
from lowpeft import LowpeftError, PlanError, load_backbone
from lowpeft.cli import main
from states import randomise_adapters

NAMES = ["test_resnet", "test_vit.r160_in1k", "test_convnext"]
ON_QKV = [lowpeft.LoRAConfig(target="**.attn.qkv", rank=2)]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_timm_opens_by_name(name: str) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(f"timm:{name}")
    torch.manual_seed(0)
    same = timm.create_model(name, features_only=True).eval()
    assert (backbone.architecture, backbone.scale, backbone.channels) == (name, None, 3)
    assert not any(m.training for m in backbone.module.modules())
    x = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(backbone.module(x), same(x), strict=True))


def test_what_it_is_not_made_for_is_in_the_notes() -> None:
    backbone = load_backbone("timm:test_vit")
    scale, values = backbone.notes
    assert scale == "scale: a network of timm gives features, and no image"
    assert values.startswith("value_range: images of 0..1 less the mean (0.5, 0.5, 0.5), over")
    assert backbone.fixed_px == 160


@pytest.mark.parametrize(
    ("options", "px", "channels"),
    [({"img_size": 64}, 64, 3), ({"img_size": 96, "in_chans": 1}, 96, 1), ({"img_size": (64, 96)}, None, 3)],
    ids=str,
)
def test_options_are_those_of_timm(options: dict[str, Any], px: int | None, channels: int) -> None:
    backbone = load_backbone("timm:test_vit", **options)
    assert (backbone.fixed_px, backbone.channels) == (px, channels)
    height, width = (64, 96) if px is None else (px, px)
    assert len(backbone.module(torch.rand(1, channels, height, width))) > 0


def test_what_timm_does_not_say_of_a_network_is_left_open() -> None:
    backbone = load_backbone("timm:test_resnet", pretrained_cfg_overlay={"input_size": None})
    assert (backbone.fixed_px, backbone.channels) == (None, None)
    assert len(lowpeft.plan(backbone, "stereo").sites) > 0


@pytest.mark.slow
def test_a_swin_of_another_input_size() -> None:
    backbone = load_backbone("timm:swin_tiny_patch4_window7_224", img_size=64)
    assert backbone.fixed_px == 64
    assert len(lowpeft.plan(backbone, ON_QKV).sites) == 12


def test_only_pretrained_fetches_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, **options: Any) -> torch.nn.Module:
        asked.append(options.pop("pretrained"))
        return original(name, **options)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    load_backbone("timm:test_resnet")
    load_backbone("timm:test_resnet", pretrained=True)
    assert asked == [False, True]


def test_its_adapters_are_trained_and_saved(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 160, 160)
    torch.manual_seed(0)
    model = lowpeft.adapt(load_backbone("timm:test_vit"), ON_QKV)
    lowpeft.check_trainable(model, x)
    with torch.no_grad():
        wanted = randomise_adapters(model)(x)
        folder = lowpeft.save_adapter(model, tmp_path / "adapter")
        loaded = lowpeft.load_adapter(lowpeft.restore(model), folder)
        assert all(torch.equal(a, b) for a, b in zip(loaded(x), wanted, strict=True))


def test_it_gives_no_image_and_says_so() -> None:
    with pytest.raises(PlanError, match="scale") as caught:
        lowpeft.enhance(load_backbone("timm:test_resnet"), torch.rand(3, 64, 64))
    assert "scale: a network of timm gives features, and no image" in caught.value.problems


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("timm:test_resnett", {}, r"timm .* has no network 'test_resnett' \(did you mean 'test_resnet'"),
        ("timm:", {}, "has no network ''"),
        (
            "timm:test_resnet",
            {"image_size": 64},
            "'test_resnet' with .*image_size=64: TypeError: .*image_size",
        ),
        ("timm:test_resnet", {"task": "sr_x4"}, r"task=, weights=.*, allow_half= and network="),
        ("timm:test_resnet", {"weights": "raw"}, r"task=, weights=.*, allow_half= and network="),
        ("timm:test_resnet", {"allow_half": True}, r"task=, weights=.*, allow_half= and network="),
        ("network.pth", {"img_size": 64}, r"network.pth .*; img_size is"),
        ("network.pth", {"pretrained": True}, "; pretrained is .*timm:NAME"),
    ],
)
def test_what_is_refused(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LowpeftError, match=message):
        load_backbone(path, **options)


def test_the_command_line_takes_such_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "qkv.toml"
    recipe.write_text('schema = 1\nname = "qkv"\n[[adapter]]\nkind = "lora"\ntarget = "**.attn.qkv"\nrank = 2\n')
    assert main(["plan", str(recipe), "--weights", "timm:test_vit"]) == 0
    assert "test_vit" in capsys.readouterr().out
