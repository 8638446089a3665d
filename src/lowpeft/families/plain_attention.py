"""Attention modules that networks of no family have in common, with the port `tokens`; the prober offers them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import PlanError
from ..ports.base import original_class
from ..ports.layouts import Layout
from .base import TOKENS, BlockForward, Ports, register_block_forward
from .swin import noise
from .tokens import Windows, change, in_heads, multihead_change, of_qkv


def multihead_forward(  # noqa: PLR0913  (the arguments of torch's module)
    block: nn.Module,
    ports: Ports,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Run an `nn.MultiheadAttention`. Extra tokens have no effect on the weights that it returns.

    Args:
        block: Attention with one width of queries, keys and values.
        ports: Adapters of the module.
        query: As for torch's module, like all that follow; with adapters there must be a batch and no mask.
        key: See there.
        value: See there.
        key_padding_mask: See there.
        need_weights: See there.
        attn_mask: See there.
        average_attn_weights: See there.
        is_causal: See there.

    Raises:
        PlanError: An adapter acts, and there is a mask or no batch dimension.
    """
    b: Any = block
    attended, weights = nn.MultiheadAttention.forward(
        b, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
    )
    if not ports.wants(TOKENS):
        return attended, weights
    if query.dim() != 3 or key_padding_mask is not None or attn_mask is not None:
        raise PlanError("extra tokens act in nn.MultiheadAttention that is called with a batch and without masks")
    extras = ports.tokens(TOKENS, query, Layout.NLC if b.batch_first else Layout.LNC, None)
    query, key, value = (t.transpose(0, 1) if b.batch_first else t for t in (query, key, value))
    added = multihead_change(b, nn.Identity(), query, key, value, extras)
    return attended + (added.transpose(0, 1) if b.batch_first else added), weights


def multihead_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random queries, keys and values (4, 4, C)."""
    b: Any = block
    return tuple(noise(b.out_proj.weight, 3, 4, 4, b.embed_dim))


def qkv_forward(block: nn.Module, ports: Ports, x: Tensor, *more: Any, **named: Any) -> Tensor:
    """Run attention as vision transformers have it: `proj(softmax(q kᵀ / √d) v)`, with q, k and v from `qkv`.

    Args:
        block: Module with `qkv`, `proj` and `num_heads`.
        ports: Adapters of the module.
        x: Tokens (N, L, C).
        more: What the module itself takes too, e.g. a mask; with adapters None or False.
        named: The same by name.

    Raises:
        PlanError: An adapter acts, and there is a mask, say.
    """
    out: Tensor = original_class(block).forward(block, x, *more, **named)
    if not ports.wants(TOKENS):
        return out
    if any(each is not None and each is not False for each in (*more, *named.values())):
        raise PlanError("extra tokens act in attention that is called with tokens alone, without masks")
    return out + _qkv_change(block, ports, x)


def _qkv_change(block: Any, ports: Ports, x: Tensor) -> Tensor:
    extras = ports.tokens(TOKENS, x, Layout.NLC, None)
    return change([_parts(block, x)], lambda out: block.proj(out[0]), of_qkv(block.qkv), x, extras)


def _parts(block: Any, x: Tensor) -> Windows:
    query, key, value = in_heads(block.qkv(x), block.num_heads)
    return Windows(query, key, value, grid=(len(x), 1, 1), scale=query.shape[-1] ** -0.5)


def qkv_example(block: nn.Module) -> tuple[Any, ...]:
    """Return random tokens (2, 4, C)."""
    weight: Any = block.get_parameter("qkv.weight")
    return tuple(noise(weight, 1, 2, 4, weight.shape[1]))


MULTIHEAD = register_block_forward(
    BlockForward(
        name="torch.multihead", forward=multihead_forward, ports=frozenset({TOKENS}), example=multihead_example
    )
)
QKV = register_block_forward(
    BlockForward(name="plain.qkv", forward=qkv_forward, ports=frozenset({TOKENS}), example=qkv_example)
)


def plain_attention(module: nn.Module) -> BlockForward | None:
    """Return the block forward of a module that is plain attention, or None.

    A module with `qkv`, `proj` and `num_heads` is run, so it should be a copy: what it computes must be attention as in
    `qkv_forward`, without position bias, norms of keys and the like.
    """
    m: Any = module
    if original_class(module) is nn.MultiheadAttention:
        plain = m._qkv_same_embed_dim and m.bias_k is None and not m.add_zero_attn
        return MULTIHEAD if plain else None
    linear = [getattr(m, name, None) for name in ("qkv", "proj")]
    heads = getattr(m, "num_heads", None)
    if not all(isinstance(layer, nn.Linear) for layer in linear) or type(heads) is not int:
        return None
    try:
        (x,) = qkv_example(module)
        wanted = original_class(module).forward(module, x)
        found = m.proj(_parts(m, x).attended(None, None))
        same = F.mse_loss(found, wanted) <= 1e-10 * wanted.square().mean()
    except Exception:  # noqa: BLE001  (any error means another module)
        return None
    return QKV if bool(same) else None
