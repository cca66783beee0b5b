"""One process, or several under torchrun with PyTorch's distributed data parallel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sb_edge.reference.device import pick_device


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        device: this process's.
        rank: its number; 0 writes.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, or one that averages its gradients over all processes."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in each of them."""
        if self.size > 1:
            distributed.all_reduce(values)
            values /= self.size
        return values

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            distributed.barrier()

    def most(self, value: float) -> float:
        """The largest value of any process, in each of them."""
        if self.size == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return float(found)


def without_sync(module: nn.Module, sync: bool) -> AbstractContextManager[None]:
    """A block in which a wrapped module's gradients are only added up, unless `sync`."""
    if sync or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    silent: AbstractContextManager[None] = module.no_sync()
    return silent


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun's environment variables describe; alone without them.

    Args:
        device: a name for `pick_device`; under torchrun "cuda" or "metax" takes one GPU a process.

    Raises:
        DeviceError: no such device.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(pick_device(device))
        return
    local = os.environ.get("LOCAL_RANK", "0")
    if device in ("cuda", "metax") or (device == "auto" and torch.cuda.is_available()):
        device = f"{'cuda' if device == 'auto' else device}:{local}"
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(place, distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
