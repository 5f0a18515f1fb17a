"""Plain convolutional networks, without (`CNN`) and with (`BNCNN`) batch normalisation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, one_of, positive, probability
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def build(
    spec: Spec,
    channels: Sequence[int],
    convs: int,
    padding: int,
    pool: str,
    dense: int,
    dropout: float,
    activation: act.Activation,
    batch_norm: bool,
) -> nn.Sequential:
    """A stage is `convs` times (3×3 convolution, norm, activation); 2×2 pooling stands between the stages."""
    if not channels or min(channels) < 1:
        raise UserError(f"model.channels={list(channels)}: expected a width of 1 or more for each stage")
    positive(convs=convs, dense=dense)
    probability(dropout=dropout)
    one_of("pool", pool, ("max", "avg"))
    one_of("padding", padding, (0, 1))
    inputs, height, width = spec.shape
    net: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, outputs in enumerate(channels, 1):
        if stage > 1:
            net[f"pool{stage - 1}"] = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
            height, width = height // 2, width // 2
        for index in range(convs):
            name = f"conv{stage}" if convs == 1 else f"conv{stage}_{index + 1}"
            net[name] = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=not batch_norm)
            if batch_norm:
                net[name.replace("conv", "norm")] = nn.BatchNorm2d(outputs)
            net[name.replace("conv", "act")] = act.make(activation)
            inputs, height, width = outputs, height - 2 + 2 * padding, width - 2 + 2 * padding
    if min(height, width) < 1:
        raise UserError(f"model.channels={list(channels)}: too many stages for {spec.shape[1]}×{spec.shape[2]} images")
    net["flat"] = nn.Flatten()
    net["dense"] = nn.Linear(inputs * height * width, dense, bias=not batch_norm)
    if batch_norm:
        net["dense_norm"] = nn.BatchNorm1d(dense)
    net["dense_act"] = act.make(activation)
    if dropout:
        net["drop"] = nn.Dropout(dropout)
    net["head"] = nn.Linear(dense, spec.outputs)
    return nn.Sequential(net)


@final
class CNN(Module):
    """Convolutions, pooling, one dense layer; no normalisation."""

    kinds = ("image",)

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
        self.net = build(self.spec, channels, convs, padding, pool, dense, dropout, activation, batch_norm=False)
        self.trunk = [name for name, _ in self.net.named_children() if "act" in name]
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@final
class BNCNN(Module):
    """The same with batch norm between each layer and its activation; those layers need no bias."""

    kinds = ("image",)

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
        self.net = build(self.spec, channels, convs, padding, pool, dense, dropout, activation, batch_norm=True)
        self.trunk = [name for name, _ in self.net.named_children() if "act" in name]
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
