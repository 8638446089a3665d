"""`lowpeft.optimize`: what it changes, when it does not, and with what it works together."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from spandrel.architectures.HAT.__arch.HAT import HAB
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import lowpeft
import zoo
from counting import kept_bytes
from lowpeft.core.attachment.record import record_of, unwrap
from lowpeft.core.attachment.specialise import facets_of
from states import randomise_adapters
from tiers import by_default

BLOCK = "layers.0.residual_group.blocks.1"
X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def hat() -> nn.Module:
    return zoo.build("hat").requires_grad_(False)


def adapted(recipe: Any = "spatial") -> nn.Module:
    torch.manual_seed(0)
    return randomise_adapters(lowpeft.adapt(hat(), recipe), std=0.02).train()


def gradients(model: nn.Module, output: Tensor | None = None) -> Tensor:
    """The gradients of all adapters, in one vector."""
    model.zero_grad()
    ((model(X) if output is None else output) ** 2).mean().backward()
    return torch.cat([p.grad.flatten() for _, p in lowpeft.adapter_parameters(model) if p.grad is not None])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def optimised(model: nn.Module) -> Any:
    found = record_of(unwrap(model)).optimised
    assert found is not None
    return found


# --- the call
def test_a_network_without_adapters_can_be_optimised_and_put_back() -> None:
    model, plain = hat(), hat()
    classes = [type(m) for m in model.modules()]
    assert lowpeft.optimize(model) is model
    with torch.no_grad():
        assert close(model(X), plain(X))
    text = str(lowpeft.summary(model))
    assert "optimised, memory='keep'" in text
    assert "blocks fused" in text
    assert lowpeft.list_adapters(model) == []
    for call in (lowpeft.merge, lowpeft.adapter_state_dict):
        with pytest.raises(lowpeft.PlanError, match="has no adapters"):
            call(model)
    assert lowpeft.optimize(model, None) is model
    assert [type(m) for m in model.modules()] == classes
    with torch.no_grad():
        assert torch.equal(model(X), plain(X))
    with pytest.raises(lowpeft.PlanError, match="no adapters"):
        lowpeft.summary(model)
    lowpeft.optimize(model, None)  # nothing to undo


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(lowpeft.PlanError, match=r"one of keep, rebuild, checkpoint, or None.*did you mean 'rebuild'"):
        lowpeft.optimize(hat(), "rebuilt")  # type: ignore[arg-type]


def test_another_mode_replaces_the_first() -> None:
    model = adapted()
    for memory in ("checkpoint", "keep", "rebuild"):
        lowpeft.optimize(model, memory)  # type: ignore[arg-type]
        assert optimised(model).memory == memory
        assert facets_of(model.get_submodule(BLOCK)).memory == memory


def test_wrappers_and_models_of_two_views_are_returned_as_they_came() -> None:
    stereo = lowpeft.adapt(hat(), "stereo", every=1)
    assert lowpeft.optimize(stereo) is stereo
    assert optimised(stereo).fused
    backbone = lowpeft.describe(hat(), scale=2)
    assert lowpeft.optimize(backbone) is backbone.module


def test_layouts_are_channels_last_and_come_back() -> None:
    model = adapted()
    before = {n: (p.clone(), p.stride(), id(p)) for n, p in model.named_parameters()}
    plain = gradients(model)
    lowpeft.optimize(model, channels_last=True)
    weight = model.get_submodule(BLOCK).conv_block.cab[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert close(gradients(model), plain)
    lowpeft.optimize(model, "rebuild", channels_last=True)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    lowpeft.optimize(model)  # without the layout
    assert {n: (p.stride(), id(p)) for n, p in model.named_parameters()} == {n: b[1:] for n, b in before.items()}
    lowpeft.optimize(model, channels_last=True)
    lowpeft.restore(model, "default")
    lowpeft.restore(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.stride() == before[name][1]


def test_a_failure_while_it_is_put_in_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowpeft.core.operations import classes

    model = adapted()
    plain = gradients(model)
    before = [(type(m), [p.stride() for p in m.parameters(recurse=False)]) for m in model.modules()]

    def fail(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        lowpeft.core.operations.optimizing,
        "install_optimisation",
        lambda root, found, undo: (classes.install_optimisation(root, found, undo), fail()),
    )
    with pytest.raises(KeyboardInterrupt):
        lowpeft.optimize(model, "rebuild", channels_last=True)
    assert [(type(m), [p.stride() for p in m.parameters(recurse=False)]) for m in model.modules()] == before
    assert torch.equal(gradients(model), plain)


# --- what stays as it is
def test_adapters_and_hooks_inside_of_attention_keep_a_block_as_it_is() -> None:
    inner = f"{BLOCK}.attn.proj"
    model = randomise_adapters(lowpeft.adapt(hat(), lowpeft.SpatialConfig(target=inner)), std=0.1).train()
    plain = gradients(model)
    lowpeft.optimize(model, "rebuild")
    assert close(gradients(model), plain)

    model, calls = lowpeft.optimize(hat()), []
    handle = model.get_submodule(inner).register_forward_hook(lambda *given: calls.append(1))
    with torch.no_grad():
        model(X)
        assert calls == [1]
        handle.remove()
        model(X)
    assert calls == [1]


def test_a_position_bias_that_is_trained_keeps_a_block_as_it_is() -> None:
    model = hat()
    model.get_submodule(f"{BLOCK}.attn").relative_position_bias_table.requires_grad_(True)
    lowpeft.optimize(model)
    model(X).square().mean().backward()
    assert model.get_submodule(f"{BLOCK}.attn").relative_position_bias_table.grad.any()


class Fork(HAB):
    """HAT's block with another sign."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return 2 * x - super().forward(x, *args)


