"""A table once, for the page and as CSV: what a reader sees is what a program reads, with all digits."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradflow import runs
from gradflow.report.configurations import Statistic
from gradflow.runs.tables import to_cell


@dataclass
class Cell:
    """Hold one value with all its digits, by which a table is sorted, and how the page shows it."""

    value: float | str
    text: str | None = None  # None: the value itself
    best: bool = False
    more: tuple[float | str, ...] = ()  # the values of the column's `more`
    badges: tuple[tuple[str, str, str], ...] = ()  # before the text: verdict, its text, and a hint
    details: tuple[str, ...] = ()  # folded behind the text

    def __post_init__(self) -> None:
        if self.text is None:
            self.text = self.value if isinstance(self.value, str) else four_digits(self.value)

    @property
    def exact(self) -> str:
        return _exact(self.value)


@dataclass(frozen=True)
class Column:
    """Hold what a column is called, and the function that makes its cell of a row's item."""

    name: str
    cell: Callable[[Any], Cell]
    hint: str = ""
    numeric: bool = False
    more: tuple[str, ...] = ()  # what CSV has in columns of their own: a standard deviation, a verdict


@dataclass
class Table:
    """Hold columns, and a row of cells an item."""

    columns: Sequence[Column]
    rows: list[list[Cell]]

    @classmethod
    def of(cls, items: Iterable[Any], columns: Sequence[Column]) -> Table:
        return cls(columns, [[column.cell(item) for column in columns] for item in items])

    def write_csv(self, path: Path) -> None:
        with runs.write_whole(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(to_cell(name) for column in self.columns for name in (column.name, *column.more))
            for row in self.rows:
                writer.writerow(to_cell(_exact(value)) for cell in row for value in (cell.value, *cell.more))


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
