"""How a search went: its history, and the importance of its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.theme import SERIES, label_powers_of_ten, save, spanned

_TRIAL, _BEST, _PRUNED, _FAILED = (SERIES["light"][slot] for slot in (0, 1, 7, 3))
_WIDE = 30  # ratio of values from which an axis is logarithmic
_KEYS = 12  # that are shown

_Point = tuple[int, float | None, str]  # trial number, value, and complete, pruned or failed


def history_and_importance(points: Sequence[_Point], shares: Mapping[str, float], direction: str, path: Path) -> None:
    """Draw the history of a search beside the importance of its keys."""
    save(partial(_draw, points, shares, direction), path)


def _draw(points: Sequence[_Point], shares: Mapping[str, float], direction: str, theme: str) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _history(left, points, direction)
    _importance(right, shares)
    return figure


def _history(axes: Axes, points: Sequence[_Point], direction: str) -> None:
    """Draw what trials returned, and the best so far; those without a value stand on the lower edge."""
    best = np.minimum if direction == "minimize" else np.maximum
    complete = [(number, value) for number, value, state in points if state == "complete" and value is not None]
    if complete:
        numbers, values = np.array(complete).T
        so_far = best.accumulate(values)
        axes.plot(numbers, values, "o", ms=5, color=_TRIAL, label=f"complete ({len(complete)})")
        axes.step(numbers, so_far, where="post", color=_BEST, lw=1.8, label=f"best so far, at the end {so_far[-1]:.4g}")
        if values.min() > 0 and values.max() / values.min() > _WIDE:
            axes.set_yscale("log")
            label_powers_of_ten(axes.yaxis)
        else:
            axes.set_ylim(*spanned(*axes.get_ylim()))
    for state, colour, mark in (("pruned", _PRUNED, "x"), ("failed", _FAILED, "v")):
        if numbered := [number for number, _, name in points if name == state]:
            style: dict[str, Any] = {"label": f"{state} ({len(numbered)})", "clip_on": False, "zorder": 5}
            edge = axes.get_xaxis_transform()
            axes.plot(numbered, [0.0] * len(numbered), mark, color=colour, transform=edge, **style)
    axes.set_xlabel("trial")
    axes.set_ylabel(f"objective (to {direction})")
    axes.set_title("history of the search", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(lw=0.6)
    axes.legend(fontsize=8)


def _importance(axes: Axes, shares: Mapping[str, float]) -> None:
    axes.set_title("hyperparameter importance", loc="left")
    if not shares:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "too few complete trials to tell", ha="center", va="center", transform=axes.transAxes)
        return
    shown = sorted(shares.items(), key=lambda item: item[1])[-_KEYS:]
    bars = axes.barh([key for key, _ in shown], [share for _, share in shown], color=_TRIAL, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_ylim(len(shown) - 0.4 - max(len(shown), 4), len(shown) - 0.4)
    axes.set_xlim(0, max(shares.values()) * 1.15 or 1)
    axes.set_xlabel("share of the importance (PED-ANOVA)")
