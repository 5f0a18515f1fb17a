"""Decoded data on disk: written whole or not at all, checked when they are opened, and mapped into memory by every
process that reads them."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from gradflow import runs
from gradflow.data.sources.source import Split
from gradflow.runs.errors import UserError
from gradflow.runs.locks import locked

CACHE = ".gradflow"  # beside the data, unless data.cache=… names a folder
_CHECKSUMS = "checksums.json"  # of the files beside it


def cached(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder once on a machine, and again when its files are not what was written.

    A new folder has its name when it is complete. In one that is there each file is replaced by itself, so that another
    process finds a folder at any moment, and one that has mapped the old files keeps them.
    """
    if _is_intact(folder):
        return
    with locked(folder):
        if _is_intact(folder):
            return
        if folder.exists():
            print(f"{folder}: its checksums don't match; these data are decoded again", file=sys.stderr)
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # what a process left that was killed
        draft.mkdir()
        try:
            fill(draft)
            runs.write_json(draft / _CHECKSUMS, {file.name: _checksum(file) for file in sorted(draft.iterdir())})
            if folder.exists():
                for file in draft.iterdir():
                    file.replace(folder / file.name)
            else:
                draft.rename(folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), error.filename or str(folder)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    """Tell whether the files hold what was written: one pass over them, at 0.4 s of a core for each GB."""
    try:
        checksums = runs.read_json(folder / _CHECKSUMS)
        return bool(checksums) and all(_checksum(folder / name) == value for name, value in checksums.items())
    except (UserError, OSError):
        return False


def _checksum(file: Path) -> int:
    """Return the CRC-32: it sees every change of a few neighbouring bytes, and misses one in 4e9 of the others."""
    value = 0
    with file.open("rb") as opened:
        while piece := opened.read(2**20):
            value = zlib.crc32(piece, value)
    return value


def write(
    folder: Path,
    shape: tuple[int, ...],
    images: Iterable[np.ndarray],
    labels: np.ndarray,
    kinds: tuple[str, str] = ("|u1", "<i8"),
) -> None:
    """Write images and labels. Images come in pieces, so that there may be more of them than fit in memory."""
    _save(folder / "x.npy", kinds[0], shape, images)
    _save(folder / "y.npy", kinds[1], labels.shape, [labels])


def _save(path: Path, kind: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, kind).data)
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before what was written


def read(folder: Path) -> Split:
    try:
        images = np.load(folder / "x.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "y.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: this cache is damaged ({error}); remove it, and it is decoded again") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        return torch.from_numpy(images), torch.from_numpy(labels)
