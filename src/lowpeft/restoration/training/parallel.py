"""Distributed training: the process group, the samples of each process, and the averaging of gradients.

Accelerate sets up processes, devices and back ends. `accelerate launch` or `torchrun` starts several processes;
otherwise there is one.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import TrainingError

LONGEST_WAIT = timedelta(hours=6)
"""Timeout of the other processes while the main process validates and saves. A process that dies ends the others at
once, without this wait."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a training run.

    Attributes:
        number: Number of processes.
        index: Index of this process, from 0.
        device: Device that the launcher assigned to this process; None for a single process, which uses the model's
            device.
    """

    number: int
    index: int
    device: torch.device | None

    @property
    def main(self) -> bool:
        """True in the process that prints, validates and writes."""
        return self.index == 0

    def wait(self) -> None:
        """Wait for all processes (barrier)."""
        if self.number > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.number == 1:
            return value
        from accelerate.utils import reduce

        total: Tensor = reduce(value, reduction="sum")
        return total

    def leave(self) -> None:
        """Destroy this process's process group."""
        if self.number > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


def connect() -> Processes:
    """Set up the process group. Call first, in every process.

    Raises:
        TrainingError: The number of processes found differs from the number that the launcher started.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise TrainingError(f"{launched} processes were started, but this one knows of {state.num_processes}")
    several = state.num_processes > 1
    return Processes(number=state.num_processes, index=state.process_index, device=state.device if several else None)


def shares(batch: int, processes: int, parts: int) -> list[list[range]]:
    """Split a step's samples 0 … batch - 1 into ranges: a list of `parts` ranges for each process.

    Ranges are consecutive and differ in size by at most one; together they cover every sample once. E.g. batch 5, 2
    processes, 1 part each: 0 … 1 and 2 … 4.
    """
    pieces = processes * parts
    edges = [batch * i // pieces for i in range(pieces + 1)]
    ranges = [range(a, b) for a, b in itertools.pairwise(edges)]
    return [ranges[p * parts : (p + 1) * parts] for p in range(processes)]


def shared(module: nn.Module, processes: Processes, *, sync_buffers: bool) -> nn.Module:
    """Wrap a module in DDP, which averages gradients over all processes; a single process gets it unchanged.

    Frozen parameters are sent to the other processes once, at the start, and not exchanged again. The graph is declared
    static: every step runs the same operations, and gradients of layers that activation checkpointing runs twice are
    exchanged once.

    Args:
        module: Module that is called in training.
        processes: Processes of the run.
        sync_buffers: True to copy the main process's buffers to the others in every step, not only at the start.
    """
    if processes.number == 1:
        return module
    device = processes.device
    ids = [device] if device is not None and device.type != "cpu" else None
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # in older torch
    option: dict[str, Any] = {name: sync_buffers}
    return DistributedDataParallel(module, device_ids=ids, static_graph=True, **option)


@contextlib.contextmanager
def without_exchange(module: nn.Module, active: bool) -> Iterator[None]:
    """Keep gradients in this process within the block if `active`, for all parts of a batch but the last."""
    if active and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield
