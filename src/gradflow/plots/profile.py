"""Gradient by depth and by time, and what hides it: lines over the blocks of a network, from the looks of `flow.jsonl`.

A look is a dict as `flow/probe.py` makes it, with its `step`, `verdict` and, where there is one, `theory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.theme import save

START, END, THEORY = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind (Okabe & Ito)
CAUTION, FAIL = 1.3, 3.0  # decades; flow/verdict.py says why
FEW = 60  # places of which each gets a mark
FLOOR = 1e-300  # what is drawn for 0

Look = Mapping[str, Any]


def depth_profile(looks: Sequence[Look], path: Path) -> bool:
    """‖dL/dh‖ by depth at the start and the end; False where there is nothing to draw."""
    if len(looks[0]["gradient"]) < 2:
        return False
    names = looks[0]["trunk"]
    figure, axes = sheet(f"gradient by depth: {headline(looks, 'depth')}")
    profile(axes, looks, "gradient", np.arange(1, len(names) + 1))
    axes.set_xlabel(f"block l (1: {names[0]}, {len(names)}: {names[-1]})")
    axes.set_ylabel("‖dL/dh_l‖ / ‖dL/dh_L‖")
    save(figure, path)
    return True


def time_profile(looks: Sequence[Look], path: Path) -> bool:
    """‖dL/dx_t‖ by time step, at the input of the first recurrent layer."""
    if not looks[0].get("time"):
        return False
    steps = len(looks[0]["time"])
    figure, axes = sheet(f"gradient through time: {headline(looks, 'time')}")
    profile(axes, looks, "time", np.arange(1, steps + 1))
    axes.set_xlabel(f"time step t (the loss is at step {steps})")
    axes.set_ylabel("‖dL/dx_t‖ / ‖dL/dx_T‖")
    save(figure, path)
    return True


def profile(axes: Axes, looks: Sequence[Look], key: str, places: np.ndarray) -> None:
    """Relative to the last place, where the gradient enters; the bands are those of the verdict."""
    axes.set_yscale("log")
    chosen = {"start": looks[0], "end": looks[-1]} if len(looks) > 1 else {"measured": looks[0]}
    seen = [10**-1.5, 10**1.5]
    for (label, look), colour, mark in zip(chosen.items(), (START, END), ("o", "s"), strict=False):
        values = relative(look[key])
        seen += list(values[values > FLOOR])
        name = f"{label} (step {look['step']})" if len(chosen) > 1 else label
        axes.plot(places, values, marker=mark if len(places) <= FEW else None, ms=4, color=colour, label=name, zorder=3)
    if theory := (looks[0].get("theory") or {}).get(key):
        values = np.array([np.nan if value is None else value for value in theory], float)
        seen += list(values[np.isfinite(values) & (values > FLOOR)])
        axes.plot(places, values, "--", color=THEORY, label="theory, at the start", zorder=4)
    axes.set_ylim(min(seen) / 3, max(seen) * 3)
    bands(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8, framealpha=0.9)


def bands(axes: Axes) -> None:
    """Between the thresholds of the verdict, and beyond; each named where it is seen."""
    low, high = axes.get_ylim()
    for start, end, colour, word in ((CAUTION, FAIL, "#F0E442", "CAUTION"), (FAIL, 290.0, "#CC79A7", "FAIL")):
        for bottom, top in ((10**start, min(high, 10**end)), (max(low, 10**-end), 10**-start)):
            if bottom < top:
                axes.axhspan(bottom, top, color=colour, alpha=0.15, lw=0)
                if math.log(top / bottom) > math.log(high / low) / 20:
                    middle = math.sqrt(bottom * top)
                    axes.text(0.99, middle, word, transform=axes.get_yaxis_transform(), ha="right", va="center",
                              fontsize=7, color="0.4")  # fmt: skip


def relative(norms: Sequence[float | None]) -> np.ndarray:
    values = np.array([np.nan if norm is None else norm for norm in norms], float)
    return np.maximum(values / values[-1], FLOOR) if values[-1] > 0 else np.full_like(values, np.nan)


def headline(looks: Sequence[Look], axis: str) -> str:
    key = "gradient" if axis == "depth" else "time"
    told = []
    for label, look in (("start", looks[0]), ("end", looks[-1])):
        ends = relative(look[key])
        size = f"{np.log10(ends[0]):+.1f} decades" if np.isfinite(ends[0]) and ends[0] > FLOOR else "nothing left"
        told.append(f"{size} at the {label}")
    return ", ".join(told) if len(looks) > 1 else told[0].removesuffix(" at the start")


def update_profile(looks: Sequence[Look], path: Path) -> bool:
    """‖ΔW‖ / ‖W‖ by layer at three moments, with the band in which training usually goes well."""
    seen = [look for look in looks if look.get("updates")]
    if not seen:
        return False
    figure, axes = sheet("how much one step changes each layer")
    axes.set_yscale("log")
    axes.axhspan(1e-4, 1e-2, color=THEORY, alpha=0.12, lw=0, label="usual: 1e-4 to 1e-2")
    names = list(seen[0]["updates"])
    picks = [seen[index] for index in sorted({0, len(seen) // 2, len(seen) - 1})]
    for look, colour, mark in zip(picks, (START, "0.5", END), ("o", "^", "s"), strict=False):
        values = np.array([np.nan if ratio is None else ratio for ratio in look["updates"].values()], float)
        style: dict[str, Any] = {"marker": mark, "ms": 4, "color": colour, "label": f"before step {look['step']}"}
        axes.plot(range(1, len(names) + 1), np.maximum(values, 1e-12), **style)
    axes.set_xlabel(f"layer (1: {names[0]}, {len(names)}: {names[-1]})")
    axes.set_ylabel("‖ΔW‖ / ‖W‖")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)
    save(figure, path)
    return True


def trap(look: Look, path: Path) -> bool:
    """Why norms of weight gradients are not enough: they may be level while dL/dh vanishes."""
    weights = list(look["weights"].values())
    if len(look["gradient"]) < 2 or len(weights) < 2:
        return False
    figure, axes = sheet("what the gradient of the weights tells, and what it hides")
    axes.set_yscale("log")
    lines = (
        (look["gradient"], "‖dL/dh_l‖: what reaches the block", END, "o"),
        (weights, "‖dL/dW_l‖: what monitors show", START, "s"),
        (look["rms"], "rms of h_l: the signal on its way forward", "0.5", "^"),
    )
    for norms, label, colour, mark in lines:
        values = relative(norms)
        axes.plot(np.linspace(0, 1, len(values)), values, marker=mark, ms=4, color=colour, label=label)
    axes.set_xlabel("depth (0: first, 1: last)")
    axes.set_ylabel("relative to the last one")
    axes.legend(fontsize=8)
    save(figure, path)
    return True


def sheet(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes
