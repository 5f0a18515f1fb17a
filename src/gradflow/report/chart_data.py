"""What the charts of a page are drawn from: runs, configurations and layouts as one JSON object.

Charts are drawn in the browser, so all that they show has to be carried by the page. What could not be seen is thinned
out here: all runs of a page together get `_NUMBERS` numbers, the less of them the more runs there are.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradflow.plots.thinning import evenly_spaced
from gradflow.report.configurations import Configuration, direction
from gradflow.report.plain_data import number
from gradflow.report.run import Run

_NUMBERS = 350_000  # which take about 7 characters each
_POINTS = (24, 400)  # of a curve, or rows of a table: never fewer, never more

Curve = tuple[Sequence[float], Sequence[float]]


def chart_data(own: Sequence[Run], groups: Sequence[Configuration], metric: str, out: Path) -> dict[str, Any]:
    """Return what page.js and the scripts of the views read as `data`; numbers that are not finite become null."""
    place = {id(run): index for index, run in enumerate(own)}
    described = [(run, run.curves(), {name: run.table(name) for name in run.layouts}) for run in own]
    widths = [len(curves) + sum(len(table[0]) for table in tables.values()) for _, curves, tables in described]
    points = min(max(_NUMBERS // max(sum(widths), 1), _POINTS[0]), _POINTS[1])
    thinned = any(
        len(steps) > points
        for _, curves, tables in described
        for steps in [*(x for x, _ in curves.values()), *(table[1] for table in tables.values())]
    )
    return {
        "metric": metric,
        "direction": direction(own, metric) or "",
        "keys": list(groups[0].values) if groups else [],
        "configurations": [
            {"label": group.label or "all runs", "values": group.values, "runs": [place[id(run)] for run in group.runs]}
            for group in groups
        ],
        "layouts": {name: asdict(layout) for run in own for name, layout in run.layouts.items()},
        "runs": [_run(run, curves, tables, points, out) for run, curves, tables in described],
        "points": points if thinned else 0,
    }


def as_json(data: dict[str, Any]) -> str:
    """Return the text of a script element: no `<` in it, so that nothing in it ends the element."""
    return json.dumps(_plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _run(run: Run, curves: dict[str, Curve], tables: dict[str, Any], points: int, out: Path) -> dict[str, Any]:
    return {
        "name": run.name,
        "seed": run.seed,
        "status": run.status,
        "reason": run.reason,
        "values": run.overrides,
        "scores": run.scores,
        "trivial": {name: value for name in curves if math.isfinite(value := run.trivial(name))},
        "verdict": {stage: str(record.get("word", "")) for stage, record in run.verdicts.items()},
        "steps": number(run.summary.get("steps")),
        "steps_per_epoch": number(run.summary.get("steps_per_epoch")),
        "seconds": number(run.summary.get("wall_seconds")),
        "folder": os.path.relpath(run.folder, out.resolve()),
        "pictures": sorted(path.name for path in run.folder.glob("*.png") if not path.name.startswith("report-")),
        "curves": {name: _thinned(points, *curve) for name, curve in curves.items()},
        "tables": {
            name: dict(zip(("steps", "rows"), _thinned(points, steps, rows), strict=True), columns=columns)
            for name, (columns, steps, rows) in tables.items()
        },
        "snapshots": run.snapshots(points if len(run.layouts) else _POINTS[0]),
    }


def _thinned(points: int, *lists: Sequence[Any]) -> list[list[Any]]:
    """Return equally long lists at evenly spaced places."""
    places = evenly_spaced(len(lists[0]), points) if lists[0] else []
    return [[values[place] for place in places] for values in lists]


def _plain(content: Any) -> Any:
    """Return plain data with numbers of five digits, which no chart shows more of."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, str) or content is None or isinstance(content, int):
        return content
    if isinstance(content, float):
        return _number(content)
    return [_plain(one) for one in content] if isinstance(content, Iterable) else str(content)


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = value if value == int(value) and abs(value) < 1e9 else float(f"{value:.5g}")  # the step 123,456 is one
    return int(short) if short == int(short) and abs(short) < 1e15 else short