class OwnLinear(nn.Linear):
    """A linear layer with an addition of one's own, which starts at zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.own * x[..., :1]


class Scaled(nn.Module):
    """Attention times a number that starts at 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(inner.__dict__)
        self._modules = dict(inner._modules)
        self._parameters = {**inner._parameters, "gamma": nn.Parameter(torch.ones(()))}
        self.__dict__["run"] = type(inner).forward

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.gamma * self.__dict__["run"](self, *args, **kwargs)  # type: ignore[no-any-return]


def fork_block(block: nn.Module) -> None:
    block.__class__ = Fork


def fork_linear(block: nn.Module) -> None:
    block.attn.qkv.__class__ = OwnLinear
    block.attn.qkv.own = nn.Parameter(torch.zeros(()))


def fork_attention(block: nn.Module) -> None:
    block.attn = Scaled(block.attn)


def fork_activation(block: nn.Module) -> None:
    class OfAllTokens(nn.GELU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.abs().mean() + 1)

    block.mlp.act = OfAllTokens()


@pytest.mark.parametrize(
    "fork", by_default([fork_attention], [fork_block, fork_linear, fork_attention, fork_activation])
)
def test_copies_of_the_code_compute_what_they_computed(fork: Callable[[nn.Module], None]) -> None:
    model, plain = hat(), hat()
    for network in (model, plain):
        fork(network.get_submodule(BLOCK))
    lowpeft.optimize(model)
    for network in (model, plain):
        for name, parameter in network.named_parameters():
            if name.endswith((".own", ".gamma")):
                parameter.data.fill_(0.5)
    x = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert close(model(x), plain(x))
    if fork in (fork_block, fork_attention):
        assert BLOCK not in optimised(model).fused
        (note,) = [n for n in lowpeft.summary(model).notes if BLOCK in n]
        assert "not fused" in note
        assert "differs by" in note


