"""Every adapter kind and every bundled recipe on every family's tiny network: the semantics that all of them obey.

The cases come from the tables of lowpeft and of `zoo`: a new kind, recipe, placement or family is tested at once.
"""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import (
    AdaLoRAConfig,
    AdaptFormerConfig,
    AdaptIRConfig,
    BitFitConfig,
    CoLoRAConfig,
    ConvpassConfig,
    DoRAConfig,
    FacTConfig,
    FishConfig,
    FullConfig,
    HoulsbyConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    LSTConfig,
    NormConfig,
    OFTConfig,
    PfeifferConfig,
    PlanError,
    PrefixConfig,
    SpatialConfig,
    SpectralConfig,
    SSFConfig,
    StereoConfig,
    StereoModel,
    VeRAConfig,
    VPTConfig,
)
from lowpeft.core.attachment.slots import pieces_in
from lowpeft.families import families, recognise
from lowpeft.kinds import AdapterConfig, TokenAdapter, WeightAdapter, get_kind, kinds
from lowpeft.kinds.roles import is_norm
from lowpeft.ports.base import SLOT
from lowpeft.recipes import Recipe, load_recipe
from states import assert_same_tensors, tensors
from zoo import Network, image_of

# spandrel's copy of NAFNet uses an old name in its own autograd function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning"),
    pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures"),
]

INJECT = importlib.import_module("lowpeft.core.operations.injection")
NEW = importlib.import_module("lowpeft.core.operations.new_adapters")
FAMILY = {family.name: family for family in families()}


# --- The cases -------------------------------------------------------------------------------------------------------


@functools.cache
def pristine(network: Network) -> nn.Module:
    """The network itself: read it, never write it."""
    torch.manual_seed(7)
    return network.build()


def fresh(network: Network) -> nn.Module:
    """The network's twin, for a test of its own."""
    return copy.deepcopy(pristine(network))


def last_layer(root: nn.Module) -> str:
    """The path of the last convolution or linear layer."""
    return [path for path, m in root.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]


def norm(network: Network) -> AdapterConfig:
    """The norms of a network; the biases of one that has none."""
    return NormConfig() if any(map(is_norm, pristine(network).modules())) else BitFitConfig()


def adapters(label: str, network: Network) -> tuple[AdapterConfig, ...]:
    """The adapter configs that a label of `LABELS` stands for."""
    if label in RECIPES:
        return load_recipe(label).adapters
    full = FullConfig(target=last_layer(pristine(network)))
    lora = LoRAConfig(target="**", rank=1)
    table: dict[str, tuple[AdapterConfig, ...]] = {
        "full": (full,),
        "dora": (DoRAConfig(target="**", rank=1),),
        "ssf": (SSFConfig(target="**"),),
        "vera": (VeRAConfig(target="**", rank=4),),
        "loha": (LoHaConfig(target="**", rank=1),),
        "lokr": (LoKrConfig(target="**", rank=1),),
        "oft": (OFTConfig(block=9),),
        "adalora": (AdaLoRAConfig(target="**", rank=1, initial_rank=1, alpha=100.0),),
        "colora": (CoLoRAConfig(target="**", rank=1),),
        "convpass": (ConvpassConfig(hidden=2),),
        "houlsby": (HoulsbyConfig(hidden=4),),
        "pfeiffer": (PfeifferConfig(hidden=8),),
        "adaptformer": (AdaptFormerConfig(hidden=8),),
        "ia3": (IA3Config(),),
        "bitfit": (BitFitConfig(),),
        "norm": (norm(network),),
        "lst": (LSTConfig(hidden=2),),
        "prefix": (PrefixConfig(tokens=2),),
        "vpt": (VPTConfig(tokens=2),),
        "fact": (FacTConfig(rank=2),),
        "adaptir": (AdaptIRConfig(hidden=4, gate_reduction=2),),
        "spectral": (SpectralConfig(hidden=2),),
        "fish": (FishConfig(target="**.weight", share=0.5),),
        "combination": (SpatialConfig(), StereoConfig(every=1), lora, full),
    }
    return table[label]


