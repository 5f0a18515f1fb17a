"""CIFAR-10 (Krizhevsky 2009) from torchvision's archive."""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

from gradflow.data.cache import CACHE, cached, read, write
from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.runs.locks import locked
from gradflow.spec import Spec

SPEC = Spec("image", (3, 32, 32), "classification", outputs=10)
_ANSWER = 25.0  # seconds in which the server must send something at all
_STALL = 20.0  # seconds without a byte after which a connection is given up


def cifar10(root: str, cache: str | None = None) -> Source:
    """50,000 training and 10,000 test images of 10 classes, in `root`, or fetched there; unpickled once to `cache`."""
    folder = Path(root)
    home = home_of(root, cache)

    def prepare() -> None:
        for split, place in places(home).items():
            cached(place, partial(fill, split))

    def fill(split: str, draft: Path) -> None:
        if not unpacked(folder):
            with locked(folder / CIFAR10.filename):
                if not on_disk(folder) and (problem := fetch(folder)):
                    raise UserError(
                        f"CIFAR-10 is not in {folder.resolve()} and can't be fetched ({problem}): place "
                        f"{CIFAR10.filename} there, or give data.root=… where it is, or use data=shapes"
                    )
        data = CIFAR10(str(folder), train=split == "train")
        images = data.data.transpose(0, 3, 1, 2)
        write(draft, images.shape, [images], np.array(data.targets))

    def load() -> Mapping[str, Split]:
        return {split: read(place) for split, place in places(home).items()}

    def origin() -> Mapping[str, str]:
        return {"archive": CIFAR10.filename, "md5": CIFAR10.tgz_md5, "cache": os.path.relpath(home)}

    return Source("cifar10", SPEC, load=load, prepare=prepare, origin=origin)


def home_of(root: str, cache: str | None) -> Path:
    return Path(cache) if cache else Path(root) / CACHE


def places(home: Path) -> dict[str, Path]:
    """The folders of the decoded images; their name holds the checksum of the archive."""
    return {split: home / f"cifar10-{CIFAR10.tgz_md5[:8]}-{split}" for split in ("train", "test")}


def unpacked(folder: Path) -> bool:
    """The files are there and have the right checksums."""
    try:
        CIFAR10(str(folder))
    except RuntimeError:  # torchvision's word for absent or corrupt
        return False
    return True


def on_disk(folder: Path) -> bool:
    """Unpacked, or unpacked now from the archive; one that is not whole is the user's to remove."""
    if unpacked(folder):
        return True
    archive = folder / CIFAR10.filename
    if not archive.is_file():
        return False
    if not check_integrity(str(archive), CIFAR10.tgz_md5):
        raise UserError(f"{archive.resolve()} is truncated or altered (its MD5 is not {CIFAR10.tgz_md5}): remove it")
    CIFAR10(str(folder), download=True)  # unpacks; nothing is fetched when the archive is there
    return True


def fetch(folder: Path, deadline: float | None = None) -> str | None:
    """Download and unpack, whole or not at all; what went wrong, or None. In a process that can be stopped in time."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    result, result_of_child = context.Pipe(duplex=False)
    process = context.Process(target=download, args=(folder, result_of_child), daemon=True)
    process.start()
    result_of_child.close()
    waited = min(_ANSWER, deadline or _ANSWER)
    process.join(waited)
    if process.is_alive() and _part_of(folder).exists():  # its first bytes came
        waited = deadline or math.inf
        process.join(deadline and deadline - _ANSWER)
    if process.is_alive():
        process.terminate()
        process.join()
        return f"it did not arrive within {waited:.0f} s"
    try:
        problem: str | None = result.recv()
    except EOFError:
        problem = f"the download ended with status {process.exitcode}"
    return problem


def _part_of(folder: Path) -> Path:
    return folder / f".{CIFAR10.filename}.part"


def download(folder: Path, result: Connection) -> None:
    """The archive appears under its own name when it is complete and its checksum is right."""
    socket.setdefaulttimeout(_STALL)
    part = _part_of(folder)
    part.unlink(missing_ok=True)
    try:
        download_url(CIFAR10.url, str(folder), part.name, CIFAR10.tgz_md5)
        part.rename(folder / CIFAR10.filename)
        result.send(None if on_disk(folder) else "it could not be unpacked")
    except (OSError, RuntimeError) as error:
        result.send(str(error))