def test_blocks_whose_parts_differ_in_an_attribute_are_compared_one_by_one() -> None:
    model = hat()
    attention = model.get_submodule(BLOCK).attn

    def colder(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return type(attention).__mro__[1].forward(self, x, *args, **kwargs) * self.temperature  # type: ignore[attr-defined]

    own = type("Tempered", (type(attention),), {"forward": colder, "temperature": 1.0})
    for module in list(model.modules()):
        if type(module) is type(attention):
            module.__class__ = own
            module.temperature = 1.0
    attention.temperature = 3.0
    lowpeft.optimize(model)
    assert BLOCK not in optimised(model).fused
    assert len(optimised(model).fused) > 2


def test_masks_that_are_not_swins_keep_all_blocks_as_they_are() -> None:
    model, plain = hat(), hat()

    class Masked(type(model)):  # type: ignore[misc]
        def calculate_mask(self, *args: Any, **kwargs: Any) -> Tensor:
            mask = super().calculate_mask(*args, **kwargs).clone()
            mask[0, :, ::2] = -100.0
            return mask  # type: ignore[no-any-return]

    for network in (model, plain):
        network.__class__ = Masked
    lowpeft.optimize(model)
    assert not optimised(model).fused
    assert "not Swin's" in lowpeft.summary(model).notes[-1]
    x = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert close(model(x), plain(x))


# --- adapters that come, change and go
@pytest.mark.parametrize("memory", by_default(["rebuild"], ["keep", "rebuild", "checkpoint"]))
def test_adapters_are_added_switched_merged_and_removed_afterwards(memory: Any) -> None:
    torch.manual_seed(0)
    model = lowpeft.optimize(lowpeft.adapt(hat(), "spatial").train(), memory)
    lowpeft.adapt(model, "lora", name="second")
    randomise_adapters(model, std=0.02)
    plain = lowpeft.optimize(copy.deepcopy(model), None)
    assert close(gradients(model), gradients(plain))
    for using in ({"default": 0.5}, {"second": 1.0}, {}):
        with torch.no_grad(), lowpeft.using(model, using), lowpeft.using(plain, using):
            assert close(model(X), plain(X))
    lowpeft.merge(model, name="second")
    assert close(gradients(model), gradients(lowpeft.merge(plain, name="second") and plain), 1e-4)
    lowpeft.restore(model, "default")
    assert optimised(model).memory == memory
    assert lowpeft.list_adapters(model) == []


def test_a_recomputed_forward_keeps_its_setting() -> None:
    model = adapted()
    with lowpeft.using(model, {"default": 0.5}):
        plain = gradients(model)
    lowpeft.optimize(model, "checkpoint")
    with lowpeft.using(model, {"default": 0.5}):
        output = model(X)
    assert close(gradients(model, output), plain)
    with lowpeft.using(model, {"default": [0.5, 1.0]}):
        output = model(X)
    found = gradients(model, output)
    lowpeft.optimize(model, None)
    with lowpeft.using(model, {"default": [0.5, 1.0]}):
        assert close(found, gradients(model))


def test_copies_and_pickles_are_optimised_networks_of_their_own() -> None:
    model = lowpeft.optimize(adapted(), "rebuild", channels_last=True)
    expected = gradients(model)
    stream = io.BytesIO(pickle.dumps(model))
    for other in (copy.deepcopy(model), pickle.load(stream)):
        assert torch.equal(gradients(other), expected)
        lowpeft.restore(other)
        assert torch.equal(gradients(model), expected)


def test_adapters_are_saved_and_loaded(tmp_path: Path) -> None:
    model = lowpeft.optimize(adapted(), "rebuild", channels_last=True)
    lowpeft.save_adapter(model, tmp_path)
    loaded = lowpeft.load_adapter(lowpeft.optimize(hat()), tmp_path)
    with torch.no_grad():
        assert close(loaded(X), model(X))


def test_flags_that_were_set_after_optimising_stay() -> None:
    model = lowpeft.optimize(zoo.build("hat").train())
    model.eval().requires_grad_(False)
    lowpeft.optimize(model, None)
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    lowpeft.optimize(model.train().requires_grad_(True))
    lowpeft.adapt(model, "spatial")
    lowpeft.restore(model, "default")
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert optimised(model).fused


def test_layers_that_were_replaced_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3)).eval()
    lowpeft.optimize(model, channels_last=True)
    model[1] = nn.Identity()
    new = model[2].weight = nn.Parameter(torch.rand(3, 8, 1, 1))
    lowpeft.restore(model)
    assert model[2].weight is new
    assert new.is_contiguous()


