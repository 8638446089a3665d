"""Does a network have the structure and weights of an adapter's base? Compared by fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import AdapterError
from ...ports.base import base_parameters, original_class
from ..attachment.copies import base_state, identifying_tensors

LARGE = 2**20
"""Size in bytes from which a tensor is hashed in another thread; for smaller ones that costs more than it saves."""

HALF = (torch.bfloat16, torch.float16)
OTHER_STRUCTURE = "names or shapes of the parameters differ"
OTHER_WEIGHTS = (
    "the structure is the same, but the weights (or their dtype) differ: another checkpoint, or the other weights of a "
    "file with averaged (EMA) and raw ones"
)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Values that identify a base.

    Attributes:
        model: Class name without the module path, which differs between copies of the same network.
        parameters: Number of parameters.
        structure: SHA-256 of the names and shapes of all parameters.
        weights: SHA-256 of the names, dtypes, shapes and bytes of all parameters and floating-point buffers, without
            buffers that depend on the image size (`attn_mask*`) or are not in the state dict (the network computes
            them).
        indices: The same digest for the integer buffers in the state dict, without 0-D ones, which are counters. None
            in files written before this was recorded.
        rounded: `weights` with all floating-point tensors in half precision, by the name of the dtype. With it a
            network in half precision matches an adapter made at full precision, and vice versa. None if not computed.
    """

    model: str
    parameters: int
    structure: str
    weights: str
    indices: str | None = None
    rounded: dict[str, str] | None = None

    def __post_init__(self) -> None:
        """Refuse values of other types, which a damaged file could contain.

        Raises:
            AdapterError: A value has another type; the message contains all values.
        """
        texts = (self.model, self.structure, self.weights, "" if self.indices is None else self.indices)
        rounded = self.rounded if self.rounded is not None else {}
        well = isinstance(rounded, dict) and all(isinstance(t, str) for t in (*texts, *rounded, *rounded.values()))
        if type(self.parameters) is not int or not well:
            raise AdapterError(f"{(self.parameters, *texts, rounded)} is not a fingerprint")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def digest(tensor: Tensor) -> str:
    """Return a tensor's dtype, a space, and the SHA-256 of its shape and bytes; e.g. "float32 9f86d0…"."""
    plain = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(str(list(plain.shape)).encode() + b"\0", usedforsecurity=False)
    state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"{_name(plain.dtype)} {state.hexdigest()}"


def digests(root: nn.Module) -> dict[str, str]:
    """Return the digest of every tensor of the base, by path."""
    return _digests(dict(identifying_tensors(root)))


def _digests(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, str]:
    def rounded(tensor: Tensor) -> str:
        return digest(tensor.detach().cpu().to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)

    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        large = {path: pool.submit(rounded, tensor) for path, tensor in tensors.items() if tensor.nbytes >= LARGE}
        small = {path: rounded(tensor) for path, tensor in tensors.items() if path not in large}
        return {path: small[path] if path in small else large[path].result() for path in tensors}


def fingerprint(root: nn.Module, tensors: dict[str, str] | None = None) -> Fingerprint:
    """Return the fingerprint of the base of a network, adapted or not.

    Args:
        root: The network.
        tensors: Digests from `digests(root)`, if already computed.
    """
    parameters = dict(base_parameters(root))
    known = digests(root) if tensors is None else tensors
    buffers = {path: value for path, value in known.items() if path not in parameters}
    indices = {path: value for path, value in buffers.items() if not _dtype(value).is_floating_point}
    return Fingerprint(
        model=original_class(root).__name__,
        parameters=sum(p.numel() for p in parameters.values()),
        structure=_sum(f"{path} {list(parameters[path].shape)}" for path in sorted(parameters)),
        weights=_sum_of({path: value for path, value in known.items() if path not in indices}),
        indices=_sum_of(indices),
    )


