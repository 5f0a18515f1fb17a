"""Highway networks (Srivastava et al. 2015): a gate mixes each layer with a path around it."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, as_vector, by_step, vector_sizes
from gradflow.models.checks import positive
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


@final
class HighwayLayer(nn.Module):
    """T(x) φ(W x + b) + (1 − T(x)) x with T(x) = σ(V x + c)."""

    gated = True  # what theory knows it by

    def __init__(self, width: int, activation: act.Activation) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.act = act.make(activation)
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x.lerp(self.act(self.linear(x)), self.gate(x).sigmoid())


@final
class Highway(Module):
    """`depth` hidden layers: h_1 = φ(W x), since it changes the width, and highway layers from there on.

    `gate_bias` is c at the start: below 0 a layer begins as nearly the identity.
    """

    kinds = ("image", "sequence", "vector")
    causal = False

    def __init__(
        self,
        spec: Spec,
        depth: int = 10,
        width: int = 64,
        gate_bias: float = -2.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        positive(depth=depth, width=width)
        if not (isinstance(gate_bias, (int, float)) and math.isfinite(gate_bias)):
            raise UserError(f"model.gate_bias={gate_bias}: expected a number; below 0 the input is carried on")
        inputs, outputs = vector_sizes(self.spec)
        first = OrderedDict(linear=nn.Linear(inputs, width), act=act.make(activation))
        self.trunk = [f"block{index + 1}" for index in range(depth)]
        net: dict[str, nn.Module] = {"block1": nn.Sequential(first)}
        net |= {name: HighwayLayer(width, activation) for name in self.trunk[1:]}
        net["head"] = nn.Linear(width, outputs)
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)
        for layer in self.net.modules():
            if isinstance(layer, HighwayLayer):
                nn.init.constant_(layer.gate.bias, gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        return by_step(self.net(as_vector(x, self.spec)), self.spec)
