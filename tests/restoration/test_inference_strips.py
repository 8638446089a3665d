"""Strips: where they lie, what they guarantee, and the memory that they keep to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spandrel.architectures.IPT import IPT
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Backbone, DataError, enhance
from lowpeft.restoration.inference import Tiling, local_pooling, peak_bytes, reach_px, strips
from lowpeft.restoration.inference.memory import most_that_fits
from states import backbone_of, facts, randomise_adapters

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

MB = 10**6


def network(name: str, *, size_multiple: int = 1) -> Backbone:
    return backbone_of(next(n for n in zoo.ALL if n.name == name), size_multiple=size_multiple)


def noise(height: int, width: int = 16, count: int = 1) -> tuple[Tensor, ...]:
    return tuple(torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2)))


def difference(backbone: Backbone, image: Tensor, tiling: Tiling) -> float:
    whole = enhance(backbone, image)
    return (enhance(backbone, image, tiling=tiling) - whole).abs().max().item()


# --- Where strips lie
@given(
    height=st.integers(1, 400), strip_px=st.integers(1, 150), context_px=st.integers(0, 70), align_px=st.integers(1, 60)
)
def test_strips_cover_every_row_once_with_their_context(
    height: int, strip_px: int, context_px: int, align_px: int
) -> None:
    found = strips(height, strip_px, context_px, align_px)
    assert [s.keep_first for s in found] == [0, *(s.keep_last for s in found[:-1])]
    assert found[-1].keep_last == height
    for strip in found:
        assert strip.first % align_px == strip.keep_first % align_px == 0
        assert strip.keep_last - strip.keep_first <= -(-strip_px // align_px) * align_px
        assert strip.first == 0 or strip.keep_first - strip.first >= context_px
        assert strip.last == height or strip.last - strip.keep_last >= context_px


def test_strips_are_of_about_one_height() -> None:
    assert [s.keep_last - s.keep_first for s in strips(100, 40, 0, 10)] == [40, 40, 20]
    assert [s.keep_last - s.keep_first for s in strips(90, 80, 0, 10)] == [50, 40]


@pytest.mark.parametrize(("size_multiple", "align"), [(1, 48), (16, 48), (24, 48), (7, 336), (96, 96)])
def test_strips_begin_where_windows_and_size_multiples_do(size_multiple: int, align: int) -> None:
    assert Tiling().aligned_to(size_multiple) == align


class Rows(nn.Module):
    """Repeats every pixel, and remembers the first row and the height of what it saw; rows carry their number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((round(x[0, 0, 0, 0].item() * 1000), x.shape[-2]))
        return self.gain * x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_both_views_are_cut_at_the_same_rows_and_padding_is_that_of_the_whole() -> None:
    module = Rows()
    backbone = facts(module, size_multiple=8)
    image = (torch.arange(50) / 1000).view(1, 50, 1).expand(3, 50, 9).contiguous()
    left, right = enhance(backbone, image, image / 2, tiling=Tiling(strip_px=16, context_px=5, align_px=8))
    assert module.seen == [(0, 24), (8, 32), (24, 32), (40, 16)]
    assert torch.equal(left, image.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(right, left / 2)


# --- What they guarantee
EXACT = [("edsr", 1), ("swinir", 1), ("swin2sr", 1), ("edt", 24), ("ditn", 8)]


@pytest.mark.parametrize(
    ("name", "size_multiple"),
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] == "edt")) for row in EXACT],
)
def test_strips_are_exact_when_the_context_is_the_networks_reach(name: str, size_multiple: int) -> None:
    backbone = network(name, size_multiple=size_multiple)
    reach = reach_px(backbone)
    assert reach is not None
    (image,) = noise(300)
    assert difference(backbone, image, Tiling(strip_px=48, context_px=reach)) < 1e-5
    assert difference(backbone, image, Tiling(strip_px=48, context_px=0)) > 1e-3


def test_windows_that_lie_otherwise_change_the_result() -> None:
    """SwinIR's windows have 4 rows here: strips that begin at 6 cut other windows, however much context they have."""
    backbone = network("swinir")
    (image,) = noise(240)
    assert difference(backbone, image, Tiling(strip_px=48, context_px=48, align_px=4)) < 1e-5
    assert difference(backbone, image, Tiling(strip_px=54, context_px=54, align_px=6)) > 1e-3


