"""Lines with a band: metrics over training, and gradient by depth or time. One colour a configuration in all panels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.theme import INK, SERIES, label_powers_of_ten

CAUTION, FAIL = 1.3, 3.0  # of |log10 gradient ratio|; diagnostics/verdict.py says why
FLOOR = 1e-300  # what is drawn for 0
MOST = 8  # lines in a panel that can still be told apart
_POINTS = 300  # of a line; more are thinned
_FEW = 60  # points of a profile of which each gets a mark
_DASHES = ("-", "-", "-", "-", (0, (5, 1.5)), (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class Line:
    """Hold a line and its band."""

    label: str
    x: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slot: int = 0  # which colour
    theory: bool = False


@dataclass(frozen=True)
class Panel:
    """Hold the lines of one pair of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    kind: str = "number"  # number | log | log_ratio | profile
    trivial: float = math.nan  # the score of the best answer that ignores the input


def averaged(label: str, series: Sequence[tuple[Sequence[float], Sequence[float]]], slot: int = 0) -> Line | None:
    """Return mean ± sd over runs at each step where some were; between its own steps a run is interpolated."""
    own = [(np.asarray(x, float), np.asarray(y, float)) for x, y in series if len(x)]
    if not own:
        return None
    grid = np.unique(np.concatenate([x for x, _ in own]))
    if len(grid) > _POINTS:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, _POINTS).round().astype(int))]
    table = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in own])
    there = np.isfinite(table)
    count = there.sum(0)
    grid, table, there, count = grid[count > 0], table[:, count > 0], there[:, count > 0], count[count > 0]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.where(there, table, 0).sum(0) / count
        square = np.where(there, table - mean, 0) ** 2
        sd = np.sqrt(square.sum(0) / np.maximum(count - 1, 1))
    return Line(label, grid, mean, mean - sd, mean + sd, slot)


def relative(norms: Iterable[float | None]) -> np.ndarray:
    """Return norms relative to the last place, where the gradient enters; nan where that is not above 0."""
    values = np.array([np.nan if norm is None else norm for norm in norms], float)
    return np.maximum(values / values[-1], FLOOR) if values[-1] > 0 else np.full_like(values, np.nan)


def profiled(label: str, norms: Sequence[Sequence[float | None]], slot: int = 0, theory: bool = False) -> Line | None:
    """Return geometric mean and range over runs of the relative norm; of runs of the greatest length only."""
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


def start_and_end(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[Line]:
    """Return a profile at the start and the end of training, and what theory predicts, from each run's snapshots."""
    theory = [known for snapshots in runs if (known := (snapshots[0].get("theory") or {}).get(key))][:1]
    trained = [snapshots[-1][key] for snapshots in runs if len(snapshots) > 1]
    lines = [
        profiled("start" if trained else "measured", [snapshots[0][key] for snapshots in runs], 0),
        profiled("end", trained, 1),
        profiled("theory at initialisation", theory, theory=True),
    ]
    return [line for line in lines if line]


def sheet(panels: Sequence[Panel], theme: str) -> Figure:
    """Draw two panels a row, and one legend below all."""
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    legend_rows = math.ceil(len(labels) / 2) if len(labels) > 1 else 0
    height = 2.9 * rows + 0.19 * legend_rows + (0.25 if legend_rows else 0)
    figure = Figure(figsize=(9 if columns == 2 else 6, height), layout="constrained")
    handles: dict[str, Artist] = {}
    for place, panel in enumerate(panels):
        handles |= draw(figure.add_subplot(rows, columns, place + 1), panel, theme)
    if legend_rows:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw(axes: Axes, panel: Panel, theme: str) -> dict[str, Artist]:
    """Draw one panel; return what a legend shows."""
    axes.grid(lw=0.6)
    handles: dict[str, Artist] = {}
    for line in panel.lines:
        colour = INK[theme] if line.theory else SERIES[theme][line.slot % MOST]
        dash = (0, (2, 2)) if line.theory else _DASHES[line.slot % MOST]
        marked = len(line.x) == 1 or (panel.kind in ("profile", "log") and len(line.x) <= _FEW and not line.theory)
        style: dict[str, Any] = {"color": colour, "ls": dash, "lw": 1.6, "marker": "o" if marked else None, "ms": 3}
        (handles[line.label],) = axes.plot(line.x, line.middle, label=line.label, **style)
        if (line.high > line.low).any():
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, lw=0)
    if math.isfinite(panel.trivial):
        axes.axhline(panel.trivial, color=INK[theme], lw=0.9, ls=":")
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=panel.kind != "log", nbins=7))
    _scale(axes, panel, theme)
    return handles


def _scale(axes: Axes, panel: Panel, theme: str) -> None:
    drawn = np.concatenate([np.empty(0), *(v for line in panel.lines for v in (line.low, line.middle, line.high))])
    middle = np.concatenate([[panel.trivial], *(line.middle for line in panel.lines)])
    middle = middle[np.isfinite(middle)]
    if panel.kind == "log_ratio":
        for ratio in (-FAIL, -CAUTION, CAUTION, FAIL):
            axes.axhline(ratio, color=INK[theme], lw=0.7, ls=":" if abs(ratio) == CAUTION else "--", alpha=0.6)
        axes.set_ylim(min(-FAIL, *middle) - 0.4, max(CAUTION, *middle) + 0.4)
    elif panel.kind == "profile":
        shown = drawn[np.isfinite(drawn) & (drawn > FLOOR)]
        axes.set_yscale("log")
        axes.set_ylim(min(10**-1.5, *shown, 1) / 3, max(10**1.5, *shown, 1) * 3)
        _verdict_bands(axes, theme)
        label_powers_of_ten(axes.yaxis)
    elif middle.size and middle.min() > 0 and (panel.kind == "log" or middle.max() > 20 * middle.min()):
        axes.set_yscale("log")
        axes.set_ylim(middle.min() / 1.5, middle.max() * 1.5)
        label_powers_of_ten(axes.yaxis)


def _verdict_bands(axes: Axes, theme: str) -> None:
    """Shade what lies beyond the thresholds of the verdict, each named where it is seen."""
    low, high = axes.get_ylim()
    for start, end, colour, word in ((CAUTION, FAIL, "#F0E442", "CAUTION"), (FAIL, 290.0, "#CC79A7", "FAIL")):
        for bottom, top in ((10**start, min(high, 10**end)), (max(low, 10**-end), 10**-start)):
            if bottom < top:
                axes.axhspan(bottom, top, color=colour, alpha=0.15, lw=0)
                if math.log(top / bottom) > math.log(high / low) / 20:
                    style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 7, "alpha": 0.6}
                    middle = math.sqrt(bottom * top)
                    axes.text(0.99, middle, word, transform=axes.get_yaxis_transform(), color=INK[theme], **style)
