"""One process or several: who this one is, which samples are its share, and how gradients are shared.

Accelerate finds out about processes, devices and back ends. `accelerate launch` or `torchrun` starts them; without
these there is one.
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
"""For the others, while the main process validates and saves; a process that dies takes the others with it at once."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a training run.

    Attributes:
        number: How many there are.
        index: This one's, from 0.
        device: That the launcher gave this one; None where there is one process, which takes the model's.
    """

    number: int
    index: int
    device: torch.device | None

    @property
    def main(self) -> bool:
        """Whether this process prints, validates and writes."""
        return self.index == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.number > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.number == 1:
            return value
        from accelerate.utils import reduce

        total: Tensor = reduce(value, reduction="sum")
        return total

    def leave(self) -> None:
        """Tell the others that this process has no more to say."""
        if self.number > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


def connect() -> Processes:
    """The processes that were launched together; in each of them, before anything else.

    Raises:
        TrainingError: The launcher started several, and they cannot find each other.
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
    """How a step's samples are run: for every process its parts, as ranges of 0..batch.

    The parts follow each other and differ in size by at most one, so every split runs the same samples.
    """
    pieces = processes * parts
    edges = [batch * i // pieces for i in range(pieces + 1)]
    ranges = [range(a, b) for a, b in itertools.pairwise(edges)]
    return [ranges[p * parts : (p + 1) * parts] for p in range(processes)]


def shared(module: nn.Module, processes: Processes, *, sync_buffers: bool) -> nn.Module:
    """The module, with gradients that are averaged over all processes; as it is where there is one process.

    Frozen parameters are sent to the other processes once, at the start, and take no part in any later exchange. The
    graph is declared static: every step runs the same, and what a checkpoint runs a second time is exchanged once.

    Args:
        module: What is called in training.
        processes: All of them.
        sync_buffers: Whether the main process's buffers count in every step, and not at the start alone.
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
    """Within the block gradients stay in this process: for all parts of a batch but the last."""
    if active and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield
