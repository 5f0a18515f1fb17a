"""The one DataModule: splits, where they lie, and loaders that yield finished batches on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor

from gradflow.data.augment import Augmentation
from gradflow.data.loader import Generated, Loader, Stored
from gradflow.data.memory import HOMES, Courier, check_room, choose, settle
from gradflow.data.moments import WAYS, Normalise, normaliser
from gradflow.data.sources.source import Source, Split
from gradflow.data.splits import Part, check, held_out
from gradflow.data.streams import generator
from gradflow.runs.errors import UserError
from gradflow.tasks.task import task_of

_TEST_SEED = 0  # what is held out for the test is the same in every run


class DataModule(LightningDataModule):
    """Serves batches of any source.

    source        a function from `options` to a Source
    batch_size    of the whole batch, which the devices share
    val, test     what to hold out of "train" where the source has no such split: a fraction, a number of samples, or 0
    samples       of an endless source: how many make an epoch; `val` and `test` are numbers of samples then
    fresh         of an endless source: new samples in each epoch, or a fixed set
    memory        where the samples lie: auto, device, host or mapped (memory.py)
    crop … mixup  image augmentation (augment.py)
    normalize     of images: standard, or unit for [0, 1] (moments.py)
    """

    def __init__(
        self,
        source: Callable[..., Source],
        batch_size: int,
        seed: int = 0,
        val: float = 0.0,
        test: float = 0.0,
        samples: int = 0,
        fresh: bool = True,
        memory: str = "auto",
        crop: int = 0,
        flip: bool = False,
        alternating_flip: bool = False,
        cutout: int = 0,
        mixup: float = 0.0,
        normalize: str = "standard",
        **options: Any,
    ) -> None:
        super().__init__()
        self.source = source(**options)
        self.spec = self.source.spec
        self.task = task_of(self.spec)
        self.augmentation = Augmentation(crop, flip, alternating_flip, cutout, mixup)
        self._check_sizes(batch_size, val, test, samples, fresh)
        self.augmentation.check(self.task)
        self.batch_size, self.seed, self.fresh, self.memory = batch_size, seed, fresh, memory
        if memory not in ("auto", *HOMES):
            raise UserError(f"data.memory={memory}: expected auto, {', '.join(HOMES)}")
        if normalize not in WAYS:
            raise UserError(f"data.normalize={normalize}: expected {' or '.join(WAYS)}")
        self.held_out = {"test": test, "val": val}
        self.sizes = {"train": samples, "val": int(val), "test": int(test)}  # of an endless source
        self.prepared, self.normalize = False, normalize
        self.splits: dict[str, Part] = {}
        self.home = "generated on the fly"
        self.normalise: Normalise | None = None

    def _check_sizes(self, batch_size: int, val: float, test: float, samples: int, fresh: bool) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("val", val, 0), ("test", test, 0)):
            if value < least:
                raise UserError(f"data.{name}={value}: expected {least} or more")
            if value == 1 and isinstance(value, float) and not self.source.generate:
                raise UserError(f"data.{name}={value}: expected a fraction below 1, or a whole number of samples")
            if value != int(value) and (self.source.generate or value > 1):
                kinds = "a whole number of samples" + ("" if self.source.generate else " or a fraction")
                raise UserError(f"data.{name}={value}: expected {kinds}")
        if self.source.generate and samples < batch_size:
            raise UserError(f"data.samples={samples}: expected at least one batch of {batch_size}")
        sample = math.prod(self.spec.shape) * (torch.long if self.spec.tokens else torch.float32).itemsize
        shape = "×".join(map(str, self.spec.shape))
        check_room(f"data.batch_size={batch_size}", f"a batch of inputs of shape {shape}", batch_size * sample)
        if self.source.generate and not fresh:
            check_room(f"data.samples={samples}", f"a fixed set of inputs of shape {shape}", samples * sample)

    def attach(self, trainer: Trainer) -> None:
        """Take from the Trainer, before `prepare_data`, on which devices the batches are wanted."""
        self.trainer = trainer
        self._check_devices()

    def prepare_data(self) -> None:
        """Fetch and decode. Every rank may call it: sources take a lock, and find what another process did."""
        if self.prepared:
            return
        try:
            self.source.prepare()
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            keys = "data.root=… or data.cache=…"
            raise UserError(f"{where}{error.strerror or error}; give {keys} a folder to write to, with room") from error
        self.prepared = True

    def setup(self, stage: str | None = None) -> None:
        """Load, split and place the samples; once, whoever asks."""
        if self.splits or (self.source.load is None and self.fresh):
            return
        parts = self._parts()
        self.sizes |= {name: len(part) for name, part in parts.items()}
        if self.batch_size > self.sizes["train"]:
            raise UserError(f"data.batch_size={self.batch_size}: there are {self.sizes['train']} training samples")
        self.normalise = normaliser(parts["train"], self.spec, self.device, self.normalize)
        self._check_interval()
        size = sum(part.nbytes for part in parts.values())
        cache = self.source.origin().get("cache")
        home = choose(self.memory, size, self.device, self.world, bool(cache))
        self.home = HOMES[home].format(device=self.device, cache=cache)
        self.splits = {name: settle(part, home, self.device) for name, part in parts.items()}

    def _parts(self) -> dict[str, Part]:
        """Return a fixed set, or what the source has, with the splits held out that it does not have."""
        if self.source.load is None:
            assert self.source.generate
            loaded: Mapping[str, Split]
            loaded = {"train": self.source.generate(self.sizes["train"], generator("train", self.seed))}
            wanted = {}
        else:
            loaded, wanted = self.source.load(), self.held_out
            self.sizes = dict.fromkeys(self.sizes, 0)
        parts = {name: Part(*tensors) for name, tensors in loaded.items()}
        for name, part in parts.items():
            check(part, self.spec, f"{self.source.name}, {name}")
        for name, amount in wanted.items():
            if name not in parts and amount:
                seed = _TEST_SEED if name == "test" else self.seed
                parts["train"], parts[name] = held_out(parts["train"], amount, seed, self.spec, name)
        return parts

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    @property
    def world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def has(self, split: str) -> bool:
        return self.sizes.get(split, 0) > 0

    def train_dataloader(self) -> Loader:
        return self.loader("train", training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        return self.loader("val") if self.has("val") else []

    def test_dataloader(self) -> Loader | list[Loader]:
        return self.loader("test") if self.has("test") else []

    def loader(self, split: str, training: bool = False) -> Loader:
        """Return the loader of a split: shuffled and augmented by the epoch, or each sample once, as it is."""
        self._check_devices()
        if self.sizes[split] < self.world:
            raise UserError(f"{split} has {self.sizes[split]} samples: too few for {self.world} devices")
        make: Any
        trainer: Any = self.trainer
        accumulate = getattr(trainer, "accumulate_grad_batches", 1)
        if split in self.splits:
            augmentation, scaling = self.augmentation if training else None, self.normalise or (lambda x: x)
            make = Stored(self.splits[split], self.device, self.seed, augmentation, scaling, self.task)
        else:
            assert self.source.generate
            keep = accumulate if self.spec.ignored is not None else 0
            make = Generated(self.source.generate, self.device, self.seed, split, self.batch_size, keep)

        def epoch() -> int:
            return trainer.current_epoch if trainer and training and not trainer.overfit_batches else 0

        def start() -> int:  # not 0 in an epoch that is resumed in the middle
            return trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer and training else 0

        rank = trainer.global_rank if trainer else 0
        return Loader(self.sizes[split], self.batch_size, training, make, epoch, start, rank, self.world, accumulate)

    def training_inputs(self, size: int) -> Tensor:
        """Return the inputs of a few training samples as they are: the same on every rank."""
        return self.sample(size, "train")[0]

    def sample(self, size: int, split: str = "val") -> Split:
        """Return a few samples as they are, spread over what is held out: the same on every rank and in every epoch."""
        split = split if self.has(split) else "train"
        size = min(size, self.sizes[split])
        if split not in self.splits:
            assert self.source.generate
            whole, batches = slice(0, size), Generated(self.source.generate, self.device, self.seed, split, size)
            return batches(0, whole, whole)
        part, carry = self.splits[split], Courier(self.device)
        which = torch.arange(size, device=part.x.device) * len(part) // size
        x, y = carry(part.take("x", which)), carry(part.take("y", which))
        return (self.normalise(x) if self.normalise else x), y

    def _check_devices(self) -> None:
        if self.batch_size % self.world:
            raise UserError(f"data.batch_size={self.batch_size}: {self.world} devices can't share it equally")

    def _check_interval(self) -> None:
        """Reject what Lightning would reject when the run has begun."""
        trainer: Any = self.trainer
        interval = getattr(trainer, "val_check_interval", None) if self.has("val") else None
        if not isinstance(interval, int) or trainer.check_val_every_n_epoch is None:
            return
        batches, limit = self.sizes["train"] // self.batch_size, trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        if interval > batches:
            raise UserError(
                f"trainer.val_check_interval={interval}: expected a fraction, or {batches} batches or fewer"
            )

    def describe(self) -> Mapping[str, Any]:
        """Return which data these really are, for summary.json."""
        return {"name": self.source.name, "samples": self.sizes, "memory": self.home, **self.source.origin()}