# Kinds have labels of their own, with few parameters; of the recipes, those that mix views are tried, and two that
# stand for the others. `stereo-only` is a part of `stereo`; `parallax-spatial` has `parallax` and `spatial`. Other
# placements of spatial adapters are ports: see tests/families/test_families.py.
RECIPES = ("lora", "parallax", "spatial", "stereo")
KINDS = tuple(kind.name for kind in kinds() if kind.name not in RECIPES)
LABELS = (*RECIPES, *KINDS, "combination")

TOKENS = [kind.name for kind in kinds() if issubclass(kind.module, TokenAdapter)]
"""Kinds for attention with a softmax over tokens; tests/kinds/test_tokens.py has the other families."""

NO_IMAGE = {"timm_swin", "timm_swin_v2"}
"""Families whose networks give features, so that there is no image for a side network to add to."""


def fits(label: str, network: Network) -> bool:
    """Whether a network has what a kind needs; elsewhere it is refused, see the tests of the kind."""
    if label in TOKENS:
        return any(place.name == "tokens" for place in FAMILY[network.family or ""].places)
    return label != "lst" or network.family not in NO_IMAGE


@dataclass(frozen=True)
class Case:
    """One recipe on one network."""

    network: Network
    label: str

    @property
    def adapters(self) -> tuple[AdapterConfig, ...]:
        return adapters(self.label, self.network)

    def adapt(self, root: nn.Module) -> nn.Module:
        """Attach the case's adapters."""
        return lowpeft.adapt(root, self.label if self.label in RECIPES else self.adapters)

    def __str__(self) -> str:
        return f"{self.network.name}-{self.label}"


CASES = [Case(network, label) for network in zoo.FAMILIES for label in LABELS if fits(label, network)]
COMBINATIONS = [case for case in CASES if case.label == "combination"]

# Kinds share ports: the arithmetic of every kind is tried on every network, what the ports do with one kind of each.
PORTS = [case for case in CASES if case.label in ("convpass", "combination", *TOKENS)]


LATER = zoo.LATER | zoo.VARIANTS | {"swin2sr", "timm_swin", "hat", "edt"}
"""Rows that add no mechanism to the others of `zoo.FAMILIES`, such as `swin2sr_hf`, `timm_swin_v2` and `swinir`.

HAT is the network of the demo and of most tests elsewhere; EDT has tests of its own.
"""

# What a kind does with a weight depends on the layer, not on the network around it, and `test_kinds.py` has layers of
# every sort; what it does with features depends on their layout, and the ports are in the combination, which takes
# every network. So a kind takes one of these networks, in turns, or none if another kind has its mechanism; the others
# come in the slow tier.
FEW = ("ipt", "nafnet", "rcan", "swinir")
IN_TURNS = ("dora", "vera", "adaptformer", "adaptir", "fish", "adalora", "full", "fact")
ON_FEW: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(KINDS, ()),
    **{kind: (FEW[i % len(FEW)],) for i, kind in enumerate(IN_TURNS)},
    **dict.fromkeys(("lora", "spatial"), ("ipt", "nafnet")),
    "stereo": ("nafnet", "swinir"),
    "convpass": ("ipt", "rcan"),
    "parallax": ("swinir",),
    "prefix": ("swinir",),
    "vpt": ("ipt",),
    "lst": ("nafnet",),
    "ssf": ("rcan",),
}
STEPS = {"adaptir": 3}
"""Steps of training by label, where two do not reach every parameter: one zero layer waits for another."""
CANCELLED = {"adaptir": tuple(get_kind("adaptir").module.zero_gradients)}
"""Parameters by label whose gradient is zero but for rounding, because what follows cancels them."""


def is_later(case: Case) -> bool:
    """Whether a case shows nothing that the others do not, and is in the slow tier."""
    return case.network.name in LATER or case.network.name not in ON_FEW.get(case.label, (case.network.name,))


# What changes an adapted network, copies it or stores it goes over its modules and tensors, whatever they compute: a
# network of images, one of tokens and one with an output of a class of its own stand for the others by default.
EXAMPLES = ("nafnet", "swinir", "swin2sr_hf")


