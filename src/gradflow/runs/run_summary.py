"""`summary.json` is kept true while a run goes on; `objective.json` is what it gives back to a sweep. No torch here."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradflow.runs.errors import disk_error
from gradflow.runs.file_names import LAST, OBJECTIVE, SUMMARY
from gradflow.runs.files import read_json, write_json, write_text


def write_objective(run: Path, value: Any) -> None:
    """Write what a run gives back to its sweep, as Python writes JSON: with nan and infinities."""
    write_text(run / OBJECTIVE, json.dumps({"objective": value}, default=float) + "\n")


def read_objective(run: Path) -> Any:
    return read_json(run / OBJECTIVE).get("objective")


class Pruned(Exception):
    """Ends a run that is not worth going on with; its text is the reason."""


class Diverged(Exception):
    """Ends a run whose numbers are not finite; where that began, and commands that look into it."""

    def __init__(self, reason: str, commands: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.commands = dict(commands or {})


def _unrecorded_seconds(run: Path) -> float:
    """Return the seconds that a process which was killed has spent between its last record and its checkpoint."""
    last = run / LAST
    return max(0.0, last.stat().st_mtime - (run / SUMMARY).stat().st_mtime) if last.is_file() else 0.0


class Run:
    """Keep `summary.json` true while a run goes on: its status is running, finished, pruned, failed or interrupted."""

    def __init__(self, folder: str, facts: Mapping[str, Any], writes: bool) -> None:
        self.path, self.writes = Path(folder) / SUMMARY, writes
        self.facts: dict[str, Any] = {"status": "running", **facts}
        self.before = 0.0  # seconds that earlier processes spent on a run that is resumed

    def note(self, **facts: Any) -> None:
        """Add facts to the summary, and the time so far."""
        self.facts |= facts
        self.facts["wall_seconds"] = round(self.before + time.monotonic() - self.start, 3)
        if self.writes:
            write_json(self.path, self.facts)

    def __enter__(self) -> Run:
        self.start = time.monotonic()
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if was := read_json(self.path):
                self.before = was.get("wall_seconds", 0.0) + _unrecorded_seconds(self.path.parent)
                self.facts["resumed"] = was.get("resumed", 0) + 1
        self.note()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            self.note(status="finished")
        elif isinstance(error, Pruned):
            self.note(status="pruned", reason=str(error))
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.note(status="interrupted")
        else:
            status = "interrupted" if isinstance(error, OSError) and disk_error(error) else "failed"
            self.note(status=status, error=f"{type(error).__name__}: {error}")
        return isinstance(error, Pruned)
