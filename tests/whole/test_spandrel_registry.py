"""Every network of spandrel's registry: `lowpeft.enhance` gives what spandrel's own call gives, or says why not."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from spandrel import ImageModelDescriptor
from spandrel.architectures.DnCNN import DnCNN
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import Backbone, DataError, LowpeftError, PlanError, enhance, load_backbone
from lowpeft.backbones import spandrel_reader
from lowpeft.core.attachment.calls import image_in, with_image
from lowpeft.core.observation.describe import facts_of
from lowpeft.core.padding import pad_to
from lowpeft.core.planning.site_values import facts_from_dict, facts_to_dict
from lowpeft.restoration.data import Example
from lowpeft.restoration.evaluation import evaluate
from lowpeft.restoration.inference import Tiling, reach_px
from lowpeft.restoration.lam import LamSettings, Patch, attribute
from lowpeft.restoration.training import train
from states import facts, randomise_adapters
from tiers import by_default
from training_runs import SETTINGS, Samples

# spandrel's copy of OmniSR uses an old name in its own autograd function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("no_trial_of_the_batch"),
]

SIZES = [(37, 53), (65, 41), (50, 70), (7, 9), (1, 3)]
"""Heights and widths: three odd ones, and two below every least side."""

PATCHED: dict[str, str] = {
    "dat": "DAT.DAT",
    "dat_light": "DAT.DAT",
    "fbcnn": "FBCNN.FBCNN",
    "gfpgan": "GFPGAN.GFPGAN",
    "plksr_sparse": "PLKSR.PLKSR",
    "restoreformer": "RestoreFormer.RestoreFormer",
}
"""Rows whose tiny shapes spandrel does not read from their tensors: here the class that it builds gives the row."""

LONG_DNCNN = partial(DnCNN, nc=8, nb=9, act_mode="R")
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "dncnn_gray": LONG_DNCNN,  # spandrel tells DnCNN by its 14th layer
    "fdncnn": partial(LONG_DNCNN, in_nc=4, out_nc=3, mode="FDnCNN"),
}

SAYS_WHY: dict[str, str] = {
    "gfpgan": "value_range",
    "ipt": "fixed_px",
}
"""Networks that `enhance` runs in another way than spandrel, and the fact that a note explains."""

REFUSED: dict[str, str] = {"lama": "LaMa"}
"""Networks that `load_backbone` refuses."""

TOLD = {
    "drunet": {"maps": (15 / 255,), "channels": 3, "size_multiple": 8},
    "fdncnn": {"maps": (15 / 255,), "channels": 3},
    "dncnn_gray": {"maps": (), "channels": 1},
    "fbcnn": {"output": 0},
    "gfpgan": {"output": 0, "value_range": (-1.0, 1.0), "fixed_px": 64, "min_px": 1},
    "ipt": {"value_range": (0.0, 255.0), "fixed_px": 48, "min_px": 1},
    "mixdehazenet": {"value_range": (0.0, 1.0), "output_range": (-1.0, 1.0), "min_px": 40, "strips": False},
    "mmrealsr": {"output": 0, "min_px": 16},
    "restoreformer": {"output": 0, "value_range": (-1.0, 1.0), "size_multiple": 32},
    "retinexformer": {"size_multiple": 8, "strips": False},
    "swinir": {"min_px": 16, "strips": True},
    "uformer": {"size_multiple": 128, "square": True},
}
"""Rows with a fact that is no default one: these are in the default tier."""

ALIKE = {"dncnn_gray", "mmrealsr", "retinexformer", "swinir"}
"""Of them those in which others have the same facts that change a call."""

NAMES = [*(row.name for row in zoo.SPANDREL if row.name not in REFUSED), "fdncnn"]
SLOW_ROWS = {"grl", "grl_local"}
"""Rows that are compared on very small images alone: they take seconds for each of the others."""


def sizes_and_rows() -> Iterator[Any]:
    """The rows with facts of their own, at two sizes, are in the default tier; all at every size are slow."""
    for name in NAMES:
        if name not in SAYS_WHY:
            yield pytest.param(name, SIZES[-2:] if name in SLOW_ROWS else SIZES, marks=pytest.mark.slow, id=name)
            if name in TOLD and name not in ALIKE:
                yield pytest.param(name, [SIZES[0], SIZES[-1]], id=f"{name}, two sizes")


def slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


def network_of(name: str) -> nn.Module:
    torch.manual_seed(1)  # a draw with which no row's results are clamped nearly everywhere
    return (OTHERS[name] if name in OTHERS else zoo.ROWS[name].build)().eval()


class Opened:
    """A row as spandrel opens it, and as lowpeft does from a file."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        network = network_of(name)
        if name in PATCHED:
            where, kind = PATCHED[name].split(".")
            home = sys.modules[f"spandrel.architectures.{where}"]
            monkeypatch.setattr(home, kind, lambda **shape: copy.deepcopy(network))
        self.descriptor: ImageModelDescriptor[Any] = spandrel_reader.load(network.state_dict())
        torch.save(network.state_dict(), folder / "network.pth")
        self.backbone = load_backbone(folder / "network.pth")

    def theirs(self, image: Tensor) -> Tensor:
        torch.manual_seed(5)  # AuraSR and GFPGAN draw noise
        return self.descriptor(image.clone())

    def ours(self, image: Tensor, **options: Any) -> Tensor:
        torch.manual_seed(5)
        return enhance(self.backbone, image, **options)


