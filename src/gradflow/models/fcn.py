"""A plain fully convolutional network: an output for each pixel (Long et al. 2015), without pooling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module
from gradflow.models.checks import positive
from gradflow.models.init import Init, initialize
from gradflow.models.skips import Skips, with_skips
from gradflow.spec import Spec


@final
class FCN(Module):
    """`depth` times (convolution, activation), the l-th with a dilation of 1, 2, 4, 8, 1, …, and a 1×1 head.

    A dilation lets few layers see far: 15 pixels to each side in four, 30 in eight. `skips` adds the
    output of some layers to that of later ones; no map shrinks, so that any two have one size.
    """

    kinds = ("image",)
    answers = ("pixel",)

    def __init__(
        self,
        spec: Spec,
        depth: int = 4,
        width: int = 32,
        skips: Skips = "none",
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        positive(depth=depth, width=width)
        layers: list[dict[str, nn.Module]] = []
        inputs = self.spec.shape[0]
        for index in range(depth):
            dilation = 2 ** (index % 4)
            conv = nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation)
            layers.append({f"conv{index + 1}": conv, f"act{index + 1}": act.make(activation)})
            inputs = width
        net, self.trunk = with_skips(layers, [width] * depth, skips)
        net["head"] = nn.Conv2d(inputs, self.spec.outputs, 1)
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
