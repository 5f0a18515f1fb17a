"""What a run measures beside its training loss: exact over a split, on any number of devices and after a resume.

The private names of torchmetrics (1.9) stand here: `_reductions` says how ranks add up a state, `_update_count` whether
anything was seen. Where they go, `sums` and `restore` need another way to know.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_sum

from gradflow.runs.errors import UserError
from gradflow.tasks.task import Task

_SPLITS = ("train", "val", "test")
_TRIED = 8  # entries of the batch on which a metric is tried


class Mean(Metric):
    """A mean from sums and counts: exact for unequal batches and devices, and without waiting for the device.

    Lightning's own mean is not exact on several devices; torchmetrics' MeanMetric either waits at each batch to look
    for nans or, if that is switched off, ignores the weights (1.9).
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        self.total += total
        self.count += count

    def add(self, total: Tensor, count: Tensor | int) -> None:
        """Do what `update` does, without what torchmetrics wraps around it: 2 µs instead of 9, in every step."""
        self.total.add_(total)
        self.count.add_(count)
        attributes = vars(self)
        attributes["_computed"] = None
        attributes["_update_count"] += 1

    def compute(self) -> Tensor:
        return self.total / self.count


class Metrics(nn.ModuleDict):
    """The loss, and the chosen metrics or the task's own, each by a name like `f1/val`.

    Of the training split those are measured that cost no wait for the device and whose states are sums, which a
    checkpoint can hold for each rank; `not_on_train` names the others.
    """

    def __init__(self, task: Task, chosen: Mapping[str, Metric] | None = None) -> None:
        super().__init__({"loss/val": Mean(), "loss/test": Mean()})
        self.task, self.chosen = task, dict.fromkeys(chosen or {}, True)
        self.directions = {"loss": "min"}
        if not chosen:
            self.directions[task.metric] = "max" if task.higher_is_better else "min"
            self.update({f"{task.metric}/{split}": Mean() for split in _SPLITS})
        for name, metric in (chosen or {}).items():
            _check_fit(name, metric, task)
            if hasattr(metric, "validate_args"):  # was good for the trial, and would wait for the device at each batch
                metric.validate_args = False
            if metric.higher_is_better is not None:
                self.directions[name] = "max" if metric.higher_is_better else "min"
            free = _is_sum(metric) and _updates_without_waiting(metric, task)
            self.update({f"{name}/{split}": metric.clone() for split in _SPLITS if split != "train" or free})

    @property
    def not_on_train(self) -> list[str]:
        return [name for name in self.chosen if f"{name}/train" not in self]

    def add(self, split: str, output: Tensor, target: Tensor) -> None:
        """Add a batch to all metrics of a split but the loss."""
        if not self.chosen:  # the fast way
            cast(Mean, self[f"{self.task.metric}/{split}"]).add(*self.task.score(output, target))
            return
        entries = self.task.entries(output.to(torch.promote_types(output.dtype, torch.float32)), target)
        for name, metric in self.of(split).items():
            if not name.startswith("loss/"):
                _update(metric, *entries, waits=split != "train" or not target.is_cuda)

    def of(self, split: str) -> dict[str, Metric]:
        """Return the metrics of a split, by their whole names; the loss of the training split is none of them."""
        return {name: cast(Metric, metric) for name, metric in self.items() if name.endswith(f"/{split}")}

    def sums(self, gather: Callable[[Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return what each rank has added up of the training epoch: [ranks, …] by metric and state."""
        return {
            name: {state: gather(cast(Tensor, value).cpu()) for state, value in metric.metric_state.items()}
            for name, metric in self.of("train").items()
        }

    def restore(self, sums: Mapping[str, Any], rank: int, ranks: int) -> None:
        """Give this rank its own sums, or all to the first where there are more or fewer ranks now."""
        for name, metric in self.of("train").items():
            for state, each in sums[name].items():
                mine = each[rank] if len(each) == ranks else each.sum(0, dtype=each.dtype) * (rank == 0)
                if mine.any():
                    setattr(metric, state, mine.to(metric.device))
                    metric._update_count = 1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Keep states in single precision: half, which a 16-bit model would give them, can't count."""
        super()._apply(fn, recurse)
        for metric in self.values():
            metric._apply(lambda state: state.float() if state.is_floating_point() else state)
        return self


class _WithoutWaiting(TorchFunctionMode):
    """Count by adding up: torch.bincount waits for the device to learn the size of what it returns."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.bincount:
            return func(*args, **(kwargs or {}))
        ((values,), counts) = args, kwargs["minlength"]
        return values.new_zeros(counts).scatter_add_(0, values, torch.ones_like(values))


def _update(metric: Metric, output: Tensor, target: Tensor, waits: bool) -> None:
    if waits:
        metric.update(output, target)
        return
    with _WithoutWaiting():
        metric.update(output, target)


def _is_sum(metric: Metric) -> bool:
    states, reductions = metric.metric_state, metric._reductions
    return bool(states) and all(reductions[name] is dim_zero_sum for name in states)


def _updates_without_waiting(metric: Metric, task: Task) -> bool:
    """Return whether an update asks for no number: on the device meta there is none to be had."""
    with suppress(NotImplementedError, RuntimeError):
        _update(metric.clone().to("meta"), *task.entries(*_batch(task, "meta")), waits=False)
        return True
    return False


def _batch(task: Task, device: str) -> tuple[Tensor, Tensor]:
    """Return outputs and targets that fit the task; no random number of the run's is used up."""
    outputs = task.spec.outputs
    output = torch.linspace(-1, 1, _TRIED * outputs, device=device).view(_TRIED, outputs)
    target = torch.arange(_TRIED, device=device) % task.num_classes if task.num_classes else output.flip(0)
    return output, target


def _check_fit(name: str, metric: Metric, task: Task) -> None:
    """Reject a metric that can't compare what the model answers with what the data ask for, or is no one number."""
    kind, tried = type(metric).__name__, metric.clone()
    try:
        with warnings.catch_warnings(action="ignore"):
            tried.update(*task.entries(*_batch(task, "cpu")))
            value = tried.compute()
    except Exception as error:  # whatever a stranger's class ends with
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"metrics.{name}: {kind} does not fit {task.asks_for}, for which the data ask: {reason}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(
            f"metrics.{name}: {kind} is no single number; an option like metrics.{name}.average=macro makes it one"
        )
