"""Locks between processes, on one machine or on a shared disk; a lock ends with the process that holds it. No torch."""

from __future__ import annotations

import errno
import functools
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gradflow.runs.errors import naming_file

LOCK = ".lock"  # in a run's or a sweep's folder
MARKER = f"{LOCK}.held"  # beside it, where the file system has no locks
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on a file or folder; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquire(path.with_name(f".{path.name}.lock"), blocking=True)
    try:
        yield
    finally:
        lock.release()


def acquire(folder: Path) -> Any:
    """Return the lock of a folder, which ends with its `release`, or with this process; None when another has it."""
    lock = _acquire(folder.absolute() / LOCK, blocking=False)
    if lock is not None:
        with suppress(OSError):  # Windows lets nobody write into a locked file
            (folder / LOCK).write_text(
                f"{os.getpid()} {platform.node()}\n", encoding="utf-8"
            )  # for a person who wonders who it is
    return lock


def held(folder: Path) -> bool | None:
    """Return whether a process has the lock of a folder; None where nobody can tell, like of one on another machine.

    Asking takes no lock that another process could miss, and writes nothing: the folder may be anybody's.
    """
    file = folder / LOCK
    try:
        import fcntl

        with file.open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False if lock.read().split()[1:] == [platform.node()] else None
    except BlockingIOError:
        return True
    except (ImportError, OSError, ValueError):  # as on Windows, or where the file system has no locks
        return None


def _acquire(file: Path, blocking: bool) -> Any:
    """Return the lock, or None where another process has it."""
    from filelock import FileLock, SoftFileLock, Timeout  # 40 ms that a wrong command line need not wait for

    lock: Any = FileLock(file, fallback_to_soft=False)
    with naming_file(file), suppress(Timeout):
        try:
            lock.acquire(blocking=blocking)
        except OSError as error:
            if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
                raise
            _say_once(file.parent)
            lock = SoftFileLock(file.with_name(f"{file.name}.held"))
            lock.acquire(blocking=blocking)
        return lock
    return None


@functools.cache
def _say_once(folder: Path) -> None:
    print(
        f"note: the file system of {folder} has no locks; a marker file stands in for one, which a process that is "
        f"killed on another machine leaves there: then remove {MARKER}",
        file=sys.stderr,
    )
