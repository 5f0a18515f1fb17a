"""How all ranks learn at the same batch which signal one of them has received."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor

PERIOD = 0.4  # seconds between two rounds


class Agreement:
    """Each rank calls `tick` at the same batches. A round costs a collective on the host; between two rounds lie as
    many batches as take `PERIOD`, a number that the first rank measures and that the round itself hands on."""

    def __init__(self, trainer: Trainer) -> None:
        self.group: Any = dist.new_group(backend="gloo") if trainer.world_size > 1 else None
        self.first = trainer.is_global_zero
        self.restart()

    def close(self) -> None:
        """Destroy the process group: one that is left to Python's end may find its threads running, which aborts."""
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None

    def restart(self) -> None:
        """Measure again, since batches of another kind, and length, follow."""
        self.count, self.interval, self.since = 0, 1, time.monotonic()

    def gather(self, own: Tensor) -> Tensor:
        """Return [ranks, …] of what each rank has, on the host."""
        if self.group is None:
            return own[None]
        each = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(each, own, group=self.group)
        return torch.stack(each)

    def tick(self, signal_number: int, due: bool) -> tuple[int, bool]:
        """Return the largest signal that any rank has received, and what the first thinks due; 0 between two rounds."""
        if self.group is None:
            return signal_number, due
        self.count += 1
        if self.count < self.interval:
            return 0, False
        now = time.monotonic()
        pace = self.count / max(now - self.since, 1e-6)
        next_interval = max(1, min(int(pace * PERIOD), 2 * self.interval))
        message = torch.tensor([signal_number, due and self.first, next_interval if self.first else 0])
        dist.all_reduce(message, op=dist.ReduceOp.MAX, group=self.group)
        largest, overdue, self.interval = map(int, message.tolist())
        self.count, self.since = 0, now
        return largest, bool(overdue)
