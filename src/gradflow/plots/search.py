"""How a search went, and which of its keys mattered. numpy and matplotlib only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.theme import save

TRIAL, BEST, PRUNED, FAILED = "#0072B2", "#D55E00", "#7f7f7f", "#CC79A7"  # told apart by the colour-blind (Okabe & Ito)
WIDE = 30  # ratio of values from which an axis is logarithmic
KEYS = 12  # that are shown

Point = tuple[int, float | None, str]  # trial number, value, and complete, pruned or failed


def history_and_importance(points: Sequence[Point], weights: Mapping[str, float], direction: str, path: Path) -> None:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    history(left, points, direction)
    importance(right, weights)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    save(figure, path)


def history(axes: Axes, points: Sequence[Point], direction: str) -> None:
    """What trials returned, and the best so far; those without a value stand on the lower edge."""
    best = np.minimum if direction == "minimize" else np.maximum
    complete = [(number, value) for number, value, state in points if state == "complete" and value is not None]
    if complete:
        numbers, values = np.array(complete).T
        so_far = best.accumulate(values)
        axes.plot(numbers, values, "o", ms=5, color=TRIAL, label=f"complete ({len(complete)})")
        axes.step(numbers, so_far, where="post", color=BEST, lw=1.8, label=f"best so far, at the end {so_far[-1]:.4g}")
        if values.min() > 0 and values.max() / values.min() > WIDE:
            axes.set_yscale("log")
    for state, colour, mark in (("pruned", PRUNED, "x"), ("failed", FAILED, "v")):
        if numbered := [number for number, _, name in points if name == state]:
            style: dict[str, Any] = {"marker": mark, "color": colour, "ls": "", "clip_on": False, "zorder": 5}
            edge, label = axes.get_xaxis_transform(), f"{state} ({len(numbered)})"
            axes.plot(numbered, [0.0] * len(numbered), transform=edge, label=label, **style)
    axes.set_xlabel("trial")
    axes.set_ylabel(f"objective (to {direction})")
    axes.set_title("what was found, and when", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9", lw=0.6)
    axes.legend(fontsize=8)


def importance(axes: Axes, weights: Mapping[str, float]) -> None:
    axes.set_title("which key mattered", fontsize=10)
    if not weights:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "too few complete trials to tell", ha="center", va="center", transform=axes.transAxes)
        return
    shown = sorted(weights.items(), key=lambda item: item[1])[-KEYS:]
    bars = axes.barh([key for key, _ in shown], [weight for _, weight in shown], color=TRIAL, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_ylim(len(shown) - 0.4 - max(len(shown), 4), len(shown) - 0.4)
    axes.set_xlim(0, max(weights.values()) * 1.15 or 1)
    axes.set_xlabel("share of the importance (PED-ANOVA)")
