"""Facts of the families against observation: every place of every family, and every block forward.

A kind that only records is attached at a place, and what it saw is compared with what the family says; block forwards
are compared with the blocks' own, and with a plain re-computation from the blocks' parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch import Tensor, nn

import lowpeft
import zoo
from lowpeft import PlanError
from lowpeft.core.attachment.slots import pieces_in, slots
from lowpeft.core.observation.blocks import block_problem
from lowpeft.core.planning.feature_sites import output_module
from lowpeft.families import TOKENS, added, find_places, get_block, recognise
from lowpeft.kinds import AdapterConfig, FeatureAdapter, TokenAdapter
from lowpeft.ports.attachment import Spot
from lowpeft.ports.layouts import ExtraTokens, Features, Layout, Size
from zoo import build, image_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")

ROWS = {row.name: row for row in (*zoo.FAMILIES, *(r for r in zoo.SPANDREL if r.name == "swinir_jpeg"))}


def places_of(root: nn.Module) -> dict[str, tuple[Spot, ...]]:
    found = recognise(root)
    assert found is not None
    return {name: find_places(root, found, name) for name in dict.fromkeys(p.name for p in found.family.places)}


FOUND = {name: places_of(build(name)) for name in ROWS}
PLACES = [(name, place) for name, found in FOUND.items() for place in found]
LATER = zoo.LATER | zoo.VARIANTS
"""Rows whose places are those of others, or of families that come later: they are in the slow tier."""

every_place = pytest.mark.parametrize(
    ("name", "place"), [pytest.param(*row, marks=pytest.mark.slow) if row[0] in LATER else row for row in PLACES]
)
BLOCKS = [name for name, found in FOUND.items() if any(p.attachment.block for named in found.values() for p in named)]

every_block = pytest.mark.parametrize("name", BLOCKS)
some_blocks = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in zoo.LATER else name for name in BLOCKS]
)
"""Those that come later are tried in the slow tier."""
# What planning says of a fork or of a dtype, and how views are counted, is code that all families share.
FEW = ("ipt", "nafnet", "swinir")
few_blocks = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FEW)) for n in BLOCKS]
)
Key = TypeVar("Key")


# --- Recording -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecorderConfig(AdapterConfig):
    kind: ClassVar[str] = "recorder"

    place: str = "attention"
    scene: int = 1

    @property
    def places(self) -> tuple[str, ...]:
        return (self.place,)

    @property
    def views(self) -> int:
        return self.scene


class Recorder(FeatureAdapter):
    """Adds nothing and keeps the features that it saw."""

    kind = "recorder"
    needs_rows = True

    def __init__(self, channels: int, config: RecorderConfig) -> None:
        super().__init__()
        self.channels = channels
        self.place = config.place
        self.gain = nn.Parameter(torch.zeros(()))
        self.seen: list[Features] = []

    def delta(self, features: Features) -> Tensor:
        self.seen.append(features)
        return features.values * self.gain


@dataclass(frozen=True, kw_only=True)
class TokensConfig(RecorderConfig):
    kind: ClassVar[str] = "toy_tokens"

    place: str = "tokens"


class Tokens(TokenAdapter):
    """Three keys and values from the mean colour of each image's own features; the gate starts at zero."""

    kind = "toy_tokens"

    def __init__(self, channels: int, config: TokensConfig) -> None:
        super().__init__()
        self.channels = channels
        self.place = config.place
        self.weight = nn.Parameter(torch.randn(2, 3, channels))
        self.gate = nn.Parameter(torch.zeros(channels))
        self.seen: list[Features] = []

    def tokens(self, features: Features) -> ExtraTokens:
        self.seen.append(features)
        mean = features.rows.mean((1, 2))[:, None]
        return ExtraTokens(self.weight[0] + mean, self.weight[1] - mean, self.gate)


def recorder(place: str, scene: int = 1) -> RecorderConfig:
    """The kind that records at a place."""
    return (TokensConfig if place == TOKENS else RecorderConfig)(place=place, scene=scene)


@pytest.fixture(autouse=True)
def tables(registries: None) -> None:
    """The toy kinds are known during a test."""
    lowpeft.register_adapter(RecorderConfig, Recorder)
    lowpeft.register_adapter(TokensConfig, Tokens)


def image_size(name: str) -> Size:
    """Twice the row's size where the network takes it, so that there are rows and windows enough to tell apart."""
    height, width = ROWS[name].input_px
    return (height, width) if ROWS[name].family == "ipt" else (2 * height, 2 * width)


