"""Data that lie in an installed package: read as files where that will do, since imports bring in much else."""

from __future__ import annotations

import zlib
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import torch

from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def missing(option: str, package: str, instead: str = "") -> UserError:
    """Return what to say of a package that is not installed."""
    return UserError(f"data={option}: needs {package}; pip install -e .[data]{instead}")


def file_in(module: str, path: str) -> Path | None:
    """Return a file of an installed package, or None where there is no such package; nothing is imported."""
    spec = PathFinder.find_spec(module)
    folders = (spec and spec.submodule_search_locations) or ()
    return next((file for folder in folders if (file := Path(folder) / path).is_file()), None)


def checksum(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def labelled_images(name: str, package: str, file: Path | None, size: int, top: int) -> Source:
    """Return the source of a table with a row an image: its pixels from 0 to `top`, then its class of ten."""
    if file is None:
        raise missing(name, package)
    spec = Spec("image", (1, size, size), "classification", outputs=10)

    def origin() -> dict[str, str]:
        return {"package": package, "crc32": checksum(file.read_bytes())}

    return Source(name, spec, load=lambda: {"train": _read(file, size, top)}, origin=origin)


@lru_cache(1)  # jobs of a sweep in one process read it once
def _read(file: Path, size: int, top: int) -> Split:
    rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    pixels = (rows[:, :-1] * 255 + top // 2) // top  # of the full range of a byte
    images = pixels.astype(np.uint8).reshape(-1, 1, size, size)
    return torch.from_numpy(images), torch.from_numpy(rows[:, -1].copy())
