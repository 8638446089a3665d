"""Prefix tuning and VPT: their formulas in every family that has the place, counts, starts, files and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import Features, Layout, LoRAConfig, PlanError, PrefixConfig, VPTConfig
from lowpeft.backbones.networks.edt_parts import shift_mask
from lowpeft.families import TOKENS, Family, families, get_block, recognise, register_family
from lowpeft.kinds import VPT, Prefix, TokenAdapter
from lowpeft.ports.layouts import ExtraTokens, Size
from reference import tokens as reference
from reference.tokens import Part
from states import randomise_adapters
from zoo import FAMILIES, LATER, build, image, image_of

pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch", "no_figures")

CONFIGS = {"prefix": PrefixConfig(tokens=3), "vpt": VPTConfig(tokens=3)}
WITH = {f.name for f in families() if TOKENS in {p.name for p in f.places}}
ROWS = [row.name for row in FAMILIES if row.family in WITH]
WITHOUT = [row.name for row in FAMILIES if row.family not in WITH]


def each(names: Iterable[str], *soon: tuple[str, str]) -> pytest.MarkDecorator:
    """Networks and kinds; all but the pairs `soon` are in the slow tier."""
    rows = [(name, kind) for name in names for kind in CONFIGS]
    marks = [[] if row in soon else [pytest.mark.slow] for row in rows]
    return pytest.mark.parametrize(
        ("name", "kind"), [pytest.param(*row, marks=mark) for row, mark in zip(rows, marks, strict=True)]
    )


every_kind = pytest.mark.parametrize("kind", CONFIGS)
GATE = 0.7


def new(kind: str, channels: int) -> Any:
    adapter = {"prefix": Prefix, "vpt": VPT}[kind](channels, CONFIGS[kind])
    return adapter.double()


# --- formula ---------------------------------------------------------------------------------------------------------


class OnePort:
    """A token adapter, and what the port `attention` reads."""

    def __init__(self, adapter: TokenAdapter | None) -> None:
        self.adapter = adapter
        self.read: Tensor | None = None

    def wants(self, port: str) -> bool:
        return port == "attention" or (port == TOKENS and self.adapter is not None)

    def tokens(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> list[ExtraTokens]:
        return [self.adapter.tokens(Features(values, layout, size))]

    def delta(self, port: str, values: Tensor, layout: Layout, size: Size | None) -> Tensor | None:
        if port == "attention":
            rows = Features(values, layout, size).rows if size else values.transpose(0, 1)[:, None]
            self.read = rows.clone()


def attention_of(block: Any, name: str, adapter: TokenAdapter | None, args: tuple[Any, ...]) -> Tensor:
    """Attention's output (N,H,W,C) plus what else the branch adds; in blocks with a norm after it, in front of it."""
    ports, seen = OnePort(adapter), []
    norm = POST.get(name)
    hook = None if norm is None else getattr(block, norm).register_forward_pre_hook(lambda _, given: seen.append(given))
    with torch.no_grad():
        get_block(name).forward(block, ports, *args)
    if hook is None:
        return ports.read
    hook.remove()
    return seen[0][0].view(ports.read.shape)


POST = {"swin2sr.block": "norm1", "timm_swin_v2.block": "norm1", "swin2sr_transformers.layer": "layernorm_before"}

