"""Fresh processes that are nearly free: forks of one that has imported torch, lightning and this package.

Nothing else has happened in the server when it forks: no tensor, no CUDA, no thread, no wandb. It speaks lines of JSON:
an order for a job on its stdin, the exit status of one that has ended on its stdout. When its stdin is closed, as by
the end of the process that started it, however that came about, it ends all jobs with the ranks they started. When it
is killed itself, as the system does when memory is short, the jobs find that out and end by themselves. They keep its
stdout open, so that whoever reads that knows at its end that none of them is left.

`multiprocessing` has such a server, too (read in Python 3.11), but jobs outlive it when it is killed, and then seem to
have ended with status 255; it stands in the sweep's process group, and ends with signals to that; and each job would
first import the sweep's own script, and leave out what `atexit` knows.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from gradflow.sweeps.backend import GRACE, Ended
from gradflow.sweeps.job_process import JobProcess

_SOURCES = str(Path(__file__).parents[2])
_SERVER = f"import sys; sys.path[0] = {_SOURCES!r}; from gradflow.sweeps import forkserver; forkserver.serve()"
_ALLOCATION = "SLURM_NTASKS"  # of the sweep's own SLURM job, in which Lightning would look for a job's ranks
_LAZY = ("torch._dynamo", "matplotlib.backends.backend_agg")  # what a job would import later, at some cost


class ServerLost(Exception):
    """The server has ended, and so have all its jobs."""


def job_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a job on this machine."""
    return {name: value for name, value in os.environ.items() if name != _ALLOCATION} | dict(own)


class ForkServer:
    """The server as seen from the process that has jobs for it."""

    def __init__(self, program: str = _SERVER) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # OpenBLAS would start threads when numpy is imported, and threads don't survive a fork
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            start_new_session=True,  # Ctrl-C is for the sweep, which then ends the jobs
        )
        assert self.process.stdin
        assert self.process.stdout
        self.orders, self.replies, self.unread = self.process.stdin, self.process.stdout, b""
        weakref.finalize(self, _close, self.process)

    def start(self, job: int, process: JobProcess, threads: int) -> None:
        order = {"job": job, "threads": threads, "argv": process.arguments, "log": str(process.log)}
        order |= {"cwd": process.folder, "env": job_environment(process.environment)}
        with suppress(BrokenPipeError):  # `ended` raises
            self.orders.write(json.dumps(order).encode() + b"\n")
            self.orders.flush()

    def ended(self, timeout: float | None) -> list[Ended]:
        """Return jobs that have ended; wait for one."""
        if not select.select([self.replies], [], [], timeout)[0]:
            return []
        chunk = os.read(self.replies.fileno(), 2**16)
        if not chunk:
            status = self.process.wait()
            raise ServerLost(f"the fork server of the sweep has ended (status {status}), and its jobs with it")
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        return [Ended(**fields) for fields in map(json.loads, lines)]

    def stop(self) -> Iterator[Ended]:
        """End all jobs, and the server."""
        with suppress(BrokenPipeError):
            self.orders.close()
        with suppress(ServerLost):
            while True:
                try:
                    yield from self.ended(None)
                except KeyboardInterrupt:  # once more: now
                    self.process.terminate()
        _close(self.process)


def _close(process: subprocess.Popen[bytes]) -> None:
    with suppress(BrokenPipeError), process:  # which closes its pipes, and waits for it
        pass


_jobs: dict[int, tuple[int, float]] = {}  # of the server: by process, the job, and when it began


def serve() -> NoReturn:
    """Fork a job for each order and report how it has ended, until stdin is closed and no job is left."""
    orders, replies = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _preload()
    wake, waker = os.pipe()
    alive, life = os.pipe()  # of which only the server holds the end to write to
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda *_: _kill_groups(_jobs, signal.SIGKILL))
    inputs, pending = [wake, orders], b""
    while len(inputs) > 1 or _jobs:
        ready, _, _ = select.select(inputs, [], [])
        if wake in ready:
            os.read(wake, 2**16)
            _reap(replies)
        if orders in ready:
            if not (chunk := os.read(orders, 2**16)):
                inputs.remove(orders)
                _kill_groups(_jobs, signal.SIGTERM)
                signal.setitimer(signal.ITIMER_REAL, GRACE)
            *lines, pending = (pending + chunk).split(b"\n")
            for order in map(json.loads, lines):
                child = os.fork()
                if child == 0:
                    for mine in (orders, wake, waker, life):
                        os.close(mine)
                    _become(order, alive)
                _lead_group(child)
                _jobs[child] = order["job"], time.monotonic()
    os._exit(0)


def _preload() -> None:
    """Import what jobs use, and do nothing else. What can't be imported fails in the job that needs it."""
    import gradflow

    modules = [module.name for module in pkgutil.walk_packages(gradflow.__path__, "gradflow.", onerror=lambda _: None)]
    for name in ("torch", "lightning", *_LAZY, *modules):
        with suppress(Exception):
            importlib.import_module(name)
    with suppress(Exception):  # read conf/ and fonts, as every job would: 7 % of the time of a small one
        from matplotlib.figure import Figure

        from gradflow.config.trust import targets
        from gradflow.plots import theme

        targets("model")
        figure = Figure(layout="constrained")
        figure.subplots()
        theme.png(lambda look: figure, "light")
    gc.collect()
    gc.freeze()  # so that collections in the jobs don't touch, and copy, what all share


def _reap(replies: int) -> None:
    """Report which jobs have ended; what one left of its process group, ranks without their first, ends too."""
    while _jobs:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        _kill_groups([child], signal.SIGKILL)
        job, began = _jobs.pop(child)
        ended = Ended(job, os.waitstatus_to_exitcode(status), time.monotonic() - began)
        with suppress(BrokenPipeError):
            os.write(replies, json.dumps(ended._asdict()).encode() + b"\n")


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


def _become(order: Mapping[str, Any], alive: int) -> NoReturn:
    """Turn this fork into the job: what `python arguments…` would be, and the leader of a process group."""
    status = 1
    try:
        _lead_group(os.getpid())
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=_end_with_server, args=[alive], daemon=True).start()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.environ.clear()
        os.environ.update(order["env"])
        os.chdir(order["cwd"])
        sys.argv = order["argv"]
        sys.path[0] = os.path.dirname(sys.argv[0])
        sys.modules["torch"].set_num_threads(order["threads"])  # OMP_NUM_THREADS was read when torch was imported
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
