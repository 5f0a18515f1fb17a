"""Which number is it? One or several numbers a sample, or at each time step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.tasks._squares import FACTORS, squared_error
from gradflow.tasks.task import Task


@final
class Regression(Task):
    """Targets are numbers, as many as the model has outputs."""

    losses = tuple(FACTORS)
    metric = "mse"
    higher_is_better = False
    asks_for = "numbers"

    def loss(self, output: Tensor, target: Tensor, name: str, smoothing: float = 0.0) -> Tensor:
        if output.shape != target.shape:
            raise UserError(
                f"targets of shape {list(target.shape)}, but outputs of {list(output.shape)}: they must be alike"
            )
        return squared_error(output, target, name)

    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the sum and the number of squared errors."""
        return (output - target).square().sum(), target.numel()

    def trivial(self, targets: Mapping[str, Tensor], loss: str) -> dict[str, float]:
        """The constant answer is the mean target."""
        mean = targets["train"].double().mean(0)
        errors = {split: (target.double() - mean).square().mean().item() for split, target in targets.items()}
        scales = {"loss": FACTORS[loss], "mse": 1.0}
        return {f"{name}/{split}": scale * error for split, error in errors.items() for name, scale in scales.items()}
