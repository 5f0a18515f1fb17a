"""The jobs of a sweep: their table (`jobs.csv`), how each has ended, how a later command continues them. No torch."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from gradflow import runs
from gradflow.runs import claims
from gradflow.runs.errors import DISK, UserError, wrapped
from gradflow.runs.files import check_files, read_yaml
from gradflow.runs.overrides import MULTIRUN, key, of_run, quoted, value
from gradflow.runs.tables import FORMULA, from_cell, to_cell

ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")  # how the line of a log that tells an error begins
# Exit statuses by POSIX's numbers, since not every system has the names.
_KILLED = (-9, 128 + 9)
_STOPPED = [status for number in (1, 2, 15) for status in (-number, 128 + number)]  # SIGHUP, SIGINT, SIGTERM

failed_jobs: list[Job] = []  # reported when the sweep has ended, since Hydra returns nothing from a launcher
constant_overrides: set[str] = set()  # of the command, the same in all its jobs


@dataclass
class Job:
    """One set of overrides in a folder of its own, however often it was interrupted there; a row of `jobs.csv`."""

    number: int
    overrides: tuple[str, ...]
    state: str  # new, running, finished, pruned, failed or interrupted
    objective: Any
    seconds: float
    folder: Path
    error: str = ""

    def row(self, sweep: Path) -> list[str]:
        overrides = shlex.join(self.overrides)
        if overrides.startswith(FORMULA):  # for a shell the quotes change nothing
            overrides = " ".join([f"'{self.overrides[0]}'", *map(shlex.quote, self.overrides[1:])])
        state, objective, folder, error = map(
            to_cell, (self.state, json.dumps(self.objective), os.path.relpath(self.folder, sweep), self.error)
        )
        return [str(self.number), overrides, state, objective, f"{self.seconds:.1f}", folder, error]


COLUMNS = [field.name for field in fields(Job)]


def take_folder(folder: Path, going_on: bool) -> None:
    """Lock the folder of a sweep, to begin it there or to go on with it."""
    if not going_on:
        claims.claim(folder, "hydra.sweep.dir")
        return
    if not any((folder / name).is_file() for name in (runs.JOBS, runs.STUDY)):
        raise UserError(f"continue_sweep={folder}: not a sweep's folder (there is no {runs.JOBS} in it)")
    check_files(folder)
    if not claims.go_on(folder):
        raise UserError(f"{folder}: its sweep is still running")


class Sweep:
    """The jobs of one folder; held by one process at a time."""

    def __init__(self, folder: Path, going_on: bool, alive: Callable[[Path], bool] = lambda folder: False) -> None:
        self.folder, self.table = folder.absolute(), folder.absolute() / runs.JOBS
        take_folder(folder, going_on)
        self.jobs = read(self.table)
        for job in self.jobs:
            if job.state == "running" and not alive(job.folder):
                end(job, None)
        self.earlier = list(self.jobs)

    def earlier_job(self, overrides: Sequence[str]) -> Job | None:
        """Return a job of these overrides that an earlier command has brought to its end, else the newest when it was
        interrupted or still goes on; a failed one restarts. Each is returned once."""
        equal = [job for job in self.earlier if sorted(job.overrides) == sorted(overrides)]
        if not equal:
            return None
        job = next((job for job in equal if job.state in runs.OVER), equal[-1])
        self.earlier.remove(job)
        return None if job.state == "failed" else job

    def next_number(self) -> int:
        taken = [job.number for job in self.jobs]
        taken += [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        return max(taken, default=-1) + 1

    def begin(self, job: Job) -> None:
        if not any(job is known for known in self.jobs):
            self.jobs.append(job)
        self.write()

    def write(self) -> None:
        with runs.write_whole(self.table, encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(job.row(self.folder) for job in self.jobs)


def read(table: Path) -> list[Job]:
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        try:
            return [_job(row, table.parent) for row in reader]
        except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
            raise UserError(f"{table}: line {reader.line_num} is damaged ({error}); mend or remove it") from error


def _job(row: dict[str, str], sweep: Path) -> Job:
    if None in row.values():
        raise ValueError("it is cut off")
    folder = from_cell(row["folder"])
    if not (sweep / folder).resolve().is_relative_to(sweep.resolve()):
        raise ValueError(f"{folder} is not in the sweep's folder")
    return Job(
        number=int(row["number"]),
        overrides=tuple(shlex.split(row["overrides"])),
        state=from_cell(row["state"]),
        objective=json.loads(from_cell(row["objective"])),
        seconds=float(row["seconds"]),
        folder=sweep / folder,
        error=from_cell(row["error"]),
    )


def constants(overrides: Iterable[str]) -> dict[str, str | None]:
    """Return the keys of a command, each with its value, or None when it is swept."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = {o.get_key_element(): None if o.is_sweep_override() else o.get_value_element_as_str() for o in parsed}
    values.pop("continue_sweep", None)
    return values


