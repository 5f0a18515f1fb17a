"""`resume=auto` and `resume=<run folder>` on the command line: which run goes on, in its own folder. No torch here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from gradflow import runs
from gradflow.config.trust import check_recorded, check_run
from gradflow.runs import claims, ranks
from gradflow.runs.errors import UserError

SWEEPING = ("-m", "--multirun")
FREE = (
    "trainer",
    "callbacks",
    "logger",
    "test",
    "report",
    "probe",
    "on_alarm",
    "on_nonfinite",
    "summary",
)  # to change on resuming
OF_ENVIRONMENT, OF_OTHERS = re.compile(r"\$\{oc\.env:"), re.compile(r"\$\{(?!oc\.env:)")  # interpolations


def words(given: Sequence[str]) -> list[str]:
    """The words of the command with those that lead it to the folder of the run that goes on, which is locked."""
    wish = value("resume", given)
    if wish is None or not goes_on(wish):
        return list(given)  # of a checkpoint's file begins a new run; what is not there is told later
    if set(given) & set(SWEEPING):
        raise UserError(f"resume={wish}: goes on with one run; a sweep goes on with continue_sweep=newest")
    if ranks.apart() > 1:  # each has the words of the user, but the first alone can lock a run
        told: list[str] = json.loads(ranks.agreed(lambda: json.dumps(led(wish, list(given)))))
        return told
    return led(wish, list(given)) if runs.first_rank() else list(given)


def goes_on(wish: str) -> bool:
    return wish == "auto" or Path(wish).is_dir()


def led(wish: str, given: list[str]) -> list[str]:
    folder = value("hydra.run.dir", given)
    if wish != "auto":
        return named(Path(wish), folder, given)
    if folder:
        return going_on(Path(folder), given) if (Path(folder) / runs.OVERRIDES).is_file() else given
    for run in unfinished(own(given)):
        check_run(run)  # before its lock is opened
        if claims.go_on(run):
            return going_on(run, given)
    return given


def named(run: Path, folder: str | None, given: list[str]) -> list[str]:
    """Its own words, too, but for those that are given anew: `resume=<folder>` alone goes on with the same run."""
    if not (run / runs.OVERRIDES).is_file():
        raise UserError(f"resume={run}: not a run folder (there is no {runs.OVERRIDES} in it)")
    if folder and Path(folder).resolve() != run.resolve():
        raise UserError(f"hydra.run.dir={folder}: resume={run} goes on in its own folder; leave one of them out")
    anew = {key(word) for word in given}
    recorded = [word for word in own(runs.overrides(run)) if key(word) not in anew]
    return going_on(run, check_recorded(recorded) + given)


def going_on(run: Path, given: list[str]) -> list[str]:
    """Its record in .hydra stays as it is until the run has taken the words (`saved.start`)."""
    check_run(run)
    if same(run, given) and runs.read_json(run / runs.SUMMARY).get("status") in runs.OVER:
        print(f"resume: {run} is finished already")
        sys.exit(0)
    refuse_another(run, given)
    if not claims.go_on(run):
        raise UserError(f"resume={run}: another process is at work in it")
    kept = [word for word in given if key(word) != "hydra.run.dir"]
    return [*kept, f"hydra.run.dir={quoted(run)}"]


def refuse_another(run: Path, given: Sequence[str]) -> None:
    """Other data, another network or another optimizer make another run, which the weights of this one would spoil."""
    had, now = own(runs.overrides(run)), own(given)
    changed = [word for word in now if word not in had] + [word for word in had if word not in now]
    for word in changed:
        if part(word) not in FREE:
            keys = ", ".join(f"{name}.*" for name in FREE[:3])
            raise UserError(
                f"{word}: the run to resume has other words, and goes on with them; {keys} may change, "
                f"and resume={run}/{runs.LAST} begins a new run from it"
            )


def record(run: Path, cfg: DictConfig) -> None:
    """Write what a run is made of to its folder, unless the same stands there: its choices, and Hydra's own."""
    words = [str(word) for word in HydraConfig.get().overrides.task]
    if (run / runs.OVERRIDES).is_file() and same(run, words):
        return
    told = {"config": cfg, "hydra": {"hydra": HydraConfig.get()}, "overrides": noted(run, words)}
    (run / runs.OVERRIDES).parent.mkdir(exist_ok=True)
    for name, content in told.items():
        text = OmegaConf.to_yaml(OmegaConf.create(content))  # type: ignore[call-overload]
        runs.write_text(run / ".hydra" / f"{name}.yaml", text)


def unfinished(wanted: Sequence[str]) -> list[Path]:
    """Runs of these words that have not come to their end, the newest first."""
    found = [path.parent for path in Path("runs").glob(f"*/*/{runs.SUMMARY}")]
    found = [run for run in found if unfinished_run_of(run, wanted)]
    return sorted(found, key=lambda run: (run / runs.SUMMARY).stat().st_mtime, reverse=True)


def unfinished_run_of(run: Path, wanted: Sequence[str]) -> bool:
    """Not a folder that is damaged: it is no reason to refuse the others."""
    try:
        return runs.read_json(run / runs.SUMMARY).get("status") not in runs.OVER and same(run, wanted)
    except UserError:
        return False


def same(run: Path, given: Sequence[str]) -> bool:
    return sorted(own(given)) == sorted(own(runs.overrides(run)))


def own(given: Sequence[str]) -> list[str]:
    """What a run consists of: neither where it lies nor where it began, nor flags and what follows them."""
    told = [word for word in given if not word.startswith("-") and ("=" in word or word.startswith("~"))]
    return [word for word in told if part(word) not in ("resume", "hydra")]


def noted(run: Path, given: Sequence[str]) -> list[str]:
    """The words that stand in a run's records: those of its beginning, however often it went on since."""
    wish = value("resume", given)
    if wish is None or not goes_on(wish):
        return list(given)
    return [word for word in given if key(word) != "resume"] + beginning(run)


def beginning(run: Path) -> list[str]:
    """`resume=<file>` of a run that began from another's checkpoint."""
    if not (run / runs.OVERRIDES).is_file():
        return []
    found = [word for word in runs.overrides(run) if key(word) == "resume"]
    wish = written("resume", found)
    return found[-1:] if wish is not None and not goes_on(str(wish)) else []


def key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def part(word: str) -> str:
    """Of the configuration, that a word is about."""
    return re.split("[./@]", key(word))[0]


def written(name: str, words: Sequence[str]) -> Any:
    """The same as it is written, which is all that may be done with what a run folder holds."""
    found = [word for word in words if key(word) == name and "=" in word]
    return OverridesParser.create().parse_override(found[-1]).value() if found else None


def value(name: str, given: Sequence[str]) -> str | None:
    """The last that the user has given for a key, as Hydra will read it; None for null."""
    told = written(name, given)
    if isinstance(told, str) and OF_ENVIRONMENT.search(told) and not OF_OTHERS.search(told):
        return str(OmegaConf.create({"told": told})["told"])
    return None if told is None else str(told)


def quoted(path: Path) -> str:
    """As a value in Hydra's grammar."""
    text = str(path).replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"
