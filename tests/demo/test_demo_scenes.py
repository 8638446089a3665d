"""The built-in stereo scenes: geometry, ranges, determinism, and what they are cut from."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowpeft.demo import DemoScene, held_out_scenes, make_scene, train_scenes, write_scenes
from lowpeft.demo.scenes import layers, making
from lowpeft.errors import DataError
from lowpeft.restoration.data import find_scenes, load_example
from lowpeft.restoration.images import read_image

SMALL = (64, 160)
MEDIUM = (96, 256)


def composed(seed: int, split: making.Split, size_px: tuple[int, int]) -> list[layers.PhotoLayer]:
    return making._compose(random.Random(seed), split, size_px)


def shown_by_the_right_view(scene: DemoScene, error_px: float = 0.0) -> torch.Tensor:
    """The right view, taken back by the left view's disparity and interpolated linearly: float (3, H, W)."""
    width = scene.right.shape[-1]
    place = (torch.arange(width) - scene.disparity - error_px).clamp(0, width - 1.001)
    left, share = place.long(), place.frac()
    row = scene.right.float()
    return row.gather(-1, left.expand(3, -1, -1)) * (1 - share) + row.gather(-1, (left + 1).expand(3, -1, -1)) * share


def seen_by_both(scene: DemoScene) -> torch.Tensor:
    """Pixels of the left view, away from depth edges, that no nearer pixel of their row hides in the right view."""
    disparity, width = scene.disparity, scene.disparity.shape[-1]
    column = torch.arange(width) - disparity
    # What could hide pixel i lies at j > i with a larger disparity and lands within 2 px of it.
    near = (column[:, None, :] - column[:, :, None]).abs() < 2
    hidden = (near & (disparity[:, None, :] > disparity[:, :, None] + 1)).any(dim=-1)
    level = disparity[None, None]
    steps = torch.nn.functional.max_pool2d(level, 5, 1, 2) + torch.nn.functional.max_pool2d(-level, 5, 1, 2)
    # What hides a pixel near the right edge may itself be out of the left view.
    return ~hidden & (steps[0, 0] < 1) & (column > 1) & (torch.arange(width) < width - layers.MAX_DISPARITY_PX)


def mean_error(scene: DemoScene, error_px: float = 0.0) -> float:
    apart = (shown_by_the_right_view(scene, error_px) - scene.left.float()).abs()
    return float(apart[:, seen_by_both(scene)].mean())


SCENES = [(seed, split) for split in ("train", "test") for seed in range(3)]


@pytest.mark.parametrize(("seed", "split"), SCENES)
def test_the_right_view_taken_back_by_the_disparity_is_the_left_view(seed: int, split: making.Split) -> None:
    assert mean_error(make_scene(seed, split=split, size_px=MEDIUM)) < 4


@pytest.mark.parametrize("error_px", [-0.5, 0.5])
def test_the_disparity_is_right_to_less_than_half_a_pixel(error_px: float) -> None:
    scene = make_scene(2, size_px=MEDIUM)
    assert mean_error(scene, error_px) > 1.5 * mean_error(scene)


def test_most_of_the_left_view_is_seen_by_both() -> None:
    """Else the comparison above would be about nothing."""
    assert seen_by_both(make_scene(0, size_px=MEDIUM)).float().mean() > 0.6


@settings(max_examples=20)
@given(seed=st.integers(), split=st.sampled_from(["train", "test"]))
def test_disparities_keep_to_their_range(seed: int, split: making.Split) -> None:
    disparity = make_scene(seed, split=split, size_px=SMALL).disparity
    assert disparity.min() > 0
    assert disparity.max() <= layers.MAX_DISPARITY_PX


@settings(max_examples=20)
@given(seed=st.integers(), split=st.sampled_from(["train", "test"]))
def test_layers_are_ordered_by_disparity_wherever_they_overlap(seed: int, split: making.Split) -> None:
    """Painted far to near: the nearest point of a layer lies behind the farthest point of the next."""
    bands = []
    for layer in composed(seed, split, SMALL):
        if layer.outline is None:
            u, y = torch.tensor([0.0, SMALL[1]]), torch.tensor([[0.0], [SMALL[0] - 1]])
        else:
            reach = torch.tensor([-layer.outline.reach, layer.outline.reach])
            u = layer.outline.u + layer.outline.half_width * reach
            y = layer.outline.y + layer.outline.half_height * reach[:, None]
        corners = layer.plane.disparity(u, y)
        bands.append((float(corners.min()), float(corners.max())))
    assert all(far[1] < near[0] for far, near in itertools.pairwise(bands))


@settings(max_examples=20)
@given(
    seed=st.integers(),
    split=st.sampled_from(["train", "test"]),
    size=st.tuples(st.integers(64, 384), st.integers(128, 480)),
)
def test_no_layer_shows_more_than_its_photograph_holds(seed: int, split: making.Split, size: tuple[int, int]) -> None:
    """Else the edge of a photograph would be smeared over the view, or the photograph enlarged."""
    for layer in composed(seed, split, size):
        if layer.outline is None:
            shift = layer.plane.disparity(torch.zeros(()), torch.tensor(size[0] - 1.0)).item() / 2
            y, u = (0, size[0] - 1), (-shift, size[1] - 1 + shift)
        else:
            down, across = (
                layer.outline.reach * half for half in (layer.outline.half_height, layer.outline.half_width)
            )
            y, u = (
                (layer.outline.y - down, layer.outline.y + down),
                (layer.outline.u - across, layer.outline.u + across),
            )
        height, width = layers.photograph(layer.photograph).shape[1:]
        assert min(layer.top + layer.minification * row for row in y) >= 0
        assert max(layer.top + layer.minification * row for row in y) <= height - 1
        assert min(layer.left + layer.minification * column for column in u) >= 0
        assert max(layer.left + layer.minification * column for column in u) <= width - 1
        assert layer.minification >= 1