Open = Callable[[str], Opened]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Open:
    return lambda name: Opened(name, monkeypatch, tmp_path)


def image(channels: int, size: tuple[int, int]) -> Tensor:
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(1))


# --- Equal, or why not
@pytest.mark.parametrize(("name", "sizes"), list(sizes_and_rows()))
def test_enhance_gives_what_spandrels_own_call_gives(name: str, sizes: list[tuple[int, int]], opened: Open) -> None:
    network = opened(name)
    for size in sizes:
        x = image(network.descriptor.input_channels, size)
        theirs = network.theirs(x)
        assert torch.equal(network.ours(x), theirs), size
        if size[0] > 7:
            assert ((theirs > 0) & (theirs < 1)).float().mean() > 0.03, "clamped, so that the comparison says little"


@pytest.mark.parametrize("name", SAYS_WHY)
def test_what_is_run_otherwise_says_so(name: str, opened: Open) -> None:
    backbone = opened(name).backbone
    (note,) = [note for note in backbone.notes if note.startswith(f"{SAYS_WHY[name]}: ") and "spandrel" in note]
    plan = lowpeft.plan(backbone, [lowpeft.LoRAConfig(target=first_convolutions(backbone.module), rank=1)])
    assert note in str(plan)


def test_ipts_own_crop_is_run_as_spandrel_runs_it(opened: Open) -> None:
    network = opened("ipt")
    assert torch.equal(network.ours(image(3, (37, 29))), network.theirs(image(3, (37, 29))))


def test_gfpgan_is_run_as_its_authors_run_it(opened: Open) -> None:
    x = image(3, (64, 64))
    network = opened("gfpgan")
    torch.manual_seed(5)
    with torch.no_grad():
        wanted = network.backbone.module(x * 2 - 1)[0] / 2 + 0.5
    torch.testing.assert_close(network.ours(x), wanted.clamp(0, 1), rtol=0, atol=1e-6)


def test_lama_is_refused_because_it_takes_a_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Tiny(nn.Module):
        def __init__(self, **shape: int) -> None:
            super().__init__()
            self.model = nn.Module()
            self.model.model = network_of("lama")

    monkeypatch.setattr(sys.modules["spandrel.architectures.LaMa"], "LaMa", Tiny)
    torch.save(Tiny().state_dict(), tmp_path / "network.pth")
    with pytest.raises(LowpeftError, match=REFUSED["lama"]):
        load_backbone(tmp_path / "network.pth")


def test_a_call_that_lowpeft_does_not_know_is_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(spandrel_reader.CALLS, "DRUNet")
    with pytest.raises(LowpeftError, match=r"DRUNet .*call_fn.*lowpeft\.describe"):
        opened("drunet")


# --- The facts
@pytest.mark.parametrize("name", by_default(["drunet", "gfpgan", "ipt"], TOLD))
def test_the_facts_are_carried(name: str, opened: Open) -> None:
    backbone = opened(name).backbone
    assert {fact: getattr(backbone, fact) for fact in TOLD[name]} == TOLD[name]
    if name == "retinexformer":
        assert any("images of 3000 px" in note for note in backbone.notes)
    if name == "drunet":
        assert copy.deepcopy(backbone).facts == pickle.loads(pickle.dumps(backbone)).facts == backbone.facts


UFORMER: dict[str, Any] = {"scale": 1, "channels": 3, "size_multiple": 128, "square": True}


def test_the_facts_are_printed(opened: Open) -> None:
    text = str(opened("mixdehazenet").backbone)
    assert "values 0..1, -1..1 out, sides of at least 40 px, not in strips" in text
    assert "3 channels, maps of 0.05882" in str(opened("drunet").backbone)
    assert "square images, sides in multiples of 128 px" in str(lowpeft.describe(nn.Conv2d(3, 3, 1), **UFORMER))


