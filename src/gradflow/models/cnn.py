"""Plain convolutional networks, without (`CNN`) and with (`BNCNN`) batch normalisation."""

from __future__ import annotations

import math
from abc import ABC
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, one_of, positive, probability
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


class _ConvNet(Module, ABC):
    """A stage is `convs` times (3×3 convolution, norm, activation); 2×2 pooling stands between the stages."""

    kinds = ("image",)
    answers = ("sample",)
    batch_norm: ClassVar[bool]  # between each layer and its activation; those layers then need no bias

    def __init__(
        self,
        spec: Spec,
        channels: Sequence[int] = (32, 64, 64),
        convs: int = 1,
        padding: int = 1,
        pool: str = "max",
        dense: int = 64,
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        if not channels or min(channels) < 1:
            raise UserError(f"model.channels={list(channels)}: expected a width of 1 or more for each stage")
        positive(convs=convs, dense=dense)
        probability(dropout=dropout)
        one_of("pool", pool, ("max", "avg"))
        one_of("padding", padding, (0, 1))
        net, inputs = self._stages(channels, convs, padding, pool, activation)
        net["dense"] = nn.Linear(inputs, dense, bias=not self.batch_norm)
        if self.batch_norm:
            net["dense_norm"] = nn.BatchNorm1d(dense)
        net["dense_act"] = act.make(activation)
        if dropout:
            net["drop"] = nn.Dropout(dropout)
        net["head"] = nn.Linear(dense, self.spec.outputs)
        self.net = nn.Sequential(OrderedDict(net))
        self.trunk = [name for name in net if "act" in name]
        initialize(self.net, init, activation)

    def _stages(
        self, channels: Sequence[int], convs: int, padding: int, pool: str, activation: act.Activation
    ) -> tuple[dict[str, nn.Module], int]:
        """Return the convolutional part, flattened at its end, and how many numbers it yields."""
        inputs, *size = self.spec.shape
        net: dict[str, nn.Module] = {}
        for stage, outputs in enumerate(channels, 1):
            if stage > 1:
                net[f"pool{stage - 1}"] = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
                size = [side // 2 for side in size]
            for index in range(convs):
                name = f"{stage}" if convs == 1 else f"{stage}_{index + 1}"
                net[f"conv{name}"] = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=not self.batch_norm)
                if self.batch_norm:
                    net[f"norm{name}"] = nn.BatchNorm2d(outputs)
                net[f"act{name}"] = act.make(activation)
                inputs, size = outputs, [side - 2 + 2 * padding for side in size]
        if min(size) < 1:
            images = "×".join(map(str, self.spec.shape[1:]))
            raise UserError(f"model.channels={list(channels)}: too many stages for {images} images")
        return {**net, "flat": nn.Flatten()}, inputs * math.prod(size)

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
