"""What runs the jobs of a sweep: this machine, SLURM or Ray, each a final subclass of `Backend` in its own file."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from omegaconf import OmegaConf

from gradflow.runs.errors import UserError
from gradflow.sweeps.job_process import JobProcess

GRACE = 15.0  # seconds that a job has to save in and end by itself when it is told to


class Need(NamedTuple):
    """What a job runs on."""

    gpu: bool
    devices: int  # of each node
    nodes: int = 1


class Ended(NamedTuple):
    """How a job has ended."""

    job: int
    status: int  # of its exit; below 0 the signal that ended it
    seconds: float


class JobLost(Exception):
    """A job was ended from outside, by a cluster or with its node, and could not note why in its log."""


class Backend(ABC):
    """Start jobs, `jobs` at once (None for as many as there is room for), and report how each has ended."""

    name: ClassVar[str]  # of hydra/launcher=
    requeues: ClassVar[bool] = False  # whether it may start a job again, which then has to resume in its folder
    underway: ClassVar[str] = "running"  # what the screen says of a job that was started
    grace: ClassVar[float] = GRACE

    def __init__(self, jobs: Any) -> None:
        self.jobs = whole_number("hydra.launcher.jobs", jobs, optional=True)
        self.running: dict[int, Any] = {}  # of each job that was started and has not been reported, what is known

    def prepare(self) -> None:
        """Begin what takes a while, beside the check of the jobs."""

    def open(self, sweep: Path) -> None:
        """Get ready for the first job of the sweep in that folder."""
        self.sweep = sweep

    @abstractmethod
    def need(self, trainer: Mapping[str, Any]) -> Need:
        """Return what a job with this node `trainer` runs on."""

    @abstractmethod
    def jobs_at_once(self, need: Need) -> int:
        """Return how many such jobs run at once, which is how many trials a search proposes before it learns."""

    @abstractmethod
    def has_room(self, need: Need) -> bool: ...

    @abstractmethod
    def start(self, job: int, need: Need, process: JobProcess, left: int) -> None:
        """Start a job; `left` others wait, with which it will have to share the machine."""

    @abstractmethod
    def poll(self, seconds: float) -> list[Ended]:
        """Return jobs that have ended, and are no longer `running`; wait for one, so long at most."""

    @abstractmethod
    def end(self, now: bool) -> None:
        """Tell all jobs to end, which may save first; or end them `now`."""

    def stop(self) -> Iterator[Ended]:
        """End all jobs, which may save first; once more interrupted, at once. Of some the end may not be known."""
        for now in (False, True):
            self.end(now)
            deadline = time.monotonic() + self.grace
            with suppress(KeyboardInterrupt):
                while self.running and time.monotonic() < deadline:
                    yield from self.poll(0.25)

    def alive(self, folder: Path) -> bool:
        """Return whether the job that an earlier command started in that folder waits or runs."""
        return False

    def adopt(self, job: int, folder: Path) -> None:
        """Watch a job that is alive: for a backend whose `alive` may say so."""
        raise NotImplementedError


@dataclass
class Submitted:
    """A job that was handed to a cluster, or will be when others of the same need are."""

    log: Path
    need: Need | None = None  # this and the process are None where an earlier command has submitted the job
    process: JobProcess | None = None
    handle: Any = None  # of the cluster's library; None until the job is submitted
    since: float = 0.0


class Cluster(Backend):
    """Machines to which jobs are submitted, and which find the devices for them."""

    requeues = True
    underway = "submitted"
    grace = 2 * GRACE
    inherited: ClassVar[tuple[str, ...]] = ()  # how names of environment variables begin that jobs get from the sweep's

    def __init__(self, jobs: Any, options: Mapping[str, Any]) -> None:
        super().__init__(jobs)
        plain: Any = OmegaConf.to_container(OmegaConf.create(dict(options)), resolve=True)
        self.options = {str(name): value for name, value in plain.items() if value is not None}
        self.running: dict[int, Submitted] = {}

    def need(self, trainer: Mapping[str, Any]) -> Need:
        devices, nodes = (trainer.get(key, 1) for key in ("devices", "num_nodes"))
        if not str(devices).isdigit():
            raise UserError(f"trainer.devices={devices}: with hydra/launcher={self.name} give a number")
        return Need(trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda"), int(devices), int(nodes))

    def jobs_at_once(self, need: Need) -> int:
        if self.jobs is None:
            raise UserError(f"hydra.sweeper.n_jobs=null: with hydra/launcher={self.name} say how many run at once")
        return self.jobs

    def has_room(self, need: Need) -> bool:
        return self.jobs is None or len(self.running) < self.jobs

    def start(self, job: int, need: Need, process: JobProcess, left: int) -> None:
        own = {name: value for name, value in os.environ.items() if name.startswith(self.inherited)}
        own |= {"OMP_NUM_THREADS": str(threads)} if (threads := threads_by_user()) else {}
        self.running[job] = Submitted(process.log, need, replace(process, environment=own | {**process.environment}))

    def poll(self, seconds: float) -> list[Ended]:
        return [self._pop(job) for job in self.over(seconds)]

    def _pop(self, job: int) -> Ended:
        submitted = self.running.pop(job)
        try:
            return Ended(job, *self.result(submitted.handle))
        except JobLost as error:
            with submitted.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                print(f"error: {error}", file=file)
            return Ended(job, 1, time.monotonic() - submitted.since)

    @abstractmethod
    def over(self, seconds: float) -> list[int]:
        """Return the jobs that have ended; wait for one, so long at most."""

    @abstractmethod
    def result(self, handle: Any) -> tuple[int, float]:
        """Return exit status and seconds of a job; raise JobLost where the cluster has ended it."""

    @abstractmethod
    def cancel(self, handle: Any) -> None: ...

    def end(self, now: bool) -> None:
        """Cancel the jobs that were submitted. Those that don't end then are left to the cluster."""
        self.running = {} if now else {job: one for job, one in self.running.items() if one.handle is not None}
        for submitted in self.running.values():
            self.cancel(submitted.handle)


def whole_number(name: str, value: Any, optional: bool = False, least: int = 1) -> Any:
    """Return `value` when it is a whole number of something, or None where that is `optional`."""
    if (value is None and optional) or (type(value) is int and value >= least):
        return value
    raise UserError(f"{name}={value}: expected a whole number, {least} or more")


def threads_by_user() -> int:
    """Return the threads of each process that the user asks for; 0 where they don't."""
    return int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0)
