"""Training crops: what they show, how they are drawn, and that a seed and a number decide all of it."""

from __future__ import annotations

import functools
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from lowpeft.errors import DataError
from lowpeft.restoration.data import Crops, EachViewTwice, Loading, Scene, crops, find_scenes, load_example
from lowpeft.restoration.data.examples import read_views
from lowpeft.restoration.degradations import degradation
from lowpeft.restoration.images import to_float, write_image
from scene_files import noise, write_pair

SMALL = {"crop_px": (8, 16)}
PLACES = (24 // 4 - 2 + 1, 40 // 4 - 4 + 1)
CHI_SQUARED = {24: 49.7, 35: 65.2}  # by the number of values, all equally likely: exceeded once in a thousand


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    folder = tmp_path_factory.mktemp("scenes")
    return [write_pair(folder, name, 24, 40, seed) for seed, name in enumerate("abc")]


def whole(scene: Scene) -> tuple[Tensor, Tensor]:
    """A whole scene as a crop is given."""
    example = load_example(scene, 4)
    return torch.stack([to_float(v) for v in example.lr]), torch.stack([to_float(v) for v in example.hr])


def same(one: tuple[Tensor, ...] | list[Tensor], other: tuple[Tensor, ...] | list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- What a crop is
def test_crops_have_the_asked_size_and_range(scenes: list[Scene]) -> None:
    found = Crops(scenes, 4, crop_px=(16, 32))
    lr, hr = found[0]
    assert (tuple(lr.shape), tuple(hr.shape)) == ((2, 3, 4, 8), (2, 3, 16, 32))
    assert {lr.dtype, hr.dtype} == {torch.float32}
    assert all(v.min() >= 0 and v.max() <= 1 for v in (lr, hr))
    assert lr.is_contiguous()
    assert hr.is_contiguous()
    assert (found.crop_px, found.scale, found.views, found.scenes) == ((16, 32), 4, 2, tuple(scenes))


def places(image: Tensor, part: Tensor) -> list[tuple[int, int]]:
    """Every (top, left) at which `part` lies in `image`."""
    height, width = part.shape[1:]
    return [
        (top, left)
        for top in range(image.shape[1] - height + 1)
        for left in range(image.shape[2] - width + 1)
        if torch.equal(image[:, top : top + height, left : left + width], part)
    ]


@given(number=st.integers(0, 2**62 - 1), seed=st.integers(-(2**70), 2**70))
def test_the_four_images_of_a_crop_show_one_place(scenes: list[Scene], number: int, seed: int) -> None:
    lr, hr = Crops(scenes[:1], 4, **SMALL, augment=False, seed=seed)[number]
    whole_lr, whole_hr = whole(scenes[0])
    found = [places(image, part) for image, part in zip((*whole_lr, *whole_hr), (*lr, *hr), strict=True)]
    ((top, left),) = found[0]
    assert found == [[(top, left)]] * 2 + [[(4 * top, 4 * left)]] * 2


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor, bool])
def test_equal_numbers_of_any_library_give_equal_crops(scenes: list[Scene], kind: Callable[[int], int]) -> None:
    made = Crops(scenes, 4, **SMALL, loading=Loading(degrade=degradation("down:4,noise:25")))
    again = Crops(scenes, 4, **SMALL, seed=kind(0), loading=Loading(degrade=made.loading.degrade))
    assert same(again[kind(1)], made[1])
    assert same(EachViewTwice(again)[kind(1)], EachViewTwice(made)[1])


@pytest.mark.parametrize("number", [1.5, "1", None, slice(3)])
def test_numbers_of_crops_are_whole(scenes: list[Scene], number: int) -> None:
    with pytest.raises(DataError, match="the number of a crop must be a whole number"):
        Crops(scenes, 4, **SMALL)[number]
    with pytest.raises(DataError, match="the seed of crops must be a whole number"):
        Crops(scenes, 4, **SMALL, seed=number)


def test_every_place_is_drawn_equally_often(scenes: list[Scene]) -> None:
    found, whole_lr = Crops(scenes[:1], 4, **SMALL, augment=False), whole(scenes[0])[0][0]
    counts = Counter(places(whole_lr, found[n][0][0])[0] for n in range(1750))
    assert counts.keys() == {(top, left) for top in range(PLACES[0]) for left in range(PLACES[1])}
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < CHI_SQUARED[35]


def test_crops_stay_inside_the_clean_rectangle(scenes: list[Scene]) -> None:
    found = Crops(scenes, 4, crop_px=(16, 32), augment=False, clean_crops={"b": (4, 4, 36, 20)})
    example = load_example(scenes[1], 4, clean_crop=(4, 4, 36, 20))
    inside = [torch.stack([to_float(v) for v in views]) for views in (example.lr, example.hr)]
    assert sum(same(found[n], inside) for n in range(3)) == 1


def test_the_border_is_that_of_the_lr_views(scenes: list[Scene]) -> None:
    example = load_example(scenes[0], 4, loading=Loading(border="replicate"))
    lr, _ = Crops(scenes[:1], 4, crop_px=(24, 40), augment=False, loading=Loading(border="replicate"))[0]
    assert torch.equal(lr, torch.stack([to_float(v) for v in example.lr]))


# --- Augmentation
FORMS = [
    (mirrored, upside_down, channels)
    for mirrored in (False, True)
    for upside_down in (False, True)
    for channels in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
]


def undone(views: Tensor, mirrored: bool, upside_down: bool, channels: tuple[int, ...]) -> Tensor:
    """The pair (2,3,H,W) before it was changed; the mirrored left view is the new right view."""
    left, right = views[:, torch.tensor(channels).argsort()]
    if upside_down:
        left, right = left.flip(-2), right.flip(-2)
    if mirrored:
        left, right = right.flip(-1), left.flip(-1)
    return torch.stack([left, right])


def test_pairs_are_drawn_in_all_24_forms_and_the_four_images_alike(scenes: list[Scene]) -> None:
    found, (plain_lr, plain_hr) = Crops(scenes[:1], 4, crop_px=(24, 40)), whole(scenes[0])
    drawn = Counter()
    for number in range(480):
        lr, hr = found[number]
        (form,) = [f for f in FORMS if torch.equal(undone(lr, *f), plain_lr)]
        assert torch.equal(undone(hr, *form), plain_hr)
        drawn[form] += 1
    assert drawn.keys() == set(FORMS)
    assert sum((count - 20) ** 2 / 20 for count in drawn.values()) < CHI_SQUARED[24]


def test_mirroring_keeps_disparities_positive(tmp_path: Path) -> None:
    """What the left view shows at x, the right view shows at x - 3: also after augmentation, whatever is drawn."""
    left = noise(16, 40).sort(dim=-1).values[:1].expand(3, -1, -1).contiguous()
    write_image(left[:, :, :32], tmp_path / "a_L.png")
    write_image(left[:, :, 3:35], tmp_path / "a_R.png")
    found = Crops(find_scenes(tmp_path), 4, crop_px=(16, 32))
    assert all(torch.equal(hr[0][:, :, 3:], hr[1][:, :, :-3]) for _, hr in (found[n] for n in range(12)))


def turned(views: Tensor, quarters: int, reflected: bool) -> Tensor:
    views = views.rot90(quarters, (-2, -1))
    return views.flip(-1) if reflected else views


@pytest.mark.parametrize(("size", "forms"), [((24, 24), 8), ((24, 40), 4)], ids=["square", "oblong"])
def test_single_images_are_turned_if_square_and_keep_their_colours(
    tmp_path: Path, size: tuple[int, int], forms: int
) -> None:
    write_image(noise(*size), tmp_path / "a.png")
    found = Crops(find_scenes(tmp_path, views=1), 4, crop_px=size)
    plain = whole(found.scenes[0])
    drawn = set()
    for number in range(100):
        lr, hr = found[number]
        assert (tuple(lr.shape[:2]), tuple(hr.shape[:2])) == ((1, 3), (1, 3))
        for form in [(quarters, reflected) for quarters in range(4) for reflected in (False, True)]:
            if hr.shape == turned(plain[1], *form).shape and same((lr, hr), [turned(v, *form) for v in plain]):
                drawn.add(form)
    assert len(drawn) == forms