def images(name: str) -> Tensor:
    shape = (2, ROWS[name].channels, *image_size(name))
    return ROWS[name].value_max * torch.rand(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def seen_by(root: nn.Module, x: Tensor) -> dict[str, Features]:
    """What the recorder at each module saw in one run."""
    recorders = {path: next(pieces_in(slot)) for path, _, slot in slots(root)}
    for recorder in recorders.values():
        recorder.seen.clear()
    root(x)
    assert all(len(r.seen) == 1 for r in recorders.values())
    return {path: r.seen[0] for path, r in recorders.items()}


def changed(before: Features, after: Features) -> Tensor:
    """The change of features as (N,H,W)."""
    return (after.rows - before.rows).abs().mean(-1)


def check_places(
    x: Tensor, places: Mapping[Key, Spot], see: Callable[[Tensor], Mapping[Key, Features]], pad_px: int = 0
) -> None:
    """Channels, batch, rows and columns are where the family says, by what is seen with and without changes of `x`."""
    before = see(x.clone())
    assert before.keys() == places.keys()
    other, top, left = x.clone(), x.clone(), x.clone()
    other[1] = x[1].flip(0)
    top[:, :, : x.shape[2] // 4] = x.flip(0)[:, :, : x.shape[2] // 4]
    left[:, :, :, : x.shape[3] // 4] = x.flip(0)[:, :, :, : x.shape[3] // 4]
    after = {"other": see(other), "top": see(top), "left": see(left)}
    for key, features in before.items():
        channels = features.values.shape[features.layout.channel_dim]
        assert (channels,) == places[key].shape
        assert features.values.shape[features.layout.batch_dim] == 2
        assert features.size is not None
        height, width = features.size
        assert height * (x.shape[3] + pad_px) == width * (x.shape[2] + pad_px)
        assert features.rows.shape == (2, height, width, channels)
        difference = changed(features, after["other"][key])
        assert not difference[0].any(), key
        assert difference[1].any(), key
        assert changed(features, after["top"][key]).mean((0, 2)).argmax() < height / 2, key
        assert changed(features, after["left"][key]).mean((0, 1)).argmax() < width / 2, key


PADS_PX = {"craft": 8}
"""Rows that pad every image, also one of whole windows, below and on the right."""


@pytest.mark.slow
@every_place
def test_a_place_gives_what_the_family_says(name: str, place: str) -> None:
    root, x = build(name), images(name)
    modules = dict(root.named_modules())
    places = {output_module(modules, p.path): p for p in places_of(root)[place]}  # of a Sequential, its last member
    with torch.no_grad():
        expected = image_of(root(x.clone()))
    plan = lowpeft.plan(root, recorder(place))
    assert {s.path: s.shape for s in plan.sites} == {path: p.shape for path, p in places.items()}
    lowpeft.inject(root, plan)
    with torch.no_grad():
        assert torch.equal(image_of(root(x.clone())), expected)
    check_places(x, places, lambda x: seen_by(root, x), PADS_PX.get(name, 0))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in {"craft", "dctlsa", "uformer"} | zoo.VARIANTS)) for n in FOUND],
)
@pytest.mark.slow
def test_all_places_together_give_what_the_family_says(name: str) -> None:
    root, x = build(name), images(name)
    modules, found = dict(root.named_modules()), places_of(root)
    places = {(output_module(modules, p.path), place): p for place, named in found.items() for p in named}
    with torch.no_grad():
        expected = image_of(root(x.clone()))
    for place in found:
        lowpeft.adapt(root, recorder(place), name=place)
    recorders = {(path, r.place): r for path, _, slot in slots(root) for r in pieces_in(slot)}

    @torch.no_grad()
    def see(x: Tensor) -> dict[tuple[str, str], Features]:
        for adapter in recorders.values():
            adapter.seen.clear()
        out = image_of(root(x))
        assert torch.equal(out, expected) or not torch.equal(x, images(name))
        return {key: adapter.seen[0] for key, adapter in recorders.items()}

    check_places(x, places, see, PADS_PX.get(name, 0))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FEW)) for n in FOUND])
def test_the_number_of_views_reaches_every_place(name: str) -> None:
    model: nn.Module = build(name)
    for place in places_of(model):
        model = lowpeft.adapt(model, recorder(place, scene=2), name=place)
    left, right = images(name)[:1], images(name)[1:]
    with torch.no_grad():
        model(left, right)
    assert {f.views for _, _, slot in slots(model) for piece in pieces_in(slot) for f in piece.seen} == {2}


