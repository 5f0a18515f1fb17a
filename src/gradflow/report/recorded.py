"""What a run wrote while it trained, as numbers for charts: curves, tables of diagnostics, snapshots of the probe."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

from gradflow import runs
from gradflow.plots.layout import Layout, chosen, layouts_of
from gradflow.plots.thinning import evenly_spaced
from gradflow.report.plain_data import DAMAGE, mapping, number, number_in, numbers, read_lines, text

WIDE = 120  # layers of a heat map, and places of a profile: of more, evenly spaced ones
PROFILES = ("gradient", "time")  # of a snapshot: ‖∂L/∂h‖ by block, ‖∂L/∂x‖ by time step
_SNAPSHOTS = 400
_Table = tuple[list[str], list[float], list[list[float]]]  # columns, steps, and a row a step
T = TypeVar("T")


@dataclass(eq=False)
class Recorded:
    """Read the tables of a run folder."""

    folder: Path
    thinned: bool = False  # whether of a table no more than a part was read

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Return how the tables of diagnostics read, by name."""
        return layouts_of(self.folder)

    @property
    def width(self) -> int:
        """Return how many columns the tables of the run have together."""
        own = [len(layout.shown) or len(read_lines(self.folder / f"{name}.csv", head=True)[0])
               for name, layout in self.layouts.items()]  # fmt: skip
        return sum(own) + len(read_lines(self.folder / runs.METRICS, head=True)[0])

    def last_step(self) -> float:
        """Return the step of the last whole row; nan where there is none."""
        _, lines = self._logged()
        return number_in(lines[-1].partition(",")[0]) if lines else math.nan

    def _logged(self) -> tuple[list[str], list[str]]:
        """Return the columns and the whole lines of what was logged; the last line may still be written."""
        names, lines = read_lines(self.folder / runs.METRICS)
        commas = len(names) - 1
        return names, [line for line in lines if line.count(",") == commas]

    def curves(self, most: int = 0) -> dict[str, tuple[list[float], list[float]]]:
        """Return the steps and the finite values of everything that the run logged, and of those tables that are no
        heat maps; at most so many of each, if any."""
        names, lines = self._logged()
        cells = ",".join(lines).split(",")  # at once: 500 runs have millions of rows
        steps, curves = cells[:: len(names)] if names else [], {}
        for place, name in enumerate(names[1:] if names[:1] == ["step"] else (), 1):
            values = cells[place :: len(names)]
            logged = self._some([*compress(range(len(values)), values)], most)
            curves[name] = [number_in(steps[row]) for row in logged], [number_in(values[row]) for row in logged]
        for table in [name for name, layout in self.layouts.items() if not _is_map(layout)]:
            own, places, rows = self.table(table, most)
            for column, name in enumerate(own):
                curves[f"{table}/{name}"] = places, [row[column] for row in rows]
        return {name: points for name, curve in curves.items() if (points := _finite(*curve))[0]}

    def table(self, name: str, most: int = 0) -> _Table:
        """Return the columns of a diagnostic's table that are shown, the steps, and a row of numbers a step; at most so
        many rows, if any."""
        columns, lines = read_lines(self.folder / f"{name}.csv")
        rows = [[number_in(cell) for cell in line.split(",")] for line in self._some(lines, most)]
        names, (steps, values) = chosen(self.layouts[name], columns, rows)
        return names, steps, values

    def _some(self, rows: Sequence[T], most: int) -> Sequence[T]:
        """Return at most so many rows, evenly spaced, before they are parsed: 500 runs may have 10,000 each."""
        if not most or len(rows) <= most:
            return rows
        self.thinned = True
        return [rows[place] for place in evenly_spaced(len(rows), most)]

    def maps(self, points: int) -> dict[str, Any]:
        """Return those tables that are drawn as heat maps, by name."""
        names = [name for name, layout in self.layouts.items() if _is_map(layout)]
        tables = {name: map_data(self.layouts[name], self.table(name, points), points) for name in names}
        return {name: table for name, table in tables.items() if table["steps"]}

    def snapshots(self, most: int = 2) -> list[dict[str, Any]]:
        """Return at most so many snapshots of the probe, the first and the last among them, as lists of numbers."""
        try:
            lines = (self.folder / runs.FLOW).read_text(encoding="utf-8").splitlines()
            ends = [json.loads(lines[place]) for place in evenly_spaced(len(lines), most)] if lines else []
        except DAMAGE:
            return []
        return [
            {"step": number(end.get("step"))}
            | {key: numbers(end.get(key)) for key in PROFILES}
            | {"theory": {key: numbers(mapping(end.get("theory")).get(key)) for key in PROFILES}}
            | {"trunk": list(map(text, end["trunk"])) if isinstance(end.get("trunk"), list) else []}
            for end in ends
            if isinstance(end, dict)
        ]

    def profile(self, most: int) -> dict[str, Any]:
        """Return snapshots of the probe of about so many numbers, what theory predicts, and the names of the blocks."""
        snapshots = self.snapshots(_SNAPSHOTS)
        if not snapshots:
            return {"snapshots": []}
        first = snapshots[0]
        places = {key: evenly_spaced(len(first[key]), WIDE) for key in PROFILES}
        shown = evenly_spaced(len(snapshots), max(most // max(sum(map(len, places.values())), 1), 2))

        def at(values: Sequence[Any], key: str) -> list[Any]:
            return [values[place] for place in places[key] if place < len(values)]

        return {
            "places": {key: [place + 1 for place in own] for key, own in places.items()},
            "trunk": at(first["trunk"], "gradient"),
            "theory": {key: at(first["theory"][key], key) for key in PROFILES},
            "snapshots": [
                {"step": one["step"]} | {key: at(one[key], key) for key in PROFILES}
                for one in (snapshots[place] for place in shown)
            ],
        }


def _is_map(layout: Layout) -> bool:
    """Return whether a table is drawn as heat maps: that by layer, and that of two axes; any other has curves."""
    return len(layout.axes) == 2 or "layer" in layout.axes


def map_data(layout: Layout, table: _Table, points: int) -> dict[str, Any]:
    """Return about `points` rows of a table, of wider ones fewer; an infinite number becomes the text inf or -inf,
    which JSON has no number for, so that only nan becomes null."""
    columns, steps, rows = table
    two = len(layout.axes) == 2
    kept = list(range(len(columns))) if two else evenly_spaced(len(columns), WIDE)
    shown = evenly_spaced(len(steps), max(points * WIDE // max(len(kept), WIDE), 2))
    cells = [[rows[place][column] for column in kept] for place in shown]
    return {
        "steps": [steps[place] for place in shown],
        "rows": [[str(cell) if math.isinf(cell) else cell for cell in row] for row in cells],
        "width": len(columns),
        "thinned": len(shown) < len(steps),
        **({"axes": list(layout.axes.values())} if two else {"columns": [columns[place] for place in kept]}),
    }


def _finite(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return a curve without the points that have no finite place or value."""
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(x + y)]
    return [x for x, _ in points], [y for _, y in points]