def test_shared_memory_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    whole = torch.rand(16, 8, 3, 3)
    model[1].weight = nn.Parameter(whole[::2])
    model[0].weight.share_memory_()
    lowpeft.optimize(model, channels_last=True)
    assert model[0].weight.is_shared()
    assert model[1].weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


# --- memory
def test_forwards_without_a_backward_leave_nothing_behind() -> None:
    """An operation that keeps its own output (attention, sigmoid) would keep itself."""
    model = lowpeft.optimize(adapted(), "rebuild")
    kept: list[StorageWeakRef] = []
    handle = model.get_submodule(f"{BLOCK}.conv_block").register_forward_hook(
        lambda module, args, output: kept.append(StorageWeakRef(output.untyped_storage()))
    )
    model(X)
    handle.remove()
    gc.collect()
    assert [ref.expired() for ref in kept] == [True]


def test_what_backward_needs_may_not_change() -> None:
    for memory in ("keep", "rebuild"):
        model = lowpeft.optimize(adapted(), memory)  # type: ignore[arg-type]
        loss = model(X).mean()
        with torch.no_grad():
            for _, parameter in lowpeft.adapter_parameters(model):
                parameter.mul_(3)
        with pytest.raises(lowpeft.PlanError, match="changed in place"):
            loss.backward()


def test_statistics_are_not_updated_twice() -> None:
    stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(4)))
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), stages, nn.Conv2d(8, 3, 3, padding=1))
    lowpeft.optimize(model.eval(), "checkpoint")
    with pytest.raises(lowpeft.PlanError, match="batch norm in training mode"):
        model.train()(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("memory", "share"), by_default([("rebuild", 0.5)], [("keep", 0.8), ("rebuild", 0.5), ("checkpoint", 0.3)])
)
def test_less_is_kept(memory: Any, share: float) -> None:
    model = adapted()
    plain = kept_bytes(lambda: model(X).square().mean())[0]
    lowpeft.optimize(model, memory)
    assert kept_bytes(lambda: model(X).square().mean())[0] < share * plain


def test_a_users_checkpoint_around_rebuilding_keeps_its_inputs_alone() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Tensor:
            return checkpoint(self.inner, *args, use_reentrant=False)  # type: ignore[no-any-return]

    def wrapped(model: nn.Module) -> nn.Module:
        for group in model.layers:  # type: ignore[union-attr]
            blocks = group.residual_group.blocks
            for i in range(len(blocks)):
                blocks[i] = Checkpointed(blocks[i])
            group.residual_group.overlap_attn = Checkpointed(group.residual_group.overlap_attn)
        return model

    model = adapted()
    plain = gradients(model)
    figures = []
    for memory in ("checkpoint", "rebuild"):
        other = lowpeft.optimize(copy.deepcopy(model), memory)
        if memory == "rebuild":
            wrapped(other)
        figures.append(kept_bytes(lambda network=other: network(X).square().mean())[0])
        assert close(gradients(other), plain)
    assert figures[1] < 1.3 * figures[0]


@dataclass(frozen=True, kw_only=True)
class NoisyConfig(lowpeft.FeatureConfig):
    kind: ClassVar[str] = "noisy_in_training"

    @property
    def places(self) -> tuple[str, ...]:
        return ("attention",)


class Noisy(lowpeft.FeatureAdapter):
    """Multiplies by random numbers in training, by the plain function."""

    kind = "noisy_in_training"

    def __init__(self, channels: int, config: NoisyConfig) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))

    def delta(self, features: lowpeft.Features) -> Tensor:
        x = features.channels_last
        return features.from_channels_last(nn.functional.dropout(x, 0.5, self.training) * self.gain)


def test_random_numbers_are_drawn_again_alike() -> None:
    lowpeft.register_adapter(NoisyConfig, Noisy)
    try:
        model = adapted(NoisyConfig())
        torch.manual_seed(3)
        plain = gradients(model)
        lowpeft.optimize(model, "checkpoint")
        torch.manual_seed(3)
        assert close(gradients(model), plain)
    finally:
        lowpeft.unregister_adapter("noisy_in_training")