@pytest.mark.parametrize("name", ["drunet", "fbcnn", "mixdehazenet", slow("uformer")])
def test_the_facts_are_the_same_said_by_hand(name: str, opened: Open) -> None:
    network = opened(name)
    known = {n: v for n, v in network.backbone.facts.values.items() if n not in ("family", "notes", "tasks")}
    described = lowpeft.describe(network.backbone.module, **known)
    assert described.facts == replace(network.backbone.facts, notes=())
    assert torch.equal(enhance(described, image(3, (37, 53))), network.theirs(image(3, (37, 53))))


def test_what_is_not_given_is_measured_with_what_is(opened: Open) -> None:
    found = lowpeft.describe(network_of("drunet"), maps=(15 / 255,))
    assert (found.scale, found.channels) == (1, 3)
    assert lowpeft.describe(opened("fbcnn").backbone.module, output=0).scale == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_px": 0},
        {"square": 1},
        {"strips": "no"},
        {"output": True},
        {"output": 1.0},
        {"output_range": (1, 0)},
        {"maps": 0.1},
        {"maps": ("a",)},
    ],
    ids=str,
)
def test_impossible_facts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"{next(iter(wrong))} must be"):
        lowpeft.describe(nn.Conv2d(3, 3, 1), **wrong)


def test_an_output_without_that_item_is_refused() -> None:
    with pytest.raises(DataError, match=r"tuple.* 7.*output="):
        enhance(facts(network_of("mmrealsr"), scale=4, output=7), image(3, (16, 16)))


# --- Adapters, training, files
def first_convolutions(module: nn.Module) -> list[str]:
    return [path for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d)][:2]


def with_lora(backbone: Backbone) -> nn.Module:
    return lowpeft.adapt(backbone, [lowpeft.LoRAConfig(target=first_convolutions(backbone.module), rank=1)])


def padded(network: Opened, x: Tensor) -> Tensor:
    right, down = network.descriptor.size_requirements.get_padding(x.shape[-1], x.shape[-2])
    return pad_to(x, x.shape[-2] + down, x.shape[-1] + right)


@pytest.mark.parametrize(
    "name", ["drunet", slow("fbcnn"), slow("mixdehazenet"), slow("restoreformer"), slow("uformer")]
)
def test_a_network_is_trained_as_it_is_used(name: str, opened: Open) -> None:
    """The loss of the first step, before anything has changed, is that of what spandrel makes of the crop."""
    network = opened(name)
    crops = Samples(crop_px=(21, 37), scale=1, views=1)
    settings = replace(SETTINGS, steps=1, batch=1, loss="l1", ema_decay=0.0, warmup_steps=0)
    lr, hr = crops[0]
    with torch.no_grad():
        theirs = network.descriptor._call_fn(network.descriptor.model.eval(), padded(network, lr))[..., :21, :37]
    trained = train(with_lora(network.backbone), crops, settings)
    assert trained.loss == pytest.approx((theirs - hr).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["drunet", slow("fbcnn"), slow("mixdehazenet")])
def test_a_pair_of_views_is_run_as_each_by_itself_at_the_start(name: str, opened: Open) -> None:
    network = opened(name)
    (path, *_) = first_convolutions(network.backbone.module)
    left, right = image(3, (37, 53))[0], image(3, (37, 53)).flip(-1)[0]
    wanted = [network.theirs(view[None])[0] for view in (left, right)]
    stereo = lowpeft.wrap_stereo(network.backbone, target=path, every=1)
    for found, theirs in zip(enhance(stereo, left, right), wanted, strict=True):
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["drunet", slow("mixdehazenet"), slow("fbcnn"), slow("uformer")])
def test_an_adapter_file_carries_the_facts(name: str, opened: Open, tmp_path: Path) -> None:
    network = opened(name)
    model = randomise_adapters(with_lora(network.backbone))
    wanted = enhance(model, image(3, (37, 53)))
    folder = lowpeft.save_adapter(model, tmp_path / "adapter")
    bare = lowpeft.restore(model)
    loaded = lowpeft.load_adapter(bare, folder)  # what is known of the network is in the file
    assert replace(facts_of(loaded), notes=()) == replace(network.backbone.facts, notes=())
    assert torch.equal(enhance(loaded, image(3, (37, 53))), wanted)
    other = lowpeft.describe(lowpeft.restore(loaded), scale=1, channels=3, size_multiple=1, output_range=(-2, 1))
    with pytest.raises(LowpeftError, match=r"\(-2\.0, 1\.0\)"):
        lowpeft.load_adapter(other, folder)


NEWER = ("output_range", "maps", "min_px", "square", "strips")


