"""Progress on stderr: on a terminal in one place, elsewhere line by line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gradflow import runs


class LiveLine:
    """A line that changes in its place on a terminal; in a file a line whenever it is another one."""

    def __init__(self) -> None:
        self.live, self.last = sys.stderr.isatty(), ""

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns - 1

    def progress(self, line: str) -> None:
        if self.live:
            print(f"\r\x1b[K{line[: self.width]}", end="", file=sys.stderr, flush=True)
        elif line != self.last:
            print(line, file=sys.stderr, flush=True)
        self.last = line

    def say(self, message: str) -> None:
        print(f"\r\x1b[K{message}" if self.live else message, file=sys.stderr, flush=True)

    @contextmanager
    def working(self, on: str) -> Iterator[None]:
        """Name at once what takes long, on a terminal and until it is done; what others print meanwhile replaces it."""
        shown = self.live and runs.first_rank()
        if shown:
            print(f"\r\x1b[K{on} …\r", end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            if shown:
                self.clear()

    def clear(self) -> None:
        """Make room for what somebody else prints."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line, so that what is said next has one of its own."""
        if self.live and self.last:
            print(file=sys.stderr)
        self.last = ""
