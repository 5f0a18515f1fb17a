"""Gradient norm by layer and step, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradflow.plots.theme import save

LEGIBLE = 40  # layer names that fit beside the picture; of more, some are shown
LEAST = 4.0  # decades that the colours span at least: one decade of scatter is not to look like a vanishing gradient
ZERO, NOT_FINITE = "0.8", "#D55E00"  # neither is a colour of viridis


def heatmap(layers: Sequence[str], steps: Sequence[int], norms: Sequence[Sequence[float]], path: Path) -> None:
    """Draw `norms`, which holds a row a step, with the input on top."""
    values = np.asarray(norms, dtype=float).T
    figure = Figure(figsize=(8, 1.8 + 0.16 * min(max(len(layers), 8), LEGIBLE)), layout="constrained")
    axes = figure.add_subplot()
    mesh = draw(axes, steps, values, scale(values))
    labelled = spread(len(layers), LEGIBLE)
    axes.set_yticks([index + 0.5 for index in labelled], [layers[index] for index in labelled], fontsize=7)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer (input on top)")
    seen = positive(values)
    size = f"{np.log10(seen.max() / seen.min()):.1f} decades from smallest to largest" if seen.size else ""
    axes.set_title(f"gradient norm by layer: {size or 'none is finite and above 0'}", fontsize=10)
    figure.colorbar(mesh, label="‖dL/dW‖ before clipping")
    explain(figure, [values])
    save(figure, path)


def positive(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values) & (values > 0)]


def scale(values: np.ndarray, most: float = np.inf) -> LogNorm:
    """Colours from the largest norm down to the smallest, over `LEAST` decades at least and `most` at most."""
    seen = positive(values)
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (1.0, 1.0)
    return LogNorm(max(min(low, high / 10**LEAST), high * 10**-most), high)


def draw(axes: Axes, steps: Sequence[float], values: np.ndarray, norm: LogNorm, zero: str = ZERO) -> QuadMesh:
    """A row a layer. A column reaches halfway to its neighbours, so that the axis ends at the last step."""
    known = np.asarray(steps, dtype=float)
    half = 0.0 if len(known) > 1 else 0.5
    edges = np.concatenate([known[:1] - half, (known[1:] + known[:-1]) / 2, known[-1:] + half])
    rows, finite = np.arange(len(values) + 1), np.isfinite(values)
    axes.set_facecolor(zero)
    shown = np.where(finite & (values > 0), values, np.nan)
    mesh = axes.pcolormesh(edges, rows, shown, norm=norm, cmap="viridis", rasterized=True)
    if not finite.all():
        axes.pcolormesh(edges, rows, np.where(finite, np.nan, 1.0), cmap=ListedColormap([NOT_FINITE]), rasterized=True)
    axes.invert_yaxis()
    return mesh


def explain(figure: Figure, tables: Sequence[np.ndarray], zero: str = ZERO) -> None:
    """Say what the two colours mean that are not on the scale, where there are any."""
    found = {
        "zero": (zero, any((table == 0).any() for table in tables)),
        "not finite": (NOT_FINITE, any(not np.isfinite(table).all() for table in tables)),
    }
    if marks := [Patch(color=colour, label=label) for label, (colour, seen) in found.items() if seen]:
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, evenly spaced, the first and the last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})
