"""Finished batches, each a function of (seed, epoch, batch_index) and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

from gradflow.data.augment import Crops, offsets
from gradflow.data.source import Split

STREAMS = {"order": 0, "augment": 1, "train": 2, "val": 3, "test": 4, "split": 5}


def generator(stream: str, *numbers: int) -> Generator:
    """A fresh CPU generator for one use of random numbers; the global one is never touched."""
    (seed,) = np.random.SeedSequence([STREAMS[stream], *numbers]).generate_state(1)  # torch's generator takes 32 bits
    return Generator().manual_seed(int(seed))


class Loader:
    """Iterates over one epoch's batches for one rank. `batch(epoch, batch_index)` gives any of them at any time.

    Training takes the whole batches of the epoch's permutation; evaluation takes each sample once, in order, where a
    tail with fewer samples than ranks joins the batch before it. A rank takes its slice of each batch.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        training: bool,
        make: Callable[[int, int, slice, slice], Split],
        epoch: Callable[[], int] = lambda: 0,
        start: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.samples, self.batch_size, self.training = samples, batch_size, training
        self.make, self.rank, self.world = make, rank, world
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        whole, tail = divmod(self.samples, self.batch_size)
        return whole if self.training or (whole and tail < self.world) else whole + 1

    def batch(self, epoch: int, batch_index: int) -> Split:
        """This rank's slice of a batch; positions are counted within the epoch."""
        start = batch_index * self.batch_size
        last = batch_index == len(self) - 1 and not self.training
        size = self.samples - start if last else self.batch_size
        mine = slice(start + size * self.rank // self.world, start + size * (self.rank + 1) // self.world)
        return self.make(epoch, batch_index, slice(start, start + size), mine)

    def __iter__(self) -> Iterator[Split]:
        epoch = (
            self.epoch()
        )  # asked at the first batch: a resumed Trainer makes the iterator before it knows where it is
        for index in range(self.start(), len(self)):
            yield self.batch(epoch, index)


class Stored:
    """Makes batches of a finite set that lies in memory, on the device or on the host."""

    def __init__(
        self,
        data: Split,
        device: torch.device,
        seed: int,
        training: bool,
        crop: int = 0,
        flip: bool = False,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        self.x, self.y = data
        self.device, self.training = device, training
        self.crops = Crops(self.x, crop) if training and (crop or flip) else None
        self.scale = None if std is None else (1 / (255 * std)).view(-1, 1, 1).to(device)
        self.shift = None if std is None or mean is None else (-mean / std).view(-1, 1, 1).to(device)
        self.order = lru_cache(2)(
            lambda epoch: torch.randperm(len(self.x), generator=generator("order", seed, epoch)).to(self.x.device)
        )
        self.table = lru_cache(2)(
            lambda epoch: offsets(len(self.x), crop, flip, generator("augment", seed, epoch)).to(self.x.device)
        )

    def __call__(self, epoch: int, batch_index: int, whole: slice, mine: slice) -> Split:
        if self.training:
            index = self.order(epoch)[mine]
            x = self.crops(index, self.table(epoch)[index]) if self.crops else self.x[index]
            y = self.y[index]
        else:
            x, y = self.x[mine], self.y[mine]
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        if self.scale is not None and self.shift is not None:
            x = x.float().mul_(self.scale).add_(self.shift)
        return x, y


class Drawn:
    """Makes batches of samples that are drawn for the purpose; each rank draws the whole batch and keeps its slice."""

    def __init__(
        self, draw: Callable[[int, Generator], Split], device: torch.device, seed: int, split: str, batch_size: int
    ) -> None:
        self.draw, self.device, self.seed, self.split, self.batch_size = draw, device, seed, split, batch_size

    def __call__(self, epoch: int, batch_index: int, whole: slice, mine: slice) -> Split:
        parts = []
        for start in range(whole.start, whole.stop, self.batch_size):  # two where a short tail joins the last batch
            random = generator(self.split, self.seed, epoch, start // self.batch_size)
            parts.append(self.draw(min(self.batch_size, whole.stop - start), random))
        x, y = (torch.cat(tensors) if len(parts) > 1 else tensors[0] for tensors in zip(*parts, strict=True))
        kept = slice(mine.start - whole.start, mine.stop - whole.start)
        return x[kept].to(self.device, non_blocking=True), y[kept].to(self.device, non_blocking=True)
