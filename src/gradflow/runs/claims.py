"""The folder that a run or a sweep has for itself: claimed before anything is written into it, and removed again
where nothing began. Only what this process created is ever removed. No torch here."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from gradflow import runs
from gradflow.runs import locks, ranks
from gradflow.runs.errors import UserError

# What a run writes before its first step, and a sweep before its first job.
_LOCKS = {locks.LOCK, locks.MARKER}
_FILES = {runs.SUMMARY, runs.CHANGES, runs.DATASET, f".{runs.DATASET}.lock", "multirun.yaml"} | _LOCKS
_RECORD = [f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")]


@dataclass
class _Claim:
    created: list[Path]  # directories that were not there before, outermost first
    lock: Any
    goes_on: bool = False  # with the run that is in it


_claims: dict[Path, _Claim] = {}


def new_folder(folder: str) -> Path:
    """Create `folder`, or the first of `folder-2`, `folder-3`, … that is not there yet: runs never share one."""
    return _new(folder)[-1]


def _claim_new(folder: str) -> str:
    created = _new(folder)
    _take(created[-1], created)
    return str(created[-1])


# Hydra resolves it once a process (use_cache), and hands the result to the ranks that Lightning starts.
OmegaConf.register_new_resolver(
    "unused_folder", lambda folder: ranks.agreed(lambda: _claim_new(folder)), use_cache=True, replace=True
)


def claim(folder: Path, key: str, prepared: bool = False) -> None:
    """Take a folder that is new or empty, or that a sweep's process has `prepared` for this job."""
    if claimed(folder):
        return
    created = _create(folder)
    _reject_used(folder, key, prepared)
    if not _take(folder, created):
        raise UserError(f"{folder}: another process is at work in it; give another {key}=…")
    try:
        _reject_used(folder, key, prepared)  # now that nobody else may begin there
    except UserError:
        _claims.pop(folder.absolute()).lock.release()
        raise


def go_on(run: Path) -> bool:
    """Lock the folder of a run to go on with it; return False when another process has it."""
    return claimed(run) or _take(run, [], goes_on=True)


def _take(folder: Path, created: list[Path], goes_on: bool = False) -> bool:
    if (lock := locks.acquire(folder)) is not None:
        _claims[folder.absolute()] = _Claim([path.absolute() for path in created], lock, goes_on)
    return lock is not None


def claimed(folder: Path) -> bool:
    """Return whether this process has a folder, rather than another rank of its run."""
    return folder.absolute() in _claims


def goes_on(run: Path) -> bool:
    """Return whether this process has taken a folder to go on with the run in it."""
    return claimed(run) and _claims[run.absolute()].goes_on


def discard_unstarted() -> None:
    """Remove what this process created for a run without a step, or for a sweep without a job."""
    for path, claim in list(_claims.items()):
        if claim.goes_on or not path.is_dir() or not {entry.name for entry in path.iterdir()} <= {*_FILES, ".hydra"}:
            continue
        if os.name == "nt":
            claim.lock.release()  # Windows removes no file that is open
        for name in (*_FILES, *_RECORD):
            (path / name).unlink(missing_ok=True)
        for folder in (path / ".hydra", *reversed(claim.created)):
            with suppress(OSError):  # it is not there, or something has come into it meanwhile
                folder.rmdir()
    release()


def release() -> None:
    """Unlock all folders that this process has claimed."""
    for claim in _claims.values():
        claim.lock.release()
    _claims.clear()


class ClaimRunFolder(Callback):
    """Hydra calls it with the composed configuration, before it makes the folder itself."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not runs.first_rank() and ranks.apart() == 1:
            return  # Lightning has started this rank, in the folder of the first
        HydraConfig.instance().set_config(config)  # as Hydra does next; the folder's name has ${hydra:…} in it
        folder = Path(config.hydra.run.dir)
        if ".." in folder.parts:  # Hydra would make the folders before it, too
            folder = Path(os.path.abspath(folder))
            with read_write(config.hydra):
                config.hydra.run.dir = str(folder)
        ranks.agreed(lambda: claim(folder, "hydra.run.dir", prepared=runs.in_sweep()))


def _new(folder: str) -> list[Path]:
    path, number = Path(folder), 1
    while path.is_symlink() or path.exists() or not (created := _create(path)):
        number += 1
        path = Path(f"{folder}-{number}")
    return created


def _create(folder: Path) -> list[Path]:
    """Return the directories that had to be created for it, outermost first; none when it was there."""
    created = []
    for path in (*reversed(folder.parents), folder):
        try:
            path.mkdir()
            created.append(path)
        except OSError as error:
            if not path.is_dir():
                for one in reversed(created):
                    one.rmdir()
                reason = f"{path}: {error.strerror}"
                raise UserError(f"{folder}: can't be made the run's folder ({reason}); give another") from error
    return created if folder in created else []


def _reject_used(folder: Path, key: str, prepared: bool) -> None:
    names = {entry.name for entry in folder.iterdir()} - _LOCKS
    if runs.SUMMARY in names or (".hydra" in names and not prepared):
        raise UserError(f"{folder}: holds a run already; give another {key}=…, or none")
    if names & {runs.JOBS, runs.STUDY} and not prepared:
        raise UserError(f"{folder}: holds a sweep already; add continue_sweep={folder}, or give another folder")
    if names and not prepared:
        listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
        raise UserError(f"{folder}: holds other files ({listed}); give a {key}=… that is new or empty, or none")
