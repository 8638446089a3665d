"""Which base an adapter belongs to: class, structure and weights of the frozen network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import AdapterError
from ...ports.base import base_parameters
from ..attachment.copies import base_state, saved_buffers
from ..attachment.specialise import original_class

HALF = (torch.bfloat16, torch.float16)
OTHER_WEIGHTS = (
    "the structure is the same, the weights (or their dtype) differ: another checkpoint, or the other ones of a file "
    "with averaged (EMA) and raw weights"
)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What identifies a base.

    Attributes:
        model: Class name (import paths differ between copies of the same network, so they play no part).
        parameters: Their number.
        structure: SHA-256 over the names and shapes of all parameters.
        weights: SHA-256 over the names, dtypes and bytes of all parameters and floating-point buffers. Buffers that
            depend on the image size (`attn_mask*`) and those that a state dict leaves out, because the network computes
            them, do not count.
        indices: The same of the integer buffers that a state dict holds; single numbers, which count something, play no
            part. None in files that were written before this was recorded.
        rounded: `weights` with all floating-point tensors in half precision, by the name of the dtype, so that a
            network in half precision is known by the adapter of the original, and the other way round. None where it
            has not been computed.
    """

    model: str
    parameters: int
    structure: str
    weights: str
    indices: str | None = None
    rounded: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse values of other types, which a damaged file could hold.

        Raises:
            AdapterError: Naming the values.
        """
        texts = (self.model, self.structure, self.weights, "" if self.indices is None else self.indices)
        rounded = self.rounded if self.rounded is not None else {}
        well = isinstance(rounded, dict) and all(isinstance(t, str) for t in (*texts, *rounded, *rounded.values()))
        if type(self.parameters) is not int or not well:
            raise AdapterError(f"{(self.parameters, *texts, rounded)} is not a fingerprint")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def digest(tensor: Tensor) -> str:
    """A tensor's dtype, a space, and the SHA-256 of its shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(str(list(plain.shape)).encode() + b"\0", usedforsecurity=False)
    state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"{_name(plain.dtype)} {state.hexdigest()}"


def digests(root: nn.Module) -> dict[str, str]:
    """The digest of every tensor of the base."""
    return _digests({**dict(base_state(root)), **_index_buffers(root)})


def _digests(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, str]:
    def one(tensor: Tensor) -> str:
        return digest(tensor.detach().cpu().to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        return dict(zip(tensors, pool.map(one, tensors.values()), strict=True))


def _index_buffers(root: nn.Module) -> dict[str, Tensor]:
    """The integer buffers of the base that a state dict holds, without single numbers."""
    return {path: b for path, b in saved_buffers(root) if b.dim() and not b.is_floating_point()}


def fingerprint(root: nn.Module, tensors: dict[str, str] | None = None) -> Fingerprint:
    """The fingerprint of the base below `root`, adapted or not.

    Args:
        root: The network.
        tensors: Its `digests`, where they are known already.
    """
    shapes = {path: list(p.shape) for path, p in base_parameters(root)}
    known = digests(root) if tensors is None else tensors
    integers = _index_buffers(root).keys()
    return Fingerprint(
        model=original_class(root).__name__,
        parameters=sum(p.numel() for _, p in base_parameters(root)),
        structure=_sum(f"{path} {shape}" for path, shape in sorted(shapes.items())),
        weights=_sum_of({path: value for path, value in known.items() if path not in integers}),
        indices=_sum_of({path: value for path, value in known.items() if path in integers}),
    )


def with_rounded(base: Fingerprint, root: nn.Module) -> Fingerprint:
    """The fingerprint of a network with what it is in half precision."""
    state = dict(base_state(root))
    sums = {_name(dtype): _sum_of(_digests(state, dtype)) for dtype in HALF}
    return replace(base, rounded=sums)


def _sum_of(tensors: Mapping[str, str]) -> str:
    return _sum(f"{path} {value}" for path, value in sorted(tensors.items()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sum(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def fingerprint_from_dict(values: object) -> Fingerprint:
    """The inverse of `Fingerprint.as_dict`.

    Raises:
        AdapterError: These are not the values of a fingerprint.
    """
    try:
        return Fingerprint(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise AdapterError(f"the record of its base is not a fingerprint: {error}") from error


def compare(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """What differs between the fingerprint in a file and that of a network, as lines for people."""
    problems = []
    if expected.model != found.model:
        problems.append(f"the adapter was made for a {expected.model}, this network is a {found.model}")
    if expected.parameters != found.parameters:
        problems.append(f"its base has {expected.parameters:,} parameters, this network {found.parameters:,}")
    if expected.structure != found.structure:
        problems.append("names or shapes of the parameters differ")
    elif expected.weights != found.weights:
        problems.append(OTHER_WEIGHTS)
    elif None not in (expected.indices, found.indices) and expected.indices != found.indices:
        problems.append("the weights are the same, index buffers that the state dict holds differ")
    return problems


class Rounding(NamedTuple):
    """How a network and an adapter's base differ that have the same weights, one of them rounded.

    Attributes:
        text: For people.
        dtype: To which one of them is rounded.
    """

    text: str
    dtype: torch.dtype


def rounding_between(expected: Fingerprint, root: nn.Module) -> Rounding | None:
    """How a network and an adapter's base differ, if that is in precision alone; None if it is not.

    Args:
        expected: From an adapter file.
        root: The network. It or the base is rounded, whatever dtype it is held in, and the other one is the same when
            it is rounded.
    """
    state = dict(base_state(root))
    known = {**(expected.rounded or {}), _name(torch.float32): expected.weights}
    for dtype in (*HALF, torch.float32):
        sums = known.get(_name(dtype))
        if sums is None or sums != _sum_of(_digests(state, dtype)):
            continue
        held = {path: t.to(dtype).to(t.dtype) if t.is_floating_point() else t for path, t in state.items()}
        here = all(torch.equal(t, state[path]) for path, t in held.items())
        there = expected.weights in (sums, _sum_of(_digests(held, torch.float32)))
        if here and there:
            return Rounding("the adapter was made on the same weights in another dtype", dtype)
        if here:
            text = f"the adapter was made on weights of higher precision; here they are rounded to {_name(dtype)}"
            return Rounding(text, dtype)
        if there:
            text = f"the adapter was made on weights that were rounded to {_name(dtype)}; here they are not"
            return Rounding(text, dtype)
    return None
