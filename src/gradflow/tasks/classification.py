"""Which class is it? One answer a sample, or one at each time step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.tasks.task import Task


@final
class Classification(Task):
    """Targets are classes counted from 0, or a share of each class where samples were mixed.

    The accuracy leaves out `spec.blank`, a class that is no feat to predict; the loss does not, as published.
    """

    losses = ("cross_entropy", "mse")
    metric = "accuracy"
    asks_for = "classes"
    mixes = True

    def loss(self, output: Tensor, target: Tensor, name: str, smoothing: float = 0.0) -> Tensor:
        """`mse` compares with one-hot targets, over all outputs."""
        mixed = target.is_floating_point()
        if name == "cross_entropy":
            target = target if mixed else target.flatten()
            return F.cross_entropy(output.flatten(0, -2), target, label_smoothing=smoothing)
        dtype = torch.promote_types(output.dtype, torch.float32)
        return F.mse_loss(output.to(dtype), (target if mixed else F.one_hot(target, self.spec.outputs)).to(dtype))

    @property
    def num_classes(self) -> int:
        return self.spec.outputs

    def entries(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output, target = output.flatten(0, -2), _labels(target).flatten()
        if self.spec.blank is None:
            return output, target
        asked = target != self.spec.blank
        return output[asked], target[asked]

    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return how many answers are right, and how many were asked for."""
        target = _labels(target)
        right = output.argmax(-1) == target
        if self.spec.blank is None:
            return right.sum(), target.numel()
        asked = target != self.spec.blank
        return (right & asked).sum(), asked.sum()

    def trivial(self, targets: Mapping[str, Tensor], loss: str) -> dict[str, float]:
        """The constant answer is the frequencies of the classes."""
        counted = {split: self._counts(target) for split, target in targets.items()}
        constant = counted["train"] / counted["train"].sum(-1, keepdim=True)
        losses = {f"loss/{split}": _loss_of(constant, count, loss) for split, count in counted.items()}
        return losses | {f"accuracy/{split}": self._accuracy(constant, count) for split, count in counted.items()}

    def check_targets(self, target: Tensor, split: str) -> None:
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= self.spec.outputs:
            raise UserError(f"{split}: classes {low} to {high}, but the spec says {self.spec.outputs}, counted from 0")

    def classes(self, target: Tensor) -> Tensor | None:
        return target if target.ndim == 1 else None

    def _counts(self, target: Tensor) -> Tensor:
        """Count in [N, *steps], as [steps or 1, classes], how often each class is the target."""
        target = target.flatten(1).T if target.ndim > 1 else target[None]
        count = torch.zeros(len(target), self.spec.outputs, dtype=torch.double)
        return count.scatter_add_(1, target.long(), torch.ones_like(target, dtype=torch.double))

    def _accuracy(self, constant: Tensor, count: Tensor) -> float:
        if self.spec.blank is not None:
            asked = torch.arange(self.spec.outputs, device=count.device) != self.spec.blank
            constant, count = constant * asked, count * asked
        right = count.gather(-1, constant.argmax(-1, keepdim=True))
        return (right.sum() / count.sum()).item()


def _labels(target: Tensor) -> Tensor:
    """Return classes: a mixed sample is of the class of its larger share."""
    return target.argmax(-1) if target.is_floating_point() else target


def _loss_of(constant: Tensor, count: Tensor, name: str) -> float:
    """Return what `Classification.loss` is for a constant answer, from the counts of the targets."""
    if name == "cross_entropy":
        return (-torch.xlogy(count, constant).sum() / count.sum()).item()
    square = constant.square().sum(-1, keepdim=True)  # |onehot − constant|² = 1 − 2 constant[class] + |constant|²
    return ((count * (1 - 2 * constant + square)).sum() / count.sum() / constant.shape[-1]).item()
