"""Is a forward being captured (traced, compiled or exported)?"""

from __future__ import annotations

import torch


def captured() -> bool:
    """Return whether the forward is being traced, compiled or exported; Python code must not branch on sizes then."""
    return torch.compiler.is_compiling() or tracing()


def tracing() -> bool:
    """Return whether `torch.jit.trace` (which the older ONNX exporter uses) records the forward."""
    return torch._C._get_tracing_state() is not None
