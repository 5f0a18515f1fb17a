"""`trainer.compile=auto`: torch.compile where it pays, as a few steps of a copy show before training begins.

It does not always: on two cores a ResNet-20 in bfloat16 has been 14 times slower when compiled.
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer

_SHARE, _LONGEST = 0.05, 300.0  # of the training, and seconds, that the trial may take
_SHORTEST = 30.0  # seconds, in which most networks are not compiled
_GAIN = 0.05  # of a step; less is noise


class _TooLong(BaseException):
    """Passes through torch.compile, which takes every `Exception` for a failure of its own."""


def settle(model: Any) -> None:
    """Compile the model where a trial shows that it pays, or where the run that goes on did, and print which."""
    trainer, known = model.trainer, model.compiled_before
    model.compiles, why = (known, "as in the run that goes on") if known is not None else _pays(model, trainer)
    if model.compiles:
        model.compile()
    if trainer.is_global_zero:
        print(f"compile: {'yes' if model.compiles else 'no'}, {why}")


def missing_compiler(cpu: bool) -> str | None:
    """Return which compiler torch.compile will not find: C++ for a CPU, C for a GPU, as Inductor and Triton do."""
    names = ["CXX", "clang++" if sys.platform == "darwin" else "g++"] if cpu else ["CC", "gcc", "clang"]
    wanted = [named] if (named := os.environ.get(names[0])) else names[1:]
    found = any(shutil.which(name.split()[0]) for name in wanted)
    return None if found else f"needs a compiler, {' or '.join(wanted)}, and none is on the PATH"


def _pays(model: Any, trainer: Any) -> tuple[bool, str]:
    """Return whether compiling pays, and why. Weights, statistics and random numbers stay as they are."""
    if missing := missing_compiler(model.device.type == "cpu"):
        return False, f"it {missing}"
    if trainer.world_size > 1 or not _can_be_stopped():
        where = "several devices" if trainer.world_size > 1 else "this system or outside of the main thread"
        return False, f"it is not tried on {where}; trainer.compile=true compiles there"
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            return _compare(model, trainer)
    except Exception as error:
        return False, f"the trial failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _compare(model: Any, trainer: Any) -> tuple[bool, str]:
    eager = _seconds_a_step(model, trainer, compiled=False)
    left = min(eager * trainer.estimated_stepping_batches * trainer.accumulate_grad_batches, _allowed(trainer))
    if (limit := min(_SHARE * left, _LONGEST)) < _SHORTEST:
        return False, f"the training takes about {_duration(left)} without, too short to try"
    start = time.monotonic()
    try:
        with _at_most(limit):
            compiled = _seconds_a_step(model, trainer, compiled=True)
    except _TooLong:
        return False, f"the trial was not over after {_duration(limit)}"
    finally:
        torch.compiler.reset()  # what was compiled for the copy
    trial = time.monotonic() - start
    saved = (1 - compiled / eager) * left
    worth = compiled < (1 - _GAIN) * eager and saved > 2 * trial  # evaluation is compiled, too
    return worth, f"a step takes {compiled:.3g} s with and {eager:.3g} s without; the trial took {_duration(trial)}"


def _seconds_a_step(model: Any, trainer: Any, compiled: bool) -> float:
    """Return the time of forward and backward pass of a copy, with the first batch, after one that warms up."""
    x, target = trainer.train_dataloader.batch(0, 0)
    plugin, one, seconds = trainer.precision_plugin, copy.deepcopy(model).train(), []
    x = plugin.convert_input(x)
    if compiled:
        one.compile()
    for _ in range(4):
        start = time.perf_counter()
        with plugin.forward_context():
            output = one(x)
            loss = one.objective(one.loss(output, target), output, target)
        loss.backward()
        one.zero_grad()
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def _allowed(trainer: Any) -> float:
    """Return the seconds that `trainer.max_time` leaves."""
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]
    return min((seconds for one in timers if (seconds := one.time_remaining()) is not None), default=float("inf"))


def _can_be_stopped() -> bool:
    return hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` within what takes longer."""

    def end(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
