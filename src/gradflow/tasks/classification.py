"""Which class is it? One answer a sample, or one at each time step."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.tasks._labels import Labels
from gradflow.tasks._squares import FACTORS, squared_error


@final
class Classification(Labels):
    """Targets are classes counted from 0, or a share of each class where samples were mixed.

    Where each time step has an output, a verdict asks whether the last one remembers the first inputs.
    """

    losses = ("cross_entropy", *FACTORS)
    mixes = True
    moves = False

    def loss(self, output: Tensor, target: Tensor, name: str, smoothing: float = 0.0) -> Tensor:
        """`mse` and its half compare with one-hot targets, over all outputs."""
        mixed = target.is_floating_point()
        if name in FACTORS:
            return squared_error(output, target if mixed else F.one_hot(target, self.spec.outputs), name)
        if mixed:
            return F.cross_entropy(output, target, label_smoothing=smoothing)
        return super().loss(output, target, name, smoothing)

    def entries(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return super().entries(output, _labels(target))

    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        return super().score(output, _labels(target))

    def check_loss(self, name: str) -> str:
        if name in FACTORS and self.spec.ignored is not None:
            raise UserError(f"model.loss={name}: would count padding (ignored); expected auto or cross_entropy")
        return super().check_loss(name)

    def classes(self, target: Tensor) -> Tensor | None:
        return target if target.ndim == 1 else None

    def rows(self, target: Tensor) -> Tensor:
        """A row a time step: each has a constant of its own."""
        return target.flatten(1).T if target.ndim > 1 else target[None]

    def _loss_of(self, constant: Tensor, count: Tensor, name: str) -> float:
        if name == "cross_entropy":
            return super()._loss_of(constant, count, name)
        square = constant.square().sum(-1, keepdim=True)  # |onehot − constant|² = 1 − 2 constant[class] + |constant|²
        mean = (count * (1 - 2 * constant + square)).sum() / count.sum() / constant.shape[-1]
        return FACTORS[name] * mean.item()


def _labels(target: Tensor) -> Tensor:
    """Return classes: a mixed sample is of the class of its larger share."""
    return target.argmax(-1) if target.is_floating_point() else target
