"""Lines with a band: metrics over training, and gradient by depth or time. One colour a configuration in all panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.profile import CAUTION, FAIL, FEW, FLOOR, bands, relative
from gradflow.plots.theme import NARROW, SERIES, colours, decades

MOST = 8  # lines in a panel that can still be told apart
POINTS = 300  # of a line; more are thinned
DASHES = ("-", "-", "-", "-", (0, (5, 1.5)), (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class Line:
    label: str
    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slot: int = 0  # which colour
    theory: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    x: str
    y: str
    lines: Sequence[Line]
    kind: str = "number"  # number | log_ratio | profile
    trivial: float = math.nan  # the score of an answer that takes no look at the input


def averaged(label: str, series: Sequence[tuple[Sequence[float], Sequence[float]]], slot: int = 0) -> Line | None:
    """Mean ± sd over runs at each step where some were; between its own steps a run counts by a straight line."""
    own = [(np.asarray(x, float), np.asarray(y, float)) for x, y in series if len(x)]
    if not own:
        return None
    grid = np.unique(np.concatenate([x for x, _ in own]))
    if len(grid) > POINTS:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, POINTS).round().astype(int))]
    table = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in own])
    there = np.isfinite(table)
    count = there.sum(0)
    grid, table, there, count = grid[count > 0], table[:, count > 0], there[:, count > 0], count[count > 0]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.where(there, table, 0).sum(0) / count
        square = np.where(there, table - mean, 0) ** 2
        sd = np.sqrt(square.sum(0) / np.maximum(count - 1, 1))
    return Line(label, grid, mean, mean - sd, mean + sd, slot)


def profiled(label: str, norms: Sequence[Sequence[float | None]], slot: int = 0, theory: bool = False) -> Line | None:
    """Geometric mean and range over runs of the norm relative to the last place; runs of one length only."""
    length = max((len(one) for one in norms), default=0)
    table = np.array([relative(one) for one in norms if len(one) == length and length > 1])
    table = table[np.isfinite(table).any(1)] if table.size else table
    if not table.size:
        return None
    there = np.isfinite(table)
    logs = np.where(there, np.log10(np.where(there, table, 1)), 0)
    mean = 10 ** (logs.sum(0) / np.maximum(there.sum(0), 1))
    mean[~there.any(0)] = np.nan
    low, high = np.where(there, table, np.inf).min(0), np.where(there, table, -np.inf).max(0)
    return Line(label, np.arange(1, length + 1), mean, low, high, slot, theory)


def sheet(panels: Sequence[Panel], theme: str, narrow: bool = False) -> Figure:
    """Two panels a row, on a phone one, and one legend below all."""
    columns = 1 if narrow else min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    legend_rows = math.ceil(len(labels) / (1 if narrow else 2)) if len(labels) > 1 else 0
    height = 2.9 * rows + 0.19 * legend_rows + (0.25 if legend_rows else 0)
    figure = Figure(figsize=(NARROW if narrow else 9 if columns == 2 else 6, height), layout="constrained")
    handles: dict[str, Artist] = {}
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        handles |= draw(axes, panel, theme)
    if legend_rows:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=1 if narrow else 2, frameon=False
        )
    return figure


def draw(axes: Axes, panel: Panel, theme: str) -> dict[str, Artist]:
    axes.grid(lw=0.6)
    handles: dict[str, Artist] = {}
    for line in panel.lines:
        colour = colours(theme)["ink"] if line.theory else SERIES[theme][line.slot % MOST]
        dash = (0, (2, 2)) if line.theory else DASHES[line.slot % MOST]
        mark = "o" if panel.kind == "profile" and len(line.x) <= FEW and not line.theory else None
        single = "o" if len(line.x) == 1 else mark
        (handles[line.label],) = axes.plot(line.x, line.middle, color=colour, ls=dash, lw=1.6, marker=single, ms=3)
        if (line.high > line.low).any():
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, lw=0)
    if math.isfinite(panel.trivial):
        axes.axhline(panel.trivial, color=colours(theme)["ink"], lw=0.9, ls=":")
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    scaled(axes, panel, theme)
    return handles


def scaled(axes: Axes, panel: Panel, theme: str) -> None:
    seen = np.concatenate([line.middle[np.isfinite(line.middle)] for line in panel.lines])
    if panel.kind == "profile":
        ends = np.concatenate([values for line in panel.lines for values in (line.low, line.high)])
        shown = ends[np.isfinite(ends) & (ends > FLOOR)]
        axes.set_yscale("log")
        axes.set_ylim(min(10**-1.5, *shown, 1) / 3, max(10**1.5, *shown, 1) * 3)
        bands(axes)
        for words in axes.texts:
            words.set(color=colours(theme)["ink"], alpha=0.6)
        decades(axes.yaxis)
    elif panel.kind == "log_ratio":
        for gap in (-FAIL, -CAUTION, CAUTION, FAIL):
            axes.axhline(gap, color=colours(theme)["ink"], lw=0.7, ls=":" if abs(gap) == CAUTION else "--", alpha=0.6)
        axes.set_ylim(min(-FAIL, *seen) - 0.4, max(CAUTION, *seen) + 0.4)
        return
    seen = np.append(seen, panel.trivial if math.isfinite(panel.trivial) else [])
    if seen.size and panel.kind == "number" and seen.min() > 0 and seen.max() > 20 * seen.min():
        axes.set_yscale("log")
        axes.set_ylim(seen.min() / 1.5, seen.max() * 1.5)
        decades(axes.yaxis)
