"""Finished batches, each a function of (seed, epoch, batch_index) and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gradflow.data.augment import Augmentation, Crops, RandomNumbers, cut_out
from gradflow.data.memory import Courier
from gradflow.data.sources.source import Split
from gradflow.data.splits import Part
from gradflow.data.streams import generator
from gradflow.tasks.task import Task


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
        make: Callable[[int, slice, slice], Split],
        epoch: Callable[[], int] = lambda: 0,
        start: Callable[[], int] = lambda: 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.samples, self.batch_size, self.training = samples, batch_size, training
        self.make, self.rank, self.world = make, rank, world
        self.epoch, self.start, self.accumulate = epoch, start, accumulate

    def __len__(self) -> int:
        whole, tail = divmod(self.samples, self.batch_size)
        return whole if self.training or (whole and tail < self.world) else whole + 1

    def batch(self, epoch: int, batch_index: int) -> Split:
        """This rank's slice of a batch; positions are counted within the epoch."""
        whole = self._whole(batch_index)
        return self.make(epoch, whole, self._mine(whole))

    def _whole(self, batch_index: int) -> slice:
        start = batch_index * self.batch_size
        last = batch_index == len(self) - 1 and not self.training
        return slice(start, self.samples if last else start + self.batch_size)

    def _mine(self, whole: slice) -> slice:
        size = whole.stop - whole.start
        return slice(*(whole.start + size * rank // self.world for rank in (self.rank, self.rank + 1)))

    def weight(self, task: Task, target: Tensor, batch_index: int) -> Tensor | float:
        """Return by what the mean loss of this rank's `target` is to be multiplied, so that its mean over ranks and
        over the batches of an optimizer's step is the mean over all entries that count: padding is spread unevenly."""
        if self.world == self.accumulate == 1:
            return 1.0
        first = batch_index - batch_index % self.accumulate
        wholes = [self._whole(index) for index in range(first, min(first + self.accumulate, len(self)))]
        epoch, targets = self.epoch(), self.make.targets  # type: ignore[attr-defined]
        counts = torch.stack([torch.as_tensor(task.count(targets(epoch, whole))) for whole in wholes])
        return task.count(target) * self.world * len(wholes) / counts.sum().clamp(min=1)

    def __iter__(self) -> Iterator[Split]:
        epoch = self.epoch()  # at the first batch: a resumed Trainer makes the iterator before it knows where it is
        for index in range(self.start(), len(self)):
            yield self.batch(epoch, index)


class Stored:
    """Makes batches of a finite set, wherever it lies: in the device's memory, in the host's, or mapped from disk."""

    def __init__(
        self,
        part: Part,
        device: torch.device,
        seed: int,
        augmentation: Augmentation | None,
        scaling: Callable[[Tensor], Tensor] = lambda x: x,
        task: Task | None = None,
    ) -> None:
        """Without an `augmentation` the samples come in order, as they are; `task` says what becomes of targets."""
        self.part, self.augmentation, self.scaling, self.task = part, augmentation, scaling, task
        self.carry, bring = Courier(device), Courier(part.x.device)

        @lru_cache(2)
        def random_numbers(epoch: int) -> RandomNumbers:
            assert augmentation
            numbers = augmentation.random_numbers(len(part), tuple(part.x.shape[-2:]), seed, epoch)
            return numbers._replace(**{name: bring(n) for name, n in numbers._asdict().items() if n is not None})

        self.random_numbers = random_numbers
        crop = augmentation.crop if augmentation else 0
        self.crops, self.mask_crops = Crops(crop), Crops(crop, task.padding if task else 0)

    def __call__(self, epoch: int, whole: slice, mine: slice) -> Split:
        if self.augmentation is None:
            return self.scaling(self.carry(self.part.take("x", mine))), self.carry(self.part.take("y", mine))
        numbers = self.random_numbers(epoch)
        index = numbers.order[mine]
        x, y = self._augmented(index, numbers), self._moved(index, numbers)
        if numbers.partners is None or numbers.shares is None or self.task is None:
            return x, y
        partners, share = numbers.partners[index], self.carry(numbers.shares[index])
        other, its = self._augmented(partners, numbers), self.carry(self.part.take("y", partners))
        soft, its_soft = (F.one_hot(labels, self.task.spec.outputs).float() for labels in (y, its))
        return torch.lerp(other, x, share.view(-1, 1, 1, 1)), torch.lerp(its_soft, soft, share.view(-1, 1))

    def targets(self, epoch: int, whole: slice) -> Tensor:
        """Return the targets of a batch for all ranks."""
        if self.augmentation is None:
            return self.carry(self.part.take("y", whole))
        numbers = self.random_numbers(epoch)
        return self._moved(numbers.order[whole], numbers)

    def _augmented(self, index: Tensor, numbers: RandomNumbers) -> Tensor:
        """Return the inputs at `index` as this epoch augments them, on the device."""
        x = self.part.take("x", index)
        if numbers.offsets is not None:
            x = self.crops(x, numbers.offsets[index])
        x = self.scaling(self.carry(x))
        if numbers.middles is not None and self.augmentation:
            x = cut_out(x, self.carry(numbers.middles[index]), self.augmentation.cutout)
        return x

    def _moved(self, index: Tensor, numbers: RandomNumbers) -> Tensor:
        """Return the targets at `index`; masks are cropped and mirrored as their images are."""
        y = self.part.take("y", index)
        if numbers.offsets is not None and self.task and self.task.moves:
            y = self.mask_crops(y[:, None], numbers.offsets[index].to(y.device))[:, 0]
        return self.carry(y)


class Generated:
    """Makes batches of samples that are generated on the fly; each rank generates a whole batch and takes its slice."""

    def __init__(
        self,
        generate: Callable[[int, Generator], Split],
        device: torch.device,
        seed: int,
        split: str,
        batch_size: int,
        keep: int = 0,
    ) -> None:
        """`keep` is how many batches stay in memory, for who asks for their targets before."""
        self.generate, self.seed, self.split, self.batch_size = generate, seed, split, batch_size
        self.carry = Courier(device)
        self.generated = lru_cache(keep)(self._generated)

    def __call__(self, epoch: int, whole: slice, mine: slice) -> Split:
        x, y = self.generated(epoch, whole.start, whole.stop)
        own = slice(mine.start - whole.start, mine.stop - whole.start)
        return self.carry(x[own]), self.carry(y[own])

    def targets(self, epoch: int, whole: slice) -> Tensor:
        """Return the targets of a batch for all ranks."""
        return self.carry(self.generated(epoch, whole.start, whole.stop)[1])

    def _generated(self, epoch: int, start: int, stop: int) -> Split:
        parts = []
        for first in range(start, stop, self.batch_size):  # two where a short tail joins the last batch
            random = generator(self.split, self.seed, epoch, first // self.batch_size)
            parts.append(self.generate(min(self.batch_size, stop - first), random))
        x, y = (torch.cat(tensors) if len(parts) > 1 else tensors[0] for tensors in zip(*parts, strict=True))
        return x, y
