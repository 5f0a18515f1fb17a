"""A job of a sweep as a process, and how a cluster's node runs it. It needs the standard library alone, so that it can
be sent by value."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_PREEMPTED = (128 + signal.SIGTERM, -signal.SIGTERM)  # how a run ends that was told to save and stop
_PR_SET_PDEATHSIG = 1
_POLL = 0.05  # seconds


@dataclass
class JobProcess:
    """`python arguments…`; called on a node, it runs that and returns the exit status and the seconds it took."""

    arguments: Sequence[str]
    environment: Mapping[str, str]  # beside that of the machine
    log: Path
    folder: str = field(default_factory=os.getcwd)  # in which it runs
    python: str = sys.executable

    def start(self, environment: Mapping[str, str], log_suffix: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """Start the process with this environment alone."""
        with open(f"{self.log}{log_suffix}", "ab") as log:
            return subprocess.Popen(
                [self.python, *self.arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **options,
            )

    def __call__(self) -> tuple[int, float]:
        began, rank = time.monotonic(), os.environ.get("SLURM_PROCID", "0")
        tie = _tie_to_parent if os.name == "posix" else None
        suffix = "" if rank == "0" else f".{rank}"
        self.process = self.start(os.environ | dict(self.environment), suffix, preexec_fn=tie)
        threading.Thread(target=self.process.wait, daemon=True).start()
        before = signal.signal(signal.SIGTERM, lambda *_: self.process.terminate())
        try:
            self._wait()
        except BaseException:
            self._save()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        status = self.process.wait()
        if rank == "0" and status in _PREEMPTED:
            sys.exit(128 + signal.SIGTERM)  # without a result, since SLURM may start it again
        if rank != "0" and status not in (0, *_PREEMPTED):
            sys.exit(1)  # srun ends the other ranks
        return status, time.monotonic() - began

    def _wait(self) -> None:
        """Wait without Popen's lock, which the thread holds: a signal's handler may have to wait, too."""
        while self.process.returncode is None:
            time.sleep(_POLL)

    def _save(self) -> None:
        self.process.terminate()
        self._wait()

    def checkpoint(self) -> Any:
        """Be called by submitit when time is nearly up, and return the same job, which goes on in its folder."""
        from submitit.helpers import DelayedSubmission

        self._save()
        return DelayedSubmission(replace(self))


def run(job: JobProcess) -> tuple[int, float]:
    """Run a job by a function, which is what Ray takes."""
    return job()


def _tie_to_parent() -> None:
    """Let the run end with whoever waits for it, and leave to submitit the signal at which submitit saves."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
