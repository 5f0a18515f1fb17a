"""A quantity by layer and step: of one run as a file, of several side by side on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gradflow.plots.layout import OF_GRADIENTS, Layout
from gradflow.plots.theme import EMPTY, label_powers_of_ten, save, spanned
from gradflow.plots.thinning import cut, evenly_spaced

MOST = 12  # runs that are drawn
NOT_FINITE = "#D55E00"  # no colour of viridis; nor is that of zero, EMPTY
_WIDE, _TALL = 240, 120  # steps and layers of a map; of more, evenly spaced ones
_DEEP = 12  # powers of ten below the largest norm of several runs, from where on everything is as dark as can be
_LEAST = 4.0  # powers of ten that the colours span at least: scatter is not to look like a vanishing gradient


@dataclass(frozen=True)
class Map:
    """Hold what one run recorded, like the norms of its gradient."""

    label: str
    layers: Sequence[str]
    steps: Sequence[float]
    norms: Any  # a row a step
    diverged: bool = False  # then its numbers set no colours, which would take those of all others with them

    @property
    def table(self) -> np.ndarray:
        """Return a row a layer."""
        return np.asarray(self.norms, float).T


def heatmap(
    layers: Sequence[str],
    steps: Sequence[int],
    norms: Sequence[Sequence[float]],
    path: Path,
    layout: Layout = OF_GRADIENTS,
) -> None:
    """Draw `norms`, which holds a row a step, with the input on top."""
    seen, size = _positive(np.asarray(norms, float)), "none is finite and above 0"
    if seen.size:
        size = f"10^{np.log10(seen.max() / seen.min()):.1f} from smallest to largest"
    title = f"{layout.title} by layer" + (f": {size}" if layout.log else "")
    save(partial(heatmaps, [Map(title, layers, steps, norms)], layout=layout), path)


def thinned(one: Map) -> Map:
    """Return a map of evenly spaced steps and layers, where there are more than a picture shows."""
    layers, steps = evenly_spaced(len(one.layers), _TALL), evenly_spaced(len(one.steps), _WIDE)
    norms = np.asarray(one.norms, float)[np.ix_(steps, layers)]
    return replace(one, layers=[one.layers[i] for i in layers], steps=[one.steps[i] for i in steps], norms=norms)


def heatmaps(maps: Sequence[Map], theme: str, layout: Layout = OF_GRADIENTS) -> Figure:
    """Draw the maps of some runs, with more names of layers where there is only one."""
    (down, _), *across = layout.axes.items()
    alone, columns = len(maps) == 1, min(len(maps), 2 if len(maps) <= 4 else 3)
    rows = math.ceil(len(maps) / columns)
    norm = _scale([one for one in maps if not one.diverged] or maps, math.inf if alone else _DEEP, layout.log)
    deepest = max(len(one.layers) for one in maps)
    tall = 1.2 + 0.16 * min(max(deepest, 8), 40) if alone else 1.15 + 0.09 * min(deepest, 16)
    figure = Figure(figsize=(8 if alone else 9, 0.6 + tall * rows), layout="constrained")
    for place, one in enumerate(maps, 1):
        axes = figure.add_subplot(rows, columns, place)
        mesh = _draw(axes, one, norm, theme, layout.log)
        named = evenly_spaced(len(one.layers), 40 if alone else 8)
        axes.set_yticks([i + 0.5 for i in named], cut([one.layers[i] for i in named], 28), fontsize=7 if alone else 6)
        if across:
            ticks = evenly_spaced(len(across[0][1]), 8)
            axes.set_xticks(ticks, [across[0][1][i] for i in ticks], fontsize=7)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.set_title(one.label, fontsize=8, loc="left")
        if place > len(maps) - columns:
            axes.set_xlabel(across[0][0] if across else "optimizer step")
    figure.supylabel("layer (input on top)" if down == "layer" else down, fontsize=9)
    values = np.concatenate([one.table.ravel() for one in maps])
    seen = _positive(values) if layout.log else values[np.isfinite(values)]
    extend = ("neither", "min", "max", "both")[
        int((seen < (norm.vmin or 0)).any()) + 2 * int((seen > (norm.vmax or 0)).any())
    ]
    bar = figure.colorbar(mesh, ax=figure.axes, extend=extend, aspect=12 * rows + 8, label=layout.scale)
    if layout.log:
        label_powers_of_ten(bar.ax.yaxis)
    marks = [Patch(color=EMPTY[theme], label="zero")] if layout.log and (values == 0).any() else []
    marks += [] if np.isfinite(values).all() else [Patch(color=NOT_FINITE, label="not finite")]
    if marks:  # colours that are not on the scale
        figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    positive: np.ndarray = values[np.isfinite(values) & (values > 0)]
    return positive


def _scale(maps: Sequence[Map], most: float, log: bool) -> Normalize:
    """Return colours from the largest number down to the smallest, of logarithms over `_LEAST` to `most` powers of
    ten."""
    values = np.concatenate([one.table.ravel() for one in maps])
    seen = _positive(values) if log else values[np.isfinite(values)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (1.0, 1.0)
    if not log:
        return Normalize(*spanned(low, high))
    return LogNorm(max(min(low, high / 10**_LEAST), high * 10**-most), high)


def _draw(axes: Axes, one: Map, norm: Normalize, theme: str, log: bool) -> QuadMesh:
    """Draw a row a layer. A column reaches halfway to its neighbours, so that the axis ends at the last step."""
    values, steps = one.table, np.asarray(one.steps, float)
    half = 0.0 if len(steps) > 1 else 0.5
    edges = np.concatenate([steps[:1] - half, (steps[1:] + steps[:-1]) / 2, steps[-1:] + half])
    rows, finite = np.arange(len(values) + 1), np.isfinite(values)
    axes.set_facecolor(EMPTY[theme])
    shown = np.where(finite & (values > 0) if log else finite, values, np.nan)
    mesh = axes.pcolormesh(edges, rows, shown, norm=norm, cmap="viridis", rasterized=True)
    if not finite.all():
        axes.pcolormesh(edges, rows, np.where(finite, np.nan, 1.0), cmap=ListedColormap([NOT_FINITE]), rasterized=True)
    axes.invert_yaxis()
    return mesh
