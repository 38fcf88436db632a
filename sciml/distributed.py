"""Ranks under torchrun: nothing to set up in one process, DDP over gloo or nccl in several."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from sciml.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among its peers. Means over ranks are exact means over samples, since shares are equal."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls) -> Ranks:
        """The ranks that torchrun started, or one alone."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, operator: nn.Module) -> nn.Module:
        """Gradients are averaged over ranks; weights of domains a step doesn't use are allowed to have none."""
        if self.world == 1:
            return operator
        return nn.parallel.DistributedDataParallel(operator, find_unused_parameters=True)

    def mean(self, value: float) -> float:
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total) / self.world

    def agree(self, value: int) -> int:
        """The first rank's value, on all ranks."""
        if self.world == 1:
            return value
        shared = torch.tensor(value)
        dist.broadcast(shared, 0)
        return int(shared)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def check_divides(self, batch: int, source: str) -> None:
        if batch % self.world:
            raise InputError("recipe", key=f"data[{source}].batch", found=batch,
                             expected=f"a multiple of {self.world} ranks",
                             fix="change batch, or the number of processes")