def test_a_stereo_model_in_strips_is_the_whole_one() -> None:
    backbone = network("swinir")
    model = randomise_adapters(lowpeft.adapt(backbone, "stereo"))
    reach = reach_px(model)
    left, right = noise(200, 24, count=2)
    whole = enhance(model, left, right)
    tiling = Tiling(strip_px=48, context_px=reach)
    for one, other in zip(enhance(model, left, right, tiling=tiling), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_reach_is_what_the_convolutions_add_up_to() -> None:
    class Convolutions(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 3, 5, padding=2), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=2, dilation=2))

    module = Convolutions()
    backbone = facts(module, scale=1)
    assert reach_px(backbone, align_px=1) == 4


def test_the_reach_leaves_mode_and_weights_alone() -> None:
    backbone = network("edsr")
    before = {k: v.clone() for k, v in backbone.module.state_dict().items()}
    backbone.module.train()
    assert reach_px(backbone) == 16
    assert backbone.module.training
    assert all(torch.equal(v, before[k]) for k, v in backbone.module.state_dict().items())


@pytest.mark.parametrize("name", ["hat", "rcan", "dctlsa"])
def test_networks_that_look_everywhere_have_no_reach(name: str) -> None:
    """HAT and RCAN by global pools, DCTLSA by shifted windows that wrap around the border without a mask."""
    backbone = network(name)
    assert reach_px(backbone) is None


@pytest.mark.parametrize("name", ["hat", "rcan"])
def test_local_pools_give_a_reach_and_exact_strips(name: str) -> None:
    backbone = network(name)
    (image,) = noise(400)
    with local_pooling(backbone.module, 12):
        reach = reach_px(backbone)
        assert reach is not None
        assert difference(backbone, image, Tiling(strip_px=48, context_px=reach)) < 1e-5


def test_windows_of_other_heights_are_noticed() -> None:
    backbone = network("swinir_jpeg")
    with pytest.raises(DataError, match="multiples of 48 rows: choose another align_px"):
        reach_px(backbone)
    reach = reach_px(backbone, align_px=7)
    assert difference(backbone, noise(140)[0], Tiling(strip_px=35, context_px=reach or 0, align_px=7)) < 1e-5


# --- Memory
def test_peak_memory_counts_what_is_alive_at_once() -> None:
    def three_and_two() -> Tensor:
        a = torch.ones(250_000)
        b = a + 1
        del a
        c = b * 2
        del b
        return c + c.view(500, 500).sum()

    assert peak_bytes(three_and_two) == pytest.approx(2 * MB, abs=100)


def test_peak_memory_does_not_count_what_was_there() -> None:
    there = torch.ones(250_000)
    assert peak_bytes(lambda: there.view(500, 500).add_(1)) == 0


def test_a_convolution_counts_its_images_once_more() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    image = torch.ones(1, 16, 100, 100)
    with torch.no_grad():
        found = peak_bytes(lambda: conv(image))
    assert found == pytest.approx(image.nbytes * 3, rel=0.02)


@pytest.mark.parametrize(
    ("take", "budget", "fits"),
    [
        (lambda n: 10 * n, 1000, 100),
        (lambda n: 10 * n, 555, 50),
        (lambda n: 300 + 10 * n, 455, 10),
        (lambda n: 10 * n, 99, 0),
        (lambda n: 10 * n, 10**9, 1000),
        (lambda n: min(10 * n, 60), 500, 1000),
    ],
    ids=["in proportion", "rounded down", "with a constant", "nothing", "everything", "levelling off"],
)
def test_the_largest_part_that_fits_is_found_by_small_ones(
    take: Callable[[int], int], budget: float, fits: int
) -> None:
    """Of 1000 rows, in tens."""
    asked = []

    def noted(rows: int) -> int:
        asked.append(rows)
        return take(rows)

    found = most_that_fits(noted, step=10, whole=1000, budget=budget)
    assert found == fits
    assert take(found) <= budget
    assert all(take(rows) <= budget for rows in asked) or found <= 20


