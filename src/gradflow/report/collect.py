"""Find all runs below some folders, and what their sweeps and searches say of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradflow import runs
from gradflow.report.plain_data import DAMAGE, mapping, number, text
from gradflow.report.run import LOST, Run, read_run
from gradflow.runs import sweep_jobs
from gradflow.runs.errors import UserError
from gradflow.runs.files import read_yaml
from gradflow.runs.sweep_jobs import Job


@dataclass(frozen=True)
class Search:
    """Hold the results of a search, as its own file has them."""

    direction: str
    value: float
    trial: int
    overrides: list[str]
    folder: Path
    complete: int
    importance: dict[str, float]  # by Optuna's PED-ANOVA

    def chose(self, run: Run) -> bool:
        """Return whether a run is the best trial; one of another sweep in the same folder may have its number."""
        return run.folder == self.folder and run.summary.get("overrides") == self.overrides


@dataclass
class Collection:
    """Hold what lies below the folders of a report."""

    title: str
    runs: list[Run] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)  # reason by name
    commands: list[str] = field(default_factory=list)  # of the sweeps
    searches: list[Search] = field(default_factory=list)


def find(folders: Sequence[Path]) -> tuple[set[Path], set[Path]]:
    """Return the folders of all runs below some folders, and those of sweeps."""
    paths: set[Path] = set()
    sweeps: set[Path] = set()
    for top in folders:
        if not top.is_dir():
            raise UserError(f"{top}: no such folder")
        for here, below, files in os.walk(top.resolve()):
            is_run = ".hydra" in below or runs.SUMMARY in files
            if is_run:
                paths.add(Path(here))
            if runs.JOBS in files:
                sweeps.add(Path(here))
            below[:] = [] if is_run else [one for one in below if one not in ("checkpoints", "wandb") and one[0] != "."]
    return paths, sweeps


def collect(folders: Sequence[Path]) -> Collection:
    """Return all runs below some folders, in the order of their names; 10 comes after 9."""
    paths, sweeps = find(folders)
    tops = [folder.resolve() for folder in folders]
    collection = Collection(", ".join(map(_short, tops)))
    sweeps |= {path.parent for path in paths if (path.parent / runs.JOBS).is_file()}
    jobs = _jobs(sweeps, collection.ignored)
    paths |= {path for path, job in jobs.items() if job.state in LOST and any(map(path.is_relative_to, tops))}
    if not paths:
        raise UserError(f"{', '.join(map(str, folders))}: no run folder below it (none holds a {runs.SUMMARY})")
    collection.commands = _sweep_commands({folder for path in paths for folder in (path.parent, path.parent.parent)})
    collection.searches = [found for folder in sorted({path.parent for path in paths}) if (found := _search(folder))]
    common = Path(os.path.commonpath(tops))
    for path in sorted(paths, key=_natural_order):
        name = path.name if path == common else str(path.relative_to(common))
        try:
            collection.runs.append(read_run(path, name, jobs.get(path)))
        except UserError as reason:
            collection.ignored[name] = str(reason).replace(f"{path}/", "").replace(str(path), name)
        except DAMAGE as error:
            collection.ignored[name] = f"{type(error).__name__}: {error}"
    return collection


def _short(folder: Path) -> str:
    """Return a folder's name without the path of somebody's home."""
    return "/".join(folder.parts[-2:]) if len(folder.parts) > 2 else str(folder)


def _natural_order(path: Path) -> list[Any]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]


def _jobs(folders: Iterable[Path], ignored: dict[str, str]) -> dict[Path, Job]:
    """Return the rows of the sweeps' tables of jobs, by run folder; not of probes, which train nothing. Add a table
    that can't be read to `ignored`."""
    jobs: dict[Path, Job] = {}
    for table in sorted(folder / runs.JOBS for folder in folders):
        try:
            rows = sweep_jobs.read(table) if sweep_jobs.command(table.parent)[0] != "probe" else []
        except (UserError, *DAMAGE) as error:
            ignored[_short(table.parent)] = str(error)
            continue
        done = {tuple(sorted(job.overrides)): job.folder.name for job in rows if job.state in runs.OVER}
        for job in rows:
            if job.state in LOST and (later := done.get(tuple(sorted(job.overrides)))):
                job.state = f"{job.state}, and was run again: {later}"
            jobs[job.folder.resolve()] = job
    return jobs


def _sweep_commands(folders: Iterable[Path]) -> list[str]:
    """Return `python src/train.py -m …` as Hydra recorded it in each sweep's folder."""
    commands = []
    for folder in sorted(folder for folder in folders if (folder / "multirun.yaml").is_file()):
        program, task, own = sweep_jobs.command(folder)
        if program:  # else the runs' own commands are there
            own = [one for one in own if not one.startswith("hydra.mode=")]
            commands.append(shlex.join(["python", f"src/{program}.py", "-m", *task, *own]))
    return commands


def _search(folder: Path) -> Search | None:
    """Return the results of the search in a sweep's folder; None where there is none, or none that is complete."""
    try:
        content = read_yaml(folder / runs.RESULTS)
        best, overrides = content["best"], [text(one) for one in content["best"]["overrides"]]
        where, complete = folder / Path(text(best["folder"])).name, int(content["trials"]["complete"])
        shares = {text(key): number(share) for key, share in mapping(content.get("importance")).items()}
        way, value, trial = text(content["direction"]), float(best["value"]), int(best["trial"])
        return Search(way, value, trial, overrides, where, complete, shares)
    except (UserError, *DAMAGE):
        return None
