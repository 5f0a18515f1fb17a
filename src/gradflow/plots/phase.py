"""Where networks can be trained: the log10 gradient ratio over two choices of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from gradflow.plots.limits import CAUTION, FAIL
from gradflow.plots.theme import EMPTY, save
from gradflow.plots.thinning import cut

_LIMIT = 6.0  # |log10 gradient ratio| at which the colours end
_LEGIBLE = 12  # rows or columns up to which every cell has its number


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
    means = np.array([[np.mean(cells.get((row, column), np.nan)) for column in columns] for row in rows])
    texts = [[_text(cells.get((row, column))) for column in columns] for row in rows]
    save(partial(_draw, means, texts, {down: rows, across: columns}), path)
    return True


def _text(ratios: Sequence[float] | None) -> str:
    """Return the number of a cell and its verdict, or why it has none."""
    mean = float(np.mean(ratios)) if ratios else math.nan
    return f"{mean:+.1f}\n{verdict(mean)}" if not math.isnan(mean) else "not finite" if ratios else "no probe"


def _draw(means: np.ndarray, texts: Sequence[Sequence[str]], levels: Mapping[str, Sequence[str]]) -> Figure:
    """Draw red for vanishing and blue for exploding; levels are those of the rows' key and of the columns'."""
    (down, rows), (across, columns) = levels.items()
    width = 1.9 + (1.0 if len(columns) <= 5 else 0.75) * len(columns)
    figure = Figure(figsize=(min(max(width, 6), 14), min(max(1.3 + 0.5 * len(rows), 2.6), 12)), layout="constrained")
    axes = figure.add_subplot(facecolor=EMPTY)
    norm = TwoSlopeNorm(0, -_LIMIT, _LIMIT)
    mesh = axes.imshow(means.clip(-_LIMIT, _LIMIT), norm=norm, cmap="RdBu", aspect="auto")
    if max(means.shape) <= _LEGIBLE:
        _write(axes, means, texts)
    axes.set_xticks(range(len(columns)), [level or "–" for level in cut(columns, 14)])
    axes.set_yticks(range(len(rows)), [level or "–" for level in cut(rows, 18)])
    axes.set_ylabel(down)
    axes.set_xlabel(across)
    axes.set_title("log10 gradient ratio, first over last block", loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(mesh, ax=axes, label="vanishes  ←  →  explodes")
    return figure


def _write(axes: Axes, means: np.ndarray, texts: Sequence[Sequence[str]]) -> None:
    """Write in white on the dark ends of the colours."""
    for (y, x), mean in np.ndenumerate(means):
        colour, style = "white" if abs(mean) > 0.7 * _LIMIT else "black", "italic" if np.isnan(mean) else "normal"
        axes.text(x, y, texts[y][x], ha="center", va="center", fontsize=8, color=colour, style=style)


def verdict(ratio: float) -> str:
    """Return the word of the verdict on a log10 gradient ratio."""
    size = abs(ratio)
    return "OK" if size <= CAUTION else "CAUTION" if size <= FAIL else "FAIL" if size > FAIL else "not finite"
