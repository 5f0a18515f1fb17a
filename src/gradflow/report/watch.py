"""Follow runs that go on: their page is made anew when something was written, until the last of them has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gradflow import runs
from gradflow.report.collect import Collection, collect, find
from gradflow.report.page import write_page
from gradflow.report.run import Run
from gradflow.runs import locks
from gradflow.runs.errors import UserError

EVERY = 5  # seconds between two looks at the folders, after which a browser reads the page anew, too
SILENCE = 600  # seconds without a word, after which a run has ended whose lock can't be asked; src/report.py says so
_WRITTEN = (runs.SUMMARY, runs.METRICS, runs.JOBS)


def watch(folders: Sequence[Path], out: Path, pause: Callable[[float], Any] = time.sleep) -> Path:
    """Keep the page true while runs go on, or are still to come; return the last one, which no browser reads anew."""
    seen = None
    with suppress(KeyboardInterrupt):
        while True:
            now = _stamps(folder / name for folder in set[Path]().union(*find(folders)) for name in _WRITTEN)
            if now != seen:
                seen, found = now, _collect(folders)
                write_page(found, out, EVERY)
            sweeps = [*folders, *(file.parent for file in now if file.name == runs.JOBS)]
            if not any(map(_goes_on, found.runs)) and not any(map(locks.held, sweeps)):
                break
            pause(EVERY)
    return write_page(_collect(folders), out)


def _collect(folders: Sequence[Path]) -> Collection:
    """Return what is there; of a sweep that has just begun, nothing yet."""
    try:
        return collect(folders)
    except UserError:
        if not any(map(locks.held, folders)):
            raise
        return Collection("runs that are still to come")


def _goes_on(run: Run) -> bool:
    """Ask the lock of a run; where nobody can, how long ago something was written."""
    if run.status != "running":
        return False
    held = locks.held(run.folder)
    written = [run.folder / name for name in (*_WRITTEN, runs.LAST, runs.OVERRIDES)] + [run.folder.parent / runs.JOBS]
    return time.time() - max(_stamps(written).values())[0] / 1e9 < SILENCE if held is None else held


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Return when each file that is there was last written, in nanoseconds, and its size."""
    found = {}
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found[file] = status.st_mtime_ns, status.st_size
    return found
