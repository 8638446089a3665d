"""Every call on a network in torch's and accelerate's wrappers works, or is refused before anything is touched."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import lowpeft
from lowpeft import LowpeftError, PlanError, StereoModel
from states import assert_same_tensors, randomise_adapters, tensors
from unfamiliar import Plain

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

X = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


def prepared(network: nn.Module) -> nn.Module:
    return Accelerator(cpu=True).prepare(network)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda network: torch.compile(network, backend="eager"),
    "compiled in place": in_place,
    "DataParallel": nn.DataParallel,
    "DataParallel of compile": lambda network: nn.DataParallel(torch.compile(network, backend="eager")),
    "AveragedModel": AveragedModel,
    "accelerate": prepared,
}
"""Seen through both ways."""

FIXED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "DataParallel of DDP": lambda network: nn.DataParallel(DistributedDataParallel(network)),
}
"""Must be made after the network is adapted."""

LATER = {"DataParallel of compile", "compiled in place", "DataParallel of DDP"}
"""Combinations and variants of the others: in the slow tier."""


def each(wrappers: dict[str, Callable[[nn.Module], nn.Module]], later: Collection[str] = LATER) -> pytest.MarkDecorator:
    rows = [pytest.param(w, id=name, marks=[pytest.mark.slow] * (name in later)) for name, w in wrappers.items()]
    return pytest.mark.parametrize("wrap", rows)


every_wrapper, every_holder = each(WRAPPERS), each(WRAPPERS | FIXED)
# A compiled network is compiled anew in every test that runs it.
but_compiled = each(WRAPPERS, LATER | {"compile"})
holder_but_compiled = each(WRAPPERS | FIXED, LATER | {"compile"})


@pytest.fixture(autouse=True, scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DDP wants one."""
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network() -> Plain:
    torch.manual_seed(0)
    return Plain().eval()


@torch.no_grad()
def pair(model: nn.Module) -> Tensor:
    return torch.cat(model(X[:1], X[1:]))


@torch.no_grad()
def single(model: nn.Module) -> Tensor:
    return model(X)


BASE = single(network())

# --- wrapped, then adapted -------------------------------------------------------------------------------------------