Plain = tuple[Callable[[Tensor], list[Tensor]], list[Part], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""Projection to q, k and v; parts; output projection; norm."""


def sides(value: Any) -> Size:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def with_table(attention: Any, window: Size, **options: Any) -> Part:
    bias = reference.position_bias(attention.relative_position_bias_table, window)
    return Part(attention.num_heads, window, scale=attention.scale, bias=bias, **options)


def swin(b: Any, args: Any, attention: str = "attn", qkv: str = "attn.qkv") -> Plain:
    a, window = getattr(b, attention), sides(b.window_size)
    part = with_table(a, window, shift=sides(b.shift_size))
    return lambda x: list(b.get_submodule(qkv)(x).chunk(3, -1)), [part], a.proj, b.norm1


def swin_v2(b: Any, args: Any) -> Plain:
    a, window = b.attn, sides(b.window_size)
    offset = torch.cat((a.q_bias, torch.zeros_like(a.q_bias), a.v_bias))
    part = cosine(a, a.cpb_mlp, a.num_heads, window, sides(b.shift_size))
    return lambda x: list((x @ a.qkv.weight.T + offset).chunk(3, -1)), [part], a.proj, nn.Identity()


def cosine(a: Any, mlp: nn.Module, heads: int, window: Size, shift: Size) -> Part:
    table = 16 * torch.sigmoid(mlp(a.relative_coords_table).view(-1, heads))
    factor = a.logit_scale.view(-1).clamp(max=math.log(100)).exp()
    return Part(heads, window, shift, cosine=factor, bias=reference.position_bias(table, window))


def swin2sr_hf(b: Any, args: Any) -> Plain:
    a, layers = b.attention.self, [getattr(b.attention.self, n) for n in ("query", "key", "value")]
    part = cosine(a, a.continuous_position_bias_mlp, a.num_attention_heads, sides(b.window_size), sides(b.shift_size))
    return lambda x: [layer(x) for layer in layers], [part], b.attention.output.dense, nn.Identity()


def uformer(b: Any, args: Any) -> Plain:
    part = with_table(b.attn, sides(b.win_size), shift=sides(b.shift_size))
    qkv = b.attn.qkv
    return lambda x: [qkv.to_q(x), *qkv.to_kv(x).chunk(2, -1)], [part], b.attn.proj, b.norm1


def edt(b: Any, args: Any) -> Plain:
    width = b.norm1.weight.shape[0] // 2 // b.attns[0].heads
    shifts = [(h // 2, w // 2) if b.shifted else (0, 0) for h, w in b.windows]
    parts = [Part(b.attns[0].heads, w, s, scale=width**-0.5) for w, s in zip(b.windows, shifts, strict=True)]
    return lambda x: list(b.qkv(x).chunk(3, -1)), parts, b.proj, b.norm1


def craft(b: Any, args: Any) -> Plain:
    parts = []
    for i, (name, a) in enumerate(zip("hv", b.attns, strict=True)):
        table, index = a.pos(args[2][f"biases_{name}"]), args[2][f"rpi_sa_{name}"]
        shift = (b.shift_size[i], b.shift_size[1 - i])
        part = Part(a.num_heads, (a.H_sp, a.W_sp), shift, a.scale, masked=args[3][i] is not None)
        part.bias = table[index].permute(2, 0, 1)
        parts.append(part)
    return lambda x: list(b.qkv(x).chunk(3, -1)), parts, b.proj, b.norm1


PLAIN: dict[str, Callable[[Any, Any], Plain]] = {
    "hat.hab": swin,
    "swinir.block": swin,
    "timm_swin.block": swin,
    "atd.layer": lambda b, args: swin(b, args, "attn_win", "wqkv"),
    "swin2sr.block": swin_v2,
    "timm_swin_v2.block": swin_v2,
    "swin2sr_transformers.layer": swin2sr_hf,
    "uformer.lewin": uformer,
    "edt.block": edt,
    "craft.srwab": craft,
}


def expected(block: Any, name: str, adapter: Any, args: tuple[Any, ...], rows: Tensor) -> Tensor:
    """What the adapter adds to attention's output of two images (N,H,W,C), from plain loops."""
    project, parts, proj, norm = PLAIN[name](block, args)
    if adapter.kind == "vpt":
        _, keys, values = project(norm(adapter.prompts[0]))
    else:
        keys, values = adapter.keys[0], adapter.values[0]
    early, results = name == "swin2sr_transformers.layer", []  # it pads before it shifts, timm after
    for own in norm(rows):
        maps = []
        for i, part in enumerate(parts):
            height, width = own.shape[:2]
            pad = (0, 0, 0, -width % part.window[1], 0, -height % part.window[0])
            back = tuple(-s for s in part.shift)
            rolled = F.pad(own, pad).roll(back, (0, 1)) if early else F.pad(own.roll(back, (0, 1)), pad)
            maps.append([t.chunk(len(parts), -1)[i] for t in project(rolled)])

        def output(attended: list[Tensor], height: int = height, width: int = width) -> Tensor:
            back = [
                a.roll(p.shift, (0, 1))[:height, :width] if early else a[:height, :width].roll(p.shift, (0, 1))
                for a, p in zip(attended, parts, strict=True)
            ]
            return proj(torch.cat(back, -1))

        results.append(reference.changed(maps, (keys, values), parts, output, GATE))
    return torch.stack(results)


def calls_of(root: nn.Module, x: Tensor) -> dict[str, tuple[nn.Module, str, tuple[Any, ...]]]:
    """The blocks with tokens, with the name of their forward and the arguments that the network calls them with."""
    calls = {}
    paths = {p.path: p.attachment for p in lowpeft.plan(root, "prefix").sites}
    for path, attachment in paths.items():
        block = root.get_submodule(path)

        def record(*args: Any, _p: str = path, _b: nn.Module = block, _n: str = attachment.block, **kwargs: Any) -> Any:
            calls[_p] = (_b, _n, (*args, *kwargs.values()))
            return type(_b).forward(_b, *args, **kwargs)

        block.forward = record
    with torch.no_grad():
        root(x)
    for path in paths:
        del root.get_submodule(path).forward
    return calls


def larger(root: nn.Module) -> nn.Module:
    """The network in float64, with weights so large that attention is far from uniform."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in root.double().parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return root


def shifted(block: Any) -> bool:
    shift = getattr(block, "shift_size", getattr(block, "shifted", False))
    return any(shift) if isinstance(shift, (tuple, list)) else bool(shift)


@each(
    [n for n in ROWS if n not in ("ipt", "swinir_3conv") and "features" not in n],
    *(("swinir", "prefix"), ("swin2sr", "vpt"), ("timm_swin", "prefix")),
)
@torch.no_grad()
def test_attention_with_tokens_is_the_formula_window_by_window(name: str, kind: str) -> None:
    root, done = larger(build(name)), set()
    for block, forward, args in calls_of(root, image(name, 2).double()).values():
        if shifted(block) in done:
            continue
        done.add(shifted(block))
        norm = getattr(block, "norm1", None) or block.layernorm_before
        adapter = new(kind, norm.weight.shape[0])
        adapter.gate.fill_(GATE)
        plain = attention_of(block, forward, None, args)
        found = attention_of(block, forward, adapter, args) - plain
        wanted = expected(block, forward, adapter, args, args[0].view(plain.shape))
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert done == {True, False}


@every_kind
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@torch.no_grad()
def test_global_attention_with_tokens_is_the_formula(part: str, kind: str) -> None:
    block: Any = larger(build("ipt")).get_submodule(f"body.{part}.layers.0")
    x, *rest = (t.double() for t in get_block(f"ipt.{part}_layer").example(block))
    adapter, attention = new(kind, x.shape[2]), block.self_attn
    adapter.gate.fill_(GATE)
    args = (x, *rest)
    plain = attention_of(block, f"ipt.{part}_layer", None, args)
    found = attention_of(block, f"ipt.{part}_layer", adapter, args) - plain
    weights = attention.in_proj_weight.chunk(3)
    normed, position = block.norm1(x), rest[-1]
    if kind == "vpt":
        extra = tuple(block.norm1(adapter.prompts[0]) @ w.T for w in weights[1:])
    else:
        extra = adapter.keys[0], adapter.values[0]
    one = Part(attention.num_heads, (1, len(x)), scale=(x.shape[2] // attention.num_heads) ** -0.5)
    for i in range(x.shape[1]):
        inputs = (normed[:, i] + position[:, i], normed[:, i] + position[:, i], normed[:, i])
        maps = tuple((t @ w.T)[None] for t, w in zip(inputs, weights, strict=True))
        wanted = reference.changed([maps], extra, [one], lambda out: attention.out_proj(out[0]), GATE)
        torch.testing.assert_close(found[i].reshape(wanted.shape), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@every_kind
def test_a_masked_uformer_masks_each_image_by_itself(kind: str) -> None:
    """Masks of images differ from window to window, unlike those of shifted windows."""
    root = larger(build("uformer"))
    block, forward, args = next(c for c in calls_of(root, image("uformer", 2).double()).values() if not shifted(c[0]))
    side = math.isqrt(args[0].shape[1])
    mask = (torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(3)) > 0.5).double()
    adapter = new(kind, args[0].shape[2])
    adapter.gate.data.fill_(GATE)
    both = attention_of(block, forward, adapter, (args[0], mask))
    for i in range(2):
        alone = attention_of(block, forward, adapter, (args[0][i : i + 1], mask[i : i + 1]))
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(both, attention_of(block, forward, adapter, (args[0],)))


@pytest.mark.slow
@torch.no_grad()
def test_a_craft_that_masks_its_shifted_windows_gets_tokens_too() -> None:
    """spandrel's copy passes no masks."""
    calls = calls_of(larger(build("craft")), image("craft").double()).values()
    block, forward, (x, size, params, _) = next(c for c in calls if shifted(c[0]))
    masks = [shift_mask(size, (a.H_sp, a.W_sp), like=x) for a in block.attns]
    adapter = new("vpt", x.shape[2])
    adapter.gate.fill_(GATE)
    plain = attention_of(block, forward, None, (x, size, params, masks))
    found = attention_of(block, forward, adapter, (x, size, params, masks)) - plain
    wanted = expected(block, forward, adapter, (x, size, params, masks), x.view(plain.shape))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_windows_that_timm_pads_get_tokens_too() -> None:
    root = larger(build("timm_swin"))
    for block, forward, args in list(calls_of(root, torch.rand(1, 3, 56, 72).double()).values())[:2]:
        adapter = new("vpt", args[0].shape[3])
        adapter.gate.fill_(GATE)
        assert args[0].shape[1] % 4
        found = attention_of(block, forward, adapter, args) - attention_of(block, forward, None, args)
        torch.testing.assert_close(found, expected(block, forward, adapter, args, args[0]), rtol=1e-9, atol=1e-11)


# --- whole networks --------------------------------------------------------------------------------------------------


@each(["swinir", "swin2sr", "uformer", "edt", "ipt"], ("swinir", "vpt"), ("swin2sr", "prefix"))
@torch.no_grad()
def test_images_do_not_mix(name: str, kind: str) -> None:
    root = randomise_adapters(lowpeft.adapt(build(name).double(), CONFIGS[kind]))
    x = image(name, 2).double()
    alone = torch.cat([image_of(root(x[i : i + 1].clone())) for i in range(2)])
    torch.testing.assert_close(image_of(root(x.clone())), alone, rtol=1e-10, atol=1e-10)


@every_kind
@pytest.mark.parametrize("name", ["hat", "swin2sr"])
@torch.no_grad()
def test_a_new_adapter_changes_no_bit_under_autocast(name: str, kind: str) -> None:
    root, x = build(name).requires_grad_(False), image(name)
    with torch.autocast("cpu", torch.bfloat16):
        base = image_of(root(x.clone()))
        adapted = lowpeft.adapt(root, CONFIGS[kind])
        assert torch.equal(image_of(adapted(x.clone())), base)
        randomise_adapters(adapted)
        assert image_of(adapted(x.clone())).isfinite().all()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("swinir", "**.qkv"),
        ("swin2sr", "**.qkv"),
        pytest.param("uformer", "**.to_kv", marks=pytest.mark.slow),
        pytest.param("ipt", "**.self_attn.in_proj_weight", marks=pytest.mark.slow),
        pytest.param("swin2sr_hf", "**.value", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_prompts_are_projected_with_the_adapted_weights(name: str, layer: str) -> None:
    """LoRA on the projection, merged or not, gives the same; without LoRA the prompts' keys are others."""
    root = build(name).double()
    lowpeft.adapt(root, CONFIGS["vpt"], name="tokens")
    lowpeft.adapt(root, LoRAConfig(target=layer, rank=2), name="lora")
    randomise_adapters(root)
    x = image(name).double()
    apart = image_of(root(x.clone()))
    lowpeft.merge(root, name="lora")
    torch.testing.assert_close(image_of(root(x.clone())), apart, rtol=1e-9, atol=1e-9)


@each(["swinir", "hat", "swin2sr", "timm_swin", "timm_swin_v2", "edt"], ("swinir", "prefix"), ("swin2sr", "vpt"))
@torch.no_grad()
def test_a_fused_block_with_tokens_is_not_fused(name: str, kind: str) -> None:
    x = image(name).double()
    root = randomise_adapters(lowpeft.adapt(larger(build(name)), CONFIGS[kind]).double(), std=1.0)
    wanted = image_of(root(x.clone()))
    lowpeft.optimize(root)
    torch.testing.assert_close(image_of(root(x.clone())), wanted, rtol=1e-9, atol=1e-9)
    with lowpeft.disabled(root):
        assert not torch.allclose(image_of(root(x.clone())), wanted, rtol=1e-6, atol=1e-6)


@every_kind
def test_every_tensor_is_trained_and_survives_a_file(kind: str, tmp_path: Path) -> None:
    root, x = lowpeft.adapt(build("swinir"), CONFIGS[kind]), image("swinir", 2)
    lowpeft.check_trainable(root, x)
    before = {name: p.detach().clone() for name, p in lowpeft.adapter_parameters(root)}
    optimiser = torch.optim.Adam([p for _, p in lowpeft.adapter_parameters(root)], lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        root(x).square().mean().backward()
        optimiser.step()
    assert [n for n, p in lowpeft.adapter_parameters(root) if torch.equal(p, before[n])] == []
    lowpeft.save_adapter(root, tmp_path)
    loaded = lowpeft.load_adapter(build("swinir"), tmp_path)
    assert torch.equal(loaded.eval()(x), root.eval()(x))


# --- counts, starts, refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("prefix", 2 * 3 * 180 + 1), ("vpt", 3 * 180 + 1)])
def test_number_of_parameters(kind: str, count: int) -> None:
    assert sum(p.numel() for p in new(kind, 180).parameters()) == count


def test_prompts_start_uniform_within_the_bound_of_the_paper() -> None:
    prompts = VPT(60, VPTConfig(tokens=500)).prompts
    bound = math.sqrt(6 / (3 * 1**2 + 60))
    assert 0.99 * bound < prompts.abs().max() <= bound
    assert prompts.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@every_kind
@pytest.mark.parametrize("tokens", [0, -1, 2.5, True])
def test_a_number_of_tokens_that_is_none_is_refused(kind: str, tokens: Any) -> None:
    with pytest.raises(PlanError, match=f"{kind} adapter: tokens must be .*1.*{tokens!r}"):
        type(CONFIGS[kind])(tokens=tokens)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LATER)) for n in WITHOUT])
