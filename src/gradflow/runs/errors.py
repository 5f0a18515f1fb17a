"""Invalid input prints one line that says what is wrong and what would be right, and exits with status 2."""

from __future__ import annotations

import difflib
import errno
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# A disk that is full or can't be written, which is not of our making, and what is no longer there.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
GONE = {errno.ENOENT, errno.ESTALE}
DISK = 74  # EX_IOERR: how a job of a sweep ends whose disk was full, which is no failure of its own


class UserError(Exception):
    """Something that the user can put right; its text is the one line that they read."""


def printable(text: str) -> str:
    """Return a text with nothing in it that a terminal obeys: a stranger may have written it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def spelled(text: str, stream: Any) -> str:
    """Return a text as `standard_streams` will spell it in the stream's encoding, where one sign may take several."""
    return text.encode(stream.encoding, "spell").decode(stream.encoding) if stream.errors == "spell" else text


def wrapped(text: str, indent: int = 0, spare: int = 0, stream: IO[str] | None = None) -> str:
    """Return a text in lines that fit the terminal, broken between words; in one where the stream (stdout) is none."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns - spare
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(spelled(text, stream), width, subsequent_indent=" " * indent, **options)  # type: ignore[arg-type]


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Give an error of the system the name of its file, which that of a write to a full disk does not have."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def disk_error(error: BaseException | None) -> str | None:
    """Return one line about a disk that is full or can't be written, or a folder that is no longer there; None for all
    other errors. The first file is the one to name: what failed after it, like the last record in
    summary.json, followed from it."""
    first = None
    while error:
        if isinstance(error, OSError) and error.errno in _FULL | GONE and (error.filename or not first):
            first = error
        error = error.__cause__ or error.__context__
    if first and first.errno in _FULL:
        where = f"{first.filename}: " if first.filename else ""
        return f"{where}{first.strerror}: make room or give leave there"
    if first and first.filename and not Path(first.filename).parent.is_dir():
        return f"{first.filename}: can't be written, since its folder has been removed"
    return None


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return 'did you mean …?', or all that is known when nothing is near; `prefix` goes before a guess."""
    known = sorted(known)
    if not known:
        return "there is none"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
