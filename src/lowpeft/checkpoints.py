"""Reading the state dict in a checkpoint file, however it is wrapped. Code in a file is never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import LowpeftError

WRAPPERS = ("params_ema", "params-ema", "params", "model_state_dict", "state_dict", "model", "net", "ema")
"""Keys under which training code keeps a state dict, the better one first."""

HOLDERS = (
    "module",
    "model",
    "net",
    "network",
    "net_g",
    "netG",
    "generator",
    "backbone",
    "_orig_mod",
    "model_ema",
    "ema",
)
"""Names under which training code holds the network: DataParallel, Lightning, `torch.compile` and others."""

MOST_HOLDERS = 3
SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
HALF = (torch.float16, torch.bfloat16)

State = dict[str, Tensor]


def read_checkpoint(file: Path, *, allow_half: bool = False) -> State:
    """The tensors of a checkpoint's state dict.

    Args:
        file: A .safetensors file, or one of `torch.save`.
        allow_half: Take weights of half precision, as float32, instead of refusing them.

    Raises:
        LowpeftError: There is no such file, it is not a checkpoint of plain tensors, or its weights have half
            precision.
    """
    state = _state(_content(file))
    if not state:
        raise LowpeftError(f"{file} is not a checkpoint: it holds no tensors by name")
    half = [key for key, tensor in state.items() if tensor.dtype in HALF]
    if half and not allow_half:
        raise LowpeftError(
            f"{file} holds weights of half precision ({len(half)} of {len(state)} tensors, as {half[0]}: "
            f"{state[half[0]].dtype}): they were rounded, so an adapter made on them does not fit the "
            "original. Take the float32 file, or open this one as float32 with load_backbone(path, allow_half=True)"
        )
    return {key: tensor.float() if tensor.dtype in HALF else tensor for key, tensor in state.items()}


def unwrapped(state: State) -> Iterator[State]:
    """The state dict itself, then what stands below a name that training code holds a network by.

    A Lightning file may hold other networks beside it (of a loss, say): those tensors are left out.
    """
    layer = [state]
    for _ in range(MOST_HOLDERS + 1):
        yield from layer
        layer = [inner for outer in layer for inner in _below(outer)]


def _below(state: State) -> Iterator[State]:
    roots = dict.fromkeys(key.partition(".")[0] for key in state)
    names = list(roots) if len(roots) == 1 else [name for name in HOLDERS if name in roots]
    for name in names:
        inner = {key.removeprefix(f"{name}."): t for key, t in state.items() if key.startswith(f"{name}.")}
        if inner:
            yield inner


def _content(file: Path) -> Any:
    if file.is_dir():
        raise LowpeftError(f"no checkpoint file at {file}: it is a folder{_listed(file)}")
    if not file.is_file():
        raise LowpeftError(f"no checkpoint file at {file}")
    if not file.stat().st_size:
        raise LowpeftError(f"{file} is not a checkpoint of plain tensors: it is empty")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not what it should be
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise LowpeftError(
            f"{file} is not a checkpoint of plain tensors: {reason}. If you trust where it is from, convert it: "
            "state = torch.load(path, weights_only=False), find the state dict in it, and "
            "safetensors.torch.save_file(state_dict, 'network.safetensors')"
        ) from error


def _listed(folder: Path) -> str:
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES)
    return f" with {', '.join(files[:5])}" + ", …" * (len(files) > 5) if files else ""


def _state(content: Any) -> State:
    """The first state dict that is found under the usual keys."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner and len(content) == 1:
            inner = [v for v in content.values() if isinstance(v, Mapping)]
        if not inner:
            return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner[0]
    return {}
