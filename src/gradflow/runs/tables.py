"""Tables and other files that grow while a run goes on, and are cut back when it is resumed. No torch here."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradflow.runs.errors import UserError, naming_file
from gradflow.runs.file_names import BEST, FLOW, GRADIENTS, LAST, LAYOUT, METRICS, SUMMARY
from gradflow.runs.files import write_whole

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute


def read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    """Return column names and rows of a table; an empty cell is nan."""
    with path.open(encoding="utf-8", newline="") as file:
        names, *rows = list(csv.reader(file))
    return names, [[float(cell or "nan") for cell in row] for row in rows]


class Table:
    """A CSV file that grows by a row a step, at once. Values of one step share a row; a new column widens the file.
    One that is there already is gone on with."""

    def __init__(self, path: Path, columns: Sequence[str] = ("step",)) -> None:
        self.path, self.columns = path, list(columns)
        self.row: dict[str, Any] = {}
        self.start_of_row = 0
        self.latest: dict[str, float] = {}
        if not path.is_file():
            self._rewrite([])
            return
        with path.open(encoding="utf-8", newline="") as file:
            self.columns, *rows = list(csv.reader(file))
        for row in rows:
            self.row = {name: cell for name, cell in zip(self.columns, row, strict=True) if cell}
            self.latest |= {name: float(cell) for name, cell in self.row.items() if name != "step"}
        if rows:
            self.start_of_row = path.read_bytes().rstrip().rfind(b"\n") + 1

    def add(self, step: int, values: Mapping[str, float]) -> None:
        same = bool(self.row) and int(self.row["step"]) == step
        self.row = (self.row if same else {}) | {"step": step, **values}
        self.latest |= values
        if new := [name for name in self.row if name not in self.columns]:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))[1:]
            self.columns += new
            self._rewrite([row + [""] * len(new) for row in rows])
        with naming_file(self.path), self.path.open("r+", encoding="utf-8", newline="") as file:
            self.start_of_row = file.seek(self.start_of_row) if same else file.seek(0, os.SEEK_END)
            csv.writer(file).writerow([self.row.get(name, "") for name in self.columns])
            file.truncate()

    def _rewrite(self, rows: Sequence[Sequence[str]]) -> None:
        """Write all rows, or leave the file as it was; the start of the last one moves when columns are added."""
        with write_whole(self.path, encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            for row in rows:
                self.start_of_row = file.tell()
                writer.writerow(row)


def growing(run: Path) -> list[str]:
    """Return what a run appends to, and a resumed one cuts back to its checkpoint: every table whose header begins with
    step, and the probe's snapshots."""
    tables = [path.name for path in sorted(run.glob("*.csv")) if path.is_file() and _header(path)[:1] == ["step"]]
    return [*tables, FLOW] if (run / FLOW).is_file() else tables


def _header(table: Path) -> list[str]:
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        return next(csv.reader([file.readline()]), [])


def count_lines(run: Path) -> dict[str, int]:
    """Return how many lines the growing files have."""
    return {name: (run / name).read_bytes().count(b"\n") for name in growing(run)}


def flush_tables(run: Path) -> None:
    """Force the growing files to the disk: a checkpoint that counts their lines must not outlast them."""
    for name in growing(run):
        with naming_file(run / name), (run / name).open("r+b") as file:
            os.fsync(file.fileno())


def check_intact(run: Path, counts: Mapping[str, int]) -> None:
    """Reject a damaged file before anything is cut: each line that a checkpoint counts is there, and can be read. What
    follows them, like the torn last line of a process that was killed, does not count."""
    for name, count in counts.items():
        path, number = run / name, 0
        lines = path.read_bytes().splitlines()[:count] if path.is_file() else []
        try:
            for number, line in enumerate(lines, 1):
                _check_line(line.decode(), lines[0].decode() if name != FLOW else None, number == 1)
            if len(lines) < count:
                raise ValueError(f"the file ends here, and had {count} lines")
        except (ValueError, csv.Error) as error:
            advice = f"put back a copy, or begin a new run with resume={run / LAST}"
            raise UserError(f"{path}: damaged at line {number} ({error}); {advice}") from error


def _check_line(line: str, header: str | None, first: bool) -> None:
    """Raise ValueError for a damaged line of a table with that header, or of a file of JSON objects."""
    if header is None:
        if not isinstance(content := json.loads(line), dict) or not {"step", "verdict"} <= set(content):
            raise ValueError("it has no step, or no verdict")
        return
    names, cells = next(csv.reader([header]), []), next(csv.reader([line]), [])
    if first and names[:1] != ["step"]:
        raise ValueError("a header begins with step")
    if len(cells) != len(names):
        raise ValueError(f"it has {'fewer' if len(cells) < len(names) else 'more'} cells than the header")
    [float(cell or "nan") for cell in cells if not first]


def truncate_tables(run: Path, counts: Mapping[str, int]) -> None:
    """Leave the first lines of the growing files, as many as `counts` says: what follows will be written again. What a
    process that was killed has not written to its end goes, too. A table that no checkpoint counts and no layout
    describes is somebody's own, and stays."""
    names = growing(run)
    for path in (run / name for name in (*names, SUMMARY, LAST, BEST)):
        for draft in path.parent.glob(f".{path.name}.[0-9]*"):
            draft.unlink()
    for name in names:
        if lines := (run / name).read_bytes().splitlines(keepends=True)[: counts.get(name, 0)]:
            os.truncate(run / name, sum(map(len, lines)))
        elif name in (METRICS, GRADIENTS, FLOW) or (run / name).with_suffix(LAYOUT).is_file():
            (run / name).unlink()


def to_cell(text: str) -> str:
    """Return a text as the cell of a table: behind an apostrophe where a spreadsheet would take it for a formula."""
    try:
        float(text)
        return text
    except ValueError:
        return f"'{text}" if text.lstrip("'").startswith(FORMULA) else text


def from_cell(cell: str) -> str:
    """Return the text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(FORMULA) else cell
