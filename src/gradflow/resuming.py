"""`resume=auto` and `resume=<run folder>` on the command line: which run goes on, in its own folder. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gradflow import runs
from gradflow.mistakes import Mistake

OVER = ("finished", "pruned")
SWEEPING = ("-m", "--multirun")


def words(given: Sequence[str]) -> list[str]:
    """The words of the command with those that lead it to the folder of the run that goes on, which is locked."""
    wish = value("resume", given)
    if wish in (None, "null") or Path(wish).is_file() or not (wish == "auto" or Path(wish).is_dir()):
        return list(given)  # of a checkpoint's file begins a new run; what is not there is told later
    if set(given) & set(SWEEPING):
        raise Mistake(f"resume={wish}: goes on with one run; a sweep goes on with continue_sweep=newest")
    if value("hydra.run.dir", given) and not runs.first_rank():
        return list(given)  # a rank that Lightning starts has the words of the first
    return automatic(list(given)) if wish == "auto" else named(Path(wish), list(given))


def automatic(given: list[str]) -> list[str]:
    if folder := value("hydra.run.dir", given):
        return going_on(Path(folder), given) if runs.read_json(Path(folder) / runs.SUMMARY) else given
    for run in unfinished(own(given)):
        if runs.hold(run):
            return going_on(run, given)
    return given


def named(run: Path, given: list[str]) -> list[str]:
    """Its own words, too, but for those that are given anew: `resume=<folder>` alone goes on with the same run."""
    if not (run / ".hydra" / "overrides.yaml").is_file():
        raise Mistake(f"resume={run}: not a run folder (there is no .hydra/overrides.yaml in it)")
    anew = {key(word) for word in given}
    return going_on(run, [word for word in own(runs.overrides(run)) if key(word) not in anew] + given)


def going_on(run: Path, given: list[str]) -> list[str]:
    same = sorted(own(given)) == sorted(own(runs.overrides(run)))
    if same and runs.read_json(run / runs.SUMMARY).get("status") in OVER:
        print(f"resume: {run} is finished already")
        sys.exit(0)
    if runs.first_rank() and not runs.hold(run):
        raise Mistake(f"resume={run}: another process is at this run")
    kept = ["hydra.output_subdir=null"] if same else []  # its configuration is on record already
    return [*(word for word in given if key(word) != "hydra.run.dir"), f"hydra.run.dir={quoted(run)}", *kept]


def unfinished(wanted: Sequence[str]) -> list[Path]:
    """Runs of these words that have not come to their end, the newest first."""
    found = [path.parent for path in Path("runs").glob(f"*/*/{runs.SUMMARY}")]
    found = [run for run in found if (run / ".hydra" / "overrides.yaml").is_file()]
    found = [run for run in found if unfinished_run_of(run, wanted)]
    return sorted(found, key=lambda run: (run / runs.SUMMARY).stat().st_mtime, reverse=True)


def unfinished_run_of(run: Path, wanted: Sequence[str]) -> bool:
    """Not a folder that is damaged: it is no reason to refuse the others."""
    try:
        same = sorted(own(runs.overrides(run))) == sorted(wanted)
        return same and runs.read_json(run / runs.SUMMARY).get("status") not in OVER
    except Mistake:
        return False


def own(given: Sequence[str]) -> list[str]:
    """What a run consists of: neither where it lies nor where it began."""
    return [
        word
        for word in given
        if not word.startswith("-") and key(word).partition("/")[0].partition(".")[0] not in ("resume", "hydra")
    ]


def key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def value(name: str, given: Sequence[str]) -> str | None:
    """The last that was given for a key."""
    found = [word.partition("=")[2].strip("'\"") for word in given if key(word) == name and "=" in word]
    return found[-1] if found else None


def quoted(path: Path) -> str:
    """As a value in Hydra's grammar."""
    text = str(path).replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"
