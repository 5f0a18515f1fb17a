"""How well the next symbol is foretold, in two units of the mean cross-entropy: perplexity and bits a symbol."""

from __future__ import annotations

import math
from abc import ABC
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class _CrossEntropy(Metric, ABC):
    """Sums over the symbols that were asked for."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        self.total += F.cross_entropy(output, target, reduction="sum")
        self.count += target.numel()


@final
class Perplexity(_CrossEntropy):
    """exp of the mean cross-entropy in nats: among how many symbols alike one would have to choose."""

    def compute(self) -> Tensor:
        return (self.total / self.count).exp()


@final
class BitsPerCharacter(_CrossEntropy):
    """The mean cross-entropy in bits: what a perfect coder needs for a symbol, a character or a byte."""

    def compute(self) -> Tensor:
        return self.total / self.count / math.log(2)
