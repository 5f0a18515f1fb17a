"""A user's mistake ends in one line that says what is wrong and what would be right, and in exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Mistake(Exception):
    """Something that the user can put right; its text is the one line that they read."""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """'did you mean …?', or all that is known when nothing is near; `prefix` goes before a guess."""
    known = sorted(known)
    if not known:
        return "there is none"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
