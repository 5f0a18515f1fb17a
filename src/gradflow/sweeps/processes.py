"""Jobs as plain `python` processes, where forks are not safe. Each takes the seconds that importing torch takes."""

from __future__ import annotations

import subprocess
import time

from gradflow.sweeps.backend import Ended
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

    def poll(self, seconds: float) -> list[Ended]:
        """Return jobs that have ended; wait a moment when there is none."""
        over = [job for job, (process, _) in self.running.items() if process.poll() is not None]
        if not over:
            time.sleep(min(_POLL, seconds))
        ended = [(job, *self.running.pop(job)) for job in over]
        return [Ended(job, process.returncode, time.monotonic() - since) for job, process, since in ended]

    def end(self, now: bool) -> None:
        """Tell all jobs to end, where the system can ask for that; or end them `now`."""
        for process, _ in self.running.values():
            process.kill() if now else process.terminate()
