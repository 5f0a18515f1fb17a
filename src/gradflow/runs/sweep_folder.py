"""A sweep's folder: the table of its jobs (`jobs.csv`), and how a later command goes on with it. No torch here."""

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
from gradflow.runs.errors import DISK, UserError
from gradflow.runs.files import check_files, read_yaml
from gradflow.runs.tables import FORMULA, from_cell, to_cell


@dataclass
class Job:
    """A set of overrides in a folder of its own, however often it was interrupted there; a row of the table."""

    number: int
    overrides: tuple[str, ...]
    state: str  # new, running, finished, pruned, failed or interrupted
    objective: Any
    seconds: float
    folder: Path
    error: str = ""

    def row(self, sweep: Path) -> list[str]:
        words, objective = shlex.join(self.overrides), json.dumps(self.objective)
        if words.startswith(FORMULA):  # for a shell the quotes change nothing
            words = " ".join([f"'{self.overrides[0]}'", *map(shlex.quote, self.overrides[1:])])
        told = [to_cell(text) for text in (self.state, objective, os.path.relpath(self.folder, sweep), self.error)]
        return [str(self.number), words, *told[:2], f"{self.seconds:.1f}", *told[2:]]


COLUMNS = [field.name for field in fields(Job)]
failed: list[Job] = []  # of the sweep that this process runs
unwritten: list[UserError | OSError] = []  # why something that it ends with, like the report, could not be written


