"""A table once, for the page and as CSV: what a reader sees is what a program reads, with all digits."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradflow import runs
from gradflow.report.configurations import Statistic
from gradflow.report.plain_data import shortened
from gradflow.runs.tables import to_cell


@dataclass
class Cell:
    """Hold one value with all its digits, by which a table is sorted, and how the page shows it."""

    value: float | str
    text: str | None = None  # None: the value itself, a number with the decimals of its column
    best: bool = False
    sd: float = math.nan  # which the page shows behind the value, and CSV in a column of its own
    more: Mapping[str, float | str] = field(default_factory=dict)  # what CSV has in further columns
    badges: Sequence[tuple[str, str, str]] = ()  # before the text: verdict, its text, and a hint
    details: Sequence[str] = ()  # folded behind the text
    links: Sequence[tuple[str, str]] = ()  # text and address

    @property
    def exact(self) -> str:
        return _exact(self.value)

    @property
    def is_empty(self) -> bool:
        return not (self.badges or self.details or self.links or (self.text not in ("", "–") and self.exact != "0"))


@dataclass
class Table:
    """Hold rows of cells by the name of their column, what heads and hints say of columns, and the names of the runs
    that each row is about. The first row has every column."""

    rows: list[dict[str, Cell]]
    hints: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)  # shorter than the column's name
    runs: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        for column in self.rows[0] if self.rows else ():
            set_texts([row[column] for row in self.rows if column in row])

    @property
    def shown(self) -> list[str]:
        """Return the columns of the page: the first two, and those in which anything but zeros is."""
        columns = list(self.rows[0])
        return columns[:2] + [name for name in columns[2:] if not all(row[name].is_empty for row in self.rows)]

    @property
    def numeric(self) -> set[str]:
        """Return the columns that hold numbers, which the page aligns to the right."""
        return {column for row in self.rows for column, cell in row.items() if not isinstance(cell.value, str)}

    def write_csv(self, path: Path) -> None:
        rows = [
            {name: value for column, cell in row.items() for name, value in _values(column, cell).items()}
            for row in self.rows
        ]
        with runs.write_whole(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(map(to_cell, rows[0]))
            writer.writerows([to_cell(_exact(row.get(name, ""))) for name in rows[0]] for row in rows)


def _values(column: str, cell: Cell) -> dict[str, float | str]:
    return {column: cell.value} | ({} if math.isnan(cell.sd) else {f"{column} sd": cell.sd}) | dict(cell.more)


def _exact(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"  # as JavaScript and Python read it
    return "" if math.isnan(value) else str(int(value)) if value == int(value) else repr(float(value))


def set_texts(cells: Sequence[Cell]) -> None:
    """Give the cells of a column that have no text of their own one: numbers with the same decimals."""
    for cell in cells:
        if isinstance(cell.value, str) and cell.text is None:
            cell.text = cell.value
    numbers = [(cell, float(cell.value)) for cell in cells if cell.text is None and not isinstance(cell.value, str)]
    form = _format([(value, cell.sd) for cell, value in numbers if math.isfinite(value)])
    for cell, value in numbers:
        sd = f" ± {shortened(format(cell.sd, form))}" if math.isfinite(cell.sd) else ""
        cell.text = shortened(format(value, form)) + sd if math.isfinite(value) else ""
        if abs(value) >= 1e4 and form not in (",.0f", ".2e") and math.isfinite(value):  # beside losses, a diverged one
            cell.text = mean_and_sd(Statistic(value, cell.sd, 0))


def _format(numbers: Sequence[tuple[float, float]]) -> str:
    """Return how a column's numbers are written: with the decimals that the smallest deviation asks for, or with four
    digits of the largest number; with powers of ten where they are very large, or some very small."""
    sizes, deviations = [abs(value) for value, _ in numbers if value], [sd for _, sd in numbers if sd > 0]
    if all(value == int(value) for value, _ in numbers) and not deviations and max(sizes, default=0) < 1e8:
        return ",.0f"
    if sizes and not (min(sizes) >= 1e-4 and max(sizes) < 1e6):
        return ".2e"
    places = [_decimals(sd) for sd in deviations] or [3 - math.floor(math.log10(size)) for size in [max(sizes)]]
    return f",.{min(max(*places, 0), 4)}f"


def _decimals(sd: float) -> int:
    """Return the place of the first digit of a deviation, or the second where the first is 1."""
    size = math.floor(math.log10(sd))
    return (sd < 2 * 10.0**size) - size


def four_digits(value: float) -> str:
    """Return a number for a reader; nothing for nan."""
    return "" if not math.isfinite(value) else shortened(f"{value:.4g}")


def signed(value: float) -> str:
    """Return a number with its sign and one decimal, also an infinite one; nothing for nan, and no −0.0."""
    text = "∞" if math.isinf(value) else f"{abs(value):.1f}"
    return "" if math.isnan(value) else f"{'−' if value < 0 and text != '0.0' else '+'}{text}"


def mean_and_sd(value: Statistic) -> str:
    """Return mean ± sd, both to the first digit of the sd, or the second where the first is 1."""
    if not math.isfinite(value.sd):
        return four_digits(value.mean)
    if value.sd == 0 or not 1e-4 <= abs(value.mean) < 1e5 or value.sd > 1e5:
        return f"{four_digits(value.mean)} ± {shortened(f'{value.sd:.2g}')}"
    places = min(max(_decimals(value.sd), 0), 4)
    return f"{value.mean:.{places}f} ± {value.sd:.{places}f}"
