"""Jobs on this machine: forks of one process that has imported torch, or plain processes where that is not safe."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gradflow.sweeps.forkserver import GRACE, Ended, ForkServer, job_environment

_POLL = 0.1  # seconds


def server(sweep: Path) -> ForkServer | Processes:
    """Return who starts jobs here: Windows has no fork, and on macOS forks that loaded its frameworks may crash."""
    return ForkServer() if sys.platform == "linux" else Processes()


class Processes:
    """Start each job as a plain `python`; it differs from a fork by the seconds that importing torch takes."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}

    def start(self, job: int, arguments: Sequence[str], env: Mapping[str, str], log: Path, threads: int) -> None:
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=job_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the sweep, which then ends the jobs
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            )
        self.running[job] = process, time.monotonic()

    def ended(self, timeout: float | None) -> list[Ended]:
        """Return jobs that have ended; wait for one."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while not (ended := self._poll()) and self.running and time.monotonic() < deadline:
            time.sleep(_POLL)
        return ended

    def stop(self) -> Iterator[Ended]:
        """End all jobs: they may save first, where the system can ask for an end."""
        for process, _ in self.running.values():
            process.terminate()
        with suppress(KeyboardInterrupt):  # once more: now
            yield from self._wait(GRACE)
        for process, _ in self.running.values():
            process.kill()
        yield from self._wait(GRACE)

    def _wait(self, seconds: float) -> Iterator[Ended]:
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            yield from self.ended(_POLL)

    def _poll(self) -> list[Ended]:
        ended = []
        for job, (process, since) in list(self.running.items()):
            if (status := process.poll()) is not None:
                del self.running[job]
                ended.append(Ended(job, status, time.monotonic() - since))
        return ended
