"""Learning-rate schedules: each returns the factor of `optimizer.lr` at optimizer step t, most as a closed form.

`total` is the run's number of optimizer steps, `epoch` that of one epoch; the module hands both in. `warmup` steps of a
linear rise come first, and the schedule then spans what is left of the run. A schedule that also depends on what is
validated returns a `Watching`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

from torch.optim.lr_scheduler import LambdaLR

from gradflow.runs import metric_direction
from gradflow.runs.errors import UserError, did_you_mean

Factor = Callable[[int], float]


class Watching(ABC):
    """A factor that follows a metric of the validation. What its `__dict__` holds is in every checkpoint, by LambdaLR:
    options stand in slots, so that a new run from a checkpoint has its own."""

    __slots__ = ("__dict__", "mode", "monitor")

    def __init__(self, monitor: str, mode: str | None) -> None:
        self.monitor, self.mode = monitor, mode

    def watch(self, metrics: Any) -> None:
        """Check that the metric is there, and learn which way it is better."""
        known = [name for name in metrics if name.endswith("/val")]
        if self.monitor not in known:
            raise UserError(
                f"scheduler.monitor={self.monitor}: no such metric; {did_you_mean(str(self.monitor), known)}"
            )
        direction = metrics.directions.get(self.monitor.partition("/")[0])
        self.mode = metric_direction.mode("scheduler.mode", self.mode, self.monitor, direction)

    @abstractmethod
    def __call__(self, t: int) -> float:
        """Return the factor at optimizer step t."""

    @abstractmethod
    def validated(self, t: int, value: float) -> None:
        """Take in the metric of the validation before optimizer step t, which is the same on all ranks."""


def with_metrics(factor: Factor, metrics: Any, trainer: Any = None) -> Factor:
    """Return the factor, with the metric that it follows, if it does."""
    if isinstance(factor, Watching):
        factor.watch(metrics)
        data = getattr(trainer, "datamodule", None)
        if getattr(trainer, "limit_val_batches", None) == 0 or (data and not data.has("val")):
            raise UserError(f"scheduler.monitor={factor.monitor}: this run validates nothing; choose another scheduler")
    return factor


@final
class Schedule(LambdaLR):
    """Gives each group its own learning rate times the factor."""

    def validated(self, metrics: Any) -> None:
        """Let the factor know what was validated; it counts from the next step on."""
        factor = self.lr_lambdas[0]
        if isinstance(factor, Watching):
            factor.validated(self.last_epoch, float(metrics[factor.monitor].compute()))
            for group, rate in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = rate * factor(self.last_epoch)


def _warmed(factor: Factor, warmup: int, total: float) -> Factor:
    if warmup < 0:
        raise UserError(f"scheduler.warmup={warmup}: expected a number of steps, 0 or more")
    if warmup >= total:
        raise UserError(f"scheduler.warmup={warmup}: the whole run has {total:.0f} optimizer steps")
    return lambda t: (t + 1) / warmup * factor(0) if t < warmup else factor(t - warmup)


def _steps_left(total: float, warmup: int) -> int:
    if not math.isfinite(total):
        raise UserError("this scheduler needs to know the end of the run: set trainer.max_epochs or trainer.max_steps")
    return max(int(total) - warmup, 1)


def _steps_of(unit: str, **steps: int) -> int:
    if unit not in steps:
        raise UserError(f"scheduler.unit={unit}: expected one of {', '.join(steps)}")
    return steps[unit]


def _not_negative(**factors: float) -> None:
    """A learning rate below 0 would climb."""
    for name, factor in factors.items():
        if factor < 0:
            raise UserError(f"scheduler.{name}={factor}: expected 0 or more")


def constant(total: float, epoch: int, warmup: int = 0) -> Factor:
    return _warmed(lambda t: 1.0, warmup, total)


def inverse_time(total: float, epoch: int, epsilon: float = 1e-3, unit: str = "step", warmup: int = 0) -> Factor:
    """1 / (1 + epsilon t), t in steps or in whole epochs."""
    stride = _steps_of(unit, step=1, epoch=epoch)
    _not_negative(epsilon=epsilon)
    return _warmed(lambda t: 1 / (1 + epsilon * (t // stride)), warmup, total)


def exponential(total: float, epoch: int, gamma: float = 0.95, unit: str = "epoch", warmup: int = 0) -> Factor:
    """gamma ^ t, t in steps or in whole epochs."""
    stride = _steps_of(unit, step=1, epoch=epoch)
    _check_gamma(gamma)
    return _warmed(lambda t: gamma ** (t // stride), warmup, total)


def step(
    total: float,
    epoch: int,
    milestones: Sequence[float] = (0.5, 0.75),
    unit: str = "run",
    gamma: float = 0.1,
    warmup: int = 0,
) -> Factor:
    """gamma to the number of milestones passed; they are given as fractions of the run, in epochs or in steps."""
    left = _steps_left(total, warmup) if unit == "run" else 0
    scale = _steps_of(unit, run=left, epoch=epoch, step=1)
    if gamma <= 0:
        raise UserError(f"scheduler.gamma={gamma}: expected a number above 0")
    if not all(0 < milestone < 1 if unit == "run" else milestone >= 1 for milestone in milestones):
        wanted = "fractions between 0 and 1" if unit == "run" else "1 or more each"
        raise UserError(f"scheduler.milestones={list(milestones)}: expected {wanted} with scheduler.unit={unit}")
    edges = [round(milestone * scale, 6) for milestone in milestones]  # 0.55 × 100 is a little more than 55
    return _warmed(lambda t: gamma ** sum(t >= edge for edge in edges), warmup, total)


def cosine(total: float, epoch: int, floor: float = 0.0, warmup: int = 0) -> Factor:
    """From 1 to `floor` along half a cosine."""
    _not_negative(floor=floor)
    left = _steps_left(total, warmup)
    return _warmed(lambda t: _half_cosine(1.0, floor, t / left), warmup, total)


def onecycle(
    total: float, epoch: int, rise: float = 0.3, start: float = 0.04, end: float = 4e-6, warmup: int = 0
) -> Factor:
    """Up from `start` to 1 and down to `end`, each along half a cosine (Smith & Topin 2018)."""
    last = max(_steps_left(total, warmup) - 1, 1)
    return _warmed(_up_and_down(_half_cosine, last, rise, start, end), warmup, total)


def triangular(
    total: float, epoch: int, rise: float = 0.25, start: float = 0.2, end: float = 0.0, warmup: int = 0
) -> Factor:
    """Up from `start` to 1 and down to `end`, each along a line; without `rise` down alone."""
    return _warmed(_up_and_down(_line, _steps_left(total, warmup), rise, start, end), warmup, total)


@final
class Plateau(Watching):
    """Times `gamma` after more than `patience` validations without a new best, counted from the last fall or best.
    What is validated during the warm-up does not count."""

    __slots__ = ("floor", "gamma", "patience", "warm", "warmup")

    def __init__(
        self,
        total: float,
        epoch: int,
        monitor: str = "loss/val",
        mode: str | None = None,
        patience: int = 3,
        gamma: float = 0.3,
        floor: float = 1e-3,
        warmup: int = 0,
    ) -> None:
        super().__init__(monitor, mode)
        _check_gamma(gamma)
        _not_negative(patience=patience, floor=floor)
        self.patience, self.gamma, self.floor, self.warmup = patience, gamma, floor, warmup
        self.warm = _warmed(lambda t: 1.0, warmup, total)
        self.level, self.best, self.waited = 1.0, math.inf, 0

    def __call__(self, t: int) -> float:
        return self.warm(t) * self.level

    def validated(self, t: int, value: float) -> None:
        if t < self.warmup:
            return
        value = -value if self.mode == "max" else value
        self.waited += 1
        if value < self.best:
            self.best, self.waited = value, 0
        elif self.waited > self.patience:
            self.level, self.waited = max(self.level * self.gamma, min(self.floor, self.level)), 0


plateau = Plateau  # as the others are called


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise UserError(f"scheduler.gamma={gamma}: expected a number above 0, 1 at most")


def _up_and_down(
    curve: Callable[[float, float, float], float], last: int, rise: float, start: float, end: float
) -> Factor:
    if not 0 <= rise < 1:
        raise UserError(f"scheduler.rise={rise}: expected a fraction from 0 up to, not including, 1")
    _not_negative(start=start, end=end)

    def factor(t: int) -> float:
        x = t / last
        return curve(start, 1.0, x / rise) if x < rise else curve(1.0, end, (x - rise) / (1 - rise))

    return factor


def _line(a: float, b: float, x: float) -> float:
    return a + (b - a) * min(x, 1.0)


def _half_cosine(a: float, b: float, x: float) -> float:
    return b + (a - b) * (1 + math.cos(math.pi * min(x, 1.0))) / 2
