"""How are the global random generators left unchanged by a run?"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def kept_generators(module: nn.Module) -> Iterator[None]:
    """Restore the state of every global random generator on exit, so that runs of a module do not change it.

    The generators are torch's, on the CPU and on the CUDA devices of the module's parameters, Python's, and NumPy's if
    it is imported.
    """
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    numpy = getattr(sys.modules.get("numpy"), "random", None)
    drawn, others = random.getstate(), None if numpy is None else numpy.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(drawn)
        if numpy is not None:
            numpy.set_state(others)
