"""The jobs of one call of a launcher: they wait, run and end, and the screen says how many do what."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradflow import runs
from gradflow.runs import claims
from gradflow.runs.sweep_folder import Job, Sweep, describe, end, failed, settle
from gradflow.sweeps.cluster import Cluster
from gradflow.sweeps.forkserver import Ended, ForkServer
from gradflow.sweeps.local import Processes
from gradflow.sweeps.machine import Need, Pool

Server = ForkServer | Processes | Cluster


@dataclass
class Plan:
    """A job with its configuration and what it needs; `extra` overrides make it go on where it stopped."""

    job: Job
    config: DictConfig
    need: Need
    extra: list[str]
    position: int  # among the jobs of the call
    since: float = 0.0
    logged: int = 0  # bytes that its log had then, of an earlier process


class Planner(Protocol):
    """What makes jobs of overrides: `Jobs`, which imports this module."""

    sweep: Sweep
    pool: Pool | Cluster
    fail_fast: Any

    def plan(self, overrides: Sequence[str], position: int) -> Plan: ...
    def arguments(self, plan: Plan) -> list[str]: ...
    def environment(self, job: Job, gpus: Sequence[str], threads: int) -> dict[str, str]: ...


class FailedJob(JobReturn):
    """What Hydra gets of a job whose failure is on the screen and counted already; a sweeper that asks goes on."""

    @property
    def return_value(self) -> Any:
        return None

    @return_value.setter
    def return_value(self, value: Any) -> None: ...


class Launch:
    """The jobs of one call of `launch`: waiting, running or ended."""

    def __init__(self, jobs: Planner, server: Server, overrides: list[list[str]]) -> None:
        self.jobs, self.sweep, self.pool, self.server = jobs, jobs.sweep, jobs.pool, server
        self.returns: list[JobReturn] = [JobReturn() for _ in overrides]
        self.waiting: list[tuple[int, list[str]]] = []
        self.running: dict[int, Plan] = {}
        self.count: Counter[str] = Counter()
        self.durations: list[float] = []
        self.screen = Screen()
        for position, own in enumerate(overrides):
            if done := self.sweep.done(own):
                # of its configuration, only where it is
                where = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(done.folder)}}})
                self.returns[position] = _completed(JobReturn(overrides=list(own), hydra_cfg=where), done.objective)
                self.count["finished before"] += 1
            else:
                self.waiting.append((position, own))

    def run(self) -> list[JobReturn]:
        upcoming: Plan | None = None
        while True:
            if upcoming is None and self.waiting:  # made ready while others run
                position, overrides = self.waiting.pop(0)
                upcoming = self.jobs.plan(overrides, position)
            if upcoming is not None and self.pool.room(upcoming.need):
                self._start(upcoming)
                upcoming = None
                continue
            self._show_progress(left=len(self.waiting) + (upcoming is not None))
            if not self.running:
                self.screen.close()
                return self.returns
            for ended in self.server.ended(1.0 if self.screen.live else None):
                self._end(ended)

    def stop(self) -> None:
        """End all jobs, and write what became of them."""
        for ended in self.server.stop():
            with suppress(OSError):  # of a full disk, which is on the screen already: the others have to end, too
                self._end(ended, stopping=True)
        for plan in self.running.values():  # of whose end the server could not tell
            plan.job.seconds += time.monotonic() - plan.since
            with suppress(OSError):
                settle(plan.job)
                self.sweep.write()
        self.screen.close()

    def _start(self, plan: Plan) -> None:
        job, plan.since = plan.job, time.monotonic()
        goes_on = job.state == "running"  # on a cluster, since an earlier command
        if job.state == "new":
            job.folder = claims.new_folder(str(job.folder))
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / runs.LOG
        plan.logged = log.stat().st_size if log.is_file() else 0
        set_hydra(plan.config, "runtime.output_dir", str(job.folder))
        gpus, threads = self.pool.take(job.number, plan.need, len(self.waiting))
        self.running[job.number] = plan
        job.state, job.error = "running", ""
        self.sweep.begin(job)
        if goes_on:
            assert isinstance(self.pool, Cluster)
            self.pool.adopt(job.number, job.folder)
            return
        environment = self.jobs.environment(job, gpus, threads)
        self.server.start(job.number, self.jobs.arguments(plan), environment, log, threads)

    def _end(self, ended: Ended, stopping: bool = False) -> None:
        plan = self.running.pop(ended.job)
        job = plan.job
        self.pool.give_back(ended.job)
        job.seconds += ended.seconds
        end(job, ended.status, stopping, plan.logged)
        self.sweep.write()
        self.durations.append(job.seconds)
        self.count["finished" if job.state in runs.OVER else "failed"] += 1
        self.returns[plan.position] = _job_return(job, plan.config)
        if job.state in runs.OVER or stopping:
            return
        failed.append(job)
        self.screen.say(describe(job))
        if self.jobs.fail_fast:
            sys.exit(1)

    def _show_progress(self, left: int) -> None:
        counts = {"done": self.count["finished"], self.pool.underway: len(self.running), "failed": self.count["failed"]}
        line = ", ".join(f"{count} {what}" for what, count in counts.items()) + f", {left} left"
        if before := self.count["finished before"]:
            line += f", {before} were done before"
        if self.durations and self.running and not self.pool.requeues:  # of a cluster nobody knows how many run
            line += f"; about {_duration(self._time_left(left))} to go"
        self.screen.progress(f"sweep: {line}")

    def _time_left(self, left: int) -> float:
        """Return seconds, if those that run and those that follow them take what others took on average."""
        mean, now = sum(self.durations) / len(self.durations), time.monotonic()
        rest = [max(0.0, mean - (now - plan.since)) for plan in self.running.values()]
        return (sum(rest) + mean * left) / len(self.running)


class Screen:
    """Progress: on a terminal in one place, elsewhere a line whenever something has changed."""

    def __init__(self) -> None:
        self.live, self.last = sys.stderr.isatty(), ""

    def progress(self, line: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)
        elif line != self.last:
            print(line, file=sys.stderr, flush=True)
        self.last = line

    def say(self, message: str) -> None:
        print(f"\r\x1b[K{message}" if self.live else message, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=sys.stderr)


def set_hydra(config: DictConfig, name: str, value: Any) -> None:
    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config.hydra, name, value)


def _job_return(job: Job, config: DictConfig) -> JobReturn:
    """Return what a sweeper gets, with the configuration parted as Hydra's own launcher parts it."""
    result = JobReturn() if job.state in runs.OVER else FailedJob(status=JobStatus.FAILED)
    result.overrides, result.working_dir = list(job.overrides), os.getcwd()
    result.task_name, result.hydra_cfg = config.hydra.job.name, OmegaConf.masked_copy(config, "hydra")
    result.cfg = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
    return _completed(result, job.objective) if job.state in runs.OVER else result


def _completed(result: JobReturn, objective: Any) -> JobReturn:
    result.return_value, result.status = objective, JobStatus.COMPLETED
    return result


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