def each(cases: list[Case], networks: tuple[str, ...] | None = None) -> pytest.MarkDecorator:
    """A test of every case; in the default tier only of these networks, if any are given."""
    later = [c for c in cases if is_later(c) or (networks is not None and c.network.name not in networks)]
    rows = [pytest.param(c, marks=pytest.mark.slow) if c in later else c for c in cases]
    return pytest.mark.parametrize("case", rows, ids=str)


every_case, every_port, every_combination = each(CASES), each(PORTS), each(COMBINATIONS)
example_port, example_combination = each(PORTS, (*EXAMPLES, "ipt")), each(COMBINATIONS, EXAMPLES)
every_network = pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=pytest.mark.slow) if n.name in LATER else n for n in zoo.FAMILIES],
    ids=lambda n: n.name,
)
example_network = pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=[] if n.name in EXAMPLES else pytest.mark.slow) for n in zoo.FAMILIES],
    ids=lambda n: n.name,
)

HAT = next(n for n in zoo.FAMILIES if n.name == "hat")
SWINIR = next(n for n in zoo.FAMILIES if n.name == "swinir")


# --- What the tests do with them -------------------------------------------------------------------------------------


def batch_for(network: Network) -> Tensor:
    """Two images, which serve as the two views of one pair: 2,C,H,W."""
    generator = torch.Generator().manual_seed(3)
    return network.value_max * torch.rand(2, network.channels, *network.input_px, generator=generator)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """What a network or `StereoModel` makes of two images. Copies go in, because some networks write their input."""
    if isinstance(model, StereoModel):
        return torch.cat([image_of(view) for view in model(x[:1].clone(), x[1:].clone())])
    return image_of(model(x.clone()))


@torch.no_grad()
def look(model: nn.Module, network: Network) -> Tensor:
    return run(model, batch_for(network).to(next(model.parameters()).dtype))


def base_of(model: nn.Module) -> nn.Module:
    return model.backbone if isinstance(model, StereoModel) else model


def train(model: nn.Module, network: Network, steps: int = 2) -> nn.Module:
    """Two steps of AdamW without weight decay, so that only a gradient can move a parameter, however small it is.

    Networks with new weights of 0.02 give some tokens of attention gradients of 1e-14.
    """
    parameters = [p for _, p in lowpeft.adapter_parameters(model)]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, eps=1e-16, weight_decay=0.0)
    x = batch_for(network)
    model.train()
    for step in range(steps):
        optimiser.zero_grad()
        out = run(model, x)
        generator = torch.Generator().manual_seed(step)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()  # far above the optimiser's epsilon
        optimiser.step()
    return model


@functools.cache
def training(case: Case) -> tuple[dict[str, Tensor], Tensor, nn.Module]:
    """The case's adapter parameters and output when new, and its network after `STEPS`, in eval mode: write none."""
    model = case.adapt(fresh(case.network))
    new = {name: p.detach().clone() for name, p in lowpeft.adapter_parameters(model)}
    return new, look(model, case.network), train(model, case.network, STEPS.get(case.label, 2)).eval()


def trained(case: Case) -> nn.Module:
    """The case's network after two steps, in eval mode: read it, never write it."""
    return training(case)[2]


@functools.cache
def trained_output(case: Case) -> Tensor:
    return look(trained(case), case.network)


@functools.cache
def base_output(network: Network) -> Tensor:
    return look(pristine(network), network)


def structure(root: nn.Module) -> dict[str, object]:
    """All that adapters could leave behind on the modules: identity, class, flags, attributes, members."""
    return {
        path: (id(m), type(m), m.training, set(m.__dict__), list(m._modules), list(m._parameters), list(m._buffers))
        for path, m in root.named_modules()
    } | {f"{name} (parameter)": (id(p), p.requires_grad) for name, p in root.named_parameters()}


@contextmanager
def untouched(root: nn.Module) -> Iterator[None]:
    """The block leaves no trace on the network."""
    before = structure(root), tensors(root)
    yield
    assert structure(root) == before[0]
    assert_same_tensors(tensors(root), before[1])


def mix_flags(root: nn.Module) -> nn.Module:
    """Training mode here and there, and every third parameter frozen."""
    for number, module in enumerate(root.modules()):
        module.training = number % 3 == 0
    for number, parameter in enumerate(root.parameters()):
        parameter.requires_grad_(number % 3 != 1)
    return root