# --- Block forwards --------------------------------------------------------------------------------------------------


class Stub:
    """Adapters of which each does one thing, a function of the features."""

    def __init__(self, **deltas: Callable[[Tensor], Tensor]) -> None:
        self.deltas = deltas

    def wants(self, port: str) -> bool:
        return port in self.deltas

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        return self.deltas[port](values) if port in self.deltas else None


def blocks_of(root: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every block with the name of its forward."""
    found = [p for places in places_of(root).values() for p in places]
    return {p.path: (root.get_submodule(p.path), p.attachment.block) for p in found if p.attachment.block is not None}


UNSHIFTED = {"ipt", "nafnet", "kbnet_s", "hitsrf", "hitsir", "hitsng"}


def shifts(block: Any) -> bool:
    shift = getattr(block, "shift_size", getattr(block, "shifted", False))
    return any(shift) if isinstance(shift, (tuple, list)) else bool(shift)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@some_blocks
@torch.no_grad()
def test_a_block_forward_without_adapters_is_bit_equal(name: str) -> None:
    blocks = blocks_of(build(name))
    if name not in UNSHIFTED:
        assert {shifts(block) for block, _ in blocks.values()} == {True, False}
    for path, (block, forward) in blocks.items():
        assert block_problem(block, get_block(forward)) is None, path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@few_blocks
def test_a_network_of_another_dtype_is_planned(name: str, dtype: torch.dtype) -> None:
    """Even SwinIR in half precision, which runs at its own size only: the mask for others is float32."""
    assert lowpeft.plan(build(name).to(dtype), RecorderConfig()).sites


@some_blocks
@torch.no_grad()
def test_zero_at_every_port_of_every_block_leaves_the_network_bit_equal(name: str) -> None:
    """At another size than the blocks' own, with every port's features computed."""
    root, x = build(name), images(name)
    expected = image_of(root(x.clone()))
    for block, forward in blocks_of(root).values():
        f = get_block(forward)
        zeros = Stub(**{port: torch.zeros_like for port in f.ports if port != TOKENS})
        block.forward = lambda *args, _b=block, _f=f, _z=zeros, **kwargs: _f.forward(_b, _z, *args, **kwargs)
    assert torch.equal(image_of(root(x.clone())), expected)


@dataclass(frozen=True)
class Parts:
    """Names of a block's parts, for a plain re-computation.

    `attention` and `mlp` are modules at the end of each branch, `other` what else lies between; `norms` are the norms
    in front of attention and MLP, `gains` the factors of the contributions.
    """

    attention: tuple[str, ...] = ("attn",)
    mlp: str = "mlp"
    other: tuple[str, ...] = ()
    norms: tuple[str | None, str | None] = ("norm1", "norm2")
    gains: tuple[str | None, str | None] = (None, None)


POST = Parts(attention=("norm1",), mlp="norm2", norms=(None, None))
PARTS = {
    "hat.hab": Parts(attention=("attn", "conv_block")),
    "swinir.block": Parts(),
    "swin2sr.block": POST,
    "swin2sr_transformers.layer": Parts(attention=("layernorm_before",), mlp="layernorm_after", norms=(None, None)),
    "timm_swin.block": Parts(),
    "timm_swin_v2.block": POST,
    "edt.block": Parts(attention=("proj",)),
    "ipt.encoder_layer": Parts(attention=("self_attn",), mlp="linear2"),
    "ipt.decoder_layer": Parts(
        attention=("self_attn",), mlp="linear2", other=("multihead_attn",), norms=("norm1", "norm3")
    ),
    "nafnet.block": Parts(attention=("conv3",), mlp="conv5", gains=("beta", "gamma")),
    "kbnet.block": Parts(attention=("conv3",), mlp="conv5", gains=("beta", "gamma")),
    "dctlsa.block": Parts(attention=("attn.proj", "attn.local"), norms=(None, None)),
    "craft.srwab": Parts(attention=("proj",)),
    "uformer.lewin": Parts(),
    "atd.layer": Parts(attention=("attn_win", "attn_atd", "attn_aca"), mlp="convffn"),
    **dict.fromkeys(("hitsrf.block", "hitsir.block", "hitsng.block"), POST),
}


@contextmanager
def silent(block: nn.Module, *names: str) -> Iterator[None]:
    """Give zeros in place of what these modules compute."""

    def muted(module: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = type(module).forward(module, *args, **kwargs)
            return (0 * output[0], *output[1:]) if isinstance(output, tuple) else 0 * output

        return forward

    modules = [block.get_submodule(name) for name in names]
    for module in modules:
        module.forward = muted(module)
    yield
    for module in modules:
        del module.forward


def bend(x: Tensor) -> Tensor:
    """What the toy adapters add: a function of each number, so that any layout will do."""
    return 0.3 * x + 0.1 * x.square()


def fill(block: nn.Module) -> None:
    """Larger weights than those of a new network, so that every branch counts."""
    for parameter in block.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.3)


def expected_with(block: Any, parts: Parts, port: str, x: Tensor, rest: tuple[Any, ...]) -> Tensor:
    """The block's output with `bend` at a port, from runs of the block itself with parts of it silenced."""

    def run(x: Tensor, *quiet: str) -> Tensor:
        with silent(block, *quiet):
            return first(block(x, *rest))

    at_mlp = port in ("mlp", "parallel", "parallel_raw")
    start = run(x, parts.mlp) if at_mlp else x
    inside = run(start, *parts.attention, *parts.other) if at_mlp else run(start, parts.mlp, *parts.other)
    contribution = inside - start
    norm, gain = parts.norms[at_mlp], parts.gains[at_mlp]
    factor = getattr(block, gain) if gain else torch.ones(())
    if port in ("mlp", "attention"):
        read = contribution / factor
    else:
        read = start if norm is None or port.endswith("raw") else getattr(block, norm)(start)
    end = start + contribution + factor * bend(read)
    return end if at_mlp else run(end, *parts.attention)


@every_block
@torch.no_grad()
def test_a_port_adds_where_it_says(name: str) -> None:
    done: set[tuple[str, bool]] = set()
    for block, forward in blocks_of(build(name)).values():
        if (forward, shifts(block)) in done:
            continue
        done.add((forward, shifts(block)))
        f = get_block(forward)
        fill(block)
        x, *rest = f.example(block)
        plain = first(block(x, *rest))
        for port in sorted(f.ports - {TOKENS}):
            found = first(f.forward(block, Stub(**{port: bend}), x, *rest))
            wanted = expected_with(block, PARTS[forward], port, x, tuple(rest))
            assert found.shape == plain.shape
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=lambda m, p=port: f"{p}: {m}")
            assert not torch.allclose(found, plain, rtol=1e-3, atol=1e-3), port


