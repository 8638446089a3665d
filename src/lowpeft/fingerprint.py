"""Which base an adapter belongs to: class, structure and weights of the frozen network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attach import original_class
from .copies import base_state
from .errors import AdapterError
from .families import base_parameters


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What identifies a base.

    Attributes:
        model: Class name (import paths differ between copies of the same network, so they play no part).
        parameters: Their number.
        structure: SHA-256 over the names and shapes of all parameters.
        weights: SHA-256 over the names, dtypes and bytes of all parameters and floating-point buffers. Buffers that
            depend on the image size (`attn_mask*`), integer buffers (indices, counters) and those that a state dict
            leaves out, because the network computes them, do not count.
    """

    model: str
    parameters: int
    structure: str
    weights: str

    def __post_init__(self) -> None:
        """Refuse values of other types, which a damaged file could hold.

        Raises:
            AdapterError: Naming the values.
        """
        texts = (self.model, self.structure, self.weights)
        if type(self.parameters) is not int or not all(isinstance(t, str) for t in texts):
            raise AdapterError(f"{(self.parameters, *texts)} is not a fingerprint")

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def digest(tensor: Tensor) -> str:
    """A tensor's dtype, a space, and the SHA-256 of its shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    state = hashlib.sha256(str(list(plain.shape)).encode() + b"\0", usedforsecurity=False)
    state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"{str(plain.dtype).removeprefix('torch.')} {state.hexdigest()}"


def digests(root: nn.Module) -> dict[str, str]:
    """The digest of every tensor of the base."""
    tensors = dict(base_state(root))
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        return dict(zip(tensors, pool.map(digest, tensors.values()), strict=True))


def fingerprint(root: nn.Module, tensors: dict[str, str] | None = None) -> Fingerprint:
    """The fingerprint of the base below `root`, adapted or not.

    Args:
        root: The network.
        tensors: Its `digests`, where they are known already.
    """
    shapes = {path: list(p.shape) for path, p in base_parameters(root)}
    known = digests(root) if tensors is None else tensors
    return Fingerprint(
        model=original_class(root).__name__,
        parameters=sum(p.numel() for _, p in base_parameters(root)),
        structure=_sum(f"{path} {shape}" for path, shape in sorted(shapes.items())),
        weights=_sum(f"{path} {value}" for path, value in sorted(known.items())),
    )


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
        problems.append("the structure is the same, the weights (or their dtype) differ: another checkpoint")
    return problems
