"""A user's mistake ends in one line that says what is wrong and what would be right, and in exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Mistake(Exception):
    """Something that the user can put right; its text is the one line that they read."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system then tells which file it was about: that of a write to a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """'did you mean …?', or all that is known when nothing is near; `prefix` goes before a guess."""
    known = sorted(known)
    if not known:
        return "there is none"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