class InPlace(nn.Module):
    """A network of no family whose stages write to their input."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.ReLU(inplace=in_place), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()) for _ in range(4)
        )
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for stage in self.body:
            x = stage(x.clone())
        return self.tail(x)  # type: ignore[no-any-return]


def test_stages_that_write_to_their_input_cannot_run_again() -> None:
    torch.manual_seed(0)
    model = InPlace(in_place=True).eval()
    with pytest.raises(lowpeft.PlanError, match="changes its input in place"):
        lowpeft.optimize(model, "checkpoint")
    torch.manual_seed(0)
    model = lowpeft.adapt(InPlace(in_place=False).eval(), "spatial").train()
    randomise_adapters(model)
    plain = gradients(model)
    lowpeft.optimize(model, "checkpoint")
    assert optimised(model).blocks == {f"body.{i}" for i in range(4)}
    assert close(gradients(model), plain)


# --- together with torch
@pytest.mark.parametrize("memory", by_default(["checkpoint"], ["keep", "rebuild", "checkpoint"]))
def test_autocast(memory: Any) -> None:
    def run(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(X)
        return gradients(model, output.float())

    model = adapted()
    plain = run(model)
    assert close(run(lowpeft.optimize(model, memory)), plain, 0.03)


@pytest.mark.parametrize("memory", by_default(["checkpoint"], ["keep", "rebuild", "checkpoint"]))
def test_second_order_gradients_are_refused(memory: Any) -> None:
    model = lowpeft.optimize(adapted(), memory)
    parameters = [p for _, p in lowpeft.adapter_parameters(model)]
    with pytest.raises(lowpeft.PlanError, match="first-order"):
        torch.autograd.grad(model(X).mean(), parameters, create_graph=True)


@pytest.mark.parametrize("memory", by_default(["checkpoint"], ["keep", "rebuild", "checkpoint"]))
def test_several_forwards_and_a_second_backward(memory: Any) -> None:
    model = adapted()

    def total() -> Tensor:
        outputs = [model(X), model(X.flip(-1))]
        return sum(o.square().mean() for o in outputs)  # type: ignore[return-value]

    def run() -> Tensor:
        model.zero_grad()
        loss = total()
        loss.backward(retain_graph=True)
        loss.backward()
        return torch.cat([p.grad.flatten() for _, p in lowpeft.adapter_parameters(model)])

    plain = run()
    lowpeft.optimize(model, memory)
    assert close(run(), plain)


@pytest.mark.parametrize("memory", by_default(["checkpoint"], ["keep", "rebuild", "checkpoint"]))
def test_distributed_data_parallel(memory: Any, tmp_path: Path) -> None:
    model = adapted()
    plain = gradients(model)
    lowpeft.optimize(model, memory)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model.zero_grad()
        parallel = DistributedDataParallel(model)
        parallel(X).square().mean().backward()
    finally:
        dist.destroy_process_group()
    found = torch.cat([p.grad.flatten() for _, p in lowpeft.adapter_parameters(model) if p.grad is not None])
    assert close(found, plain)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "capture", [*(pytest.param(c, marks=pytest.mark.slow) for c in ("compile", "export")), "trace"]
)
def test_captured_networks(capture: str) -> None:
    model = lowpeft.optimize(adapted(), "rebuild")
    captures: dict[str, Callable[[], Any]] = {
        "compile": lambda: torch.compile(model, backend="aot_eager", fullgraph=True),
        "export": lambda: torch.export.export(model.eval(), (X,)).module(),
        "trace": lambda: torch.jit.trace(model.eval(), (X,), check_trace=False),
    }
    with torch.no_grad():
        expected = model(X)
    other = captures[capture]()
    with torch.no_grad():
        assert close(other(X), expected)
    if capture == "compile":
        assert close(gradients(model, other(X)), gradients(model))
