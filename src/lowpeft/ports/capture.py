"""Is a forward being captured (traced, compiled, exported, or transformed by `torch.func`)?"""

from __future__ import annotations

import torch


def captured() -> bool:
    """Return whether the forward is being traced, compiled, exported or transformed by `torch.func` (vmap, jvp, grad).

    Python code must not branch on sizes then, and autograd functions of our own cannot be transformed.
    """
    return torch.compiler.is_compiling() or tracing() or torch._C._functorch.peek_interpreter_stack() is not None


def tracing() -> bool:
    """Return whether `torch.jit.trace` (which the older ONNX exporter uses) records the forward."""
    return torch._C._get_tracing_state() is not None
