"""SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and the end of the terminal (SIGHUP) end a run in good order. No torch here.

Before training and after it a signal ends the process at once: nothing would be lost. While it trains it is noted here,
and the callback `last` looks: all ranks save at the same step and end.
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
from typing import Any, NoReturn

from gradflow import runs

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
FIRST = "GRADFLOW_FIRST"  # the process whose children the other ranks are
FOR_RESUME = 75  # EX_TEMPFAIL: what a script sees after SIGUSR1, that it may start the run again

received = 0
watched = False  # somebody looks at `received`


def listen() -> None:
    global received, watched
    received, watched = 0, False
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, handle)


def tie_to_first() -> None:
    """A rank that Lightning started ends with the first, however that ends: on GPUs it would wait for it for long."""
    if "LOCAL_RANK" not in os.environ:
        os.environ[FIRST] = str(os.getpid())
    elif os.environ.get(FIRST) == str(os.getppid()) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def handle(number: int, frame: FrameType | None) -> None:
    global received
    if number == signal.SIGINT and received:
        os._exit(128 + number)  # once more: now
    first, received = not received, received or number
    if first and not watched and runs.first_rank():  # the others end with the first
        end(number)


def watch(on: bool) -> None:
    global watched
    watched = on


def end(number: int, told: Any = None) -> NoReturn:
    """End this process as the signal asks for."""
    name = signal.Signals(number).name
    print(f"\nstopped by {name}" + (f": {told}" if told else ""), file=sys.stderr, flush=True)
    sys.exit(status(number))


def status(number: int) -> int:
    if number == signal.SIGUSR1:
        return 0 if requeued() else FOR_RESUME
    return 128 + number


def requeued() -> bool:
    """Under SLURM, whose warning before a time limit SIGUSR1 is: put the job back into its queue."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not shutil.which("scontrol"):
        return False
    if not runs.first_rank():
        return True  # the first does
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
