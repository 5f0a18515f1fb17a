"""What every task shares: a task is one kind of question that data ask of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from inspect import isabstract
from typing import ClassVar

from torch import Tensor

from gradflow.runs import packages
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.spec import Spec


class Task(ABC):
    """Loss, metric, targets and trivial answer of one kind of question; models, data and checks ask this one object.

    A task is a final class in a file of its own here; `Spec.task` is the name of the file.
    """

    losses: ClassVar[tuple[str, ...]]  # that `model.loss` may name; `auto` is the first
    metric: ClassVar[str]  # that is logged beside the loss
    asks_for: ClassVar[str]  # what a target is, in a message
    mixes: ClassVar[bool] = False  # whether the targets of two samples can be mixed

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def check_loss(self, name: str) -> str:
        """Return the name of the loss that `model.loss=name` means, or reject one that does not fit."""
        if name == "auto":
            return self.losses[0]
        if name not in self.losses:
            known = ", ".join(("auto", *self.losses))
            raise UserError(f"model.loss={name}: these data ask for {self.asks_for}; expected one of {known}")
        return name

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor, name: str, smoothing: float = 0.0) -> Tensor:
        """Return the mean loss over samples, and over steps where each has an output."""

    @abstractmethod
    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the sum of the metric over a batch, and over how many entries it is a sum."""

    @abstractmethod
    def trivial(self, targets: Mapping[str, Tensor], loss: str) -> dict[str, float]:
        """Return `loss/<split>` and the metric of the best constant answer, fitted to the targets of the train split.

        Where each time step has an output, each has a constant of its own.
        """

    def check_targets(self, target: Tensor, split: str) -> None:
        """Reject targets that contradict the spec."""

    def classes(self, target: Tensor) -> Tensor | None:
        """Return the class of each sample, of which a split gets its share; None where there are none."""
        return None


def task_of(spec: Spec) -> Task:
    """Return the task of these data, by the name of its file, here or in `tasks/` of a package beside ours."""
    known: dict[str, str] = {}
    for package, folder in packages.folders().items():
        names = (path.stem for path in sorted((folder / "tasks").glob("[a-z]*.py")))
        known |= {name: f"{package}.tasks.{name}" for name in names if f"{package}.tasks.{name}" != __name__}
    if spec.task not in known:
        raise UserError(f"the data's task is {spec.task}: no such task; {did_you_mean(spec.task, sorted(known))}")
    module = import_module(known[spec.task])
    found = (one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Task))
    cls: type[Task] = next(one for one in found if not isabstract(one))
    return cls(spec)
