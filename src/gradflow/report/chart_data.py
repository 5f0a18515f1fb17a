"""What the charts of a page are drawn from: runs, configurations and layouts as one JSON object.

Charts are drawn in the browser, so all that they show has to be carried by the page. What could not be seen is thinned
out here: all runs of a page together get `_NUMBERS` numbers, the less of them the more runs there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from gradflow.plots.limits import CAUTION, FAIL
from gradflow.report.collect import Search
from gradflow.report.configurations import Configuration, direction
from gradflow.report.effects import importance
from gradflow.report.plain_data import number
from gradflow.report.run import Run

_NUMBERS = 350_000  # which take about 7 characters each
_OF_PROFILES = 80_000  # beside them
_POINTS = (24, 400)  # of a curve, or rows of a table: never fewer, never more

_KEYS, _CONFIGURATIONS = 200, 100  # that are compared, and runs whose whole configuration is read
_FOLDERS = ("run_dir", "resume")  # of the runs themselves, which are no choice


def chart_data(
    own: Sequence[Run], groups: Sequence[Configuration], metric: str, searches: Sequence[Search] = ()
) -> dict[str, Any]:
    """Return what page.js and the scripts of the views read as `data`; numbers that are not finite become null, but
    for the infinite ones of tables."""
    points = min(max(_NUMBERS // max(sum(run.recorded.width for run in own), 1), _POINTS[0]), _POINTS[1])
    described = [_run(run, points) | run.recorded.profile(_OF_PROFILES // len(own)) for run in own]
    layouts = {name: layout for run in own for name, layout in run.recorded.layouts.items()}
    return {
        "metric": metric,
        "direction": direction(own, metric) or "",
        "directions": {name.partition("/")[0]: direction(own, name) for run in own for name in run.scores},
        "keys": list(groups[0].values) if groups else [],
        "configurations": [
            {"label": group.label or "all runs", "values": group.values, "runs": [own.index(run) for run in group.runs]}
            for group in groups
        ],
        "layouts": {
            name: {"title": layout.title, "scale": layout.scale, "log": layout.log, "axes": list(layout.axes)}
            for name, layout in layouts.items()
            if any(name in run["tables"] for run in described)
        },
        "labels": {
            curve: layouts[table].scale
            for run in described
            for curve in run["curves"]
            if (table := curve.partition("/")[0]) in layouts
        },
        "limits": (CAUTION, FAIL),
        "settings": _settings(own),
        "runs": described,
        "points": points if any(run.recorded.thinned for run in own) else 0,
        "importance": asdict(found) if (found := importance(groups, metric)) else None,
        "searches": [_search(search, own) for search in searches],
    }


def _search(search: Search, own: Sequence[Run]) -> dict[str, Any]:
    """Return which of the runs are a search's, and which it chose."""
    return {
        "trial": search.trial,
        "best": next((place for place, run in enumerate(own) if search.chose(run)), None),
        "runs": [place for place, run in enumerate(own) if run.folder.parent == search.folder.parent],
        "importance": search.importance,
    }


def as_json(data: dict[str, Any]) -> str:
    """Return the text of a script element: no `<` in it, so that nothing in it ends the element."""
    return json.dumps(_plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _settings(own: Sequence[Run]) -> dict[str, list[str]]:
    """Return each key of the configuration whose value is not the same in all runs, with its values in their order; an
    option stands for its `name`. Reading a configuration takes time, so of many runs only what the command line set is
    looked at."""
    settings = [run.settings if len(own) <= _CONFIGURATIONS else run.choices | run.overrides for run in own]
    keys = [key for key in dict.fromkeys(key for one in settings for key in one) if key not in _FOLDERS]
    values = {key: [one.get(key, "–") for one in settings] for key in keys}
    repeated = {f"{key}.name" for key, own in values.items() if values.get(f"{key}.name") == own}
    varied = ((key, own) for key, own in values.items() if len(set(own)) > 1 and key not in repeated)
    return dict(islice(varied, _KEYS))


def _run(run: Run, points: int) -> dict[str, Any]:
    curves = run.recorded.curves(points)
    return {
        "name": run.name,
        "seed": run.seed,
        "dataset": run.dataset,
        "status": run.status,
        "values": run.overrides,
        "scores": run.scores,
        "ratio": {stage: run.log_ratio(stage) for stage in run.verdicts},
        "trivial": {name: value for name in curves if math.isfinite(value := run.trivial(name))},
        "verdict": {stage: str(record.get("word", "")) for stage, record in run.verdicts.items()},
        "steps": number(run.summary.get("steps")),
        "steps_per_epoch": number(run.summary.get("steps_per_epoch")),
        "seconds": number(run.summary.get("wall_seconds")),
        "curves": curves,
        "tables": run.recorded.maps(points),
    }


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
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.5g}")
