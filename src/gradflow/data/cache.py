"""Decoded data on disk: written whole or not at all, and mapped into memory by every process that reads them."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from gradflow.data.source import Split
from gradflow.locks import locked
from gradflow.mistakes import Mistake

CACHE = ".gradflow"  # beside the data, unless data.cache=… names a folder


def cached(folder: Path, fill: Callable[[Path], None]) -> None:
    """`fill` a folder, once on a machine; it has its name when it is complete."""
    if folder.exists():
        return
    with locked(folder):
        if folder.exists():
            return
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)  # what a process left that was killed
        draft.mkdir()
        try:
            fill(draft)
            draft.rename(folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), error.filename or str(folder)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def write(folder: Path, shape: tuple[int, ...], images: Iterable[np.ndarray], labels: np.ndarray) -> None:
    """Images come in pieces, so that there may be more of them than fit in memory."""
    save(folder / "x.npy", "|u1", shape, images)
    save(folder / "y.npy", "<i8", labels.shape, [labels])


def save(path: Path, kind: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> None:
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
        raise Mistake(f"{folder}: this cache is damaged ({error}); remove it, and it is made again") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        return torch.from_numpy(images), torch.from_numpy(labels)
