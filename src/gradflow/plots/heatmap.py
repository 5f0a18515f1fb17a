"""A quantity by layer and step, or by the two axes of its table, as colours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradflow.plots.layout import OF_GRADIENTS, Layout
from gradflow.plots.theme import EMPTY, label_powers_of_ten, save, spanned
from gradflow.plots.thinning import cut, evenly_spaced

NOT_FINITE = "#D55E00"  # no colour of viridis; nor is that of zero, EMPTY
_LEAST = 4.0  # powers of ten that the colours span at least: scatter is not to look like a vanishing gradient


def heatmap(
    layers: Sequence[str],
    steps: Sequence[float],
    norms: Sequence[Sequence[float]],
    path: Path,
    layout: Layout = OF_GRADIENTS,
) -> None:
    """Draw `norms`, which holds a row a step, with the input on top."""
    values = np.asarray(norms, float).T
    seen, size = _positive(values), "none is finite and above 0"
    if seen.size:
        size = f"10^{np.log10(seen.max() / seen.min()):.1f} from smallest to largest"
    title = f"{layout.title} by layer" + (f": {size}" if layout.log else "")
    save(partial(_figure, title, layers, steps, values, layout), path)


def heatmap_at(step: float, row: Sequence[float], path: Path, layout: Layout) -> None:
    """Draw the row of a step of a table of two axes."""
    down, across = layout.axes.values()
    values = np.asarray(row, float).reshape(len(down), len(across))
    save(partial(_figure, f"{layout.title}, step {step:.0f}", down, range(len(across)), values, layout), path)


def _figure(title: str, names: Sequence[str], x: Sequence[float], values: np.ndarray, layout: Layout) -> Figure:
    (down, _), *across = layout.axes.items()
    figure = Figure(figsize=(8, 1.8 + 0.16 * min(max(len(names), 8), 40)), layout="constrained")
    axes = figure.add_subplot()
    norm = _scale(values, layout.log)
    _draw(axes, x, values, norm, layout.log)
    named = evenly_spaced(len(names), 40)
    axes.set_yticks([i + 0.5 for i in named], cut([names[i] for i in named], 28), fontsize=7)
    if across:
        ticks = evenly_spaced(len(across[0][1]), 8)
        axes.set_xticks(ticks, [across[0][1][i] for i in ticks], fontsize=7)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_xlabel(across[0][0] if across else "optimizer step")
    figure.supylabel("layer (input on top)" if down == "layer" else down, fontsize=9)
    bar = figure.colorbar(axes.collections[0], ax=axes, aspect=20, label=layout.scale)
    if layout.log:
        label_powers_of_ten(bar.ax.yaxis)
    marks = [Patch(color=EMPTY, label="zero")] if layout.log and (values == 0).any() else []
    marks += [] if np.isfinite(values).all() else [Patch(color=NOT_FINITE, label="not finite")]
    if marks:  # colours that are not on the scale
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    positive: np.ndarray = values[np.isfinite(values) & (values > 0)]
    return positive


def _scale(values: np.ndarray, log: bool) -> Normalize:
    """Return colours from the smallest number to the largest, of logarithms over `_LEAST` powers of ten or more."""
    seen = _positive(values) if log else values[np.isfinite(values)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (1.0, 1.0)
    if not log:
        return Normalize(*spanned(low, high))
    return LogNorm(min(low, high / 10**_LEAST), high)


def _draw(axes: Axes, x: Sequence[float], values: np.ndarray, norm: Normalize, log: bool) -> None:
    """Draw a row a layer. A column reaches halfway to its neighbours, so that the axis ends at the last step."""
    steps = np.asarray(x, float)
    half = 0.0 if len(steps) > 1 else 0.5
    edges = np.concatenate([steps[:1] - half, (steps[1:] + steps[:-1]) / 2, steps[-1:] + half])
    rows, finite = np.arange(len(values) + 1), np.isfinite(values)
    axes.set_facecolor(EMPTY)
    shown = np.where(finite & (values > 0) if log else finite, values, np.nan)
    axes.pcolormesh(edges, rows, shown, norm=norm, cmap="viridis", rasterized=True)
    if not finite.all():
        axes.pcolormesh(edges, rows, np.where(finite, np.nan, 1.0), cmap=ListedColormap([NOT_FINITE]), rasterized=True)
    axes.invert_yaxis()
