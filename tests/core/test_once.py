"""What adapting and loading do once, or not at all: counted, never timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from spandrel.architectures.HAT import HAT
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft.core.attachment.copies import identifying_tensors
from lowpeft.core.observation import describe, fingerprint, trial
from lowpeft.core.planning import plan
from lowpeft.core.planning.mixing import APART, is_known_apart, mixes_images
from lowpeft.core.planning.sites import Network
from lowpeft.families import recognise
from lowpeft.ports.base import all_buffers, all_modules, all_parameters, base_buffers, base_modules, base_parameters

# --- hashes of the base ----------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the tensor at each address was hashed."""
    counts: Counter[int] = Counter()
    digest = fingerprint.digest

    def counting(tensor: Tensor) -> str:
        counts[tensor.data_ptr()] += 1
        return digest(tensor)

    monkeypatch.setattr(fingerprint, "digest", counting)
    return counts


def of_base(network: nn.Module, hashed: Counter[int]) -> list[int]:
    return [hashed[tensor.data_ptr()] for _, tensor in identifying_tensors(network)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = zoo.build("hat")
    return lowpeft.save_adapter(lowpeft.adapt(network, "stereo"), tmp_path / "adapter")


def test_loading_hashes_every_tensor_of_the_base_once(saved: Path, hashed: Counter[int]) -> None:
    network = zoo.build("hat")
    lowpeft.load_adapter(network, saved)
    counts = of_base(network, hashed)
    assert counts == [1] * len(counts)
    assert sum(hashed.values()) == len(counts)


def test_loading_beside_another_adapter_hashes_the_base_once_more(saved: Path, hashed: Counter[int]) -> None:
    network = zoo.build("hat")
    lowpeft.adapt(network, "lora")
    hashed.clear()
    lowpeft.load_adapter(network, saved, name="loaded")
    assert set(of_base(network, hashed)) == {1}


def test_adapting_hashes_every_tensor_of_the_base_once_and_a_second_adapter_none(hashed: Counter[int]) -> None:
    network = zoo.build("hat")
    lowpeft.adapt(network, "spatial")
    assert set(of_base(network, hashed)) == {1}
    lowpeft.adapt(network, "lora", name="second")
    assert set(of_base(network, hashed)) == {1}


def test_large_tensors_are_hashed_like_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    network = zoo.build("hat")
    small = fingerprint.digests(network)
    monkeypatch.setattr(fingerprint, "LARGE", 64)
    assert list(fingerprint.digests(network).items()) == list(small.items())


# --- searches and runs -----------------------------------------------------------------------------------------------


def test_a_plan_recognises_the_family_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(trial, "recognise", lambda root: asked.append(root) or recognise(root))
    network = zoo.build("hat")
    lowpeft.plan(network, "spatial")
    assert asked == [network]


class Fork(HAT):
    """A copy of HAT's code outside its package."""


class Mixing(HAT):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out + out.mean(0)


def tiny(cls: type[HAT] = HAT) -> nn.Module:
    torch.manual_seed(0)
    return cls(img_size=8, depths=(2,) * 4, num_heads=(2,) * 4, embed_dim=12, window_size=4, squeeze_factor=1).eval()


def hooked() -> nn.Module:
    network = tiny()
    network.conv_first.register_forward_hook(lambda module, args, output: output + output.mean(0))
    return network


def patched() -> nn.Module:
    network = tiny()
    forward = network.conv_first.forward
    network.conv_first.forward = lambda x: forward(x) + forward(x).mean(0)
    return network


def with_statistics_of_the_batch() -> nn.Module:
    network = tiny()
    network.conv_first = nn.Sequential(network.conv_first, nn.BatchNorm2d(12, track_running_stats=False))
    return network


def traced() -> nn.Module:
    class Added(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv(x).mean(0)

    network = tiny()
    network.conv_first = torch.fx.symbolic_trace(Added(network.conv_first))
    return network


@pytest.mark.parametrize("make", [lambda: tiny(Mixing), hooked, patched, with_statistics_of_the_batch, traced])
def test_a_changed_copy_of_a_known_family_that_mixes_images_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(lowpeft.PlanError, match="mixes the images of a batch"):
        lowpeft.plan(make(), "stereo-only")


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """Networks that were run to see whether they mix images."""
    found: list[nn.Module] = []
    monkeypatch.setattr(plan, "mixes_images", lambda trial, sites: found.append(trial.root))
    return found


def test_a_forward_that_was_replaced_on_the_class_is_run(
    tested: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HAT, "forward", Mixing.forward)
    network = tiny()
    lowpeft.plan(network, "stereo-only")
    assert tested == [network]


def test_published_code_of_a_known_family_is_not_run(tested: list[nn.Module]) -> None:
    lowpeft.plan(tiny(), "stereo-only")
    lowpeft.plan(lowpeft.adapt(tiny(), "lora"), "stereo-only", name="second")
    assert tested == []


def test_other_code_of_a_known_family_is_run(tested: list[nn.Module]) -> None:
    network = tiny(Fork)
    lowpeft.plan(network, "stereo-only")
    assert tested == [network]


ROWS = [row for row in zoo.FAMILIES if row.family in APART]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name in zoo.LATER)) for row in ROWS]
)
def test_families_that_are_known_to_keep_images_apart_do(row: zoo.Network) -> None:
    root = row.build()
    attempt = trial.Trial(root)
    attempt.facts = describe.facts_of(root, attempt)
    assert is_known_apart(Network(root, attempt.facts, attempt))
    assert not mixes_images(attempt)


def test_every_family_of_that_table_is_tried() -> None:
    assert {row.family for row in ROWS} == APART


# --- walks -----------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Modules, parameters and buffers with two names, and children that are None."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential())
        self.b = nn.ModuleDict({"again": self.a[0], "other": nn.Linear(2, 2)})
        self.b["other"].weight = self.a[0].weight
        self.register_module("none", None)
        self.register_buffer("mean", self.a[1].running_mean)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("make", [Shared, lambda: zoo.build("hat"), lambda: torch.jit.script(nn.Linear(2, 2))])
def test_walks_are_those_of_torch(make: Callable[[], nn.Module]) -> None:
    root = make()
    for ours, theirs in (
        (base_modules, root.named_modules()),
        (all_modules, root.named_modules()),
        (base_parameters, root.named_parameters()),
        (all_parameters, root.named_parameters()),
        (base_buffers, root.named_buffers()),
        (all_buffers, root.named_buffers()),
    ):
        assert [(path, id(of)) for path, of in ours(root)] == [(path, id(of)) for path, of in theirs]


def test_walks_of_the_base_pass_over_the_adapters() -> None:
    network = zoo.build("hat")
    before = [list(walk(network)) for walk in (base_modules, base_parameters, base_buffers)]
    lowpeft.adapt(network, "spatial")
    assert [list(walk(network)) for walk in (base_modules, base_parameters, base_buffers)] == before
    assert [path for path, _ in all_modules(network)] == [path for path, _ in network.named_modules()]
    assert [path for path, _ in all_parameters(network)] == [path for path, _ in network.named_parameters()]
