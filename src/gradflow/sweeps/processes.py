"""Jobs as plain `python` processes, where forks are not safe. Each takes the seconds that importing torch takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress

from gradflow.sweeps.backend import GRACE, Ended
from gradflow.sweeps.forkserver import job_environment
from gradflow.sweeps.job_process import JobProcess

_POLL = 0.1  # seconds


class Processes:
    def __init__(self) -> None:
        self.running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}

    def start(self, job: int, process: JobProcess, threads: int) -> None:
        started = process.start(
            job_environment(process.environment),
            start_new_session=True,  # Ctrl-C is for the sweep, which then ends the jobs
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self.running[job] = started, time.monotonic()

    def ended(self, timeout: float | None) -> list[Ended]:
        """Return jobs that have ended; wait for one."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not (over := [job for job, (process, _) in self.running.items() if process.poll() is not None]):
            if not self.running or time.monotonic() >= deadline:
                break
            time.sleep(_POLL)
        ended = [(job, *self.running.pop(job)) for job in over]
        return [Ended(job, process.returncode, time.monotonic() - since) for job, process, since in ended]

    def stop(self) -> Iterator[Ended]:
        """End all jobs: they may save first, where the system can ask for an end."""
        for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
            for process, _ in self.running.values():
                end(process)
            deadline = time.monotonic() + GRACE
            with suppress(KeyboardInterrupt):  # once more: now
                while self.running and time.monotonic() < deadline:
                    yield from self.ended(_POLL)
