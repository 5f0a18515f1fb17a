"""A plain fully convolutional network: an output for each pixel (Long et al. 2015), without pooling."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, positive
from gradflow.models.init import Init, initialize
from gradflow.spec import Spec


@final
class FCN(Module):
    """`depth` times (3×3 convolution, activation), the l-th with a dilation of 1, 2, 4, 8, 1, …, and a 1×1 head.

    A dilation lets few layers see far: 15 pixels to each side in four, 30 in eight.
    """

    kinds = ("image",)
    answers = ("pixel",)

    def __init__(
        self,
        spec: Spec,
        depth: int = 4,
        width: int = 32,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        positive(depth=depth, width=width)
        net: dict[str, nn.Module] = {}
        inputs = self.spec.shape[0]
        for index in range(depth):
            dilation = 2 ** (index % 4)
            net[f"conv{index + 1}"] = nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation)
            net[f"act{index + 1}"] = act.make(activation)
            inputs = width
        net["head"] = nn.Conv2d(inputs, self.spec.outputs, 1)
        self.net = nn.Sequential(OrderedDict(net))
        self.trunk = [f"act{index + 1}" for index in range(depth)]
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
