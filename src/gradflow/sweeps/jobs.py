"""The jobs of a sweep: planned, started each in a process of its own, here or on a cluster, watched, and told."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradflow import runs
from gradflow.config import no_effect
from gradflow.config.resume import key, quoted
from gradflow.config.value_types import check_sweep, tell_passed_over
from gradflow.runs import claims, ranks
from gradflow.runs.errors import UserError
from gradflow.runs.sweep_folder import (
    Job,
    Sweep,
    constants,
    end,
    failed,
    settle,
    tell,
    to_continue,
    wandb_environment,
    words_of,
)
from gradflow.sweeps.cluster import Cluster
from gradflow.sweeps.forkserver import Ended, ForkServer, Lost
from gradflow.sweeps.machine import Need, Pool

OF_THE_SWEEP = ("mode", "sweep", "sweeper", "launcher", "run.dir")  # Hydra's keys that are not for its jobs
SWEEP = "continue_sweep"  # the key that is the sweep's, and never a job's
RESUME = "resume=auto"
CONFIG_FLAGS = ("config_path", "config_name", "config_dir")


@dataclass
class Plan:
    """A job with its configuration and what it needs; `extra` words make it go on where it stopped, in its folder."""

    job: Job
    config: DictConfig
    need: Need
    extra: list[str]
    place: int  # among the jobs that were asked for
    since: float = 0.0
    logged: int = 0  # bytes that its log had then, of an earlier process


class NotYet(Exception):
    """Leaves a file as it was."""


class Failed(JobReturn):
    """Of a job that has been told, and counted, already; a sweeper that asks goes on."""

    @property
    def return_value(self) -> Any:
        return None

    @return_value.setter
    def return_value(self, value: Any) -> None: ...


Server = ForkServer | Cluster


class Jobs:
    """What our launchers do: they differ in the devices that the pool hands out, and in the server that runs a job."""

    def __init__(
        self,
        loader: ConfigLoader,
        config: DictConfig,
        pool: Pool | Cluster,
        server: Callable[[Path], Server],
        fail_fast: Any,
    ) -> None:
        if ranks.apart() > 1:
            raise UserError(
                "--multirun: each rank of torchrun or srun would run all of it; start a sweep as one process"
            )
        if not isinstance(fail_fast, bool):
            raise UserError(f"hydra.launcher.fail_fast={fail_fast}: expected true or false")
        self.loader, self.config, self.fail_fast = loader, config, fail_fast
        words, going_on = words_of(config.hydra.overrides.task), OmegaConf.select(config, "continue_sweep")
        tell_passed_over(words)
        self.constant = {f"{key}={value}" for key, value in constants(words).items() if value is not None}
        self.script = script(config)
        program = config.hydra.job.name
        folder = to_continue(str(going_on), program, words) if going_on else Path(config.hydra.sweep.dir)
        self.sweep = Sweep(folder, going_on=bool(going_on), alive=pool.alive)
        self.pool, self.make_server = pool, server
        self.server: Server | None = None
        set_hydra(config, "sweep.dir", str(folder))  # for the sweeper, too
        self.record = self.sweep.folder / "multirun.yaml"
        self.earlier_record = self.record.read_text() if self.record.is_file() else None
        # Hydra writes the same once more, but neither whole nor with a name in the error of a full disk. The record of
        # a sweep that is gone on with stays until the words have been checked; here it is seen that there is room.
        with suppress(NotYet), runs.write_whole(self.record) as file:
            file.write(OmegaConf.to_yaml(config))
            if going_on:
                file.flush()
                raise NotYet

    def launch(self, overrides: list[list[str]]) -> list[JobReturn]:
        setup_globals()
        try:
            self.check(overrides)
        except UserError:
            if self.earlier_record is not None:  # which Hydra has written over
                runs.write_text(self.record, self.earlier_record)
            raise
        self.server = self.server or self.make_server(self.sweep.folder)
        batch = Batch(self, self.server, [[word for word in words if key(word) != SWEEP] for words in overrides])
        hears = (signal.SIGTERM,) if self.pool.requeues else (signal.SIGTERM, signal.SIGHUP)
        with raised(*hears):  # a cluster's jobs outlive the terminal
            try:
                return batch.run()
            except BaseException as error:
                batch.stop()
                if not isinstance(error, (KeyboardInterrupt, SystemExit, Lost)):
                    raise
                if isinstance(error, Lost):
                    print(f"error: {error}", file=sys.stderr)
                folder = os.path.relpath(self.sweep.folder)
                print(f"stopped; to go on, repeat the command with {SWEEP}={folder}", file=sys.stderr)
                sys.exit(error.code if isinstance(error, SystemExit) else 1 if isinstance(error, Lost) else 130)

    def check(self, overrides: list[list[str]]) -> None:
        check_sweep(overrides, self.config.hydra.job.config_name)
        if self.config.hydra.runtime.choices.get("hydra/sweeper") == "basic":  # a search does not see its jobs as equal
            no_effect.check_sweep(overrides, lambda words: self.loader.load_sweep_config(self.config, list(words)))

    def plan(self, words: Sequence[str], place: int) -> Plan:
        """The job's configuration, as Hydra's own launcher would make it."""
        config = self.loader.load_sweep_config(self.config, list(words))
        old = self.sweep.unfinished(words)
        number = old.number if old else self.sweep.next_number()
        for name, value in {"job.num": number, "job.id": str(number), "sweep.dir": str(self.sweep.folder)}.items():
            set_hydra(config, name, value)
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # for interpolations of hydra:…
            folder = self.sweep.folder / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before
        if self.pool.requeues and config.get("resume"):
            raise UserError(
                f"resume={config.resume}: not with a cluster, where each job goes on with what itself has saved"
            )
        need = self.pool.need(OmegaConf.select(config, "trainer") or {})
        job = old or Job(number, tuple(words), "new", None, 0.0, folder)
        return Plan(job, config, need, [RESUME] if old or self.pool.requeues else [], place)

    def words(self, plan: Plan) -> list[str]:
        """The job as a single run; the ranks that Lightning starts by repeating it get the same words."""
        task = [word for word in plan.job.overrides if not (plan.extra and key(word) == "resume")]
        given = [word for word in words_of(self.config.hydra.overrides.hydra) if not of_the_sweep(word)]
        own = [f"hydra.run.dir={quoted(plan.job.folder)}", f"hydra.sweep.dir={quoted(self.sweep.folder)}"]
        own += [f"hydra.job.num={plan.job.number}", f"hydra.job.id='{plan.job.number}'"]
        return [str(self.script), *flags(), *task, *plan.extra, *given, *own]

    def environment(self, job: Job, gpus: Sequence[str], threads: int) -> dict[str, str]:
        """What a job's has beside the one of the machine that it runs on."""
        differing = [word for word in job.overrides if word not in self.constant]
        made = wandb_environment(self.sweep.folder, differing)
        made |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        return made | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})