class Sweep:
    """The jobs of one folder; held by one process at a time."""

    def __init__(self, folder: Path, going_on: bool, alive: Callable[[Path], bool] = lambda folder: False) -> None:
        self.folder, self.table = folder.absolute(), folder.absolute() / runs.JOBS
        if going_on:
            check_files(self.folder)
        if not going_on:
            claims.claim(folder, "hydra.sweep.dir")
        elif not claims.go_on(folder):
            raise UserError(f"{folder}: its sweep is still running")
        self.jobs = read(self.table)
        for job in self.jobs:
            if job.state == "running" and not alive(job.folder):
                settle(job)
        self.earlier = list(self.jobs)

    def done(self, words: Sequence[str]) -> Job | None:
        """A job of these overrides that an earlier command has brought to its end; each is given once."""
        for job in self.earlier:
            if job.state in runs.OVER and sorted(job.overrides) == sorted(words):
                self.earlier.remove(job)
                return job
        return None

    def unfinished(self, words: Sequence[str]) -> Job | None:
        """The newest job of these overrides, when it was interrupted or still goes on; one that failed starts anew."""
        for job in self.earlier[::-1]:
            if sorted(job.overrides) == sorted(words):
                self.earlier.remove(job)
                return job if job.state in ("interrupted", "running") else None
        return None

    def next_number(self) -> int:
        taken = [job.number for job in self.jobs]
        taken += [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        return max(taken, default=-1) + 1

    def begin(self, job: Job) -> None:
        if not any(job is known for known in self.jobs):
            self.jobs.append(job)
        self.write()

    def write(self) -> None:
        with runs.write_whole(self.table, newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(job.row(self.folder) for job in self.jobs)


def settle(job: Job) -> None:
    """Of a job that nobody was there to see the end of."""
    told = runs.read_json(job.folder / runs.SUMMARY).get("status")
    job.state = told if told in runs.OVER else "interrupted"
    job.objective = runs.read_objective(job.folder)
    close_summary(job)


def read(table: Path) -> list[Job]:
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            return [job_of(row, table.parent) for row in reader]
        except (ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
            raise UserError(f"{table}: line {reader.line_num} is damaged ({error}); mend or remove it") from error


def job_of(row: dict[str, str], sweep: Path) -> Job:
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


def constants(words: Iterable[str]) -> dict[str, str | None]:
    """The keys that a command gives, each with its value, or None when it is swept."""
    given = {}
    for word in OverridesParser.create().parse_overrides(list(words)):
        swept = word.is_sweep_override()
        given[word.get_key_element()] = None if swept else word.get_value_element_as_str()
    return {key: value for key, value in given.items() if key != "continue_sweep"}


def to_continue(named: str, program: str, words: Sequence[str]) -> Path:
    """The folder that `continue_sweep=named` means."""
    if named == "newest":
        return newest(program, constants(words))
    folder = Path(named)
    if not (folder / runs.JOBS).is_file():
        raise UserError(f"continue_sweep={named}: not a sweep's folder (there is no {runs.JOBS} in it)")
    if (was := command(folder)[0]) not in (program, None):
        raise UserError(f"continue_sweep={named}: is a sweep of src/{was}.py, not of src/{program}.py")
    return folder


def newest(program: str, given: dict[str, str | None]) -> Path:
    """The newest sweep of the same keys, in which what neither command sweeps has the same value."""
    tables = list(Path("multirun").glob(f"*/*/{runs.JOBS}"))
    for table in sorted(tables, key=lambda path: path.stat().st_mtime, reverse=True):
        name, words = command(table.parent)
        had = constants(words)
        same = set(had) == set(given) and all(
            had[key] == value or None in (had[key], value) for key, value in given.items()
        )
        if name == program and same:
            return table.parent
    raise UserError("continue_sweep=newest: no sweep of these words in multirun/; name its folder")


def command(folder: Path) -> tuple[str | None, list[str]]:
    """The program that made a sweep, and its words."""
    try:
        noted = read_yaml(folder / "multirun.yaml")["hydra"]
        return str(noted["job"]["name"]), [str(word) for word in noted["overrides"]["task"]]
    except (UserError, KeyError, TypeError):
        return None, []


@contextmanager
def concluded() -> Iterator[None]:
    """After a sweep: its failures once more, and exit status 1 where there are any."""
    failed.clear()
    unwritten.clear()
    try:
        yield
    finally:
        if failed:
            print(f"\n{len(failed)} failed:", file=sys.stderr)
        for job in failed:
            print(f"  {describe(job)}", file=sys.stderr)
    if unwritten:
        raise unwritten[0]
    if failed:
        sys.exit(1)


def describe(job: Job) -> str:
    log = os.path.relpath(job.folder / runs.LOG)
    return f"{job.number:>3} {job.state}: {shlex.join(job.overrides)}\n      {job.error}\n      {log}"


def end(job: Job, status: int, stopping: bool, logged: int = 0) -> None:
    """Note how a job's process has ended: Lightning ends one that was told to stop with status 0, too. One that was
    told to end, or killed, or whose disk was full, is interrupted: it can go on. But Lightning, too, kills the first
    rank: when another has failed, which has told its log then."""
    told = runs.read_json(job.folder / runs.SUMMARY).get("status", "")
    if status == 0:
        job.state = told if told in ("pruned", "interrupted") else "finished"
    else:
        killed = status in _KILLED and last_error(job.folder / runs.LOG, status, logged) == ended_by(status)
        goes_on = stopping or told == "interrupted" or killed or status in (DISK, *_STOPPED)
        job.state = "interrupted" if goes_on else "failed"
    job.objective = runs.read_objective(job.folder)
    job.error = runs.read_json(job.folder / runs.SUMMARY).get("reason", "") if job.state == "pruned" else ""
    if job.state not in runs.OVER:
        job.error = last_error(job.folder / runs.LOG, status, logged)
        close_summary(job)


ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")
# Statuses by POSIX's numbers, since not every system has the names.
_KILLED = (-9, 128 + 9)
_STOPPED = [status for number in (1, 2, 15) for status in (-number, 128 + number)]  # SIGHUP, SIGINT, SIGTERM


def last_error(log: Path, status: int, logged: int = 0) -> str:
    """The last line that tells one, of the rank that fell silent first where each has a log of its own; not of an
    earlier process, which left `logged` bytes there."""
    for rank in sorted(log.parent.glob(f"{log.name}*"), key=lambda path: path.stat().st_mtime_ns):
        told = rank.read_bytes()[logged if rank == log else 0 :].decode(errors="replace")
        for line in reversed(told.splitlines()):
            if ERROR.match(line):
                return line
    return ended_by(status)


def ended_by(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def close_summary(job: Job) -> None:
    """A process that was killed has left its summary saying that it runs."""
    facts = runs.read_json(job.folder / runs.SUMMARY)
    if facts.get("status") == "running":
        runs.write_json(job.folder / runs.SUMMARY, facts | {"status": job.state, "error": job.error})
