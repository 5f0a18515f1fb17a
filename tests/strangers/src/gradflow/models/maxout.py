"""Maxout networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, final

from torch import Tensor, nn

from gradflow.models.base import Module, as_vector
from gradflow.models.init import Init, initialize


class Largest(nn.Module):
    """The largest of two linear maps, element by element."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.pair = nn.Linear(inputs, 2 * width)

    def forward(self, h: Tensor) -> Tensor:
        first, second = self.pair(h).chunk(2, -1)
        return first.maximum(second)


@final
class Maxout(Module):
    """Goodfellow et al. 2013, of vectors."""

    kinds = ("vector",)

    def __init__(self, spec: Any, depth: int = 2, width: int = 16, init: Init = "auto", **training: Any) -> None:
        super().__init__(spec, **training)
        sizes = [*self.spec.shape, *[width] * depth]
        blocks = [Largest(*pair) for pair in pairwise(sizes)]
        self.net = nn.Sequential(*blocks, nn.Linear(sizes[-1], self.spec.outputs))
        self.trunk = [str(index) for index in range(depth)]
        initialize(self.net, init, "relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(as_vector(x, self.spec))