@few_blocks
def test_a_fork_of_a_block_is_refused_by_name(name: str) -> None:
    root = build(name)
    for block, _ in blocks_of(root).values():
        base = type(block)

        class Fork(base):
            def forward(self, *args: Any, _base: type = base, **kwargs: Any) -> Any:
                out = _base.forward(self, *args, **kwargs)
                return (out[0] + 1e-3, *out[1:]) if isinstance(out, tuple) else out + 1e-3

        block.__class__ = Fork
    with pytest.raises(PlanError, match=r"Fork\) .*largest difference .* the block forward"):
        lowpeft.plan(root, RecorderConfig())


@few_blocks
def test_a_fork_of_shifted_blocks_alone_is_refused(name: str) -> None:
    root = build(name)
    forks = [block for block, _ in blocks_of(root).values() if shifts(block)]
    for block in forks:
        base = type(block)

        def forward(self: nn.Module, *args: Any, _base: type = base, **kwargs: Any) -> Any:
            out = _base.forward(self, *args, **kwargs)
            return tuple(1.01 * o for o in out) if isinstance(out, tuple) else 1.01 * out

        block.__class__ = type(base.__name__, (base,), {"forward": forward})
    if forks:
        with pytest.raises(PlanError, match="largest difference"):
            lowpeft.plan(root, RecorderConfig(place="mlp"))


# --- Extra keys and values -------------------------------------------------------------------------------------------

WITH_TOKENS = [name for name, place in PLACES if place == TOKENS]


