"""Normalisation: each channel of the training images gets mean 0 and variance 1, or all are scaled to [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from gradflow.data.splits import Part
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

MEASURED = 50_000  # images from which the moments are computed, evenly spaced where there are more
CHUNK = 1000  # images at a time
WAYS = ("standard", "unit")


def normaliser(train: Part, spec: Spec, device: torch.device, way: str) -> Normalise | None:
    """Return what makes numbers of bytes; None where the inputs are numbers, or symbols, already."""
    if train.x.dtype == torch.uint8:
        return Normalise(train, spec, device, way)
    if way != WAYS[0]:
        raise UserError(f"data.normalize={way}: is for images of bytes, and these are {train.x.dtype}; leave it out")
    return None


class Normalise:
    def __init__(self, train: Part, spec: Spec, device: torch.device, way: str = "standard") -> None:
        axis = 0 if spec.kind == "image" else len(spec.shape) - 1  # of the channels, in a sample
        shape = [-1 if other == axis else 1 for other in range(len(spec.shape))]
        self.mean, self.std = channel_moments(train, axis + 1)
        if way == "unit":
            self.mean, self.std = torch.zeros_like(self.mean), torch.ones_like(self.std)
        self.scale = (1 / (255 * self.std)).view(shape).to(device)
        self.shift = (-self.mean / self.std).view(shape).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)


def channel_moments(part: Part, axis: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, in units of the full range, from counts of 256 values."""
    which = torch.arange(0, len(part), -(-len(part) // MEASURED))
    counts = torch.stack([_histograms(part.take("x", some), axis) for some in which.split(CHUNK)]).sum(0).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = counts @ values / counts.sum(1)
    variance = counts @ values.square() / counts.sum(1) - mean.square()
    return mean.float(), variance.clamp(min=1 / 255**2).sqrt().float()  # a constant channel stays finite


def _histograms(images: Tensor, axis: int) -> Tensor:
    return torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(axis)])
