"""A small convolutional network for few epochs on small images, after cifar10-airbench (Jordan 2024).

Its first layer is not trained: it whitens patches of 2×2 pixels, so that the layers after it meet inputs of equal
variance and without correlation, which others spend their first epochs to learn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module
from gradflow.models.checks import widths
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_PATCH = 2  # pixels a side
_IMAGES = 2000  # whose patches are measured: nearly a million a channel, of CIFAR-10
_CHUNK = 250  # images at a time
_LEAST = 5e-4  # variance that is added: the finest details of an image are mostly noise


@final
class Whitening(nn.Module):
    """Gives the principal components of the patches, each with variance 1, and their negatives.

    It has no parameters, so that no gradient is computed for the largest map. Until `measure` has seen images
    the components are the pixels themselves.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * _PATCH**2
        self.register_buffer("weight", torch.empty(2 * size, channels, _PATCH, _PATCH))
        self._set(torch.eye(size))

    def _set(self, components: Tensor) -> None:
        """Take the rows of a matrix [components, numbers in a patch]."""
        with torch.no_grad():
            self.weight.copy_(torch.cat([components, -components]).view_as(self.weight))

    def measure(self, images: Tensor) -> None:
        """Compute the components of [N, channels, height, width], in float64 and on the host, for any device alike."""
        size, count = len(self.weight) // 2, 0
        total = torch.zeros(size, size, dtype=torch.float64)
        for some in images.split(_CHUNK):
            patches = F.unfold(some.cpu().double(), _PATCH).movedim(1, 0).flatten(1)
            total, count = total + patches @ patches.mT, count + patches.shape[1]
        variances, axes = torch.linalg.eigh(total / count)
        self._set((axes / (variances + _LEAST).sqrt()).mT)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype))


@final
class WhitenedCNN(Module):
    """The whitening layer; a stage for each of `channels`: 3×3 convolution, 2×2 pooling, norm, activation, convolution,
    norm, activation; the maximum over the map; a head without bias."""

    kinds = ("image",)
    answers = ("sample",)

    def __init__(
        self,
        spec: Spec,
        channels: Sequence[int] = (64, 128, 128),
        activation: act.Activation = "gelu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        widths("channels", channels, "stage")
        if (min(self.spec.shape[1:]) - _PATCH + 1) >> len(channels) < 1:
            images = "×".join(map(str, self.spec.shape[1:]))
            raise UserError(f"model.channels={list(channels)}: too many stages for {images} images")
        whitening = Whitening(self.spec.shape[0])
        net: dict[str, nn.Module] = {"whitening": whitening, "act": act.make(activation)}
        inputs = len(whitening.weight)
        for stage, outputs in enumerate(channels, 1):
            for index in (1, 2):
                net[f"conv{stage}_{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                if index == 1:
                    net[f"pool{stage}"] = nn.MaxPool2d(2)
                net[f"norm{stage}_{index}"] = nn.BatchNorm2d(outputs)
                net[f"act{stage}_{index}"] = act.make(activation)
                inputs = outputs
        net |= {"pool": nn.AdaptiveMaxPool2d(1), "flat": nn.Flatten()}
        net["head"] = nn.Linear(inputs, self.spec.outputs, bias=False)
        self.net = nn.Sequential(OrderedDict(net))
        self.trunk = [name for name in net if name.startswith("act")][1:]  # no trained matrix is before the first
        self.roles = {"net.conv1_1.weight": "hidden"}  # the whitening layer is the first
        initialize(self.net, init, activation)

    def adapt(self, inputs: Callable[[int], Tensor]) -> None:
        self.net.whitening.measure(inputs(_IMAGES))  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
