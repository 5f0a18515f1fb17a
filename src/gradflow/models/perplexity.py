"""How well the next symbol is foretold, in two units of the mean cross-entropy: perplexity and bits a symbol."""

from __future__ import annotations

import math
from abc import ABC
from typing import final

import torch.nn.functional as F
from torch import Tensor

from gradflow.models.metrics import Mean


class _CrossEntropy(Mean, ABC):
    """The mean over the symbols that were asked for."""

    higher_is_better = False

    def update(self, output: Tensor, target: Tensor) -> None:  # type: ignore[override]
        super().update(F.cross_entropy(output, target, reduction="sum"), target.numel())


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
