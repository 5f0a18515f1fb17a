"""Fresh processes that are nearly free: forks of one that has imported torch, lightning and this package.

Nothing else has happened in the server when it forks: no tensor, no CUDA, no thread, no wandb. Two pipes lead to it:
orders for jobs come in by one, and how each has ended goes out by the other. When the first is closed, as by the end of
the process that started it, however that came about, it ends all jobs with the ranks they started. When it is killed
itself, as the system does when memory is short, the jobs find that out and end by themselves. They keep the second
open, so that whoever reads that knows at its end that none of them is left.

`multiprocessing` has such a server, too (read in Python 3.11), but jobs outlive it when it is killed, and then seem to
have ended with status 255; it stands in the sweep's process group, and ends with signals to that; and each job would
first import the sweep's own script, and leave out what `atexit` knows.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import math
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from gradflow.sweeps.backend import GRACE, Ended
from gradflow.sweeps.job_process import JobProcess

_SOURCES = str(Path(__file__).parents[2])
_SERVER = f"import sys; sys.path[0] = {_SOURCES!r}; from gradflow.sweeps import forkserver; forkserver.serve()"
_ALLOCATION = "SLURM_NTASKS"  # of the sweep's own SLURM job, in which Lightning would look for a job's ranks
_LAZY = ("torch._dynamo", "matplotlib.backends.backend_agg")  # what a job would import later, at some cost
_POLL = 0.02  # seconds


class ServerLost(Exception):
    """The server has ended, and so have all its jobs."""


def job_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job on this machine."""
    return {name: value for name, value in os.environ.items() if name != _ALLOCATION} | dict(own)


class ForkServer:
    """The server as seen from the process that has jobs for it."""

    def __init__(self, program: str = _SERVER) -> None:
        (orders, self.orders), (self.replies, replies) = Pipe(duplex=False), Pipe(duplex=False)
        with orders, replies:
            ends = [orders.fileno(), replies.fileno()]
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *map(str, ends)],
                stdin=subprocess.DEVNULL,
                pass_fds=ends,
                # OpenBLAS would start threads when numpy is imported, and threads don't survive a fork
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                start_new_session=True,  # Ctrl-C is for the sweep, which then ends the jobs
            )
        self.jobs: list[int] = []
        weakref.finalize(self, _close, self.orders, self.process, self.jobs)

    def start(self, job: int, process: JobProcess, threads: int) -> None:
        self.jobs.append(job)
        with suppress(BrokenPipeError):  # `poll` raises
            self.orders.send((job, replace(process, environment=job_environment(process.environment)), threads))

    def poll(self, seconds: float | None) -> list[Ended]:
        """Return jobs that have ended; wait for one, so long at most."""
        try:
            return [self.replies.recv()] if self.replies.poll(seconds) else []
        except (EOFError, OSError):
            status = self.process.wait()
            line = f"the fork server of the sweep has ended (status {status}), and its jobs with it"
            raise ServerLost(line) from None

    def end(self, now: bool) -> None:
        """Tell all jobs to end, and the server after them; or end them `now`."""
        self.process.terminate() if now else self.orders.close()


def _close(orders: Connection, process: subprocess.Popen[bytes], jobs: list[int]) -> None:
    orders.close()
    if not jobs:  # it has imported in vain, or does still
        process.kill()
    process.wait()


def serve() -> NoReturn:
    """Fork a job for each order and report how it has ended, until there are no more orders and no job is left."""
    orders, replies = (Connection(int(end)) for end in sys.argv[1:])
    for end in (orders, replies):
        os.set_inheritable(end.fileno(), False)
    os.dup2(2, 1)
    _preload()
    alive, life = os.pipe()  # of which only the server holds the end to write to
    jobs: dict[int, tuple[int, float]] = {}  # by process, the job, and when it began
    signal.signal(signal.SIGTERM, lambda *_: _kill_groups(jobs, signal.SIGKILL))
    deadline = math.inf  # of jobs that were told to end
    while deadline == math.inf or jobs:
        try:
            if deadline < math.inf:
                time.sleep(_POLL)
            elif orders.poll(_POLL if jobs else None):
                job, process, threads = orders.recv()
                child = os.fork()
                if child == 0:
                    orders.close()
                    os.close(life)
                    _become(process, threads, alive)
                _lead_group(child)
                jobs[child] = job, time.monotonic()
        except EOFError:
            deadline = time.monotonic() + GRACE
            _kill_groups(jobs, signal.SIGTERM)
        _report_ended(jobs, replies)
        if time.monotonic() > deadline:
            _kill_groups(jobs, signal.SIGKILL)
    os._exit(0)


def _preload() -> None:
    """Import what jobs use, and do nothing else. What can't be imported fails in the job that needs it."""
    import gradflow

    modules = [module.name for module in pkgutil.walk_packages(gradflow.__path__, "gradflow.", onerror=lambda _: None)]
    for name in ("torch", "lightning", *_LAZY, *modules):
        with suppress(Exception):
            importlib.import_module(name)
    with suppress(Exception):  # read conf/ and fonts, as every job would: 7 % of the time of a small one
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from gradflow.config.trust import targets

        targets("model")
        figure = Figure(layout="constrained")
        figure.subplots()
        FigureCanvasAgg(figure).draw()
    gc.collect()
    gc.freeze()  # so that collections in the jobs don't touch, and copy, what all share


def _report_ended(jobs: dict[int, tuple[int, float]], replies: Connection) -> None:
    """Report which jobs have ended; what one left of its process group, ranks without their first, ends too."""
    while jobs:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        _kill_groups([child], signal.SIGKILL)
        job, began = jobs.pop(child)
        with suppress(BrokenPipeError):
            replies.send(Ended(job, os.waitstatus_to_exitcode(status), time.monotonic() - began))


def _lead_group(child: int) -> None:
    """Make a job the leader of a process group; server and job both do, since either may be the first to need it."""
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)


def _kill_groups(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):  # a zombie's group, on macOS
            os.killpg(group, number)


def _end_with_server(alive: int) -> None:
    """Wait for the end of the server, then tell this job to end, and see to it."""
    os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    _kill_groups([os.getpid()], signal.SIGKILL)


def _become(process: JobProcess, threads: int, alive: int) -> NoReturn:
    """Turn this fork into the job: what `python arguments…` would be, and the leader of a process group."""
    from gradflow.config import hydra_internals  # imported long ago

    status = 1
    try:
        _lead_group(os.getpid())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        threading.Thread(target=_end_with_server, args=[alive], daemon=True).start()
        with process.log.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(process.environment)
        os.chdir(process.folder)
        sys.argv = list(process.arguments)
        sys.path[0] = os.path.dirname(sys.argv[0])
        sys.modules["torch"].set_num_threads(threads)  # OMP_NUM_THREADS was read when torch was imported
        hydra_internals.expect_single_run()
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:  # as Python ends, except for what takes the modules apart
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
