"""Images in class folders: `train/<class>/*.jpg` and `test/<class>/*.jpg`, decoded once into a cache."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from gradflow import runs
from gradflow.data.source import Source, Split
from gradflow.mistakes import Mistake
from gradflow.spec import Spec

ENDINGS = (".jpg", ".jpeg", ".png")
CACHE = ".gradflow"  # beside train/ and test/
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a damaged file


def image_folder(root: str, size: int, channels: int) -> Source:
    """Images are scaled so that the short side is `size`, and cut to the middle square."""
    if size < 1 or channels not in (1, 3):
        raise Mistake(f"data.size={size}, data.channels={channels}: expected 1 or more, and 1 or 3")
    folder = Path(root)
    splits = [name for name in ("train", "val", "test") if (folder / name).is_dir()]
    if "train" not in splits:
        raise Mistake(f"data.root={root}: expected class folders of images below {folder / 'train'}")
    classes = sorted(path.name for path in (folder / "train").glob("[!.]*") if path.is_dir())
    if len(classes) < 2:
        raise Mistake(f"data.root={root}: found {len(classes)} class folders in {folder / 'train'}, expected 2 or more")

    def caches() -> dict[str, Path]:
        return {split: folder / CACHE / f"{split}-{key(folder / split, size, channels)}.npz" for split in splits}

    def prepare() -> None:
        for split, cache in caches().items():
            with runs.locked(cache):
                if not cache.exists():
                    decode(folder / split, classes, size, channels, cache)

    def load() -> Mapping[str, Split]:
        tensors = {}
        for split, cache in caches().items():
            with np.load(cache, allow_pickle=False) as arrays:
                tensors[split] = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
        return tensors

    def origin() -> Mapping[str, Any]:
        return {"root": str(folder.resolve()), "classes": classes, "cache": {s: c.name for s, c in caches().items()}}

    spec = Spec("image", (channels, size, size), "classification", outputs=len(classes))
    return Source("image_folder", spec, load=load, prepare=prepare, origin=origin)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix.lower() in ENDINGS)


def key(folder: Path, size: int, channels: int) -> str:
    """Changes when a file is added, removed or replaced, and with the options."""
    digest = hashlib.sha256(f"1 {size} {channels}".encode())
    for path in files_of(folder):
        status = path.stat()
        digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def decode(folder: Path, classes: Sequence[str], size: int, channels: int, cache: Path) -> None:
    """Broken files are named and end the run: nothing is left out in silence."""
    files = files_of(folder)
    present = {path.parent.name for path in files}
    if strange := sorted(present - set(classes)):
        raise Mistake(f"{folder} has classes that train/ does not have: {', '.join(strange)}")
    if folder.name == "train" and files and (empty := sorted(set(classes) - present)):
        raise Mistake(f"{folder} has classes without an image: {', '.join(empty)}")
    if not files:
        raise Mistake(f"{folder} holds no image ({', '.join(ENDINGS)}) in a class folder")
    x = np.empty((len(files), channels, size, size), np.uint8)
    broken = []

    def one(index: int) -> None:
        try:
            x[index] = pixels(files[index], size, channels)
        except BROKEN as error:
            broken.append(f"{files[index]} ({error})")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter's lock
        list(tqdm(pool.map(one, range(len(files))), f"decoding {folder}", len(files), file=sys.stderr))
    if broken:
        raise Mistake(
            f"{len(broken)} of {len(files)} images can't be read; remove or replace them: {'; '.join(broken[:5])}"
        )
    y = np.array([classes.index(path.parent.name) for path in files], np.int64)
    draft = cache.with_name(f".{os.getpid()}.npz")
    np.savez(draft, x=x, y=y)
    draft.replace(cache)


def pixels(path: Path, size: int, channels: int) -> np.ndarray:
    with Image.open(path) as opened:
        image: Image.Image = opened
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's convert would cut off at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        square = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)
