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

from gradflow.plots.theme import INK, SERIES, label_powers_of_ten, spanned
from gradflow.plots.thinning import evenly_spaced

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
    slot: int | None = 0  # which colour; None: a prediction, which has that of the text


@dataclass(frozen=True)
class Panel:
    """Hold the lines of one pair of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    kind: str = "number"  # number | rate (never logarithmic: it may end in 0) | log | log_ratio | profile
    trivial: float = math.nan  # the score of the best answer that ignores the input


def averaged(label: str, series: Sequence[tuple[Sequence[float], Sequence[float]]], slot: int = 0) -> Line | None:
    """Return mean ± sd over runs at each step where some were; between its own steps a run is interpolated."""
    own = [(np.asarray(x, float), np.asarray(y, float)) for x, y in series if len(x)]
    if not own:
        return None
    steps = np.unique(np.concatenate([x for x, _ in own]))
    steps = steps[evenly_spaced(len(steps), _POINTS)]
    table = np.array([np.interp(steps, x, y, left=np.nan, right=np.nan) for x, y in own])
    count = np.isfinite(table).sum(0)
    with np.errstate(all="ignore"):  # of a diverging run, squares may be too large
        mean = np.nansum(table, 0) / count
        sd = np.sqrt(np.nansum((table - mean) ** 2, 0) / np.maximum(count - 1, 1))
    return Line(label, steps, mean, mean - sd, mean + sd, slot)


def relative(norms: Iterable[float | None]) -> np.ndarray:
    """Return norms relative to the last place, where the gradient enters; nan where that is not above 0."""
    values = np.array([np.nan if norm is None else norm for norm in norms], float)
    return np.maximum(values / values[-1], FLOOR) if values[-1] > 0 else np.full_like(values, np.nan)


def profiled(label: str, norms: Sequence[Sequence[float | None]], slot: int | None = 0) -> Line | None:
    """Return geometric mean and range over runs of the relative norm; of runs of the greatest length only."""
    length = max(map(len, norms), default=0)
    table = np.array([relative(one) for one in norms if len(one) == length > 1])
    table[~np.isfinite(table)] = np.nan
    if np.isnan(table).all():
        return None
    with np.errstate(invalid="ignore"):  # 0 / 0 where no run has a norm
        mean = 10 ** (np.nansum(np.log10(table), 0) / np.isfinite(table).sum(0))
    return Line(label, np.arange(1, length + 1), mean, np.fmin.reduce(table), np.fmax.reduce(table), slot)


def start_and_end(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[Line]:
    """Return a profile at the start and the end of training, and what theory predicts, from each run's snapshots."""
    theory = [known for snapshots in runs if (known := (snapshots[0].get("theory") or {}).get(key))][:1]
    trained = [snapshots[-1][key] for snapshots in runs if len(snapshots) > 1]
    lines = [
        profiled("start" if trained else "measured", [snapshots[0][key] for snapshots in runs], 0),
        profiled("end", trained, 1),
        profiled("theory at initialisation", theory, None),
    ]
    return [line for line in lines if line]


def sheet(panels: Sequence[Panel], theme: str) -> Figure:
    """Draw two panels a row, and one legend below all."""
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    labels = {line.label for panel in panels for line in panel.lines}
    legend = 0.25 + 0.19 * math.ceil(len(labels) / 2) if len(labels) > 1 else 0
    figure = Figure(figsize=(9 if columns == 2 else 6, 2.9 * rows + legend), layout="constrained")
    handles: dict[str, Artist] = {}
    for place, panel in enumerate(panels, 1):
        handles |= draw(figure.add_subplot(rows, columns, place), panel, theme)
    if legend:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw(axes: Axes, panel: Panel, theme: str) -> dict[str, Artist]:
    """Draw one panel; return what a legend shows."""
    axes.grid(lw=0.6)
    handles: dict[str, Artist] = {}
    for line in panel.lines:
        style: dict[str, Any] = {"color": INK[theme], "ls": (0, (2, 2))}
        if line.slot is not None:
            few = panel.kind in ("profile", "log") and len(line.x) <= _FEW
            style = {"color": SERIES[theme][line.slot % MOST], "ls": _DASHES[line.slot % MOST]}
            style["marker"] = "o" if few or len(line.x) == 1 else None
        (handles[line.label],) = axes.plot(line.x, line.middle, label=line.label, lw=1.6, ms=3, **style)
        if (line.high > line.low).any():
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.18, lw=0)
    if math.isfinite(panel.trivial):
        axes.axhline(panel.trivial, color=INK[theme], lw=0.9, ls=":")
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.text(0.99, panel.trivial, "trivial answer", **place, fontsize=7, color=INK[theme])
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=panel.kind != "log", nbins=7))
    _scale(axes, panel, theme)
    return handles


def _scale(axes: Axes, panel: Panel, theme: str) -> None:
    middle = np.concatenate([[panel.trivial], *(line.middle for line in panel.lines)])
    middle = middle[np.isfinite(middle)]
    if panel.kind == "log_ratio":
        for ratio in (-FAIL, -CAUTION, CAUTION, FAIL):
            axes.axhline(ratio, color=INK[theme], lw=0.7, ls=":" if abs(ratio) == CAUTION else "--", alpha=0.6)
        axes.set_ylim(min(-FAIL, *middle) - 0.4, max(CAUTION, *middle) + 0.4)
    elif panel.kind == "profile":
        drawn = np.concatenate([[10**-1.5, 10**1.5], *(v for line in panel.lines for v in (line.low, line.high))])
        drawn = drawn[np.isfinite(drawn) & (drawn > FLOOR)]
        axes.set_yscale("log")
        axes.set_ylim(drawn.min() / 3, drawn.max() * 3)
        _verdict_bands(axes, theme)
        label_powers_of_ten(axes.yaxis)
    elif (
        panel.kind != "rate"
        and middle.size
        and middle.min() > 0
        and (panel.kind == "log" or middle.max() > 20 * middle.min())
    ):
        axes.set_yscale("log")
        axes.set_ylim(middle.min() / 1.5, middle.max() * 1.5)
        label_powers_of_ten(axes.yaxis)
    else:
        axes.set_ylim(*spanned(*axes.get_ylim()))


def _verdict_bands(axes: Axes, theme: str) -> None:
    """Shade what lies beyond the thresholds of the verdict, each named where it is seen."""
    low, high = axes.get_ylim()
    for start, end, colour, word in ((CAUTION, FAIL, "#F0E442", "CAUTION"), (FAIL, 290.0, "#CC79A7", "FAIL")):
        for bottom, top in ((10**start, min(high, 10**end)), (max(low, 10**-end), 10**-start)):
            if bottom < top:
                axes.axhspan(bottom, top, color=colour, alpha=0.15, lw=0)
            if math.log(top / bottom) > math.log(high / low) / 20:
                style: dict[str, Any] = {
                    "ha": "right",
                    "va": "center",
                    "fontsize": 7,
                    "alpha": 0.6,
                    "color": INK[theme],
                }
                axes.text(0.99, math.sqrt(bottom * top), word, transform=axes.get_yaxis_transform(), **style)