def test_an_adapter_file_from_before_these_facts_opens(opened: Open) -> None:
    known = opened("swinir").backbone.facts
    values = {fact: value for fact, value in facts_to_dict(known).items() if fact not in NEWER}
    found = facts_from_dict(json.loads(json.dumps(values)))
    assert [getattr(found, fact) for fact in NEWER] == [None, (), 1, False, True]
    assert replace(facts_from_dict(json.loads(json.dumps(facts_to_dict(known)))), notes=()) == replace(known, notes=())


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("output", 1.5),
        ("output", True),
        ("min_px", 0),
        ("min_px", None),
        ("square", 1),
        ("maps", ["a"]),
        ("output_range", [1, 0]),
    ],
)
def test_an_adapter_file_with_impossible_facts_is_refused(fact: str, value: object, opened: Open) -> None:
    values = facts_to_dict(opened("dncnn").backbone.facts) | {fact: value}
    with pytest.raises(LowpeftError, match="facts"):
        facts_from_dict(values)


# --- Strips
@pytest.mark.parametrize(("name", "why"), [("mixdehazenet", r"strips=True"), ("uformer", "square")])
def test_a_network_that_must_not_be_cut_is_not(name: str, why: str, opened: Open) -> None:
    network, x = opened(name), image(3, (72, 56))
    for tiling in (Tiling(strip_px=24), Tiling(memory_mb=0.1)):
        with pytest.raises(DataError, match=why):
            network.ours(x, tiling=tiling)
    if name == "mixdehazenet":
        assert torch.equal(network.ours(x, tiling=Tiling(memory_mb=10_000)), network.theirs(x))


def test_whoever_wants_strips_all_the_same_gets_them(opened: Open) -> None:
    backbone = lowpeft.describe(opened("mixdehazenet").backbone, strips=True)
    found = enhance(backbone, image(3, (90, 56)), tiling=Tiling(strip_px=8, context_px=0, align_px=8))
    assert found.shape == (1, 3, 90, 56)


def test_a_square_network_has_no_reach() -> None:
    with pytest.raises(DataError, match="square"):
        reach_px(lowpeft.describe(nn.Conv2d(3, 3, 1), **UFORMER))


class Least(nn.Module):
    """Doubles nothing, and refuses images with a side below 20 px."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < 20:
            raise RuntimeError("too small")
        return self.layer(x)


@pytest.mark.parametrize("memory_mb", [None, 0.6])
def test_no_strip_is_below_the_least_side(memory_mb: float | None) -> None:
    backbone = facts(Least(), scale=1, min_px=20)
    x = image(3, (101, 30))
    strips = {"strip_px": 8} if memory_mb is None else {"memory_mb": memory_mb}
    found = enhance(backbone, x, tiling=Tiling(**strips, context_px=1, align_px=4))
    torch.testing.assert_close(found, enhance(backbone, x), rtol=0, atol=1e-6)
    assert reach_px(backbone, align_px=4) == 1


# --- What is given stays as it is
def test_nothing_that_is_given_is_written(opened: Open) -> None:
    """RCAN multiplies its input in place."""
    backbone = opened("rcan").backbone
    lr = image(3, (24, 32))[0]
    before = lr.clone()
    pair = lowpeft.adapt(copy.deepcopy(backbone), "stereo")
    for options in ({}, {"ensemble": True}, {"tiling": Tiling(strip_px=8, context_px=4, align_px=4)}):
        enhance(backbone, lr, **options)
        enhance(pair, lr, lr, **options)
    settings = LamSettings(steps=2, kernel_px=5)
    attribute(backbone, lr, patch=Patch(y_px=8, x_px=8, side_px=8), settings=settings)
    attribute(pair, lr, lr, patch=Patch(y_px=8, x_px=8, side_px=8), settings=settings)
    assert torch.equal(lr, before)
    scene = Example("a", ((255 * lr).byte(),), ((255 * image(3, (48, 64))[0]).byte(),))
    evaluate(backbone, [scene], protocol="single-image")
    assert torch.equal(scene.lr[0], (255 * before).byte())


# --- The image in an output
class Pair(NamedTuple):
    image: Tensor
    quality: float


@dataclass
class Result:
    image: Tensor
    quality: float


@pytest.mark.parametrize(
    ("output", "where"),
    [
        (torch.zeros(1), None),
        (torch.zeros(1), 0),
        ((torch.zeros(1), 2.0), 0),
        ([2.0, torch.zeros(1)], -1),
        (Pair(torch.zeros(1), 2.0), 0),
        (Result(torch.zeros(1), 2.0), "image"),
    ],
    ids=str,
)
def test_the_image_in_an_output_is_found_and_replaced_in_a_copy(output: Any, where: str | int | None) -> None:
    assert torch.equal(image_in(output, where), torch.zeros(1))
    changed = with_image(output, where, torch.ones(1))
    assert type(changed) is type(output)
    assert torch.equal(image_in(changed, where), torch.ones(1))
    assert torch.equal(image_in(output, where), torch.zeros(1))
