"""Decoded data on disk: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from gradflow.data import cache
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

SHAPE = (20, 3, 64, 64)
FILES = ["checksums.json", "x.npy", "y.npy"]
CHILDS = {**os.environ, "PYTHONPATH": str(Path(cache.__file__).parents[2])}


def content() -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(0)
    return source.integers(0, 256, SHAPE, dtype=np.uint8), source.integers(0, 10, SHAPE[0])


def fill(folder: Path) -> None:
    x, y = content()
    cache.write(folder, SHAPE, iter(x), y)


def holds(folder: Path) -> bool:
    return all(np.array_equal(read, was) for read, was in zip(cache.read(folder), content(), strict=True))


def entries(home: Path) -> list[str]:
    """What is in a cache's folder, but for locks."""
    return sorted(path.name for path in home.iterdir() if path.suffix != ".lock")


def never(*arguments) -> None:
    raise AssertionError("not again")


PIECES = {
    "at once": lambda x: [x],
    "one by one": lambda x: iter(x),
    "unevenly": lambda x: np.split(x, [1, 8, 8]),
    "as a view": lambda x: [x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)],
    "in Fortran's order": lambda x: [np.asfortranarray(x)],
    "as larger numbers": lambda x: [x.astype(np.int64)],
}


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("labels", [np.int64, np.uint8, ">i4"])
def test_what_is_written_is_read(tmp_path, pieces, labels):
    x, y = content()
    cache.write(tmp_path, SHAPE, PIECES[pieces](x), y.astype(labels))
    assert holds(tmp_path)
    assert [tensor.dtype for tensor in cache.read(tmp_path)] == [torch.uint8, torch.int64]
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)  # a file that numpy can read, too
    assert np.array_equal(np.load(tmp_path / "y.npy"), y)


