"""DenseNet (Huang et al. 2017) for small images: each layer reads all the layers before it, side by side."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module
from gradflow.models.checks import blocks_in, positive, probability
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


class Dense(nn.Module):
    """norm, act, 3×3 convolution to `growth` new channels, put beside the input."""

    def __init__(self, inputs: int, growth: int, dropout: float, activation: act.Activation) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.BatchNorm2d(inputs)
        self.act = act.make(activation)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = F.dropout(self.conv(self.act(self.norm(x))), self.dropout, self.training)
        return torch.cat([x, new], 1)


def _transition(channels: int, activation: act.Activation) -> nn.Sequential:
    """Mix the channels and halve the map."""
    norm, conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(OrderedDict(norm=norm, act=act.make(activation), conv=conv, pool=nn.AvgPool2d(2)))


@final
class DenseNet(Module):
    """`depth` = 3n + 4 weighted layers: a stem, three blocks of n layers with transitions between them, a head."""

    kinds = ("image",)
    answers = ("sample",)

    def __init__(
        self,
        spec: Spec,
        depth: int = 22,
        growth: int = 12,
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        layers = blocks_in(depth, 3, 4, "DenseNet", "22, 40, 100")
        positive(growth=growth)
        probability(dropout=dropout)
        if min(self.spec.shape[1:]) < 4:
            raise UserError(f"images of {self.spec.shape[1:]} are too small for the two poolings of a DenseNet")
        channels = 16
        net: dict[str, nn.Module] = {"stem": nn.Conv2d(self.spec.shape[0], channels, 3, padding=1, bias=False)}
        for block in (1, 2, 3):
            if block > 1:
                net[f"transition{block - 1}"] = _transition(channels, activation)
            for index in range(layers):
                net[f"block{block}_{index + 1}"] = Dense(channels, growth, dropout, activation)
                channels += growth
        self.trunk = list(net)
        net |= {"last_norm": nn.BatchNorm2d(channels), "last_act": act.make(activation)}
        net |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(channels, self.spec.outputs)}
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
