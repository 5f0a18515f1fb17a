"""Where networks can be trained: R over two choices of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from gradflow.plots.profile import CAUTION, FAIL
from gradflow.plots.theme import save

LIMIT = 6.0  # decades at which the colours end


def varied(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between jobs, in the order of the command line."""
    tables = [dict(word.split("=", 1) for word in words if "=" in word) for words in jobs]
    return [key for key in tables[0] if len({table.get(key) for table in tables}) > 1]


def phase_diagram(found: Sequence[Mapping[str, Any]], keys: Sequence[str], path: Path) -> bool:
    """The first two keys that vary are the axes; further ones are averaged. False where nothing varies."""
    if not keys:
        return False
    across, down = keys[0], keys[1] if len(keys) > 1 else None
    tables = [dict(word.split("=", 1) for word in one["words"] if "=" in word) for one in found]
    columns = list(dict.fromkeys(table[across] for table in tables))
    rows = list(dict.fromkeys(table[down] for table in tables)) if down else [""]
    cells: dict[tuple[int, int], list[float]] = {}
    for one, table in zip(found, tables, strict=True):
        value = one["verdict"]["decades"]
        place = rows.index(table[down]) if down else 0, columns.index(table[across])
        cells.setdefault(place, []).append(np.nan if value is None else value)
    values = np.full((len(rows), len(columns)), np.nan)
    for place, gaps in cells.items():
        values[place] = np.mean(gaps)
    figure = Figure(figsize=(2.4 + 0.9 * len(columns), 1.8 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.8")
    shown = np.clip(values, -LIMIT, LIMIT)
    mesh = axes.imshow(
        shown, norm=TwoSlopeNorm(0, -LIMIT, LIMIT), cmap="RdBu", aspect="auto"
    )  # red vanishes, blue explodes
    for row in range(len(rows)):
        for column in range(len(columns)):
            value = values[row, column]
            dark = abs(value) > LIMIT / 2
            finite = f"{value:+.1f}\n" if np.isfinite(value) else ""
            words = finite + word(value) if (row, column) in cells else "no probe"
            axes.text(column, row, words, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(across)
    axes.set_ylabel(down or "")
    axes.set_title("how many decades the gradient changes\nfrom the last block to the first", fontsize=10)
    figure.colorbar(mesh, label="vanishes  ←  decades  →  explodes")
    save(figure, path)
    return True


def word(value: float) -> str:
    if np.isnan(value):
        return "not finite"
    return "OK" if abs(value) <= CAUTION else "CAUTION" if abs(value) <= FAIL else "FAIL"
