"""Where networks can be trained: the log10 gradient ratio over two choices of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.plots.curves import CAUTION, FAIL
from gradflow.plots.factors import Matrix, matrices
from gradflow.plots.theme import save


def varied(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the keys whose values differ between jobs, in the order of the command line."""
    tables = [_settings(overrides) for overrides in jobs]
    return [key for key in tables[0] if len({table.get(key) for table in tables}) > 1]


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.split("=", 1) for override in overrides if "=" in override)


def phase_diagram(probes: Sequence[Mapping[str, Any]], keys: Sequence[str], path: Path) -> bool:
    """Draw the first two keys that vary as axes, averaged over further ones; return False where nothing varies."""
    if not keys:
        return False
    across, down = keys[0], keys[1] if len(keys) > 1 else ""
    tables = [_settings(probe["words"]) for probe in probes]
    columns = list(dict.fromkeys(table[across] for table in tables))
    rows = list(dict.fromkeys(table.get(down, "") for table in tables))
    cells: dict[tuple[int, int], list[float]] = {}
    for probe, table in zip(probes, tables, strict=True):
        ratio = probe["verdict"]["decades"]
        place = rows.index(table.get(down, "")), columns.index(table[across])
        cells.setdefault(place, []).append(np.nan if ratio is None else ratio)
    values = np.full((len(rows), len(columns), 3), np.nan)
    values[..., 2] = 1
    for place, ratios in cells.items():
        values[place][0] = np.mean(ratios)
    replaced = {place: "not finite" if place in cells else "no probe" for place in np.ndindex(*values.shape[:2])}
    notes = {place: verdict(values[place][0]) for place in cells}
    title, unit = "log10 gradient ratio, first over last block", "vanishes  ←  →  explodes"
    matrix = Matrix(title, unit, rows, columns, down, across, values, "log_ratio", replaced, notes)
    save(partial(matrices, [matrix]), path)
    return True


def verdict(ratio: float) -> str:
    """Return the word of the verdict on a log10 gradient ratio."""
    size = abs(ratio)
    return "OK" if size <= CAUTION else "CAUTION" if size <= FAIL else "FAIL" if size > FAIL else "not finite"
