"""What every task shares: a task is one kind of question that data ask of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
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
    metric: ClassVar[str]  # that is logged beside the loss, where none is chosen
    higher_is_better: ClassVar[bool] = True  # of that metric
    asks_for: ClassVar[str]  # what a target is, in a message
    mixes: ClassVar[bool] = False  # whether the targets of two samples can be mixed
    causal: ClassVar[bool] = False  # whether an output may not depend on later inputs
    memory: ClassVar[bool] = True  # whether a verdict asks of outputs at each step only for the last
    moves: ClassVar[bool | None] = None  # whether a target moves with its image; None where nobody knows

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @property
    def answers(self) -> str:
        """What each has an output of its own: sample, step or pixel."""
        return "step" if self.spec.per_step else "sample"

    @property
    def padding(self) -> int:
        """The label of entries that count neither in the loss nor in a metric; PyTorch's where the data have none."""
        return -100 if self.spec.ignored is None else self.spec.ignored

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

    def count(self, target: Tensor) -> Tensor | int:
        """Return over how many entries `loss` is the mean, or a number in proportion."""
        return len(target)

    def question(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and targets whose loss a verdict judges: those of the last step, which ask for a memory,
        or all, where the task is a local one."""
        return (output[:, -1:], target[:, -1:]) if self.spec.per_step and self.memory else (output, target)

    @abstractmethod
    def score(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the sum of the metric over a batch, and over how many entries it is a sum."""

    @property
    def num_classes(self) -> int | None:
        """Return how many classes there are, where targets are classes."""
        return None

    def entries(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a chosen metric compares, without what does not count: [entries, classes] and [entries] classes,
        or twice [entries, numbers], [entries] where it is one number."""
        return tuple(x.flatten() if self.spec.outputs == 1 else x.flatten(0, -2) for x in (output, target))  # type: ignore[return-value]

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
    if spec.task not in (known := _modules()):
        raise UserError(f"the data's task is {spec.task}: no such task; {did_you_mean(spec.task, sorted(known))}")
    return _class_in(known[spec.task])(spec)


def tasks() -> dict[str, type[Task]]:
    """Return the class of each task by its name."""
    return {name: _class_in(module) for name, module in _modules().items()}


def _modules() -> dict[str, str]:
    """Return the files that hold a task, as modules; one whose name begins with _ holds none."""
    modules: dict[str, str] = {}
    for package, folder in packages.folders().items():
        names = (path.stem for path in sorted((folder / "tasks").glob("[a-z]*.py")))
        modules |= {name: f"{package}.tasks.{name}" for name in names}
    return {name: module for name, module in modules.items() if module != __name__}


def _class_in(name: str) -> type[Task]:
    module = import_module(name)
    found = (one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Task))
    return next(one for one in found if one.__module__ == module.__name__)