def test_images_are_mapped_and_not_copied(tmp_path):
    fill(tmp_path)
    x, _ = cache.read(tmp_path)
    first = int(x.flatten()[-1])
    with (tmp_path / "x.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([first ^ 255]))
    assert int(x.flatten()[-1]) == first ^ 255


def test_a_folder_is_filled_once_and_has_its_name_when_it_is_complete(tmp_path):
    place, drafts = tmp_path / "home" / "place", []

    def watched(draft: Path) -> None:
        fill(draft)
        drafts.append(draft)
        assert not place.exists()
        assert draft.parent == place.parent  # on the same disk, so that a rename is one step

    cache.cached(place, watched)
    assert entries(place.parent) == ["place"]
    assert entries(place) == FILES
    assert drafts[0].name.startswith(".")
    cache.cached(place, never)
    assert holds(place)


def test_what_is_complete_is_served_from_a_disk_that_can_only_be_read(tmp_path, monkeypatch):
    place = tmp_path / "place"
    cache.cached(place, fill)
    monkeypatch.setattr(cache, "locked", never)  # a lock is a file
    cache.cached(place, never)
    assert holds(place)


@pytest.mark.parametrize("error", [KeyboardInterrupt("^C"), UserError("2 of 6 images"), OSError(errno.EIO, "bad disk")])
def test_nothing_is_left_of_a_fill_that_fails(tmp_path, error):
    place = tmp_path / "place"

    def broken(draft: Path) -> None:
        fill(draft)
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        cache.cached(place, broken)
    assert entries(tmp_path) == []
    cache.cached(place, fill)
    assert holds(place)


@pytest.mark.parametrize("name", [None, "other/file"])
def test_an_error_of_the_system_names_what_it_is_about(tmp_path, name):
    def full(draft: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    with pytest.raises(OSError, match="No space left") as caught:
        cache.cached(tmp_path / "place", full)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == (name or str(tmp_path / "place"))


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_full_disk_is_told_in_a_line(tmp_path, monkeypatch, step):
    """At whichever step the system says so; some say it only when what was written must reach the disk."""
    place = tmp_path / "place"
    spec = Spec("image", SHAPE[1:], "classification", outputs=10)
    source = Source("cached", spec, lambda: {"train": cache.read(place)}, prepare=partial(cache.cached, place, fill))
    data = DataModule(lambda: source, 2)

    def full(*arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "fsync" else Path, step, full)
        with pytest.raises(UserError) as caught:
            data.prepare_data()
    assert re.fullmatch(rf"{place}: No space left on device; give .* data\.cache=… .*", str(caught.value))
    assert entries(tmp_path) == []
    data.prepare_data()
    data.setup()
    assert data.sizes["train"] == 20


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from gradflow.data import cache

place, when = Path(sys.argv[1]), int(sys.argv[2])

def pieces():
    for number in range(20):
        if number == when:
            os.kill(os.getpid(), signal.SIGKILL)
        yield np.ones((3, 64, 64), np.uint8)

def fill(draft):
    (draft / "more").touch()
    cache.write(draft, (20, 3, 64, 64), pieces(), np.zeros(20, np.int64))
    os.kill(os.getpid(), signal.SIGKILL)

cache.cached(place, fill)
"""


@pytest.mark.parametrize("when", [10, 20])
def test_what_a_killed_process_wrote_is_written_again(tmp_path, when):
    """Killed after 10 of 20 images, or when all is written but has no name yet."""
    place = tmp_path / "place"
    words = [sys.executable, "-c", KILLED, place, str(when)]
    done = subprocess.run(words, env=CHILDS, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    (draft,) = entries(tmp_path)
    assert 0.4 * when < (tmp_path / draft / "x.npy").stat().st_size / (3 * 64 * 64) < when + 1
    cache.cached(place, fill)
    assert entries(tmp_path) == ["place"]
    assert entries(place) == FILES
    assert holds(place)  # and not what the killed one was about to write


def test_the_second_waits_for_the_first(tmp_path):
    """Two threads here; two processes in test_image_sources.py."""
    place, begun, released = tmp_path / "place", threading.Event(), threading.Event()

    def slow(draft: Path) -> None:
        begun.set()
        assert released.wait(30)
        fill(draft)

    first = threading.Thread(target=cache.cached, args=(place, slow))
    first.start()
    assert begun.wait(30)
    timer = threading.Timer(0.2, released.set)
    timer.start()
    cache.cached(place, never)
    assert released.is_set()
    assert holds(place)
    first.join()
    timer.join()


@pytest.mark.parametrize("name", ["x.npy", "y.npy"])
@pytest.mark.parametrize("kept", [0, 20, 130, -1])  # nothing, part of the header, a number or two, all but a byte
def test_a_file_that_is_cut_off_is_not_read_in_silence(tmp_path, name, kept):
    fill(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match="this cache is damaged"):
        cache.read(tmp_path)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("byte", [0, 17, -1])  # of x.npy and y.npy: two in the header, and the last number
def test_a_flipped_byte_is_found_at_opening_and_the_cache_made_anew(tmp_path, capsys, name, byte):
    place = tmp_path / "place"
    cache.cached(place, fill)
    assert capsys.readouterr() == ("", "")
    if (name, byte) == ("checksums.json", -1):
        byte = -4  # the last digit: the newline at the end tells nothing
    flip(place / name, byte)
    cache.cached(place, fill)
    assert holds(place)
    assert entries(place) == FILES
    assert entries(tmp_path) == ["place"]
    assert capsys.readouterr() == ("", f"{place}: its checksums don't match; these data are decoded again\n")
    cache.cached(place, never)


@pytest.mark.parametrize("name", FILES)  # an earlier format has no checksums
def test_a_cache_without_one_of_its_files_is_made_anew(tmp_path, name):
    place = tmp_path / "place"
    cache.cached(place, fill)
    (place / name).unlink()
    cache.cached(place, fill)
    assert holds(place)
    cache.cached(place, never)


def test_of_several_that_open_a_damaged_cache_one_makes_it_anew_and_the_folder_stays(tmp_path, capsys):
    """A process that reads the old files goes on with them; one that opens the folder meanwhile finds one."""
    place, filled = tmp_path / "place", []
    cache.cached(place, fill)
    flip(place / "x.npy", -1)
    x, _ = cache.read(place)
    damaged = x.clone()

    def counted(draft: Path) -> None:
        filled.append(draft)
        fill(draft)
        assert holds(draft)
        assert torch.equal(cache.read(place)[0], damaged)

    several = [threading.Thread(target=cache.cached, args=(place, counted)) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert len(filled) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert torch.equal(x, damaged)
    assert holds(place)


def test_a_damaged_cache_stays_when_it_can_not_be_made_anew(tmp_path):
    """Nothing is lost of it, and the next one tries again."""
    place = tmp_path / "place"
    cache.cached(place, fill)
    flip(place / "x.npy", -1)

    def gone(draft: Path) -> None:
        raise UserError("the archive is not there")

    with pytest.raises(UserError, match="the archive is not there"):
        cache.cached(place, gone)
    assert entries(place) == FILES
    assert entries(tmp_path) == ["place"]
    cache.cached(place, fill)
    assert holds(place)
