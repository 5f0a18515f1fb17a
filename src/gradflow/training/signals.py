"""SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and the end of the terminal (SIGHUP) end a run in good order. No torch here.

Before training and after it a signal ends the process at once: nothing would be lost. While it trains it is recorded
here, and the callback `resume_checkpoint` reads it: all ranks save at the same step and end. Windows has no SIGUSR1 and
no SIGHUP, and no job of SLURM's.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import NoReturn

from gradflow import runs

NUMBERS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, n)]
_FIRST = "GRADFLOW_FIRST"  # the process whose children the other ranks are
_TRY_AGAIN = 75  # EX_TEMPFAIL: what a script sees after SIGUSR1, that it may start the run again
_PR_SET_PDEATHSIG = 1  # of prctl: which signal a process gets when its parent ends

received = 0
_watched = False  # somebody reads `received`


def listen() -> None:
    """Record signals from now on, instead of ending at once or with a traceback."""
    global received
    received = 0
    watch(False)
    _tie_to_first()


def watch(on: bool) -> None:
    """Say whether somebody reads `received`, and ends the process in good order. Our handlers are put before those of
    Lightning, which would talk to the other ranks from within a signal."""
    global _watched
    _watched = on
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _handle)


def _tie_to_first() -> None:
    """Let a rank that Lightning started end with the first, however that ends: on GPUs it would wait for long."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[_FIRST] = str(os.getpid())
    elif os.environ.get(_FIRST) == str(os.getppid()) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _handle(number: int, frame: FrameType | None) -> None:
    global received
    if number == signal.SIGINT and received:
        os._exit(128 + number)  # once more: now
    first, received = not received, received or number
    if first and not _watched and runs.first_rank():  # the others end with the first
        end(number)


def end(number: int, outcome: str = "") -> NoReturn:
    """End this process as the signal asks for, with a line on what came of the run."""
    name = signal.Signals(number).name
    print(f"\nstopped by {name}" + (f": {outcome}" if outcome else ""), file=sys.stderr, flush=True)
    sys.exit(status(number))


def status(number: int) -> int:
    """Return the exit status after a signal; SIGUSR1 puts a job of SLURM's back into its queue."""
    if signal.Signals(number).name == "SIGUSR1":
        return 0 if _requeued() else _TRY_AGAIN
    return 128 + number


def _requeued() -> bool:
    """Under SLURM, whose warning before a time limit SIGUSR1 is: put the job back into its queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not shutil.which("scontrol"):
        return False
    if not runs.first_rank():
        return True  # the first does
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
