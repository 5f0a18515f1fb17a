"""Images in class folders: `train/<class>/*.jpg` and `test/<class>/*.jpg`, decoded once into a cache."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from gradflow import runs
from gradflow.data.cache import CACHE, cached, read, write
from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.runs.locks import locked
from gradflow.spec import Spec

_FORMAT = 2  # of the cache; another number makes all of them anew
AHEAD, BUFFER = 4096, 2**28  # images, and their bytes, that may wait in memory to be written
_ENDINGS = (".jpg", ".jpeg", ".png")
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a damaged file


def image_folder(root: str, size: int, channels: int, cache: str | None = None) -> Source:
    """Class folders in `root`/train (and val, test), or in `root` itself.

    Images are scaled so that the short side is `size`, and cut to the middle square.
    """
    if size < 1 or channels not in (1, 3):
        raise UserError(f"data.size={size}, data.channels={channels}: expected 1 or more, and 1 or 3")
    folder = Path(root)
    official = (folder / "train").is_dir()
    folders = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
    folders = folders if official else {"train": folder}
    home = Path(cache) if cache else folder / CACHE
    below = (path for path in folders["train"].glob("[!.]*") if path.is_dir() and path.resolve() != home.resolve())
    classes = sorted(path.name for path in below)
    if len(classes) < 2:
        where = folders["train"] if official else f"{folder} or {folder / 'train'}"
        raise UserError(f"data.root={root}: found {len(classes)} class folders in {where}, expected 2 or more")

    @lru_cache(1)
    def places() -> dict[str, Path]:
        return {name: home / f"{name}-{size}x{channels}-{key(path, home, classes)}" for name, path in folders.items()}

    def prepare() -> None:
        for name, place in places().items():
            cached(place, partial(decode, name, folders[name], classes, size, channels))

    def load() -> Mapping[str, Split]:
        return {name: read(place) for name, place in places().items()}

    def origin() -> Mapping[str, Any]:
        names = {name: place.name for name, place in places().items()}
        return {"root": str(folder.resolve()), "classes": classes, "cache": os.path.relpath(home), "cached": names}

    spec = Spec("image", (channels, size, size), "classification", outputs=len(classes))
    return Source("image_folder", spec, load=load, prepare=prepare, origin=origin)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[!.]*/*") if path.suffix.lower() in _ENDINGS)


def key(folder: Path, home: Path, classes: Sequence[str]) -> str:
    """Of what the files contain; they are read again only when a name, a size or a time has changed."""
    files = files_of(folder)
    names = [str(path.relative_to(folder)) for path in files]
    looks = [(path.lstat().st_size, path.lstat().st_mtime_ns) for path in files]
    known = home / f".{_digest(_FORMAT, folder.resolve(), classes, names, looks)}.json"
    if not known.exists():
        with locked(known), ThreadPoolExecutor(os.cpu_count()) as pool:
            if not known.exists():  # hashing, too, goes without the interpreter's lock
                contents = list(progress(pool.map(digest_of, files), f"reading {folder}", len(files)))
                runs.write_json(known, {"key": _digest(_FORMAT, classes, names, contents)})
    return str(runs.read_json(known)["key"])


def _digest(*content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def digest_of(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""  # decoding it will tell


def progress(items: Iterable[Any], title: str, count: int) -> Iterable[Any]:
    """Show how far a long reading is: a bar on a terminal, elsewhere one line."""
    if sys.stderr.isatty():
        return tqdm(items, title, count, file=sys.stderr, leave=False, dynamic_ncols=True)
    print(f"{title}: {count:,} files", file=sys.stderr, flush=True)
    return items


def decode(name: str, folder: Path, classes: Sequence[str], size: int, channels: int, draft: Path) -> None:
    """Broken files are named and end the run: nothing is left out in silence."""
    files = files_of(folder)
    present = {path.parent.name for path in files}
    if strange := sorted(present - set(classes)):
        raise UserError(f"{folder} has classes that train/ does not have: {', '.join(strange)}")
    if not files:
        raise UserError(f"{folder} holds no image ({', '.join(_ENDINGS)}) in a class folder")
    if name == "train" and (empty := sorted(set(classes) - present)):
        raise UserError(f"{folder} has classes without an image: {', '.join(empty)}")
    broken = []

    def one(path: Path) -> np.ndarray:
        try:
            return pixels(path, size, channels)
        except _BROKEN as error:
            broken.append(f"{path} ({error})")
            return np.zeros((channels, size, size), np.uint8)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter's lock
        chunk = max(1, min(AHEAD, BUFFER // (channels * size**2)))
        chunks = (files[start : start + chunk] for start in range(0, len(files), chunk))
        ahead = (image for some in chunks for image in pool.map(one, some))
        labels = np.array([classes.index(path.parent.name) for path in files])
        images = progress(ahead, f"decoding {folder}", len(files))
        write(draft, (len(files), channels, size, size), images, labels)
    if broken:
        some = "; ".join(sorted(broken)[:5])
        raise UserError(f"{len(broken)} of {len(files)} images can't be read; remove or replace them: {some}")


def pixels(path: Path, size: int, channels: int) -> np.ndarray:
    with Image.open(path) as opened:
        image: Image.Image = opened
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow's convert would cut off at 255
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        square = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
        return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)
