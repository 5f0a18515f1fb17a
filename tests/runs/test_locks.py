"""Locks between processes, and what stands in for them where the file system has none."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradflow.runs import locks

SRC = Path(locks.__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gradflow.runs import locks
with locks.locked(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
    Path(sys.argv[2]).write_text("written under the lock")
"""


def holder(path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, str(SRC), str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_keeps_a_second_process_out(tmp_path):
    path = tmp_path / "new" / "record.json"

    def wait() -> str:
        with locks.locked(path):
            return path.read_text() if path.exists() else "came in"

    with holder(path) as process, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        time.sleep(0.2)
        assert not waiting.done()
        process.stdin.write("\n")
        process.stdin.flush()
        assert waiting.result(timeout=10) == "written under the lock"


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "record.json"
    with holder(path) as process:
        process.kill()
    with locks.locked(path):
        assert not path.exists()


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="inside"), locks.locked(tmp_path / "x"):
        raise ValueError("inside")
    with locks.locked(tmp_path / "x"):
        pass


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_locks(request, monkeypatch):
    """A file system as some cluster disks are."""
    import fcntl

    def refuse(fd: int, operation: int) -> None:
        raise OSError(request.param, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks._say_once.cache_clear()


def test_a_marker_stands_in_for_a_lock(no_locks, tmp_path, capsys):
    lock = locks.acquire(tmp_path)
    assert (tmp_path / locks.MARKER).is_file()
    assert locks._acquire(tmp_path / locks.LOCK, blocking=False) is None  # as another process would find it
    lock.release()
    assert not (tmp_path / locks.MARKER).exists()
    with locks.locked(tmp_path / "x"):
        pass
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"note: the file system of {tmp_path} has no locks")


def test_another_failure_of_a_lock_names_its_file(tmp_path, monkeypatch):
    import fcntl

    def fail(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*/\.lock'"):
        locks.acquire(tmp_path)