def strips_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of strips of each pass, while a test runs."""
    counts: list[int] = []
    original = strips

    def counted(*args: int) -> object:
        found = original(*args)
        counts.append(len(found))
        return found

    monkeypatch.setattr("lowpeft.restoration.inference.parts.strips", counted)
    return counts


def test_less_memory_makes_more_strips_of_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = network("edsr")
    (image,) = noise(480, 64)
    counts = strips_run(monkeypatch)
    wanted = enhance(backbone, image)
    for memory_mb in (100, 30, 20):
        found = enhance(backbone, image, tiling=Tiling(memory_mb=memory_mb))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert counts[:2] == [1, 1]
    assert 1 < counts[2] < counts[3]


def test_an_ensemble_measures_each_shape_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = network("edsr")
    calls = []
    monkeypatch.setattr(
        "lowpeft.restoration.inference.parts.most_that_fits",
        lambda take, *, step, whole, budget: calls.append(whole) or whole,
    )
    (image,) = noise(24, 40)
    enhance(backbone, image, ensemble=True, tiling=Tiling(memory_mb=10))
    assert calls == [24, 40]


def test_too_little_memory_says_how_much_it_takes() -> None:
    backbone = network("edsr")
    (image,) = noise(480, 640)
    with pytest.raises(
        DataError, match=r"a strip of 48 rows with 48 more on either side takes about (\d+) MB"
    ) as error:
        enhance(backbone, image, tiling=Tiling(memory_mb=20))
    needed = float(str(error.value).split("takes about ")[1].split()[0])
    enhance(backbone, image, tiling=Tiling(memory_mb=needed * 1.1))


def test_memory_chooses_how_many_crops_go_at_once() -> None:
    torch.manual_seed(0)
    module = IPT(n_feats=4, num_heads=2, num_layers=2, scale=[2]).eval()
    backbone = lowpeft.describe(module)
    (image,) = noise(100, 120)
    wanted = enhance(backbone, image)
    found = enhance(backbone, image, tiling=Tiling(memory_mb=60))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="one crop takes about"):
        enhance(backbone, image, tiling=Tiling(memory_mb=1))
    with pytest.raises(DataError, match="IPT takes 48 px only"):
        reach_px(backbone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strip_px": 0}, "strip_px must be a whole number of at least 1, not 0"),
        ({"strip_px": 1.5}, r"strip_px must be a whole number of at least 1, not 1\.5"),
        ({"memory_mb": float("nan")}, "memory_mb must be a number of at least 0, not nan"),
        ({"memory_mb": -1}, "memory_mb must be a number of at least 0, not -1"),
        ({"context_px": -1}, "context_px must be a whole number of at least 0"),
        ({"align_px": 0}, "align_px must be a whole number of at least 1"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, not 0"),
        ({"strip_px": 8, "memory_mb": 8}, "give one of them"),
    ],
)
def test_senseless_tiling_is_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Tiling(**changes)


def test_an_alignment_against_the_size_multiple_is_refused() -> None:
    backbone = network("edsr", size_multiple=8)
    with pytest.raises(DataError, match="align_px=12 is not a multiple of the 8 px"):
        enhance(backbone, noise(16)[0], tiling=Tiling(strip_px=8, align_px=12))


@pytest.mark.slow
def test_a_1080p_pair_stays_under_the_bound() -> None:
    """In a process of its own: the most memory that it holds, less what it held before, by the operating system."""
    script = Path(__file__).parents[2] / "benchmarks" / "inference.py"
    command = [sys.executable, str(script), "--one", "Compact", "--memory-mb", "1200"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["lr_px"] == "1920x1080"
    assert found["strips"] > 1
    assert found["peak_mb"] < 1200


@pytest.mark.gpu
def test_memory_is_bounded_on_a_gpu() -> None:
    backbone = network("edsr")
    model = lowpeft.adapt(backbone, "stereo").cuda()
    left, right = noise(1080, 1920, count=2)
    enhance(model, left[:, :48, :64], right[:, :48, :64])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    enhance(model, left, right, tiling=Tiling(memory_mb=1200))
    assert torch.cuda.max_memory_allocated() - before < 1200 * MB
