"""How all ranks come to know, at the same batch, what one of them has heard."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor

PERIOD = 0.4  # seconds between two rounds


class Agreement:
    """Each rank calls `tick` at the same batches. A round of talk costs a collective on the host; between two rounds
    lie as many batches as take `PERIOD`, a number that the first rank measures and the round itself tells."""

    def __init__(self, trainer: Trainer) -> None:
        self.group: Any = dist.new_group(backend="gloo") if trainer.world_size > 1 else None
        self.first = trainer.is_global_zero
        self.restart()

    def close(self) -> None:
        """A group that is left to Python's end may find its threads still running, which aborts the process."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None

    def restart(self) -> None:
        """Batches of another kind, and length, follow."""
        self.count, self.interval, self.since = 0, 1, time.monotonic()

    def gather(self, own: Tensor) -> Tensor:
        """[ranks, …] of what each rank has, on the host."""
        if self.group is None:
            return own[None]
        found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(found, own, group=self.group)
        return torch.stack(found)

    def tick(self, heard: int, due: bool) -> tuple[int, bool]:
        """The largest that any rank has heard, and what the first thinks due; nothing between two rounds."""
        if self.group is None:
            return heard, due
        self.count += 1
        if self.count < self.interval:
            return 0, False
        now = time.monotonic()
        pace = self.count / max(now - self.since, 1e-6)
        next_interval = max(1, min(int(pace * PERIOD), 2 * self.interval))
        told = torch.tensor([heard, due and self.first, next_interval if self.first else 0])
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.group)
        loudest, overdue, self.interval = map(int, told.tolist())
        self.count, self.since = 0, now
        return loudest, bool(overdue)
