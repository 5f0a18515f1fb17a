"""Plain convolutional networks, without (`CNN`) and with (`BNCNN`) batch normalisation."""

from __future__ import annotations

import math
from abc import ABC
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module
from gradflow.models.checks import one_of, positive, probability, widths
from gradflow.models.init import Init, initialize
from gradflow.models.skips import Skips, with_skips
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def _numbers(net: nn.Sequential, shape: Sequence[int], sizes: str) -> int:
    """Return how many numbers an image is after the convolutions and poolings of `net`; reject a map that is too small
    for one of them by the overrides `sizes`."""
    channels, *map_size = shape
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d):
            channels, window, stride, padding = part.out_channels, part.kernel_size[0], 1, int(part.padding[0])
        elif isinstance(part, (nn.MaxPool2d, nn.AvgPool2d)):
            window, stride, padding = int(part.kernel_size), int(part.stride), 0  # type: ignore[arg-type]
        else:
            continue
        if min(map_size) + 2 * padding < window:
            images, small = ("×".join(map(str, size)) for size in (shape[1:], map_size))
            raise UserError(f"{sizes}: too many stages for {images} images: {name} meets a map of {small}")
        map_size = [(side + 2 * padding - window) // stride + 1 for side in map_size]
    return channels * math.prod(map_size)


def _pixels(padding: int | str, kernel: int, skips: Skips) -> int:
    """Return how many pixels are added on each side of a map."""
    one_of("padding", padding, ("same", *range(kernel // 2 + 1)))
    pixels = kernel // 2 if padding == "same" else int(padding)
    if skips != "none" and 2 * pixels < kernel - 1:
        raise UserError(f"model.skips={skips}: sums need maps of one size; add model.padding=same")
    return pixels


class _ConvNet(Module, ABC):
    """A stage is `convs` times (convolution, norm, activation), with the sums of `skips`; pooling stands between the
    stages. `padding` is in pixels, or keeps the size of the map."""

    kinds = ("image",)
    answers = ("sample",)
    batch_norm: ClassVar[bool]  # between each layer and its activation; those layers then need no bias

    def __init__(
        self,
        spec: Spec,
        channels: Sequence[int] = (32, 64, 64),
        convs: int = 1,
        kernel: int = 3,
        padding: int | str = "same",
        pool: str = "max",
        pool_size: int = 2,
        skips: Skips = "none",
        dense: int = 64,
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        widths("channels", channels, "stage")
        positive(convs=convs, pool_size=pool_size, dense=dense)
        if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise UserError(f"model.kernel={kernel}: expected an odd number, 1 or more")
        probability(dropout=dropout)
        one_of("pool", pool, ("max", "avg"))
        pixels = _pixels(padding, kernel, skips)
        conv = partial(nn.Conv2d, kernel_size=kernel, padding=pixels, bias=not self.batch_norm)
        pooling = partial(nn.MaxPool2d if pool == "max" else nn.AvgPool2d, pool_size)
        net, trunk = self._stages(channels, convs, skips, conv, pooling, activation)
        sizes = f"model.channels={list(channels)}, model.kernel={kernel}, model.pool_size={pool_size}"
        inputs = _numbers(nn.Sequential(OrderedDict(net)), self.spec.shape, sizes)
        net |= {"flat": nn.Flatten(), "dense": nn.Linear(inputs, dense, bias=not self.batch_norm)}
        if self.batch_norm:
            net["dense_norm"] = nn.BatchNorm1d(dense)
        net["dense_act"] = act.make(activation)
        if dropout:
            net["drop"] = nn.Dropout(dropout)
        net["head"] = nn.Linear(dense, self.spec.outputs)
        self.net = nn.Sequential(OrderedDict(net))
        self.trunk = [*trunk, "dense_act"]
        initialize(self.net, init, activation)

    def _stages(
        self,
        channels: Sequence[int],
        convs: int,
        skips: Skips,
        conv: Callable[[int, int], nn.Module],
        pooling: Callable[[], nn.Module],
        activation: act.Activation,
    ) -> tuple[dict[str, nn.Module], list[str]]:
        """Return the convolutional part, and the names of its hidden layers."""
        inputs = self.spec.shape[0]
        net: dict[str, nn.Module] = {}
        trunk: list[str] = []
        for stage, outputs in enumerate(channels, 1):
            if stage > 1:
                net[f"pool{stage - 1}"] = pooling()
            layers: list[dict[str, nn.Module]] = []
            for index in range(convs):
                name = f"{stage}" if convs == 1 else f"{stage}_{index + 1}"
                layers.append({f"conv{name}": conv(inputs, outputs)})
                if self.batch_norm:
                    layers[-1][f"norm{name}"] = nn.BatchNorm2d(outputs)
                layers[-1][f"act{name}"] = act.make(activation)
                inputs = outputs
            parts, names = with_skips(layers, [outputs] * convs, skips)
            net, trunk = net | parts, trunk + names
        return net, trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@final
class CNN(_ConvNet):
    """Convolutions, pooling, one dense layer; no normalisation."""

    batch_norm = False


@final
class BNCNN(_ConvNet):
    """The same with batch norm between each layer and its activation."""

    batch_norm = True
