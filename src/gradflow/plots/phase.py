"""Where networks can be trained: the log10 gradient ratio over two choices of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.plots.factors import Matrix, matrices
from gradflow.plots.limits import CAUTION, FAIL
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
    across, down = (*keys, "")[:2]
    cells: dict[tuple[str, str], list[float]] = {}
    for probe in probes:
        settings, ratio = _settings(probe["words"]), probe["verdict"]["decades"]
        cells.setdefault((settings.get(down, ""), settings[across]), []).append(np.nan if ratio is None else ratio)
    rows, columns = (list(dict.fromkeys(levels)) for levels in zip(*cells, strict=True))
    values = {cell: (float(np.mean(cells.get(cell, np.nan))), np.nan, 1) for cell in product(rows, columns)}
    replaced = {cell: "not finite" if cell in cells else "no probe" for cell in values}
    notes = {cell: verdict(mean) for cell, (mean, _, _) in values.items()}
    title, unit = "log10 gradient ratio, first over last block", "vanishes  ←  →  explodes"
    matrix = Matrix(title, unit, rows, columns, down, across, values, "log_ratio", replaced, notes)
    save(partial(matrices, [matrix]), path)
    return True


def verdict(ratio: float) -> str:
    """Return the word of the verdict on a log10 gradient ratio."""
    size = abs(ratio)
    return "OK" if size <= CAUTION else "CAUTION" if size <= FAIL else "FAIL" if size > FAIL else "not finite"
