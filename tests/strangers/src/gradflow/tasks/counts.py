"""How many is it? Outputs are the logarithms of the rates of Poisson distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch.nn.functional as F
from torch import Tensor

from gradflow.tasks.task import Task


@final
class Counts(Task):
    """Targets are whole numbers, 0 or more."""

    losses = ("poisson",)
    metric = "mse"
    higher_is_better = False
    asks_for = "counts"

    def loss(self, output: Tensor, target: Tensor, name: str, smoothing: float = 0.0) -> Tensor:
        return F.poisson_nll_loss(output.float(), target.float())

    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        return (output.exp() - target).square().sum(), target.numel()

    def trivial(self, targets: Mapping[str, Tensor], loss: str) -> dict[str, float]:
        """The constant answer is the mean count."""
        rate = targets["train"].double().mean(0)
        answer: dict[str, float] = {}
        for split, target in targets.items():
            answer[f"loss/{split}"] = (rate - target * rate.log()).mean().item()
            answer[f"mse/{split}"] = (target - rate).square().mean().item()
        return answer
