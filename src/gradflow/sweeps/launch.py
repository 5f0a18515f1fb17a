"""One call of a launcher: its jobs wait, run and end, and the screen says how many do what."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from tqdm import tqdm

from gradflow import runs
from gradflow.runs import claims
from gradflow.runs.overrides import key
from gradflow.runs.sweep_jobs import Job, describe, end, failed_jobs
from gradflow.sweeps.backend import Ended
from gradflow.sweeps.forkserver import ServerLost
from gradflow.sweeps.job_plan import CONTINUE, Plan, Planner
from gradflow.training.live_line import LiveLine


def launch(planner: Planner, overrides: list[list[str]]) -> list[JobReturn]:
    """Run the jobs of these overrides; when that is interrupted, end them and say how to go on."""
    planner.check(overrides)
    planner.backend.open(planner.sweep.folder)
    call = _Launch(planner, [[one for one in own if key(one) != CONTINUE] for own in overrides])
    with exit_on("SIGTERM", *([] if planner.backend.requeues else ["SIGHUP"])):  # a cluster's jobs outlive the terminal
        try:
            return call.run()
        except BaseException as error:
            call.stop()
            if not isinstance(error, (KeyboardInterrupt, SystemExit, ServerLost)):
                raise
            if isinstance(error, ServerLost):
                print(f"error: {error}", file=sys.stderr)
            folder = os.path.relpath(planner.sweep.folder)
            print(f"stopped; to go on, repeat the command with {CONTINUE}={folder}", file=sys.stderr)
            sys.exit(error.code if isinstance(error, SystemExit) else 1 if isinstance(error, ServerLost) else 130)


@contextmanager
def exit_on(*names: str) -> Iterator[None]:
    """Make SystemExit of these signals, where the system has them: first the jobs end, and the table is true."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in names if main and hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _FailedJob(JobReturn):
    """What Hydra gets of a job whose failure is on the screen and counted already; a sweeper that asks goes on."""

    return_value = None  # where Hydra's own raises


class _Launch:
    """The jobs of one call: waiting, running or ended."""

    def __init__(self, planner: Planner, overrides: list[list[str]]) -> None:
        self.planner, self.sweep, self.backend = planner, planner.sweep, planner.backend
        self.returns: list[JobReturn] = [JobReturn() for _ in overrides]
        self.waiting: list[tuple[list[str], int, Job | None]] = []
        self.running: dict[int, Plan] = {}
        self.ended = self.before = 0
        self.screen = LiveLine()
        for position, own in enumerate(overrides):
            earlier = self.sweep.earlier_job(own)
            if earlier and earlier.state in runs.OVER:
                self.returns[position] = _job_return(earlier)
                self.before += 1
            else:
                self.waiting.append((own, position, earlier))

    def run(self) -> list[JobReturn]:
        upcoming: Plan | None = None
        while True:
            if upcoming is None and self.waiting:  # made ready while others run
                upcoming = self.planner.plan(*self.waiting.pop(0))
            if upcoming is not None and self.backend.has_room(upcoming.need):
                self._start(upcoming)
                upcoming = None
                continue
            self._show_progress()
            if not self.running:
                self.screen.clear() if self.planner.trials else self.screen.close()  # a search says what came of each
                return self.returns
            while not (ended := self.backend.poll(1.0)) and not self.screen.live:
                pass
            for one in ended:
                self._end(one)

    def stop(self) -> None:
        """End all jobs, and write what became of them."""
        with suppress(ServerLost):
            for ended in self.backend.stop():
                with suppress(OSError):  # of a full disk, which is on the screen already: the others have to end, too
                    self._end(ended, stopping=True)
        for plan in self.running.values():  # of whose end the backend could not tell
            plan.job.seconds += time.monotonic() - plan.since
            with suppress(OSError):
                end(plan.job, None)
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
        self.running[job.number] = plan
        job.state, job.error = "running", ""
        self.sweep.begin(job)
        if goes_on:
            self.backend.adopt(job.number, job.folder)
        else:
            self.backend.start(job.number, plan.need, self.planner.process(plan), len(self.waiting))

    def _end(self, ended: Ended, stopping: bool = False) -> None:
        plan = self.running.pop(ended.job)
        job = plan.job
        job.seconds += ended.seconds
        end(job, ended.status, stopping, plan.logged)
        self.sweep.write()
        self.planner.durations.append(job.seconds)
        self.ended += 1
        self.returns[plan.position] = _job_return(job)
        if job.state in runs.OVER or stopping:
            return
        if all(job.error != other.error for other in failed_jobs):
            self.screen.say(describe(job))
        failed_jobs.append(job)
        if self.planner.fail_fast:
            sys.exit(1)

    def _show_progress(self) -> None:
        """Say how far the whole sweep is, of which this call of a search is a part."""
        earlier, of = self.planner.trials or (0, len(self.returns))
        done = earlier + self.before + self.ended
        parts = [f"{'trial' if self.planner.trials else 'job'} {done}/{of}"]
        counts = {self.backend.underway: len(self.running), "failed": len(failed_jobs), "done before": self.before}
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        if self.planner.durations and self.running and not self.backend.requeues:  # a cluster's jobs may wait
            parts.append(f"ETA {tqdm.format_interval(self._time_left(of - done - len(self.running)))}")
        self.screen.progress(" · ".join(parts))

    def _time_left(self, left: int) -> float:
        """Return seconds, if those that run and those that follow them take what others took on average."""
        mean, now = sum(self.planner.durations) / len(self.planner.durations), time.monotonic()
        rest = [max(0.0, mean - (now - plan.since)) for plan in self.running.values()]
        return (sum(rest) + mean * left) / len(self.running)


def _job_return(job: Job) -> JobReturn:
    """Return what a sweeper gets: the objective, and of the job's configuration only where it is."""
    over = job.state in runs.OVER
    result = JobReturn() if over else _FailedJob()
    result.overrides, result.return_value = list(job.overrides), job.objective
    result.hydra_cfg = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(job.folder)}}})
    result.status = JobStatus.COMPLETED if over else JobStatus.FAILED
    return result