def with_rounded(base: Fingerprint, root: nn.Module, before: Mapping[str, str]) -> Fingerprint:
    """Return a fingerprint with `rounded` computed from the network's tensors in half precision.

    Sums that the tensors no longer tell are left out: that of float16 if they were rounded to bfloat16 meanwhile.

    Args:
        base: The fingerprint.
        root: The network.
        before: Digests of its tensors when the fingerprint was taken.
    """
    state = dict(base_state(root))
    moved = {t.dtype for path, t in state.items() if path in before and t.dtype is not _dtype(before[path])}
    sums = {_name(dtype): _sum_of(_digests(state, dtype)) for dtype in HALF if moved <= {dtype}}
    return replace(base, rounded=sums)


def _sum_of(tensors: Mapping[str, str]) -> str:
    return _sum(f"{path} {value}" for path, value in sorted(tensors.items()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(value: str) -> torch.dtype:
    """Return the dtype in a value of `digest`."""
    dtype: torch.dtype = getattr(torch, value.split()[0])
    return dtype


def _sum(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(), usedforsecurity=False).hexdigest()


def fingerprint_from_dict(values: object) -> Fingerprint:
    """Return the fingerprint from the values of `Fingerprint.as_dict`.

    Raises:
        AdapterError: The values are not those of a fingerprint.
    """
    try:
        found = Fingerprint(**values)  # type: ignore[arg-type]
        if not (isinstance(found.model, str) and len(found.model) <= 1_000 and found.model.isprintable()):
            raise TypeError(f"its class is {found.model!r:.100}")
        return found
    except TypeError as error:
        raise AdapterError(f"the file's record of its base is not a fingerprint: {error}") from error


def compare(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """Return the differences between the fingerprint in a file and that of a network, as lines for people."""
    problems = []
    if expected.model != found.model:
        problems.append(f"the adapter was made for {expected.model}, this network is {found.model}")
    if expected.parameters != found.parameters:
        problems.append(f"its base has {expected.parameters:,} parameters, this network {found.parameters:,}")
    if expected.structure != found.structure:
        problems.append(OTHER_STRUCTURE)
    elif expected.weights != found.weights:
        problems.append(OTHER_WEIGHTS)
    elif None not in (expected.indices, found.indices) and expected.indices != found.indices:
        problems.append("the weights are the same, but integer buffers in the state dict differ")
    return problems


class Rounding(NamedTuple):
    """Difference in precision between a network and an adapter's base that otherwise have the same weights.

    Attributes:
        text: Description for people.
        dtype: Dtype that the weights of one of them are rounded to.
    """

    text: str
    dtype: torch.dtype


def rounding_between(expected: Fingerprint, root: nn.Module) -> Rounding | None:
    """Return the difference between a network and an adapter's base if they differ only in precision, else None.

    One of them has rounded weights, in whatever dtype they are stored; the other has the same weights once rounded.

    Args:
        expected: Fingerprint from an adapter file.
        root: The network.
    """
    state = dict(base_state(root))
    known = {**(expected.rounded or {}), _name(torch.float32): expected.weights}
    for dtype in (*HALF, torch.float32):
        sums = known.get(_name(dtype))
        if sums is None or sums != _sum_of(_digests(state, dtype)):
            continue
        rounded = {path: t.to(dtype).to(t.dtype) if t.is_floating_point() else t for path, t in state.items()}
        is_rounded = all(torch.equal(t, state[path]) for path, t in rounded.items())
        was_rounded = expected.weights in (sums, _sum_of(_digests(rounded, torch.float32)))
        if is_rounded and was_rounded:
            return Rounding("the adapter was made on the same weights in another dtype", dtype)
        if is_rounded:
            text = f"the adapter was made on weights of higher precision; here they are rounded to {_name(dtype)}"
            return Rounding(text, dtype)
        if was_rounded:
            text = f"the adapter was made on weights that were rounded to {_name(dtype)}; here they are not"
            return Rounding(text, dtype)
    return None
