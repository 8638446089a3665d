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
from lowpeft.restoration.inference import Tiling, local_pooling, peak_bytes, reach_px
from lowpeft.restoration.inference.boxes import strips
from lowpeft.restoration.inference.memory import SAFE_SHARE, MemoryLimit
from states import backbone_of, facts, randomise_adapters
from tiers import by_default

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
    assert [s.kept.start for s in found] == [0, *(s.kept.stop for s in found[:-1])]
    assert found[-1].kept.stop == height
    for strip in found:
        assert strip.rows.start % align_px == strip.kept.start % align_px == 0
        assert strip.kept.stop - strip.kept.start <= -(-strip_px // align_px) * align_px
        assert strip.rows.start == 0 or strip.kept.start - strip.rows.start >= context_px
        assert strip.rows.stop == height or strip.rows.stop - strip.kept.stop >= context_px


def test_strips_are_of_about_one_height() -> None:
    assert [s.kept.stop for s in strips(100, 40, 0, 10)] == [40, 80, 100]
    assert [s.kept.stop for s in strips(90, 80, 0, 10)] == [50, 90]


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
    [pytest.param(*row, id=row[0], marks=[pytest.mark.slow] * (row[0] not in ("edsr", "swinir"))) for row in EXACT],
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


@pytest.mark.parametrize("name", by_default(["rcan"], ["hat", "rcan", "dctlsa"]))
def test_networks_that_look_everywhere_have_no_reach(name: str) -> None:
    """HAT and RCAN by global pools, DCTLSA by shifted windows that wrap around the border without a mask."""
    backbone = network(name)
    assert reach_px(backbone) is None


@pytest.mark.parametrize("name", [pytest.param("hat", marks=pytest.mark.slow), "rcan"])
def test_local_pools_give_a_reach_and_exact_strips(name: str) -> None:
    backbone = network(name)
    (image,) = noise(400)
    with local_pooling(backbone.module, 12):
        reach = reach_px(backbone)
        assert reach is not None
        assert difference(backbone, image, Tiling(strip_px=48, context_px=reach)) < 1e-5


def test_windows_of_other_heights_are_noticed() -> None:
    backbone = network("swinir_jpeg")
    with pytest.raises(DataError, match=r"48.*align_px"):
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

    limit = MemoryLimit(memory_mb=(7 + (budget + 1e-6) / SAFE_SHARE) / MB, reserved_bytes=7)
    if fits:
        assert limit.most_units(noted, step=10, whole=1000, smallest="") == fits
        assert take(fits) <= budget
    else:
        with pytest.raises(DataError):
            limit.most_units(noted, step=10, whole=1000, smallest="")
    assert all(take(rows) <= budget for rows in asked) or fits <= 20


def test_context_counts_for_the_part_that_fits() -> None:
    limit = MemoryLimit(memory_mb=1, reserved_bytes=0)
    assert limit.most_units(lambda n: 10_000 * n, step=10, around=20, whole=1000, smallest="") == 40
    with pytest.raises(DataError, match=r"memory_mb=1 .*smallest part.* 2 MB"):
        limit.most_units(lambda n: 30_000 * n, step=10, around=20, whole=1000, smallest="smallest part")


def rows_run(model: nn.Module, call: Callable[[], Tensor]) -> list[int]:
    """The height of the network's input in each of its calls."""
    heights: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, given: heights.append(given[0].shape[-2]))
    call()
    hook.remove()
    return heights


def test_less_memory_makes_more_strips_of_the_same_image() -> None:
    backbone = network("edsr")
    (image,) = noise(480, 64)
    wanted = enhance(backbone, image)
    highest = []
    for memory_mb in (100, 30, 20):
        tiling = Tiling(memory_mb=memory_mb)
        torch.testing.assert_close(enhance(backbone, image, tiling=tiling), wanted, rtol=0, atol=1e-5)
        rows = rows_run(backbone.module, lambda tiling=tiling: enhance(backbone, image, tiling=tiling))
        highest.append(max(rows))
        assert peak_bytes(lambda tiling=tiling: enhance(backbone, image, tiling=tiling)) < memory_mb * MB
    assert highest[0] == 480
    assert highest[0] > highest[1] > highest[2]


def test_an_ensemble_measures_each_shape_once() -> None:
    backbone = network("edsr")
    (image,) = noise(24, 40)
    rows = rows_run(backbone.module, lambda: enhance(backbone, image, ensemble=True, tiling=Tiling(memory_mb=10)))
    assert rows.count(24) == rows.count(40) == 4 + 1


def test_too_little_memory_says_how_much_it_takes() -> None:
    backbone = network("edsr")
    (image,) = noise(480, 640)
    with pytest.raises(DataError, match=r"memory_mb=20 .* 48 rows with 48 context rows") as error:
        enhance(backbone, image, tiling=Tiling(memory_mb=20))
    needed = float(str(error.value).split(" MB")[0].split()[-1])
    enhance(backbone, image, tiling=Tiling(memory_mb=needed * 1.1))


def test_memory_chooses_how_many_crops_go_at_once() -> None:
    torch.manual_seed(0)
    module = IPT(n_feats=4, num_heads=2, num_layers=2, scale=[2]).eval()
    backbone = lowpeft.describe(module)
    (image,) = noise(100, 120)
    wanted = enhance(backbone, image)
    found = enhance(backbone, image, tiling=Tiling(memory_mb=60))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"memory_mb=1 .*one crop"):
        enhance(backbone, image, tiling=Tiling(memory_mb=1))
    with pytest.raises(DataError, match=r"IPT.* 48"):
        reach_px(backbone)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strip_px": 0}, ["strip_px"]),
        ({"strip_px": 1.5}, ["strip_px"]),
        ({"memory_mb": float("nan")}, ["memory_mb"]),
        ({"memory_mb": -1, "context_px": -1}, ["memory_mb", "context_px"]),
        ({"align_px": 0, "chunk": 0}, ["align_px", "chunk"]),
        ({"strip_px": 8, "memory_mb": 8}, ["strip_px"]),
    ],
)
def test_senseless_tiling_is_refused(changes: dict[str, float], named: list[str]) -> None:
    with pytest.raises(DataError) as refused:
        Tiling(**changes)
    assert [problem.split()[0] for problem in refused.value.problems] == named


def test_an_alignment_against_the_size_multiple_is_refused() -> None:
    backbone = network("edsr", size_multiple=8)
    with pytest.raises(DataError, match=r"align_px=12 .* 8"):
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