@but_compiled
def test_a_wrapped_network_is_adapted_inside_and_starts_as_the_base(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(network())
    assert torch.equal(single(wrapped), BASE)
    stereo = lowpeft.adapt(wrapped, "stereo", every=1)
    assert isinstance(stereo, StereoModel)
    assert stereo.backbone is wrapped
    assert torch.equal(pair(stereo), BASE)
    assert not torch.equal(pair(randomise_adapters(stereo)), BASE)


@but_compiled
def test_adapters_of_single_images_give_the_wrapper_back(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(network())
    for recipe in ("spatial", "lora"):
        assert lowpeft.adapt(wrapped, recipe, name=recipe) is wrapped
    assert torch.equal(single(wrapped), BASE)
    assert not torch.equal(single(randomise_adapters(wrapped)), BASE)


@but_compiled
def test_a_file_from_a_wrapped_network_fits_the_bare_one_and_the_reverse(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    wrapped = randomise_adapters(lowpeft.adapt(wrap(network()), "stereo", every=1))
    lowpeft.save_adapter(wrapped, tmp_path)
    bare = lowpeft.load_adapter(network(), tmp_path)
    assert torch.equal(pair(bare), pair(wrapped))
    again = lowpeft.load_adapter(wrap(network()), tmp_path)
    assert torch.equal(pair(again), pair(wrapped))


@every_wrapper
def test_restore_leaves_the_wrapper_with_the_network_as_it_was(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(network())
    before = tensors(wrapped)
    stereo = randomise_adapters(lowpeft.adapt(wrapped, "stereo", every=1))
    pair(stereo)
    lowpeft.restore(stereo)
    assert torch.equal(single(wrapped), BASE)
    assert_same_tensors(tensors(wrapped), before)
    assert lowpeft.list_adapters(wrapped) == []


@every_wrapper
def test_plans_and_facts_of_a_wrapped_network_are_those_of_the_bare_one(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped, bare = wrap(network()), network()
    assert lowpeft.plan(wrapped, "stereo") == lowpeft.plan(bare, "stereo")
    assert lowpeft.describe(wrapped).facts == lowpeft.describe(bare).facts


# --- adapted, then wrapped -------------------------------------------------------------------------------------------


def adapted(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return wrap(randomise_adapters(lowpeft.adapt(network(), "stereo", every=1)))


ADAPTED = pair(randomise_adapters(lowpeft.adapt(network(), "stereo", every=1)))


@holder_but_compiled
def test_a_wrapped_adapted_network_computes_the_same(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.testing.assert_close(pair(adapted(wrap)), ADAPTED, rtol=0, atol=1e-6)


@holder_but_compiled
def test_settings_reach_the_network_in_the_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted(wrap)
    with lowpeft.disabled(model):
        assert torch.equal(pair(model), BASE)
    with lowpeft.using(model, {"default": 0.5}):
        half = pair(model)
    assert not torch.equal(half, BASE)
    assert not torch.allclose(half, ADAPTED)
    lowpeft.set_strength(model, 0.0)
    assert torch.equal(pair(model), BASE)


@every_holder
def test_an_adapter_is_saved_from_the_wrapper(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    lowpeft.save_adapter(adapted(wrap), tmp_path)
    torch.testing.assert_close(pair(lowpeft.load_adapter(network(), tmp_path)), ADAPTED, rtol=0, atol=0)


@holder_but_compiled
def test_the_wrapper_is_trained_and_the_base_stays(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted(wrap).train()
    lowpeft.check_trainable(model)
    base, before = tensors(model), lowpeft.adapter_state_dict(model)
    before = {name: tensor.clone() for name, tensor in before.items()}
    parameters = [p for _, p in lowpeft.adapter_parameters(model)]
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    sum(view.square().mean() for view in model(X[:1], X[1:])).backward()
    optimiser.step()
    assert_same_tensors(tensors(model), base)
    assert [n for n, t in lowpeft.adapter_state_dict(model).items() if torch.equal(t, before[n])] == []


@every_holder
def test_what_the_wrapper_holds_is_restored(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted(wrap)
    assert lowpeft.summary(model).trainable > 0
    assert torch.equal(single(lowpeft.restore(model)), BASE)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", FIXED.values(), ids=FIXED)
def test_adapters_below_a_wrapper_that_noted_the_parameters_are_refused(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    bare = network()
    lowpeft.save_adapter(lowpeft.adapt(network(), "spatial"), tmp_path)
    plan, wrapped = lowpeft.plan(bare, "spatial"), wrap(bare)
    before = copy.deepcopy(bare.state_dict())
    for act in (
        lambda: lowpeft.plan(wrapped, "spatial"),
        lambda: lowpeft.adapt(wrapped, "spatial"),
        lambda: lowpeft.inject(wrapped, plan),
        lambda: lowpeft.load_adapter(wrapped, tmp_path),
    ):
        with pytest.raises(LowpeftError, match="adapt the network first"):
            act()
    assert type(bare) is Plain
    assert all(p.requires_grad for p in bare.parameters())
    assert_same_tensors(dict(bare.state_dict()), before)


def mixed_precision(bare: nn.Module) -> nn.Module:
    return Accelerator(cpu=True, mixed_precision="bf16").prepare(bare)


def patched(bare: nn.Module) -> nn.Module:
    bare.forward = types.MethodType(lambda self, x: Plain.forward(self, x) * 2, bare)
    return bare


@pytest.mark.parametrize("recipe", ["stereo", "spatial", "lora"])
@pytest.mark.parametrize("replace", [mixed_precision, patched])
def test_a_forward_on_the_instance_is_refused_with_what_to_do(
    replace: Callable[[nn.Module], nn.Module], recipe: str
) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    model = replace(network())
    with pytest.raises(PlanError, match="adapt the network before its forward is replaced"):
        lowpeft.adapt(model, recipe)
    AcceleratorState._reset_state(True)


def test_mixed_precision_of_accelerate_after_adapting_trains_and_restores() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    bare = network()
    model = mixed_precision(lowpeft.adapt(bare, "stereo", every=1))
    sum(view.square().mean() for view in randomise_adapters(model)(X[:1], X[1:])).backward()
    assert all(p.grad is not None and p.grad.any() for _, p in lowpeft.adapter_parameters(model))
    assert torch.equal(single(lowpeft.restore(model)), BASE)
    AcceleratorState._reset_state(True)


def test_a_batch_of_scenes_is_split_by_scenes() -> None:
    """What DataParallel gives each device holds whole scenes, however many there are."""
    from lowpeft.core.attachment.views import ViewBatch

    batch = ViewBatch.of((torch.arange(3.0).view(3, 1, 1, 1), 10 + torch.arange(3.0).view(3, 1, 1, 1)))
    assert batch.batch.flatten().tolist() == [0, 10, 1, 11, 2, 12]
    parts = [ViewBatch(batch.scenes[:2], 2), ViewBatch(batch.scenes[2:], 2)]
    assert [p.batch.flatten().tolist() for p in parts] == [[0, 10, 1, 11], [2, 12]]