def plainly(attention: Any, tokens: ExtraTokens, images: int) -> Callable[..., Tensor]:
    """Window attention with extra tokens, written out with every score."""

    def scores_and_values(x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        windows, length, channels = x.shape
        heads = attention.num_heads
        q, k, v = attention.qkv(x).view(windows, length, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        bias = attention.relative_position_bias_table[index.view(-1)].view(length, length, heads).permute(2, 0, 1)
        scores = (q * attention.scale) @ k.transpose(-2, -1) + bias
        if mask is not None:
            scores = scores + mask.repeat(windows // len(mask), 1, 1)[:, None]
        extra = torch.stack([t.repeat_interleave(windows // images, 0) for t in tokens[:2]])
        ek, ev = extra.view(2, windows, -1, heads, channels // heads).transpose(2, 3)
        more = torch.cat((scores, (q * attention.scale) @ ek.transpose(-2, -1)), -1)

        def result(s: Tensor, values: Tensor) -> Tensor:
            return attention.proj((s.softmax(-1) @ values).transpose(1, 2).reshape(x.shape))

        return result(more, torch.cat((v, ev), 2)), result(scores, v)

    def forward(x: Tensor, mask: Tensor | None = None, rpi: Tensor | None = None) -> Tensor:
        index = attention.relative_position_index if rpi is None else rpi
        with_tokens, without = scores_and_values(x, index, mask)
        return without + tokens.gate * (with_tokens - without)

    return forward


class OneAdapter(Stub):
    """Fixed tokens, the same whatever the features."""

    def __init__(self, *tokens: ExtraTokens) -> None:
        super().__init__()
        self.given = list(tokens)

    def wants(self, port: str) -> bool:
        return port == TOKENS

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> list[ExtraTokens]:
        return self.given


def random_tokens(channels: int, images: int = 2) -> ExtraTokens:
    keys, values = torch.randn(2, images, 3, channels)
    return ExtraTokens(keys, values, torch.randn(channels))


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("name", ["hat", "swinir"])
@torch.no_grad()
def test_tokens_in_windows_equal_attention_written_out(name: str, grid: tuple[int, int]) -> None:
    root = build(name)
    for i in range(2):
        block: Any = root.layers[0].residual_group.blocks[i]
        fill(block)
        x_size = (4 * grid[0], 4 * grid[1])
        x, channels = torch.randn(2, x_size[0] * x_size[1], 12), 12
        mask = root.calculate_mask(x_size, torch.float32) if name == "hat" else None
        rest = (x_size, root.relative_position_index_SA, mask) if name == "hat" else (x_size,)
        tokens = random_tokens(channels)
        found = get_block(blocks_of(root)["layers.0.residual_group.blocks.0"][1]).forward(
            block, OneAdapter(tokens), x, *rest
        )
        plain = block(x, *rest)
        block.attn.forward = plainly(block.attn, tokens, images=2)
        torch.testing.assert_close(found, block(x, *rest), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@torch.no_grad()
def test_tokens_in_ipt_equal_attention_written_out(part: str) -> None:
    block: Any = build("ipt").get_submodule(f"body.{part}.layers.0")
    fill(block)
    f = get_block(f"ipt.{part}_layer")
    args, tokens, attention = f.example(block), random_tokens(36), block.self_attn
    found, plain = f.forward(block, OneAdapter(tokens), *args), block(*args)
    real = type(attention).forward

    def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor]:
        q, k, v = (
            w @ x[..., None] for w, x in zip(attention.in_proj_weight.chunk(3), (query, key, value), strict=True)
        )
        q, k, v = (t.squeeze(-1).view(*query.shape[:2], 2, -1) for t in (q, k, v))
        ek, ev = (t.transpose(0, 1).view(3, 2, 2, -1) for t in tokens[:2])
        scores = torch.einsum("qnhc,knhc->nhqk", q, torch.cat((k, ek))) / k.shape[-1] ** 0.5
        out = torch.einsum("nhqk,knhc->qnhc", scores.softmax(-1), torch.cat((v, ev))).flatten(2)
        without = real(attention, query, key, value)[0]
        return (without + tokens.gate * (attention.out_proj(out) - without),)

    attention.forward = forward
    torch.testing.assert_close(found, block(*args), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_the_order_of_adapters_with_tokens_does_not_matter() -> None:
    block = build("swinir").get_submodule("layers.0.residual_group.blocks.1")
    x, size = get_block("swinir.block").example(block)
    a, b = random_tokens(12, 1), random_tokens(12, 1)
    plain, both, swapped, only_a, only_b = (
        get_block("swinir.block").forward(block, OneAdapter(*tokens), x, size)
        for tokens in ((), (a, b), (b, a), (a,), (b,))
    )
    assert torch.equal(both, swapped)
    assert torch.equal(plain, block(x, size))
    assert not torch.allclose(only_a, only_b)


@pytest.mark.parametrize(
    "name", [n if n in ("hat", "ipt", "swinir") else pytest.param(n, marks=pytest.mark.slow) for n in WITH_TOKENS]
)
def test_tokens_of_one_image_stay_with_it_and_are_trained(name: str) -> None:
    root, x = lowpeft.adapt(build(name), TokensConfig()), images(name)
    with torch.no_grad():
        base = image_of(root(x.clone()))
    adapters = [piece for _, _, slot in slots(root) for piece in pieces_in(slot)]
    image_of(root(x.clone())).square().mean().backward()
    assert all(a.gate.grad is not None and a.gate.grad.any() for a in adapters)
    with torch.no_grad():
        for adapter in adapters:
            adapter.gate.fill_(1.0)
        out = image_of(root(x.clone()))
        assert not torch.equal(out, base)
        other = x.clone()
        other[1] = x[1].flip(0)
        assert torch.equal(image_of(root(other))[0], out[0])
        assert not torch.equal(image_of(root(other))[1], out[1])
        lowpeft.set_strength(root, 0.0)
        assert torch.equal(image_of(root(x.clone())), base)
    root.zero_grad()
    lowpeft.set_strength(root, 0.5)
    image_of(root(x.clone())).square().mean().backward()
    assert all(a.weight.grad is not None and a.weight.grad.flatten(1).any(1).all() for a in adapters)


def test_tokens_go_to_their_port_and_nothing_else_does() -> None:
    with pytest.raises(PlanError, match="these places take extra tokens for attention"):
        lowpeft.plan(build("hat"), RecorderConfig(place=TOKENS))
    with pytest.raises(PlanError, match="which these places do not take"):
        lowpeft.plan(build("hat"), TokensConfig(place="mlp"))
    with pytest.raises(PlanError, match="which these places do not take"):
        lowpeft.plan(build("hat"), TokensConfig(target="**.mlp"))
    with pytest.raises(PlanError, match="has no place 'tokens'"):
        lowpeft.plan(build("nafnet"), TokensConfig())


@pytest.mark.parametrize("shifted", [False, True])
def test_tokens_store_no_scores_for_the_backward_pass(shifted: bool) -> None:
    root = build("swinir").requires_grad_(False)
    block: Any = root.layers[0].residual_group.blocks[int(shifted)]
    block.mlp.requires_grad_(True)
    size, windows, heads, length, extra = (16, 16), 32, 2, 16, 3
    tokens = ExtraTokens(*(t.requires_grad_() for t in random_tokens(12)[:3]))
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = get_block("swinir.block").forward(block, OneAdapter(tokens), torch.randn(2, 256, 12), size)
    out.square().sum().backward()
    assert tokens.keys.grad is not None
    assert sizes
    assert max(sizes) < windows * heads * length * (length + extra)


@pytest.mark.parametrize(("count", "size"), [(16, (4, 4)), (12, None)])
@torch.no_grad()
def test_ipt_tokens_have_a_size_where_they_are_a_square(count: int, size: Size | None) -> None:
    sizes: list[Size | None] = []

    class Sizes(Stub):
        def wants(self, port: str) -> bool:
            return port != TOKENS

        def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> None:
            sizes.append(size)

    block = build("ipt").get_submodule("body.encoder.layers.0")
    get_block("ipt.encoder_layer").forward(block, Sizes(), torch.randn(count, 2, 36))
    assert set(sizes) == {size}


@pytest.mark.parametrize(
    "name", ["swinir", *(pytest.param(n, marks=pytest.mark.slow) for n in ("hat", "edt", "timm_swin_v2"))]
)
def test_what_a_refusal_of_a_fork_advises_works(name: str) -> None:
    root = build(name)
    for block, _ in blocks_of(root).values():
        base = type(block)
        block.__class__ = type(
            "Fork", (base,), {"forward": lambda self, *args, _base=base: 2 * _base.forward(self, *args)}
        )
    with pytest.raises(PlanError, match=r"(?i)without the family") as refusal:
        lowpeft.plan(root, "spatial")
    call = re.search(r"^    (lowpeft\.adapt\(.*\))$", str(refusal.value), re.MULTILINE)
    assert call is not None
    adapted = eval(call[1], {"lowpeft": lowpeft, "model": root})
    assert lowpeft.adapter_state_dict(adapted)


def test_what_is_added_leaves_the_residual_stream_its_dtype() -> None:
    """On CUDA autocast norms give float32 while the stream is bfloat16; tests/whole/test_gpu.py saw it go wrong."""

    class Zeros:
        def delta(self, port: str, values: Tensor, layout: Layout, size: object) -> Tensor:
            return torch.zeros_like(values)

    stream = torch.rand(1, 4, 6).bfloat16()
    found = added(stream, Zeros(), Layout.NLC, (2, 2), {"parallel": stream.float()})
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, stream)