def arguments_of_continued_sweep(arguments: Sequence[str], program: str) -> list[str]:
    """Return the arguments with one that leads to the folder of the sweep that goes on."""
    name = value("continue_sweep", arguments)
    if name is None or not (set(arguments) & set(MULTIRUN) or value("hydra.mode", arguments) == "MULTIRUN"):
        return list(arguments)
    folder = f"hydra.sweep.dir={quoted(to_continue(name, program, of_run(arguments)))}"
    others = [one for one in arguments if key(one) != "hydra.sweep.dir"]
    return [one for other in others for one in ([other, folder] if key(other) == "continue_sweep" else [other])]


def to_continue(name: str, program: str, overrides: Sequence[str]) -> Path:
    """Return the folder that `continue_sweep=name` means."""
    if name == "newest":
        return _newest(program, constants(overrides))
    if (was := command(Path(name))[0]) not in (program, None):
        raise UserError(f"continue_sweep={name}: is a sweep of src/{was}.py, not of src/{program}.py")
    return Path(name)


def _newest(program: str, now: dict[str, str | None]) -> Path:
    """Return the newest sweep of the same keys, in which what neither command sweeps has the same value."""
    tables = [path for name in (runs.JOBS, runs.STUDY) for path in Path("multirun").glob(f"*/*/{name}")]
    for table in sorted(tables, key=lambda path: path.stat().st_mtime, reverse=True):
        name, overrides, _ = command(table.parent)
        then = constants(overrides)
        same = set(then) == set(now) and all(None in (then[key], now[key]) or then[key] == now[key] for key in now)
        if name == program and same:
            return table.parent
    raise UserError("continue_sweep=newest: no sweep of these overrides in multirun/; name its folder")


def command(folder: Path) -> tuple[str | None, list[str], list[str]]:
    """Return the program that made a sweep, its overrides, and those of Hydra's own keys."""
    try:
        recorded = read_yaml(folder / "multirun.yaml")["hydra"]
        task, own = ([str(one) for one in recorded["overrides"].get(kind, ())] for kind in ("task", "hydra"))
        return str(recorded["job"]["name"]), task, own
    except (UserError, KeyError, TypeError, AttributeError):
        return None, [], []


def end(job: Job, status: int | None, stopping: bool = False, logged: int = 0) -> None:
    """Record how a job's process has ended, with status None where nobody was there to see it.

    Lightning ends a process that was told to stop with status 0, too. One that was told to end, or killed, or whose
    disk was full, is interrupted: it can go on. But Lightning, too, kills the first rank: when another has failed,
    which has written its log then.
    """
    facts, log = runs.read_json(job.folder / runs.SUMMARY), job.folder / runs.LOG
    recorded = facts.get("status", "")
    if status is None:
        job.state = recorded if recorded in runs.OVER else "interrupted"
    elif status == 0:
        job.state = recorded if recorded in ("pruned", "interrupted") else "finished"
    else:
        killed = status in _KILLED and last_error(log, status, logged) == ended_by(status)
        goes_on = stopping or recorded == "interrupted" or killed or status in (DISK, *_STOPPED)
        job.state = "interrupted" if goes_on else "failed"
    job.objective = runs.read_objective(job.folder)
    if status is not None:
        job.error = facts.get("reason", "") if job.state in runs.OVER else last_error(log, status, logged)
    if recorded == "running" and job.state not in runs.OVER:  # as a process that was killed has left it
        runs.write_json(job.folder / runs.SUMMARY, facts | {"status": job.state, "error": job.error})


def last_error(log: Path, status: int, logged: int = 0) -> str:
    """Return the last line that tells an error, of the rank that fell silent first where each has a log of its own;
    not of an earlier process, which left `logged` bytes there."""
    for rank in sorted(log.parent.glob(f"{log.name}*"), key=lambda path: path.stat().st_mtime_ns):
        text = rank.read_bytes()[logged if rank == log else 0 :].decode(errors="replace")
        if lines := [line for line in text.splitlines() if ERROR.match(line)]:
            return lines[-1]
    return ended_by(status)


def ended_by(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def describe(job: Job, *others: Job) -> str:
    """Return why a job failed, and which others did for the same reason."""
    varied = [one for one in job.overrides if one not in constant_overrides]
    lines = [f"  job {job.number} {job.state}: {shlex.join(varied)}".rstrip(": ")]
    lines += [f"      {job.error}", f"      {os.path.relpath(job.folder / runs.LOG)}"]
    lines += [f"      and {len(others)} more: {', '.join(str(other.number) for other in others)}"] if others else []
    return "\n".join(wrapped(line, 8, spare=2, stream=sys.stderr) for line in lines)  # 2 of the list at the end


@contextmanager
def failures_reported() -> Iterator[None]:
    """After a sweep: print why jobs failed, each reason once, and exit with status 1 where there are any."""
    failed_jobs.clear()
    constant_overrides.clear()
    try:
        yield
    finally:
        if failed_jobs:
            reasons = dict.fromkeys(job.error for job in failed_jobs)
            lines = (describe(*(job for job in failed_jobs if job.error == reason)) for reason in reasons)
            print(f"\n{len(failed_jobs)} failed:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
    if failed_jobs:
        sys.exit(1)
