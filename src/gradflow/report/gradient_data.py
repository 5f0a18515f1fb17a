"""What the gradient pictures of a page are drawn from: the tables of diagnostics, and the profiles of the probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.plots.layout import Layout
from gradflow.plots.thinning import evenly_spaced
from gradflow.report.run import PROFILES, Run

WIDE = 120  # layers of a heat map, and places of a profile: of more, evenly spaced ones
_SNAPSHOTS = 400

Table = tuple[list[str], list[float], list[list[float]]]  # columns, steps, and a row a step


def table_data(layout: Layout, table: Table, points: int) -> dict[str, Any]:
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


def profile_data(run: Run, numbers: int) -> dict[str, Any]:
    """Return snapshots of the probe of about so many numbers, what theory predicts, and the names of the blocks."""
    snapshots = run.snapshots(_SNAPSHOTS)
    if not snapshots:
        return {"snapshots": []}
    first = snapshots[0]
    places = {key: evenly_spaced(len(first[key]), WIDE) for key in PROFILES}
    shown = evenly_spaced(len(snapshots), max(numbers // max(sum(map(len, places.values())), 1), 2))

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
