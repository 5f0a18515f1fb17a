"""Plain deep MLPs, and the two classic cures: normalisation and residual connections."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.mistakes import Mistake
from gradflow.models import activation as act
from gradflow.models.init import Init, initialize
from gradflow.models.module import Module, as_vector, one_of, positive, probability
from gradflow.spec import Spec

NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Residual(nn.Sequential):
    def forward(self, h: Tensor) -> Tensor:
        return h + super().forward(h)


def layers(inputs: int, width: int, norm: str, dropout: float, activation: act.Activation, residual: bool) -> nn.Module:
    """linear, norm, activation, dropout; a residual branch has its linear layer last."""
    make_norm = NORMS[norm]
    linear = ("linear", nn.Linear(inputs, width))
    rest: list[tuple[str, nn.Module]] = [("norm", make_norm(width))] if make_norm else []
    rest.append(("act", act.make(activation)))
    if dropout:
        rest.append(("drop", nn.Dropout(dropout)))
    return Residual(OrderedDict([*rest, linear])) if residual else nn.Sequential(OrderedDict([linear, *rest]))


@final
class MLP(Module):
    """`depth` hidden layers h_l = φ(norm(W h_{l-1})); with `residual`, h_1 = W x and h_l = h_{l-1} + W φ(norm(h_{l-1}))."""

    kinds = ("image", "sequence", "vector")

    def __init__(
        self,
        spec: Spec,
        depth: int = 3,
        width: int = 256,
        norm: str = "none",
        residual: bool = False,
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        if depth < 0:
            raise Mistake(f"model.depth={depth}: expected 0 or more hidden layers")
        positive(width=width)
        probability(dropout=dropout)
        one_of("norm", norm, tuple(NORMS))
        steps = self.spec.shape[0] if self.spec.per_step else 1
        inputs = math.prod(self.spec.shape) * max(self.spec.tokens, 1)
        net: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(depth):
            first = index == 0
            if residual and first:
                net["block1"] = nn.Sequential(OrderedDict(linear=nn.Linear(inputs, width)))
            else:
                block = layers(inputs if first else width, width, norm, dropout, activation, residual)
                net[f"block{index + 1}"] = block
        if residual and depth:  # the sum that the branches add to is still before its activation
            net["last"] = layers(width, width, norm, dropout, activation, residual=False)[1:]  # type: ignore[index]
        net["head"] = nn.Linear(width if depth else inputs, steps * self.spec.outputs)
        self.net = nn.Sequential(net)
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        output = self.net(as_vector(x, self.spec))
        return output.unflatten(1, (-1, self.spec.outputs)) if self.spec.per_step else output
