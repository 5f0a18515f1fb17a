"""What the tasks share whose targets are classes, counted from 0."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.tasks.task import Task


class Labels(Task, ABC):
    """Cross-entropy and accuracy over all entries whose target is a class.

    `spec.ignored`, the label of padding, counts in neither. The accuracy leaves out `spec.blank`, too, a class that is
    no feat to predict; the loss does not, as published.
    """

    losses: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    metric = "accuracy"
    asks_for = "classes"
    class_axis = -1  # of the output

    def loss(self, output: Tensor, target: Tensor, name: str, smoothing: float = 0.0) -> Tensor:
        logits, labels = output.movedim(self.class_axis, -1).flatten(0, -2), target.flatten().long()
        if self.spec.ignored is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        total = F.cross_entropy(logits, labels, ignore_index=self.padding, reduction="sum", label_smoothing=smoothing)
        return total / (labels != self.padding).sum().clamp(min=1)  # a batch of padding alone has a loss of 0

    def count(self, target: Tensor) -> Tensor | int:
        return len(target) if self.spec.ignored is None else (target != self.padding).sum()

    @property
    def num_classes(self) -> int:
        return self.spec.outputs

    def entries(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        output, target = output.movedim(self.class_axis, -1).flatten(0, -2), target.flatten()
        asked = self._asked(target)
        return (output, target) if asked is None else (output[asked], target[asked])

    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return how many answers are right, and how many were asked for."""
        right, asked = output.argmax(self.class_axis) == target, self._asked(target)
        return (right.sum(), target.numel()) if asked is None else ((right & asked).sum(), asked.sum())

    def _asked(self, target: Tensor) -> Tensor | None:
        """Return which entries count in a metric; None where all do."""
        left_out = [label for label in (self.spec.blank, self.spec.ignored) if label is not None]
        return torch.stack([target != label for label in left_out]).all(0) if left_out else None

    def trivial(self, targets: Mapping[str, Tensor], loss: str) -> dict[str, float]:
        """The constant answer is the frequencies of the classes; what training alone lacks counts as seen once."""
        counted = {split: self._counts(target) for split, target in targets.items()}
        elsewhere = torch.stack([*counted.values()]).sum(0) > counted["train"]
        seen = torch.where(elsewhere, counted["train"].clamp(min=1), counted["train"])
        constant = seen / seen.sum(-1, keepdim=True).clamp(min=1)
        losses = {f"loss/{split}": self._loss_of(constant, count, loss) for split, count in counted.items()}
        return losses | {f"accuracy/{split}": self._accuracy(constant, count) for split, count in counted.items()}

    def check_targets(self, target: Tensor, split: str) -> None:
        if target.is_floating_point():
            raise UserError(f"{split}: the targets are {target.dtype}; expected classes, whole numbers from 0")
        labels = target if self.spec.ignored is None else target[target != self.padding]
        if not labels.numel():
            raise UserError(f"{split}: every target is {self.padding}, which the spec says to ignore")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.spec.outputs:
            raise UserError(f"{split}: classes {low} to {high}, but the spec says {self.spec.outputs}, counted from 0")

    def rows(self, target: Tensor) -> Tensor:
        """Return the targets as [rows, entries]: each row has a constant answer of its own."""
        return target.reshape(1, -1)

    def _counts(self, target: Tensor) -> Tensor:
        """Return, as [rows, classes], how often each class is the target."""
        target = self.rows(target).long()
        known = target != self.padding
        count = torch.zeros(len(target), self.spec.outputs, dtype=torch.double)
        return count.scatter_add_(1, target * known, known.double())

    def _loss_of(self, constant: Tensor, count: Tensor, name: str) -> float:
        """Return what `loss` is for a constant answer, from the counts of the targets."""
        return (-torch.xlogy(count, constant).sum() / count.sum()).item()

    def _accuracy(self, constant: Tensor, count: Tensor) -> float:
        if self.spec.blank is not None:
            asked = torch.arange(self.spec.outputs, device=count.device) != self.spec.blank
            constant, count = constant * asked, count * asked
        right = count.gather(-1, constant.argmax(-1, keepdim=True))
        return (right.sum() / count.sum()).item()
