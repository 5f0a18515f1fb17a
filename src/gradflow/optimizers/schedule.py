"""Learning-rate schedules as closed forms: each returns the factor of `optimizer.lr` at optimizer step t.

`total` is the run's number of optimizer steps, `epoch` that of one epoch; the module hands both in. `warmup` steps of a
linear rise come first, and the schedule then spans what is left of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gradflow.runs.errors import UserError

Factor = Callable[[int], float]


def _warmed(factor: Factor, warmup: int, total: float) -> Factor:
    if warmup < 0:
        raise UserError(f"scheduler.warmup={warmup}: expected a number of steps, 0 or more")
    if warmup >= total:
        raise UserError(f"scheduler.warmup={warmup}: the whole run has {total:.0f} optimizer steps")
    return lambda t: (t + 1) / warmup * factor(0) if t < warmup else factor(t - warmup)


def _steps_left(total: float, warmup: int) -> int:
    """Optimizer steps after the warm-up."""
    if not math.isfinite(total):
        raise UserError("this scheduler needs to know the end of the run: set trainer.max_epochs or trainer.max_steps")
    return max(int(total) - warmup, 1)


def _checked_unit(unit: str, known: Sequence[str]) -> str:
    if unit not in known:
        raise UserError(f"scheduler.unit={unit}: expected one of {', '.join(known)}")
    return unit


def _not_negative(**factors: float) -> None:
    """A learning rate below 0 would climb."""
    for name, factor in factors.items():
        if factor < 0:
            raise UserError(f"scheduler.{name}={factor}: expected 0 or more")


def constant(total: float, epoch: int, warmup: int = 0) -> Factor:
    return _warmed(lambda t: 1.0, warmup, total)


def inverse_time(total: float, epoch: int, epsilon: float = 1e-3, unit: str = "step", warmup: int = 0) -> Factor:
    """1 / (1 + epsilon t), t in steps or in whole epochs."""
    stride = 1 if _checked_unit(unit, ("step", "epoch")) == "step" else epoch
    _not_negative(epsilon=epsilon)
    return _warmed(lambda t: 1 / (1 + epsilon * (t // stride)), warmup, total)


def step(
    total: float,
    epoch: int,
    milestones: Sequence[float] = (0.5, 0.75),
    unit: str = "run",
    gamma: float = 0.1,
    warmup: int = 0,
) -> Factor:
    """gamma to the number of milestones passed; they are given as fractions of the run, in epochs or in steps."""
    _checked_unit(unit, ("run", "epoch", "step"))
    if gamma <= 0:
        raise UserError(f"scheduler.gamma={gamma}: expected a number above 0")
    if not all(0 < milestone < 1 if unit == "run" else milestone >= 1 for milestone in milestones):
        wanted = "fractions between 0 and 1" if unit == "run" else "1 or more each"
        raise UserError(f"scheduler.milestones={list(milestones)}: expected {wanted} with scheduler.unit={unit}")
    scale = _steps_left(total, warmup) if unit == "run" else {"epoch": epoch, "step": 1}[unit]
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
