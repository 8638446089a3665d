"""The disparity that a stereo model attends to, in pixels of its views, and pictures of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lowpeft
from lowpeft import Backbone, DataError, PlanError, StereoConfig
from lowpeft.core.attachment import adding
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import AttendedDisparity, attended_disparity, most_confident
from lowpeft.restoration.evaluation.pictures import COLOURS, MARGIN_PX, draw_attended, draw_disparity
from lowpeft.restoration.inference import Tiling
from states import facts

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

CHANNELS, SHIFT_PX = 16, 4


class Stages(nn.Module):
    """A x2 network: features of one pixel, or of 2x2 px, then two stages that change nothing."""

    def __init__(self, pixels: int, pad: int = 1) -> None:
        super().__init__()
        self.pad = pad
        self.head = nn.Conv2d(3, CHANNELS, pixels, stride=pixels)
        self.stages = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))
        self.tail = nn.Sequential(nn.Conv2d(CHANNELS, 3 * (2 * pixels) ** 2, 1), nn.PixelShuffle(2 * pixels))
        for stage in self.stages:
            nn.init.dirac_(stage.weight)
            nn.init.zeros_(stage.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.head(nn.functional.pad(x, (0, -width % self.pad, 0, -height % self.pad)))
        for stage in self.stages:
            x = stage(x)
        return self.tail(x)[..., : 2 * height, : 2 * width]


def model(pixels: int = 1, pad: int = 1, **more: object) -> nn.Module:
    """A stereo model that is sure of its matches at the first stage, and less so at the second."""
    torch.manual_seed(0)
    base: Backbone = facts(Stages(pixels, pad), **{"size_multiple": pixels, **more})
    adapted = lowpeft.adapt(base, [StereoConfig(target=["stages.*"], every=1)])
    with torch.no_grad():
        for name, parameter in lowpeft.adapter_parameters(adapted):
            if "query" in name:
                gain = 10 if "stages.0" in name else 5
                parameter.copy_(gain * torch.eye(CHANNELS) if parameter.dim() == 2 else torch.zeros(CHANNELS))
    return adapted


def pair(height: int = 11, width: int = 30) -> tuple[Tensor, Tensor]:
    left = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))
    return left, left.roll(-SHIFT_PX, dims=-1)


def assert_found(found: AttendedDisparity, border_px: int = SHIFT_PX) -> None:
    left, right = found.disparity_px
    assert (left[:, border_px:] == SHIFT_PX).all()
    assert (right[:, :-border_px] == SHIFT_PX).all()


@pytest.mark.parametrize(("pixels", "pad"), [(1, 1), (2, 1), (1, 16)])
def test_disparities_are_in_pixels_of_the_views(pixels: int, pad: int) -> None:
    left, right = pair()
    found = attended_disparity(model(pixels, pad), left, right)
    assert "tensor(" not in repr(found)
    assert [each.site for each in found] == ["stages.0.stereo", "stages.1.stereo"]
    for each in found:
        assert_found(each)
        maps = (*each.disparity_px, *each.confidence)
        assert {(tuple(m.shape), m.dtype, m.device.type) for m in maps} == {((11, 30), torch.float32, "cpu")}
    assert most_confident(found) is found[0]
    assert found[0].mean_confidence > found[1].mean_confidence


def test_strips_and_rows_of_large_features_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = pair()
    stereo = model()
    whole = attended_disparity(stereo, left, right)[0]
    strips = attended_disparity(stereo, left, right, tiling=Tiling(strip_px=4, context_px=2, align_px=2))[0]
    monkeypatch.setattr(adding, "ROW_CHUNK_BYTES", 2 * 2 * 30 * CHANNELS * 4)  # two rows
    by_rows = attended_disparity(stereo, left, right)[0]
    for other in (strips, by_rows):
        torch.testing.assert_close(other.disparity_px, whole.disparity_px)
        torch.testing.assert_close(other.confidence, whole.confidence)


def test_the_model_is_not_touched() -> None:
    stereo = model().train()
    modules = {name: (dict(module.__dict__), module.training) for name, module in stereo.named_modules()}
    attended_disparity(stereo, *pair())
    assert {name: (module.__dict__, module.training) for name, module in stereo.named_modules()} == modules


def test_adapters_that_are_off_do_not_look() -> None:
    stereo = model()
    with lowpeft.disabled(stereo):
        found = attended_disparity(stereo, *pair())
    assert found == []
    with pytest.raises(DataError):
        most_confident(found)


def test_models_of_single_images_and_views_that_do_not_fit_are_refused() -> None:
    base = facts(Stages(1))
    with pytest.raises(PlanError):
        attended_disparity(base, *pair())
    single = lowpeft.adapt(base, [lowpeft.ConvpassConfig(target=["stages.*"])])
    with pytest.raises(DataError, match="two views"):
        attended_disparity(single, *pair())
    left, right = pair()
    with pytest.raises(DataError):
        attended_disparity(model(), left, right[..., 1:])


def test_networks_of_one_size_look_along_views_of_that_size_alone() -> None:
    stereo = model(fixed_px=30)
    assert_found(attended_disparity(stereo, *pair())[0])
    with pytest.raises(DataError, match="crops of 30 px"):
        attended_disparity(stereo, *pair(width=31))


# --- Pictures
def colour(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text[1:]))


def test_colours_are_those_of_the_range_and_unknown_values_are_grey() -> None:
    disparity = torch.tensor([[0.0, 8.0, 16.0, 99.0, torch.nan]]).expand(40, -1)
    sheet = draw_disparity({"found": disparity}, range_px=(0, 16))
    side = 480 // 5
    found = [sheet.getpixel((MARGIN_PX + side // 2 + side * i, 200)) for i in range(5)]
    low, middle, high = map(colour, COLOURS)
    assert (found[0], found[2], found[3], found[4]) == (low, high, high, (128, 128, 128))
    assert max(abs(a - b) for a, b in zip(found[1], middle, strict=True)) <= 2


def test_stray_matches_do_not_set_the_range() -> None:
    disparity = torch.linspace(0, 20, 1000).view(20, 50)
    disparity[0, 0], disparity[-1, -1] = -500, 500
    with_strays, without = draw_disparity({"a": disparity}), draw_disparity({"a": disparity}, range_px=(0, 20))
    assert with_strays.tobytes() == without.tobytes()


def test_panels_of_two_sizes_or_without_a_value_are_refused() -> None:
    for panels in ({}, {"a": torch.full((4, 4), torch.nan)}, {"a": torch.zeros(4, 4), "b": torch.zeros(3, 4, 5)}):
        with pytest.raises(DataError):
            draw_disparity(panels)


def test_a_scene_is_drawn_with_both_views_above_their_maps() -> None:
    views = tuple((v * 255).to(torch.uint8) for v in pair(20, 40))
    maps = (torch.full((20, 40), 4.0),) * 2
    found = AttendedDisparity(adapter="default", site="stages.0.stereo", disparity_px=maps, confidence=maps)
    sheet = draw_attended(Example("scene", views, ()), found)
    enlarge = 12
    assert sheet.width == 2 * 40 * enlarge + 3 * MARGIN_PX
    assert sheet.height > 2 * 20 * enlarge
    assert sheet.getpixel((MARGIN_PX, MARGIN_PX + 20)) == tuple(views[0][:, 0, 0].tolist())
