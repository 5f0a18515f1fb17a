"""Augmentation of whole batches. Its random numbers are made an epoch at a time, a row a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradflow.data.streams import entropy, generator
from gradflow.runs.errors import UserError
from gradflow.tasks.task import Task


class RandomNumbers(NamedTuple):
    """An epoch's random numbers, a row a sample; None where nothing asks for them."""

    order: Tensor  # [N] the samples in the order of their turns
    offsets: Tensor | None = None  # [N, 3] top and left of the crop in the padded image, and whether to flip
    middles: Tensor | None = None  # [N, 2] row and column of the middle of the square that is cut out
    partners: Tensor | None = None  # [N] the sample that each is mixed with
    shares: Tensor | None = None  # [N] what stays its own, 0.5 … 1


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, each a function of (seed, epoch, sample), whatever the batches and devices.

    Masks move with their images under crop and flip. A hole leaves its mask as it is: what stood there is to be told
    from what is around it.

    crop       random crops after padding by so many pixels of zero; of a mask, by its label of padding
    flip       random mirror images
    alternating_flip  instead, each image is mirrored in every other epoch, half of them in the first (Jordan 2024)
    cutout     side in pixels of a square that is set to the mean, its middle anywhere (DeVries & Taylor 2017)
    mixup      alpha of the Beta(alpha, alpha) by which an image and its target are mixed with another sample's; the
               larger share stays its own (Zhang et al. 2018)
    """

    crop: int = 0
    flip: bool = False
    alternating_flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop", "cutout", "mixup"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name}={getattr(self, name)}: expected 0 or more")
        if self.flip and self.alternating_flip:
            raise UserError("data.flip=true, data.alternating_flip=true: expected one of the two")

    def check(self, task: Task) -> None:
        """Reject what does not suit the data's samples, or would change the images and not their targets."""
        spec = task.spec
        if self != Augmentation() and spec.kind != "image":
            raise UserError(f"data.crop, flip, alternating_flip, cutout, mixup: are for images, not for a {spec.kind}")
        if self.mixup and not (task.mixes and spec.ignored is None):
            raise UserError(f"data.mixup={self.mixup}: {task.asks_for} of two samples can't be mixed; expected 0")
        for name in ("crop", "flip", "alternating_flip"):
            if (value := getattr(self, name)) and task.moves is None:
                why = f"whether {task.asks_for} stay the same when an image is moved is not known"
                off = str(type(value)(0)).lower()
                raise UserError(
                    f"data.{name}={str(value).lower()}: {why} (the task {spec.task} has no `moves`); expected {off}"
                )
        if self.crop and task.moves and spec.ignored is None:
            why = "brings padding into the targets, for which the data's spec has no label (ignored=…)"
            raise UserError(f"data.crop={self.crop}: {why}; expected 0")
        for name in ("crop", "cutout"):
            if (value := getattr(self, name)) and value >= (side := min(spec.shape[1:])):
                raise UserError(f"data.{name}={value}: expected fewer pixels than the {side} of the images")

    def random_numbers(self, samples: int, size: tuple[int, ...], seed: int, epoch: int) -> RandomNumbers:
        """Return those of an epoch; `size` is the images' height and width."""
        order = torch.randperm(samples, generator=generator("order", seed, epoch))
        offsets = self.offsets(samples, seed, epoch) if self.crop or self.flip or self.alternating_flip else None
        middles = self.middles(samples, size, seed, epoch) if self.cutout else None
        return RandomNumbers(order, offsets, middles, *(self.partners(samples, seed, epoch) if self.mixup else ()))

    def offsets(self, samples: int, seed: int, epoch: int) -> Tensor:
        random = generator("augment", seed, epoch)
        table = torch.randint(2 * self.crop + 1, (samples, 3), generator=random)
        table[:, 2] = torch.randint(2, (samples,), generator=random) if self.flip else 0
        if self.alternating_flip:
            table[:, 2] = (torch.randint(2, (samples,), generator=generator("flip", seed)) + epoch) % 2
        return table

    def middles(self, samples: int, size: tuple[int, ...], seed: int, epoch: int) -> Tensor:
        random = generator("cutout", seed, epoch)
        return torch.stack([torch.randint(side, (samples,), generator=random) for side in size], 1)

    def partners(self, samples: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng(entropy("mixup", seed, epoch))
        shares = random.beta(self.mixup, self.mixup, samples).astype(np.float32)
        return torch.from_numpy(random.permutation(samples)), torch.from_numpy(np.maximum(shares, 1 - shares))


class Crops:
    """Cuts and mirrors a batch of images [B, C, H, W] by their rows of `offsets`.

    The batch and its mirror image are laid into a room with zeros (of masks, `padding`) around, out of which each
    image's window is copied; nothing is interpolated.
    On the host NumPy copies them: whole rows at a time, several times as fast as torch's indexing, which goes element
    by element (measured).
    """

    def __init__(self, crop: int, padding: int = 0) -> None:
        self.crop, self.padding = crop, padding
        self.room = torch.empty(0)  # used again: only its middle is ever written, so what is around stays

    def __call__(self, images: Tensor, offsets: Tensor) -> Tensor:
        count, _, height, width = images.shape
        room, inner = self._room_for(images)
        inner[0].copy_(images)
        inner[1].copy_(images.flip(-1))
        windows = room.unfold(3, height, 1).unfold(4, width, 1).permute(0, 1, 3, 4, 2, 5, 6)  # a view
        top, left, flip = offsets.unbind(1)
        left = torch.where(flip.bool(), 2 * self.crop - left, left)  # the mirror image of the window
        index = (flip, torch.arange(count, device=images.device), top, left)
        if images.device.type == "cpu":
            return torch.from_numpy(windows.numpy()[tuple(numbers.numpy() for numbers in index)])
        return windows[index]

    def _room_for(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pad, (count, channels, height, width) = self.crop, images.shape
        shape = (2, count, channels, height + 2 * pad, width + 2 * pad)
        if (self.room.shape, self.room.dtype, self.room.device) != (shape, images.dtype, images.device):
            self.room = torch.full(shape, self.padding, dtype=images.dtype, device=images.device)
        return self.room, self.room[..., pad : pad + height, pad : pad + width]


def cut_out(images: Tensor, middles: Tensor, side: int) -> Tensor:
    """Set a square of each to 0, in place: the mean, where images have a mean of 0. Beyond the border there is less."""
    rows, columns = (
        torch.arange(size, device=images.device) - middle[:, None] + side // 2
        for size, middle in zip(images.shape[-2:], middles.unbind(1), strict=True)
    )
    hole = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    return images.masked_fill_(hole, 0)
