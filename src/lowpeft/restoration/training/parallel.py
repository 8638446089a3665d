"""Distributed training: the process group, and the averaging of gradients.

`accelerate launch` or `torchrun` starts several processes, and Accelerate sets up their group, devices and back end.
Otherwise there is one process, which does not import it.
"""

from __future__ import annotations

import inspect
import os
from contextlib import AbstractContextManager, nullcontext
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

_NUMBER_OF_PROCESSES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Environment variables by which launchers (the last three: of MPI) state the number of processes."""


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
            _group().wait_for_everyone()

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.number == 1:
            return value
        from accelerate.utils import reduce

        total: Tensor = reduce(value, reduction="sum")
        return total

    def from_main(self, value: Tensor) -> Tensor:
        """Return, in every process, the main process's tensor; each gives one of the same shape and dtype."""
        if self.number == 1:
            return value
        from accelerate.utils import broadcast

        sent: Tensor = broadcast(value.contiguous().clone())
        return sent

    def leave(self) -> None:
        """Destroy this process's process group."""
        if self.number > 1:
            _group().destroy_process_group()


def _group(**options: Any) -> Any:
    """Return Accelerate's state of the process group; the options count in the first call."""
    from accelerate import PartialState

    return PartialState(**options)


def connect() -> Processes:
    """Set up the process group. Call first, in every process.

    Raises:
        TrainingError: The number of processes found differs from the number that the launcher started.
    """
    launched = max(int(os.environ.get(name, "1")) for name in _NUMBER_OF_PROCESSES)
    if launched == 1:
        return Processes(number=1, index=0, device=None)
    from accelerate.utils import parse_flag_from_env

    cpu = bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
    group = _group(cpu=cpu, timeout=LONGEST_WAIT)
    if group.num_processes != launched:
        raise TrainingError(
            f"the launcher started {launched} processes, but this one is in a group of {group.num_processes}: start "
            "them by accelerate launch or torchrun"
        )
    return Processes(number=group.num_processes, index=group.process_index, device=group.device)


def in_parallel(module: nn.Module, processes: Processes, *, sync_buffers: bool) -> nn.Module:
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
    ids = [processes.device] if processes.device is not None and processes.device.type != "cpu" else None
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # in older torch
    option: dict[str, Any] = {name: sync_buffers}
    return DistributedDataParallel(module, device_ids=ids, static_graph=True, **option)


def without_exchange(module: nn.Module, *, active: bool) -> AbstractContextManager[None]:
    """Keep gradients in this process within the block if `active`, for all micro-batches but the last."""
    return module.no_sync() if active and isinstance(module, DistributedDataParallel) else nullcontext()