# --- The tables ------------------------------------------------------------------------------------------------------


FLAT = {"craft", "dat"}
"""Rows whose position biases come from a LayerNorm over two channels: no small change before it passes through."""


def test_every_kind_is_in_a_case() -> None:
    assert {adapter.kind for case in CASES for adapter in case.adapters} == {kind.name for kind in kinds()}


def test_every_family_has_a_network() -> None:
    assert {network.family for network in zoo.ALL if network.family} == set(FAMILY)


@every_network
def test_a_network_is_recognised_as_its_family(network: Network) -> None:
    found = recognise(pristine(network))
    assert found is not None
    assert found.family.name == network.family


# --- Identity and training -------------------------------------------------------------------------------------------


@every_case
def test_a_new_adapter_changes_no_bit(case: Case) -> None:
    assert torch.equal(training(case)[1], base_output(case.network))


@example_network
def test_a_new_adapter_changes_no_bit_of_a_single_image(network: Network) -> None:
    x = batch_for(network)[:1]
    adapted = lowpeft.adapt(fresh(network), "spatial")
    with torch.no_grad():
        expected = image_of(pristine(network)(x.clone()))
        assert torch.equal(image_of(adapted(x.clone())), expected)


@every_case
def test_every_adapter_parameter_moves_in_two_steps(case: Case) -> None:
    before, _, model = training(case)
    after = dict(lowpeft.adapter_parameters(model))
    still = [name for name in before if torch.equal(before[name], after[name])]
    still = [name for name in still if not name.endswith(CANCELLED.get(case.label, ()))]
    assert [name for name in still if not (case.network.name in FLAT and ".pos." in name)] == []


@every_port
def test_training_changes_the_output(case: Case) -> None:
    assert not torch.equal(trained_output(case), base_output(case.network))


@example_port
def test_training_and_mode_flips_leave_every_base_tensor_bit_equal(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    before = tensors(pristine(case.network))
    for mode in (True, False, True):
        model.train(mode)
        look(model, case.network)
    assert_same_tensors(tensors(base_of(model)), before)


@example_combination
def test_mode_flips_change_no_tensor(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.train()
    model.eval()
    assert_same_tensors(model.state_dict(), before)


@example_combination
def test_only_adapters_are_in_training_mode_under_train(case: Case) -> None:
    model = case.adapt(fresh(case.network)).train()
    modes = {path: m.training for path, m in base_of(model).named_modules()}
    assert [path for path, training in modes.items() if training != (SLOT in path.split("."))] == []


@example_combination
def test_only_adapters_require_gradients(case: Case) -> None:
    root = base_of(case.adapt(fresh(case.network)))
    assert [n for n, p in root.named_parameters() if p.requires_grad != (SLOT in n.split("."))] == []


@example_port
def test_check_trainable_passes(case: Case) -> None:
    model, x = case.adapt(fresh(case.network)), batch_for(case.network)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    lowpeft.check_trainable(model, *(x.split(1) if isinstance(model, StereoModel) else (x,)))
    assert_same_tensors(model.state_dict(), before)
    assert all(p.grad is None for p in model.parameters())


# --- Files -----------------------------------------------------------------------------------------------------------


@example_port
def test_a_saved_adapter_on_a_fresh_base_gives_bit_equal_outputs(case: Case, tmp_path: Path) -> None:
    lowpeft.save_adapter(trained(case), tmp_path)
    loaded = lowpeft.load_adapter(fresh(case.network), tmp_path)
    assert torch.equal(look(loaded, case.network), trained_output(case))


@example_port
def test_the_file_holds_the_adapter_tensors_and_no_others(case: Case, tmp_path: Path) -> None:
    folder = lowpeft.save_adapter(trained(case), tmp_path)
    stored = load_file(folder / "adapter_model.safetensors")
    assert_same_tensors(stored, lowpeft.adapter_state_dict(trained(case)))
    buffers = [n for n, _ in trained(case).named_buffers() if SLOT in n.split(".")]
    assert len(stored) == sum(1 for _ in lowpeft.adapter_parameters(trained(case))) + len(buffers)


# --- Taking out, copying, moving -------------------------------------------------------------------------------------


@example_port
def test_restore_gives_the_same_object_as_it_was(case: Case) -> None:
    root = mix_flags(fresh(case.network))
    with untouched(root):
        model = train(case.adapt(root), case.network, steps=1)
        assert lowpeft.restore(model) is root


@example_combination
def test_adapted_modules_keep_their_class_for_isinstance(case: Case) -> None:
    root = fresh(case.network)
    classes = {path: type(m) for path, m in root.named_modules()}
    case.adapt(root)
    modules = dict(root.named_modules())
    assert all(isinstance(modules[path], cls) for path, cls in classes.items())


@example_combination
def test_a_deep_copy_trains_on_its_own(case: Case) -> None:
    original = trained(case)
    before = {name: t.clone() for name, t in original.state_dict().items()}
    twin = copy.deepcopy(original)
    assert torch.equal(look(twin, case.network), look(original, case.network))
    train(twin, case.network).eval()
    assert_same_tensors(original.state_dict(), before)
    assert not torch.equal(look(twin, case.network), look(original, case.network))


@example_combination
def test_a_pickled_model_computes_the_same(case: Case) -> None:
    loaded = pickle.loads(pickle.dumps(trained(case)))
    assert torch.equal(look(loaded, case.network), trained_output(case))


@example_combination
def test_a_pickled_model_can_be_restored(case: Case) -> None:
    loaded = pickle.loads(pickle.dumps(trained(case)))
    root = lowpeft.restore(loaded)
    assert {p: type(m) for p, m in root.named_modules()} == {
        p: type(m) for p, m in pristine(case.network).named_modules()
    }
    assert_same_tensors(tensors(root), tensors(pristine(case.network)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@example_combination
def test_a_new_adapter_changes_no_bit_after_a_move_to_another_dtype(case: Case, dtype: torch.dtype) -> None:
    base = fresh(case.network).requires_grad_(False).to(dtype)  # torch may choose another kernel for frozen weights
    try:
        expected = look(base, case.network)
    except RuntimeError as error:
        pytest.skip(f"{case.network.name} itself does not run in {dtype}: {error}")
    moved = case.adapt(fresh(case.network)).to(dtype)
    assert {p.dtype for _, p in lowpeft.adapter_parameters(moved)} == {dtype}
    assert torch.equal(look(moved, case.network), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@example_combination
def test_a_trained_adapter_works_after_a_move_to_another_dtype(case: Case, dtype: torch.dtype) -> None:
    base = fresh(case.network).to(dtype)
    try:
        expected = look(base, case.network)
    except RuntimeError as error:
        pytest.skip(f"{case.network.name} itself does not run in {dtype}: {error}")
    out = look(copy.deepcopy(trained(case)).to(dtype), case.network)
    assert out.dtype == expected.dtype
    assert out.isfinite().all()
    assert not torch.equal(out, expected)


@example_combination
def test_an_original_checkpoint_loads_into_an_adapted_network(case: Case) -> None:
    checkpoint = {
        name: t + 1 if t.is_floating_point() else t for name, t in pristine(case.network).state_dict().items()
    }
    root = base_of(case.adapt(fresh(case.network)))
    assert checkpoint.keys() <= root.state_dict().keys()
    result = root.load_state_dict(checkpoint, strict=False)
    assert result.unexpected_keys == []
    assert all(SLOT in key.split(".") for key in result.missing_keys)
    assert_same_tensors({name: root.state_dict()[name] for name in checkpoint}, checkpoint)


# --- Switching -------------------------------------------------------------------------------------------------------


@every_port
def test_disabled_is_the_base_bit_for_bit_and_ends_with_the_block(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    with lowpeft.disabled(model):
        assert torch.equal(look(model, case.network), base_output(case.network))
    assert torch.equal(look(model, case.network), trained_output(case))


@example_combination
def test_disabled_ends_with_an_exception(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    with pytest.raises(KeyError, match="out of the block"), lowpeft.disabled(model):
        raise KeyError("out of the block")
    assert torch.equal(look(model, case.network), trained_output(case))


@example_network
def test_a_disabled_stereo_backbone_takes_single_images(network: Network) -> None:
    model = lowpeft.adapt(fresh(network), "stereo")
    x = batch_for(network)[:1]
    with lowpeft.disabled(model), torch.no_grad():
        assert torch.equal(image_of(model.backbone(x.clone())), image_of(pristine(network)(x.clone())))


@example_combination
def test_strength_0_is_the_base_bit_for_bit(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    lowpeft.set_strength(model, 0)
    assert torch.equal(look(model, case.network), base_output(case.network))


@example_combination
def test_strength_1_is_the_trained_network_again(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    lowpeft.set_strength(model, 0.5)
    half = look(model, case.network)
    lowpeft.set_strength(model, 1)
    assert torch.equal(look(model, case.network), trained_output(case))
    assert not torch.equal(half, trained_output(case))


@example_network
def test_strength_one_half_adds_half_of_each_weight_change(network: Network) -> None:
    root = train(lowpeft.adapt(fresh(network), LoRAConfig(target="**", rank=1)), network)
    lowpeft.set_strength(root, 0.5)
    adapted = {path: m for path, m in root.named_modules() if SLOT in m._modules}
    assert adapted
    for path, module in adapted.items():
        for piece in pieces_in(module._modules[SLOT]):
            (tensor,) = piece.attachment.tensors
            halved = module._parameters[tensor] + piece.change({tensor: module._parameters[tensor]})[tensor] * 0.5
            assert torch.equal(getattr(module, tensor), halved), path


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), "1", True])
def test_a_strength_outside_0_to_1_is_refused(strength: object) -> None:
    model = lowpeft.adapt(fresh(SWINIR), "spatial")
    with pytest.raises(PlanError, match=r"0\.\.1"):
        lowpeft.set_strength(model, strength)


# --- Several adapters ------------------------------------------------------------------------------------------------

SITE, SITES = "layers.1.conv", {"norm": "layers.1.residual_group.blocks.0.norm1"}
SITE_INPUT = torch.randn(2, 12, 4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


ON_A_SITE = [
    pytest.param(kind.name, marks=[] if kind.name in ("stereo", "lora", "vera", "norm") else pytest.mark.slow)
    for kind in kinds()
    if kind.name not in (*TOKENS, "lst")
]
"""Kinds that add to what one module gives; those for attention and images are in tests/kinds/test_{tokens,lst}.py."""


def on_site(kind: str) -> AdapterConfig:
    """A config of that kind for one convolution of SwinIR, or a norm where the kind is for norms."""
    config = get_kind(kind).config(target=SITES.get(kind, SITE))
    return StereoConfig(target=SITE, every=1) if isinstance(config, StereoConfig) else config


def two_on_one_site(kind: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """SwinIR in float64 with the random adapters `a` and `b` on one module (`on_site`), and a call of it."""
    root = fresh(SWINIR).double()
    for name in "ab":
        lowpeft.adapt(root, on_site(kind), name=name)
    with torch.no_grad():
        for path, parameter in lowpeft.adapter_parameters(root):
            parameter.normal_(std=0.3)
            if path.endswith("no_match"):  # as in `states.randomise_adapters`
                parameter.fill_(-1e3)

    def call(**strengths: float) -> Tensor:
        for name in "ab":
            lowpeft.set_strength(root, strengths.get(name, 0.0), name=name)
        with torch.no_grad():
            return root.get_submodule(SITES.get(kind, SITE))(SITE_INPUT.clone())

    return root, call


@pytest.mark.parametrize("kind", ON_A_SITE)
def test_two_adapters_at_0_3_and_0_7_add_exactly(kind: str) -> None:
    _, call = two_on_one_site(kind)
    base, a, b = call(), call(a=1.0), call(b=1.0)
    wanted = 0.3 * (a - base) + 0.7 * (b - base)
    assert not torch.equal(a, b)
    assert (call(a=0.3, b=0.7) - base - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize("kind", ON_A_SITE)
def test_the_order_of_attachment_plays_no_part(kind: str) -> None:
    root, call = two_on_one_site(kind)
    both = call(a=1.0, b=1.0)
    state = {name: lowpeft.adapter_state_dict(root, name=name) for name in "ab"}
    other, call_other = two_on_one_site(kind)
    for name, from_name in ("ab", "ba"):
        lowpeft.load_adapter_state_dict(other, state[from_name], name=name)
    torch.testing.assert_close(call_other(a=1.0, b=1.0), both, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ON_A_SITE)
def test_removing_one_adapter_leaves_the_other(kind: str) -> None:
    root, call = two_on_one_site(kind)
    only_b = call(b=1.0)
    names_of_b = [name for name, _ in lowpeft.adapter_parameters(root, name="b")]
    assert lowpeft.restore(root, name="a") is root
    assert [name for name, _ in lowpeft.adapter_parameters(root)] == names_of_b
    with torch.no_grad():
        assert torch.equal(root.get_submodule(SITES.get(kind, SITE))(SITE_INPUT.clone()), only_b)


@example_network
def test_removing_both_adapters_leaves_the_base_as_it_was(network: Network) -> None:
    root = mix_flags(fresh(network))
    with untouched(root):
        lowpeft.adapt(root, "stereo", name="a")
        lowpeft.adapt(root, LoRAConfig(target="**", rank=1), name="b")
        lowpeft.restore(root, name="a")
        lowpeft.restore(root, name="b")


@example_network
def test_an_adapter_attached_to_a_stereo_model_keeps_it_one(network: Network) -> None:
    model = lowpeft.adapt(fresh(network), "stereo", name="a")
    assert lowpeft.adapt(model, LoRAConfig(target="**", rank=1), name="b") is model
    assert torch.equal(look(model, network), base_output(network))


# --- Merging ---------------------------------------------------------------------------------------------------------

ON_WEIGHTS = {
    label: {issubclass(get_kind(a.kind).module, WeightAdapter) for a in adapters(label, HAT)} for label in LABELS
}
"""Whether a label's adapters change weights: all of them, none, or some; it is the same on every network."""
MERGEABLE = [c for c in CASES if ON_WEIGHTS[c.label] == {True}]
UNMERGEABLE = [c for c in CASES if ON_WEIGHTS[c.label] == {False}]


@each(MERGEABLE)
def test_a_merged_network_is_bit_equal_to_the_adapted_one_and_has_nothing_of_it(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    expected = look(model, case.network)
    report = lowpeft.merge(model)
    assert report.kept == ()
    assert report.difference <= 1e-4 * case.network.value_max
    assert torch.equal(look(model, case.network), expected)
    assert {p: type(m) for p, m in model.named_modules()} == {
        p: type(m) for p, m in pristine(case.network).named_modules()
    }
    assert model.state_dict().keys() == pristine(case.network).state_dict().keys()


@each(UNMERGEABLE)
def test_merging_feature_adapters_is_refused(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    with untouched(model), pytest.raises(PlanError, match="nothing can be merged"):
        lowpeft.merge(model)


@example_combination
def test_merging_a_combination_keeps_the_feature_adapters(case: Case) -> None:
    model = copy.deepcopy(trained(case))
    report = lowpeft.merge(model)
    assert report.merged
    assert report.kept
    assert set(lowpeft.summary(model).by_kind) == {"spatial", "stereo"}
    assert torch.equal(look(model, case.network), trained_output(case))


# --- All or nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rcan", "edsr"])
def test_a_place_that_the_family_lacks_is_refused(name: str) -> None:
    root = mix_flags(fresh(next(n for n in zoo.FAMILIES if n.name == name)))
    with untouched(root), pytest.raises(PlanError, match="place"):
        lowpeft.adapt(root, AdaptFormerConfig(input="raw"))


SOME = [  # a refusal is planning's, and planning's code is one
    pytest.param(n, marks=[] if n.name in ("swin2sr_hf", "edsr") else pytest.mark.slow)
    for n in zoo.FAMILIES
    if n.name in ("hat", "swin2sr_hf", "timm_swin_v2", "edsr")
]

REFUSED: dict[str, Callable[[nn.Module], object]] = {
    "unknown recipe": lambda m: lowpeft.adapt(m, "stero"),
    "unknown override": lambda m: lowpeft.adapt(m, "stereo", evry=1),
    "pattern without a match": lambda m: lowpeft.adapt(m, LoRAConfig(target="no.such.layer")),
    "one good and one bad pattern": lambda m: lowpeft.adapt(m, LoRAConfig(target=["**", "no.such.layer"])),
    "stage out of range": lambda m: lowpeft.adapt(m, SpatialConfig(target="stage=17")),
    "every too large": lambda m: lowpeft.wrap_stereo(m, every=99),
    "reduction too large": lambda m: lowpeft.inject_spatial_adapters(m, reduction=10_000),
    "rank too large": lambda m: lowpeft.adapt(m, LoRAConfig(target="**", rank=100_000)),
    "second adapter bad": lambda m: lowpeft.adapt(m, [SpatialConfig(), LoRAConfig(target="no.such.layer")]),
    "two adapters on one place": lambda m: lowpeft.adapt(m, [SpatialConfig(), SpatialConfig()]),
    "train_also without a match": lambda m: lowpeft.adapt(m, "spatial", train_also=["no_such_layer"]),
    "name that is no identifier": lambda m: lowpeft.adapt(m, "spatial", name="a.b"),
    "empty folder": lambda m: lowpeft.load_adapter(m, "no-such-folder"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("network", SOME, ids=lambda n: n.name)
def test_a_refusal_leaves_the_network_untouched(network: Network, what: str) -> None:
    root = mix_flags(fresh(network))
    with untouched(root), pytest.raises(lowpeft.LowpeftError):
        REFUSED[what](root)


@functools.cache
def new(case: Case) -> nn.Module:
    """The case's network with new adapters: read it, never write it."""
    return case.adapt(fresh(case.network))


@pytest.mark.parametrize("what", [*REFUSED, "name taken"])
@pytest.mark.parametrize("label", ["stereo", "lora"])
def test_a_refusal_leaves_the_adapter_that_is_there_untouched(label: str, what: str) -> None:
    root = base_of(copy.deepcopy(new(Case(HAT, label))))
    calls = {**REFUSED, "name taken": lambda m: lowpeft.adapt(m, "spatial", name="default")}
    with untouched(root), pytest.raises(lowpeft.LowpeftError):
        calls[what](root)


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Let that function of core/operations/injection.py, or of new_adapters.py, raise in its `number`-th call."""
    home = INJECT if hasattr(INJECT, name) else NEW
    real, calls = getattr(home, name), []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise MemoryError("in the middle")
        return real(*args)

    monkeypatch.setattr(home, name, failing)


@pytest.mark.parametrize("function", ["_new_adapter", "_attach"])
@example_combination
def test_an_error_in_the_middle_of_attaching_leaves_the_network_untouched(
    case: Case, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = mix_flags(fresh(case.network))
    fail_at(monkeypatch, function, 3)
    with untouched(root), pytest.raises(MemoryError, match="in the middle"):
        case.adapt(root)


def test_an_error_at_the_very_end_of_attaching_leaves_the_network_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    root = mix_flags(fresh(HAT))
    fail_at(monkeypatch, "set_root_class", 1)
    with untouched(root), pytest.raises(MemoryError, match="in the middle"):
        lowpeft.adapt(root, "stereo")


def test_an_error_while_attaching_a_second_adapter_leaves_the_first_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lowpeft.adapt(fresh(HAT), "stereo")
    expected = look(model, HAT)
    fail_at(monkeypatch, "_attach", 3)
    with untouched(model), pytest.raises(MemoryError, match="in the middle"):
        lowpeft.adapt(model, LoRAConfig(target="**", rank=1), name="second")
    assert torch.equal(look(model, HAT), expected)


def test_an_error_while_loading_tensors_leaves_the_network_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowpeft.save_adapter(trained(Case(HAT, "stereo")), tmp_path)
    root = mix_flags(fresh(HAT))

    fail_at(monkeypatch, "fill", 1)
    with untouched(root), pytest.raises(MemoryError, match="in the middle"):
        lowpeft.load_adapter(root, tmp_path)


@example_port
def test_planning_leaves_the_network_untouched(case: Case) -> None:
    root = mix_flags(fresh(case.network))
    random_state = torch.get_rng_state()
    with untouched(root):
        plan = lowpeft.plan(root, Recipe(name="case", adapters=case.adapters))
    assert torch.equal(torch.get_rng_state(), random_state)
    planned = sum(site.parameters for site in plan.sites)
    assert planned == sum(p.numel() for _, p in lowpeft.adapter_parameters(trained(case)))
