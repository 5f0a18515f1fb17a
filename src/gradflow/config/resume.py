"""`resume=auto` and `resume=<run folder>` on the command line: which run goes on, in its own folder. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gradflow import runs
from gradflow.config.trust import check_recorded, check_run
from gradflow.runs import claims, ranks
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import MULTIRUN, goes_on_in_folder, key, of_run, quoted, same_run, top_key, value

# What may change when a run is resumed.
_FREE = ("trainer", "callbacks", "logger", "test", "report", "probe", "on_alarm", "on_nonfinite", "summary")


def arguments_of_resumed_run(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those that lead to the folder of the run that goes on, which is locked."""
    resume = value("resume", arguments)
    if resume is None or not goes_on_in_folder(resume):
        return list(arguments)  # a checkpoint's file begins a new run; one that is not there is reported later
    if set(arguments) & set(MULTIRUN):
        raise UserError(f"resume={resume}: goes on with one run; a sweep goes on with continue_sweep=newest")
    if not runs.first_rank() and ranks.apart() == 1:
        return list(arguments)  # Lightning has started this rank with those of the first, which has locked the run
    return ranks.agreed(lambda: _locate(resume, list(arguments)))


def _locate(resume: str, arguments: list[str]) -> list[str]:
    folder = value("hydra.run.dir", arguments)
    if resume != "auto":
        return _resume_named(Path(resume), folder, arguments)
    if folder:
        return _resume_in(Path(folder), arguments) if (Path(folder) / runs.OVERRIDES).is_file() else arguments
    for run in _unfinished_runs(of_run(arguments)):
        check_run(run)  # before its lock is opened
        if claims.go_on(run):
            return _resume_in(run, arguments)
    return arguments


def _resume_named(run: Path, folder: str | None, arguments: list[str]) -> list[str]:
    """Add the recorded overrides, but for those that are replaced: `resume=<folder>` alone goes on with that run."""
    if not (run / runs.OVERRIDES).is_file():
        raise UserError(f"resume={run}: not a run folder (there is no {runs.OVERRIDES} in it)")
    if folder and Path(folder).resolve() != run.resolve():
        raise UserError(f"hydra.run.dir={folder}: resume={run} goes on in its own folder; leave one of them out")
    replaced = {key(argument) for argument in arguments}
    recorded = [override for override in of_run(runs.recorded_overrides(run)) if key(override) not in replaced]
    return _resume_in(run, check_recorded(recorded) + arguments)


def _resume_in(run: Path, arguments: list[str]) -> list[str]:
    """The record in .hydra stays as it is until the run has accepted the overrides (`previous_runs.start`)."""
    check_run(run)
    if same_run(run, arguments) and runs.read_json(run / runs.SUMMARY).get("status") in runs.OVER:
        print(f"resume: {run} is finished already")
        sys.exit(0)
    _reject_another_run(run, arguments)
    if not claims.go_on(run):
        raise UserError(f"resume={run}: another process is at work in it")
    return [*(one for one in arguments if key(one) != "hydra.run.dir"), f"hydra.run.dir={quoted(run)}"]


def _reject_another_run(run: Path, arguments: Sequence[str]) -> None:
    """Other data, another network or another optimizer make another run, which the weights of this one would spoil."""
    recorded, now = of_run(runs.recorded_overrides(run)), of_run(arguments)
    for override in (*now, *recorded):
        if (override in now) != (override in recorded) and top_key(override) not in _FREE:
            keys = ", ".join(f"{name}.*" for name in _FREE[:3])
            raise UserError(
                f"{override}: the run to resume has other overrides, and goes on with them; {keys} may change, "
                f"and resume={run}/{runs.LAST} begins a new run from it"
            )


def _unfinished_runs(overrides: Sequence[str]) -> list[Path]:
    """Return the runs of these overrides that have not come to their end, the newest first."""
    unfinished = []
    for summary in Path("runs").glob(f"*/*/{runs.SUMMARY}"):
        with suppress(UserError):  # a damaged folder is no reason to reject the others
            if runs.read_json(summary).get("status") not in runs.OVER and same_run(summary.parent, overrides):
                unfinished.append(summary)
    return [path.parent for path in sorted(unfinished, key=lambda path: path.stat().st_mtime, reverse=True)]
