"""The one DataModule: splits, normalisation, and loaders that yield finished batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor

from gradflow.data.loader import Drawn, Loader, Stored, generator
from gradflow.data.source import Source, Split
from gradflow.mistakes import Mistake


class DataModule(LightningDataModule):
    """Serves any source.

    source       a function from `options` to a Source
    batch_size   of the whole batch, which the devices share
    val          what to hold out of "train" when the source has no "val": a fraction, a number of samples, or 0
    crop, flip   image augmentation: random crops after padding by `crop` pixels, random mirror images
    samples      of an endless source: how many make an epoch; `val` and `test` are numbers of samples then
    """

    def __init__(
        self,
        source: Callable[..., Source],
        batch_size: int,
        seed: int = 0,
        val: float = 0.0,
        test: int = 0,
        samples: int = 0,
        crop: int = 0,
        flip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.source = source(**options)
        self.spec = self.source.spec
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("crop", crop, 0),
            ("val", val, 0),
            ("test", test, 0),
        ):
            if value < least:
                raise Mistake(f"data.{name}={value}: expected {least} or more")
        if self.source.draw and samples < batch_size:
            raise Mistake(f"data.samples={samples}: expected at least one batch of {batch_size}")
        if val != int(val) and (self.source.draw or val > 1):
            raise Mistake(
                f"data.val={val}: expected a whole number of samples" + ("" if self.source.draw else " or a fraction")
            )
        self.batch_size, self.seed, self.val = batch_size, seed, val
        self.sizes = {"train": samples, "val": int(val), "test": test}  # of an endless source
        self.crop, self.flip = crop, flip
        self.prepared = False
        self.splits: dict[str, Split] = {}
        self.mean: Tensor | None = None
        self.std: Tensor | None = None

    def prepare_data(self) -> None:
        """May be called on every rank, and again: the sources take a lock, and find what another process did."""
        if self.prepared:
            return
        try:
            self.source.prepare()
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Mistake(f"{where}{error.strerror or error}; give data.root=… a folder that can be written") from error
        self.prepared = True

    def setup(self, stage: str | None = None) -> None:
        if self.splits or self.source.load is None:
            return
        splits = dict(self.source.load())
        if "val" not in splits and self.val:
            splits["train"], splits["val"] = held_out(splits["train"], self.val, self.seed, self.spec.task)
        if self.batch_size > len(splits["train"][0]):
            raise Mistake(f"data.batch_size={self.batch_size}: there are {len(splits['train'][0])} training samples")
        if splits["train"][0].dtype == torch.uint8:
            self.mean, self.std = channel_moments(splits["train"][0])
        self.splits = splits
        self.sizes = {name: len(y) for name, (_, y) in splits.items()}

    def has(self, split: str) -> bool:
        return self.sizes.get(split, 0) > 0

    def train_dataloader(self) -> Loader:
        return self.loader("train", self.trainer, training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        return self.loader("val", self.trainer, training=False) if self.has("val") else []

    def test_dataloader(self) -> Loader | list[Loader]:
        return self.loader("test", self.trainer, training=False) if self.has("test") else []

    def loader(self, split: str, trainer: Trainer | None, training: bool) -> Loader:
        """`training` shuffles and augments by the epoch; without it each sample comes once, as it is."""
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        self.check_devices(world)
        if self.sizes[split] < world:
            raise Mistake(f"{split} has {self.sizes[split]} samples: too few for {world} devices")

        def epoch() -> int:
            if trainer is None or not training or trainer.overfit_batches > 0:  # type: ignore[attr-defined]
                return 0
            return trainer.current_epoch

        def start() -> int:  # not 0 in an epoch that is resumed in the middle
            return trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer and training else 0

        if self.source.draw:
            make: Any = Drawn(self.source.draw, device, self.seed, split, self.batch_size)
        else:
            data = at_home(self.splits[split], device)
            crop, flip = (self.crop, self.flip) if self.spec.kind == "image" else (0, False)
            make = Stored(data, device, self.seed, training, crop, flip, self.mean, self.std)
        return Loader(self.sizes[split], self.batch_size, training, make, epoch, start, rank, world)

    def check_devices(self, world: int) -> None:
        if self.batch_size % world:
            raise Mistake(f"data.batch_size={self.batch_size}: {world} devices can't share it equally")

    def describe(self) -> Mapping[str, Any]:
        """Which data these really are, for summary.json."""
        return {"name": self.source.name, "samples": self.sizes, **self.source.origin()}


def held_out(data: Split, amount: float, seed: int, task: str) -> tuple[Split, Split]:
    """The data without, and with only, `amount` of the samples: drawn by the seed, the same share of each class."""
    x, y = data
    count = int(amount) if amount >= 1 else round(amount * len(x))
    if not 0 < count < len(x):
        raise Mistake(f"data.val={amount}: expected a fraction below 1, or fewer than the {len(x)} samples there are")
    order = torch.randperm(len(x), generator=generator("split", seed))
    if task == "classification" and y.ndim == 1:
        order = order[torch.argsort(spread_by_class(y[order]))]
    val, train = order[:count].sort().values, order[count:].sort().values
    return (x[train], y[train]), (x[val], y[val])


def spread_by_class(y: Tensor) -> Tensor:
    """A rank in (0, 1) for each sample, even within its class: the lowest k hold the same share of each class."""
    rank = torch.empty(len(y), dtype=torch.float64)
    for label in y.unique():
        members = (y == label).nonzero().squeeze(1)
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return rank


def channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, in units of the full range; exact, from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    mean = counts @ values / counts.sum(1)
    variance = counts @ values.square() / counts.sum(1) - mean.square()
    return mean.float(), variance.clamp(min=1 / 255**2).sqrt().float()  # a constant channel stays finite


def at_home(data: Split, device: torch.device) -> Split:
    """On the accelerator when it has room to spare, else where it is."""
    if device.type != "cuda":
        return data
    needed = sum(tensor.nbytes for tensor in data)
    free, _ = torch.cuda.mem_get_info(device)
    return (data[0].to(device), data[1].to(device)) if needed < free / 4 else data