def test_the_nearer_layer_hides_the_farther_one() -> None:
    """A disc of 20 px at disparity 12, before a wall at 4."""
    flat = {"tint": (0.0, 0.0, 0.0), "minification": 1.0, "left": 40.0, "top": 40.0}
    outline = layers.Outline(u=50.0, y=16.0, half_width=10.0, half_height=10.0, exponent=2.0, waves=())
    far = layers.PhotoLayer("astronaut.png", plane=layers.Plane(4.0, 0.0, 0.0), outline=None, **flat)
    near = layers.PhotoLayer("astronaut.png", plane=layers.Plane(12.0, 0.0, 0.0), outline=outline, **flat)
    _, disparity = layers.render([far, near], (32, 100), layers.LEFT)
    assert disparity[16].tolist() == [4.0] * 46 + [12.0] * 21 + [4.0] * 33  # the disc is seen around 50 + 12/2


def test_a_shifted_view_is_as_sharp_as_the_other() -> None:
    """A fractional shift must not blur: both views sample the photograph in the same way."""
    sharpness = []
    for seed in range(4):
        scene = make_scene(seed)
        sharpness.append([float(view.float().diff(dim=-1).abs().mean()) for view in (scene.left, scene.right)])
    left, right = torch.tensor(sharpness).mean(0)
    assert float(left) == pytest.approx(float(right), rel=0.1)


# --- Determinism and splits
def test_a_seed_gives_the_same_scene_again() -> None:
    one, again = make_scene(5, size_px=SMALL), make_scene(5, size_px=SMALL)
    assert torch.equal(one.left, again.left)
    assert torch.equal(one.right, again.right)
    assert torch.equal(one.disparity, again.disparity)


def test_seeds_give_different_scenes() -> None:
    assert not torch.equal(make_scene(5, size_px=SMALL).left, make_scene(6, size_px=SMALL).left)


def test_making_a_scene_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    make_scene(0, size_px=SMALL)
    assert torch.equal(torch.rand(1), expected)


def test_views_have_the_asked_size_and_type() -> None:
    scene = make_scene(0, size_px=(70, 150))
    assert [tuple(view.shape) for view in (scene.left, scene.right, scene.disparity)] == [(3, 70, 150)] * 2 + [
        (70, 150)
    ]
    assert [view.dtype for view in (scene.left, scene.right, scene.disparity)] == [torch.uint8] * 2 + [torch.float32]


def test_no_photograph_is_in_both_splits() -> None:
    assert set(making.PHOTOGRAPHS["train"]).isdisjoint(making.PHOTOGRAPHS["test"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_are_cut_from_the_photographs_of_their_split_only(
    split: making.Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()
    original = layers.photograph

    def recorded(name: str) -> torch.Tensor:
        used.add(name)
        return original(name)

    monkeypatch.setattr(layers, "photograph", recorded)
    monkeypatch.setattr(making, "photograph", recorded)
    (train_scenes if split == "train" else held_out_scenes)(6, size_px=SMALL)
    assert used <= set(making.PHOTOGRAPHS[split])


@pytest.mark.parametrize("name", [name for names in making.PHOTOGRAPHS.values() for name in names])
def test_every_photograph_is_in_the_installed_scikit_image(name: str) -> None:
    assert layers.photograph(name).shape[0] == 3


def test_train_and_test_scenes_are_the_first_seeds_of_their_split() -> None:
    assert torch.equal(train_scenes(2, size_px=SMALL)[1].left, make_scene(1, split="train", size_px=SMALL).left)
    assert torch.equal(held_out_scenes(2, size_px=SMALL)[1].left, make_scene(1, split="test", size_px=SMALL).left)


# --- Files
def test_written_scenes_are_found_and_loaded(tmp_path: Path) -> None:
    write_scenes(tmp_path / "demo", [0, 7], split="test", size_px=SMALL)
    found = find_scenes(tmp_path / "demo")
    assert [scene.name for scene in found] == ["test_0000", "test_0007"]
    assert torch.equal(read_image(found[1].hr[1]), make_scene(7, split="test", size_px=SMALL).right)
    assert load_example(found[0], 2).lr[0].shape == (3, 32, 80)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        write_scenes(tmp_path / "file", [0])


# --- Bad input
@pytest.mark.parametrize("size", [(63, 384), (192, 127), (385, 384), (192, 481)])
def test_sizes_out_of_range_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"{size[1]}x{size[0]} .*128x64 .*480x384"):
        make_scene(0, size_px=size)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_largest_size_can_be_made(split: making.Split) -> None:
    assert make_scene(0, split=split, size_px=(384, 480)).left.shape == (3, 384, 480)


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"'validation'.*train, test"):
        make_scene(0, split="validation")  # type: ignore[arg-type]


def test_without_scikit_image_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-image"):
        layers.photograph.__wrapped__("astronaut.png")
