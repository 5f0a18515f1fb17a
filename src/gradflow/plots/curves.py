"""Lines of a run: what a diagnostic recorded over training, and gradients by depth or time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.limits import CAUTION, FAIL
from gradflow.plots.theme import INK, SERIES, label_powers_of_ten, spanned

FLOOR = 1e-300  # what is drawn for 0
MOST = 8  # lines in a panel that can still be told apart
_FEW = 60  # points of a profile of which each gets a mark
_DASHES = ("-", "-", "-", "-", (0, (5, 1.5)), (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class Line:
    """Hold a line."""

    label: str
    x: np.ndarray
    y: np.ndarray
    slot: int | None = 0  # which colour; None: a prediction, which has that of the text


@dataclass(frozen=True)
class Panel:
    """Hold the lines of one pair of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    kind: str = "number"  # number | log | profile
    trivial: float = math.nan  # the score of the best answer that ignores the input


def line(label: str, steps: Sequence[float], values: Sequence[float] | np.ndarray, slot: int = 0) -> Line:
    """Return the line of those points that can be drawn."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    return Line(label, x[np.isfinite(y)], y[np.isfinite(y)], slot)


def relative(norms: Iterable[float | None]) -> np.ndarray:
    """Return norms relative to the last place, where the gradient enters; nan where that is not above 0."""
    values = np.array([*norms], float)  # of None nan
    return np.maximum(values / values[-1], FLOOR) if values[-1] > 0 else np.full_like(values, np.nan)


def start_and_end(snapshots: Sequence[Mapping[str, Any]], key: str) -> list[Line]:
    """Return a profile at the start and the end of training, and what theory predicts, from a run's snapshots."""
    first, *later = snapshots
    found: list[tuple[str, Any, int | None]] = [("start" if later else "measured", first[key], 0)]
    found += [("end", one[key], 1) for one in later[-1:]]
    found += [("theory at initialisation", (first.get("theory") or {}).get(key) or [], None)]
    lines = [Line(label, np.arange(1, len(norms) + 1), relative(norms), slot) for label, norms, slot in found if norms]
    return [line for line in lines if np.isfinite(line.y).any()]


def sheet(panels: Sequence[Panel]) -> Figure:
    """Draw panels of the same lines beside each other, with one legend below all."""
    labels = [line.label for line in panels[0].lines]
    legend = 0.25 + 0.19 * math.ceil(len(labels) / 2) if len(labels) > 1 else 0
    figure = Figure(figsize=(6 if len(panels) == 1 else 4.5 * len(panels), 2.9 + legend), layout="constrained")
    drawn = [figure.add_subplot(1, len(panels), place) for place in range(1, len(panels) + 1)]
    for axes, panel in zip(drawn, panels, strict=True):
        draw(axes, panel)
    if legend:
        figure.legend(drawn[0].lines[: len(labels)], labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw(axes: Axes, panel: Panel) -> None:
    """Draw a panel."""
    axes.grid(lw=0.6)
    for line in panel.lines:
        style: dict[str, Any] = {"color": INK, "ls": (0, (2, 2))}
        if line.slot is not None:
            few = panel.kind in ("profile", "log") and len(line.x) <= _FEW
            style = {"color": SERIES[line.slot % MOST], "ls": _DASHES[line.slot % MOST]}
            style["marker"] = "o" if few or len(line.x) == 1 else None
        axes.plot(line.x, line.y, label=line.label, lw=1.6, ms=3, **style)
    if math.isfinite(panel.trivial):
        axes.axhline(panel.trivial, color=INK, lw=0.9, ls=":")
        _note(axes, panel.trivial, "trivial answer", va="bottom")
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=panel.kind != "log", nbins=7))
    _scale(axes, panel)


def _scale(axes: Axes, panel: Panel) -> None:
    values = np.concatenate([[panel.trivial], *(line.y for line in panel.lines)])
    values = values[np.isfinite(values)]
    if panel.kind == "profile":
        drawn = np.concatenate([[10**-1.5, 10**1.5], values[values > FLOOR]])
        axes.set_yscale("log")
        axes.set_ylim(drawn.min() / 3, drawn.max() * 3)
        _verdict_bands(axes)
        label_powers_of_ten(axes.yaxis)
    elif values.size and values.min() > 0 and (panel.kind == "log" or values.max() > 20 * values.min()):
        axes.set_yscale("log")
        axes.set_ylim(values.min() / 1.5, values.max() * 1.5)
        label_powers_of_ten(axes.yaxis)
    else:
        axes.set_ylim(*spanned(*axes.get_ylim()))


def _verdict_bands(axes: Axes) -> None:
    """Shade what lies beyond the thresholds of the verdict, each named where it is seen."""
    low, high = axes.get_ylim()
    for start, end, colour, word in ((CAUTION, FAIL, "#F0E442", "CAUTION"), (FAIL, 290.0, "#CC79A7", "FAIL")):
        for bottom, top in ((10**start, min(high, 10**end)), (max(low, 10**-end), 10**-start)):
            if bottom < top:
                axes.axhspan(bottom, top, color=colour, alpha=0.15, lw=0)
            if math.log(top / bottom) > math.log(high / low) / 20:
                _note(axes, math.sqrt(bottom * top), word, va="center", alpha=0.6)


def _note(axes: Axes, height: float, text: str, **style: Any) -> None:
    """Write at the right end of a panel, at a height in units of its data."""
    axes.text(0.99, height, text, transform=axes.get_yaxis_transform(), ha="right", fontsize=7, color=INK, **style)
