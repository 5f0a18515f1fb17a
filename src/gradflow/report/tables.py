"""A table once, for the page and as CSV: what a reader sees is what a program reads, with all digits."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradflow import runs
from gradflow.report.configurations import Statistic
from gradflow.runs.tables import to_cell


@dataclass
class Cell:
    """Hold one value with all its digits, by which a table is sorted, and how the page shows it."""

    value: float | str
    text: str | None = None  # None: the value itself
    best: bool = False
    more: Mapping[str, float | str] = field(default_factory=dict)  # what CSV has in columns of their own, such as sd
    badges: Sequence[tuple[str, str, str]] = ()  # before the text: verdict, its text, and a hint
    details: Sequence[str] = ()  # folded behind the text

    def __post_init__(self) -> None:
        if self.text is None:
            self.text = self.value if isinstance(self.value, str) else four_digits(self.value)

    @property
    def exact(self) -> str:
        return _exact(self.value)


@dataclass
class Table:
    """Hold rows of cells by the name of their column, and hints on columns. The first row has every column."""

    rows: list[dict[str, Cell]]
    hints: Mapping[str, str] = field(default_factory=dict)

    @property
    def numeric(self) -> set[str]:
        """Return the columns that hold numbers, which the page aligns to the right."""
        return {column for row in self.rows for column, cell in row.items() if not isinstance(cell.value, str)}

    def write_csv(self, path: Path) -> None:
        rows = [
            {name: value for column, cell in row.items() for name, value in {column: cell.value, **cell.more}.items()}
            for row in self.rows
        ]
        with runs.write_whole(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(map(to_cell, rows[0]))
            writer.writerows([to_cell(_exact(row.get(name, ""))) for name in rows[0]] for row in rows)


def _exact(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if not math.isfinite(value) else str(int(value)) if value == int(value) else repr(float(value))


def four_digits(value: float) -> str:
    """Return a number for a reader; nothing for nan."""
    return "" if not math.isfinite(value) else f"{value:.4g}"


def signed(value: float) -> str:
    """Return a number with its sign and one decimal; nothing for nan, and no -0.0."""
    return f"{round(value, 1) + 0.0:+.1f}" if math.isfinite(value) else ""


def mean_and_sd(value: Statistic) -> str:
    """Return mean ± sd, both to the first digit of the sd, or the second where the first is 1."""
    if not math.isfinite(value.sd):
        return four_digits(value.mean)
    if value.sd == 0 or not 1e-4 <= abs(value.mean) < 1e5 or value.sd > 1e5:
        return f"{value.mean:.4g} ± {value.sd:.2g}"
    size = math.floor(math.log10(value.sd))
    places = min(max((value.sd < 2 * 10**size) - size, 0), 4)
    return f"{value.mean:.{places}f} ± {value.sd:.{places}f}"