class Batch:
    """The jobs of one call of `launch`: waiting, running or ended."""

    def __init__(self, jobs: Jobs, server: Server, overrides: list[list[str]]) -> None:
        self.jobs, self.sweep, self.pool, self.server = jobs, jobs.sweep, jobs.pool, server
        self.returns: list[JobReturn] = [JobReturn() for _ in overrides]
        self.waiting: list[tuple[int, list[str]]] = []
        self.running: dict[int, Plan] = {}
        self.count: Counter[str] = Counter()
        self.took: list[float] = []
        self.screen = Screen()
        for place, words in enumerate(overrides):
            if done := self.sweep.done(words):
                self.returns[place] = remembered(done)
                self.count["finished before"] += 1
            else:
                self.waiting.append((place, words))

    def run(self) -> list[JobReturn]:
        upcoming: Plan | None = None
        while True:
            if upcoming is None and self.waiting:  # made ready while others run
                place, words = self.waiting.pop(0)
                upcoming = self.jobs.plan(words, place)
            if upcoming is not None and self.pool.room(upcoming.need):
                self.start(upcoming)
                upcoming = None
                continue
            self.show(left=len(self.waiting) + (upcoming is not None))
            if not self.running:
                self.screen.close()
                return self.returns
            for told in self.server.ended(1.0 if self.screen.live else None):
                self.end(told)

    def start(self, plan: Plan) -> None:
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
        self.server.start(job.number, self.jobs.words(plan), environment, log, threads)

    def end(self, told: Ended, stopping: bool = False) -> None:
        plan = self.running.pop(told.job)
        job = plan.job
        self.pool.give_back(told.job)
        job.seconds += told.seconds
        end(job, told.status, stopping, plan.logged)
        self.sweep.write()
        self.took.append(job.seconds)
        self.count["finished" if job.state in runs.OVER else "failed"] += 1
        self.returns[plan.place] = returned(job, plan.config)
        if job.state in runs.OVER or stopping:
            return
        failed.append(job)
        self.screen.say(tell(job))
        if self.jobs.fail_fast:
            sys.exit(1)

    def stop(self) -> None:
        for told in self.server.stop():
            with suppress(OSError):  # of a full disk, which is told already: the others have to end, too
                self.end(told, stopping=True)
        for plan in self.running.values():  # whose server could tell of no end
            plan.job.seconds += time.monotonic() - plan.since
            with suppress(OSError):
                settle(plan.job)
                self.sweep.write()
        self.screen.close()

    def show(self, left: int) -> None:
        shown = {"done": self.count["finished"], self.pool.underway: len(self.running), "failed": self.count["failed"]}
        words = ", ".join(f"{count} {what}" for what, count in shown.items()) + f", {left} left"
        if before := self.count["finished before"]:
            words += f", {before} were done before"
        if self.took and self.running and not self.pool.requeues:  # of a cluster nobody knows how many run
            words += f"; about {duration(self.time_left(left))} to go"
        self.screen.progress(f"sweep: {words}")

    def time_left(self, left: int) -> float:
        """If those that run, and those that follow in their places, take what others took on average."""
        mean, now = sum(self.took) / len(self.took), time.monotonic()
        rest = [max(0.0, mean - (now - plan.since)) for plan in self.running.values()]
        return (sum(rest) + mean * left) / len(self.running)