def test_a_family_without_the_place_says_why(name: str) -> None:
    found = recognise(root := build(name))
    assert found is not None
    reason = found.family.without[TOKENS]
    for config in CONFIGS.values():
        with pytest.raises(PlanError) as refusal:
            lowpeft.adapt(root, config)
        assert str(refusal.value) == f"{found.family.title} has no place 'tokens': {reason}"


def test_every_family_has_the_place_or_a_reason() -> None:
    assert {f.name for f in families() if TOKENS in f.without} == {f.name for f in families()} - WITH


def test_a_network_of_no_known_family_is_refused_with_the_reason() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
            self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for stage in self.stages:
                x = x + stage(x)
            return self.last(x)

    with pytest.raises(PlanError, match="Plain has no place 'tokens': the network belongs to no known family"):
        lowpeft.plan(Plain().eval(), "vpt")


@every_kind
def test_modules_that_are_no_place_for_tokens_are_refused(kind: str) -> None:
    with pytest.raises(PlanError, match="give attention extra tokens, which these places do not take"):
        lowpeft.plan(build("swinir"), type(CONFIGS[kind])(target="**.mlp"))


def test_a_reason_for_a_place_that_the_family_has_is_refused(registries: None) -> None:
    swinir = next(f for f in families() if f.name == "swinir")
    place = next(p for p in swinir.places if p.name == "stage")
    family = Family(name="x", title="X", signature=(("x",),), places=(place,), without={"stage": "so"})
    with pytest.raises(PlanError, match="has the place 'stage', and a reason why it lacks it"):
        register_family(family)
