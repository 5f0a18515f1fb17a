"""A job of a sweep on another machine. Only Python's own library is needed there: a cluster can send it by value."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

PREEMPTED = (128 + signal.SIGTERM, -signal.SIGTERM)  # how a run ends that was told to save and stop
PR_SET_PDEATHSIG = 1


@dataclass
class Task:
    """`python words…` in a process of its own; called, it gives back the exit status and the seconds it took."""

    words: Sequence[str]
    environment: Mapping[str, str]  # beside what the node's own says
    folder: str  # in which it runs
    log: str
    python: str = sys.executable

    def __call__(self) -> tuple[int, float]:
        began, rank = time.monotonic(), os.environ.get("SLURM_PROCID", "0")
        with open(self.log if rank == "0" else f"{self.log}.{rank}", "a") as log:
            self.process = subprocess.Popen(
                [self.python, *self.words],
                cwd=self.folder,
                env=os.environ | dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=tied_to_parent,
            )
        before = signal.signal(signal.SIGTERM, lambda *_: self.tell())
        try:
            self.over()
        except BaseException:
            self.save()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        status = self.process.wait()
        if rank == "0" and status in PREEMPTED:
            sys.exit(128 + signal.SIGTERM)  # without a result, since SLURM may start it again
        if rank != "0" and status not in (0, *PREEMPTED):
            sys.exit(1)  # srun ends the other ranks
        return status, time.monotonic() - began

    def tell(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)  # Popen's own would take note of the end, and `over` would miss it

    def over(self) -> None:
        """Wait without Popen's lock, because a signal's handler may have to wait, too."""
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def save(self) -> None:
        self.tell()
        self.over()

    def checkpoint(self) -> Any:
        """What submitit calls when time is nearly up, and starts again: the same words, which go on in their folder."""
        from submitit.helpers import DelayedSubmission

        self.save()
        return DelayedSubmission(replace(self))


def call(task: Task) -> tuple[int, float]:
    """As a function, which is what Ray takes."""
    return task()


def tied_to_parent() -> None:
    """The run ends with whoever waits for it; the signal at which submitit saves is for submitit."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