class Screen:
    """Progress: on a terminal in one place, elsewhere a line whenever something has changed."""

    def __init__(self) -> None:
        self.live, self.last = sys.stderr.isatty(), ""

    def progress(self, words: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{words[:width]}", end="", file=sys.stderr, flush=True)
        elif words != self.last:
            print(words, file=sys.stderr, flush=True)
        self.last = words

    def say(self, words: str) -> None:
        print(f"\r\x1b[K{words}" if self.live else words, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=sys.stderr)


def returned(job: Job, config: DictConfig) -> JobReturn:
    """What a sweeper gets, with the configuration parted as Hydra's own launcher parts it."""
    told = JobReturn() if job.state in runs.OVER else Failed(status=JobStatus.FAILED)
    told.overrides, told.working_dir, told.task_name = list(job.overrides), os.getcwd(), config.hydra.job.name
    told.hydra_cfg = OmegaConf.masked_copy(config, "hydra")
    told.cfg = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
    return completed(told, job.objective) if job.state in runs.OVER else told


def remembered(job: Job) -> JobReturn:
    """Of a job that an earlier command has brought to its end; of its configuration, where it is."""
    where = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(job.folder)}}})
    return completed(JobReturn(overrides=list(job.overrides), hydra_cfg=where), job.objective)


def completed(told: JobReturn, objective: Any) -> JobReturn:
    told.return_value, told.status = objective, JobStatus.COMPLETED
    return told


def set_hydra(config: DictConfig, name: str, value: Any) -> None:
    with read_write(config.hydra), open_dict(config.hydra):
        OmegaConf.update(config.hydra, name, value)


def of_the_sweep(word: str) -> bool:
    name = key(word).removeprefix("hydra").lstrip("./")
    return any(name == own or name.startswith(f"{own}.") for own in OF_THE_SWEEP)


def script(config: DictConfig) -> Path:
    path = Path(config.hydra.runtime.cwd, sys.argv[0])
    if not path.is_file():
        raise UserError(f"{sys.argv[0]}: not a script that a job could run; add hydra/launcher=basic")
    return path


def flags() -> list[str]:
    """Where Hydra was told to look for configurations."""
    given = vars(get_args_parser().parse_args())
    return [f"--{name.replace('_', '-')}={given[name]}" for name in CONFIG_FLAGS if given[name]]


def duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def raised(*numbers: signal.Signals) -> Iterator[None]:
    """So that the jobs end, and the table is true, before this process does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