# --- The order
def test_every_scene_is_taken_once_before_any_is_taken_again(tmp_path: Path) -> None:
    count = 7
    scenes = [write_pair(tmp_path, f"s{n}", 8, 16, n) for n in range(count)]
    found, which = Crops(scenes, 4, **SMALL, augment=False), [whole(scene) for scene in scenes]
    order = [next(n for n in range(count) if same(found[i], which[n])) for i in range(10 * count)]
    epochs = [order[i : i + count] for i in range(0, len(order), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


# --- The seed and the number decide everything
def test_a_crop_does_not_depend_on_what_was_asked_for_before(scenes: list[Scene]) -> None:
    forwards = [Crops(scenes, 4, **SMALL)[n] for n in range(12)]
    one = Crops(scenes, 4, **SMALL)
    backwards = [one[n] for n in reversed(range(12))][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_the_seed_changes_crops_and_the_global_generators_neither_matter_nor_move(scenes: list[Scene]) -> None:
    first = Crops(scenes, 4, **SMALL, seed=1)[5]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(first, Crops(scenes, 4, **SMALL, seed=1)[5])
    assert torch.equal(state, torch.get_rng_state())
    assert not same(first, Crops(scenes, 4, **SMALL, seed=2)[5])
    assert not same(first, Crops(scenes, 4, **SMALL, seed=1)[6])


def test_crops_are_the_same_on_every_machine_and_in_every_version(scenes: list[Scene]) -> None:
    """A change here makes every run that was begun before end otherwise: it belongs in the changelog."""
    found = Crops(scenes, 4, **SMALL, seed=3)
    assert [int((found[n][1] * 255).sum().round()) for n in (0, 1, 10**6)] == [95343, 98284, 97095]


@pytest.mark.parametrize("memory_mb", [0, 0.012, 4096])
def test_memory_changes_nothing_but_what_is_kept(scenes: list[Scene], memory_mb: float) -> None:
    found = Crops(scenes, 4, **SMALL, memory_mb=memory_mb)
    plain = Crops(scenes, 4, **SMALL)
    assert all(same(found[n], plain[n]) for n in range(9))
    # A pair takes 2 * 3 * (24 * 40 + 6 * 10) = 6,120 bytes.
    assert len(found._kept) == {0: 0, 0.012: 2, 4096: 3}[memory_mb]


def test_what_is_kept_is_not_decoded_again(scenes: list[Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Counter()

    def counted(scene: Scene, *args: object, **kwargs: object) -> object:
        loaded[scene.name] += 1
        return read_views(scene, *args, **kwargs)

    monkeypatch.setattr(crops, "read_views", counted)
    found = Crops(scenes, 4, **SMALL)
    for number in range(9):
        found[number]
    assert loaded == {"a": 1, "b": 1, "c": 1}


def test_a_changed_crop_changes_no_later_one(scenes: list[Scene]) -> None:
    found = Crops(scenes, 4, crop_px=(24, 40), augment=False)
    before = [v.clone() for v in found[0]]
    for views in found[0]:
        views.zero_()
    assert same(found[0], before)


def test_threads_may_share_crops(scenes: list[Scene]) -> None:
    found, plain = Crops(scenes, 4, **SMALL), [Crops(scenes, 4, **SMALL)[n] for n in range(24)]
    results: dict[int, tuple[Tensor, Tensor]] = {}
    threads = [
        threading.Thread(target=lambda first: results.update({n: found[n] for n in range(first, 24, 3)}), args=(first,))
        for first in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(results[n], plain[n]) for n in range(24))


def loaded(found: Crops, numbers: range, workers: int) -> list[tuple[Tensor, Tensor]]:
    loader = DataLoader(found, batch_size=2, sampler=numbers, num_workers=workers)
    return [(lr[i], hr[i]) for lr, hr in loader for i in range(len(lr))]


@functools.cache
def _reference(scenes: tuple[Scene, ...]) -> list[tuple[Tensor, Tensor]]:
    return [Crops(scenes, 4, **SMALL)[n] for n in range(8, 20)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_nothing(scenes: list[Scene], workers: int) -> None:
    """Begun at sample 8, as a resumed run does."""
    found = loaded(Crops(scenes, 4, **SMALL), range(8, 20), workers)
    assert all(same(a, b) for a, b in zip(found, _reference(tuple(scenes)), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_shards_together_are_one_process(scenes: list[Scene], workers: int) -> None:
    shards = [loaded(Crops(scenes, 4, **SMALL), range(first, 20, 2), workers) for first in (8, 9)]
    together = [sample for pair in zip(*shards, strict=True) for sample in pair]
    assert all(same(a, b) for a, b in zip(together, _reference(tuple(scenes)), strict=True))


def test_a_pickled_copy_gives_the_same_crops_and_carries_no_pixels(scenes: list[Scene]) -> None:
    found = Crops(scenes, 4, **SMALL)
    first = found[0]
    copied = pickle.dumps(found)
    assert len(copied) < 3000
    assert same(pickle.loads(copied)[0], first)


def test_there_is_no_crop_before_the_first(scenes: list[Scene]) -> None:
    with pytest.raises(IndexError):
        Crops(scenes, 4, **SMALL)[-1]


def test_crops_go_on_behind_one_pass_over_the_scenes(scenes: list[Scene]) -> None:
    found = Crops(scenes, 4, **SMALL)
    assert len(found) == len(list(found)) == len(scenes)
    assert all(same(a, found[i]) for i, a in enumerate(found))
    assert not same(found[0], found[len(scenes)])
    assert found[2**62][1].shape == found[0][1].shape


# --- What is checked at once, and what when it is hit
def test_all_scenes_that_are_too_small_are_named(tmp_path: Path) -> None:
    scenes = [
        write_pair(tmp_path, name, *size) for name, size in [("low", (15, 40)), ("ok", (16, 32)), ("thin", (24, 31))]
    ]
    with pytest.raises(DataError, match=r"height 16, width 32 px.*--crop H W") as caught:
        Crops(scenes, 4, crop_px=(16, 32))
    low, thin = caught.value.problems
    assert ("scene low: " in low, "height 12, width 40 px" in low) == (True, True)
    assert ("scene thin: " in thin, "height 24, width 28 px" in thin) == (True, True)


def test_all_scenes_whose_files_do_not_fit_are_named(tmp_path: Path) -> None:
    scenes = [write_pair(tmp_path, name) for name in "abc"]
    write_image(noise(16, 36), scenes[0].hr[1])
    scenes[2].hr[0].unlink()
    with pytest.raises(DataError) as caught:
        Crops(scenes, 4, crop_px=(16, 32))
    assert [line.split(":")[0] for line in caught.value.problems] == ["scene a", "scene c"]


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_behind_a_header_names_the_scene_also_from_a_worker(tmp_path: Path, workers: int) -> None:
    scene = write_pair(tmp_path, "a")
    scene.hr[1].write_bytes(scene.hr[1].read_bytes()[:-200])
    found = Crops([scene], 4, crop_px=(16, 32))
    with pytest.raises(DataError, match=r"scene a: .*a_R\.png"):
        loaded(found, range(2), workers)


@pytest.mark.parametrize("crop_px", [(16, 30), (18, 32), (0, 32), (-16, 32)])
def test_crops_of_no_whole_lr_pixels_are_refused(scenes: list[Scene], crop_px: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=re.escape(str(crop_px))):
        Crops(scenes, 4, crop_px=crop_px)


def test_no_scenes_are_refused() -> None:
    with pytest.raises(DataError, match="at least one scene"):
        Crops([], 4)


def test_pairs_and_single_images_do_not_mix(scenes: list[Scene]) -> None:
    with pytest.raises(DataError, match=r"pairs .*single images"):
        Crops([*scenes, Scene("single", scenes[0].hr[:1])], 4, **SMALL)
