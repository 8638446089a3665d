"""Kinds that scale, shift or replace single numbers of a layer, written from their formulas alone, with loops."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reference.kinds import back, rows


def ia3_on_outputs(weight: Tensor, scale: Tensor, **layer: int) -> Tensor:
    """Each output's row times 1 + scale."""
    scaled = [(1 + scale[number]) * row for number, row in enumerate(rows(weight, **layer))]
    return back(scaled, weight, **layer)


def ia3_on_inputs(weight: Tensor, scale: Tensor, *, transposed: bool, groups: int) -> Tensor:
    """Each input channel's part of the weight times 1 + scale; the inputs of a group are next to each other."""
    new = weight.clone()
    if transposed:
        for channel in range(weight.shape[0]):
            new[channel] *= 1 + scale[channel]
        return new
    inputs, outputs = weight.shape[1], weight.shape[0] // groups
    for output in range(weight.shape[0]):
        for number in range(inputs):
            new[output, number] *= 1 + scale[output // outputs * inputs + number]
    return new


def sparse(parameter: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """The parameter with a value added at each place of its flattened form."""
    flat = parameter.flatten().tolist()
    for place, value in zip(index.tolist(), values.tolist(), strict=True):
        flat[place] += value
    return torch.tensor(flat, dtype=parameter.dtype).view(parameter.shape)


def most_sensitive(squares: Mapping[str, Tensor], total: int, *, least: int, most: Mapping[str, int]) -> dict[str, set]:
    """The places that the largest squares of all have, with a least and a most number for each tensor."""
    chosen: dict[str, set[int]] = {name: set() for name in squares}
    ranked = sorted(
        ((value, name, place) for name, s in squares.items() for place, value in enumerate(s.flatten().tolist())),
        reverse=True,
    )
    for _, name, place in ranked:
        if len(chosen[name]) < least:
            chosen[name].add(place)
    for _, name, place in ranked:
        if sum(map(len, chosen.values())) < total and len(chosen[name]) < most[name]:
            chosen[name].add(place)
    return chosen


def attention(
    module: nn.MultiheadAttention, inputs: tuple[Tensor, Tensor, Tensor], scale: Tensor, shift: Tensor | None
) -> Tensor:
    """Attention of one head on (L,E) tensors, with the three projections scaled and shifted."""
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    width = module.embed_dim
    projected = []
    for number, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        part = slice(number * width, (number + 1) * width)
        y = x @ weight.T
        y = y if module.in_proj_bias is None else y + module.in_proj_bias[part]
        y = y * (1 + scale[part])
        projected.append(y if shift is None else y + shift[part])
    q, k, v = projected
    attended = (q @ k.T / width**0.5).softmax(-1) @ v
    out = attended @ module.out_proj.weight.T
    return out if module.out_proj.bias is None else out + module.out_proj.bias
