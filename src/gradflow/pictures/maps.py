"""Gradient norm by layer and step of several runs, side by side on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.pictures.heatmap import spread
from gradflow.pictures.theme import NARROW, colours, decades

MOST = 12  # runs that are drawn
NAMES = 8  # layers that are named beside one map
WIDE, TALL = 240, 120  # steps and layers of a map; of more, evenly spaced ones
DEEP = 1e-12  # of the largest norm: below it everything is as dark as can be


@dataclass(frozen=True)
class Map:
    label: str
    layers: Sequence[str]
    steps: Sequence[float]
    norms: Sequence[Sequence[float]]  # a row a step
    sound: bool = True  # False: its numbers run away, and would take the colours of all others with them

    def values(self) -> np.ndarray:
        """A row a layer, nan for zeros and what is not finite."""
        table = np.asarray(self.norms, dtype=float).T
        return np.where(np.isfinite(table) & (table > 0), table, np.nan)


def thinned(one: Map) -> Map:
    layers, steps = spread(len(one.layers), TALL), spread(len(one.steps), WIDE)
    norms = [[one.norms[step][layer] for layer in layers] for step in steps]
    return replace(
        one, layers=[one.layers[layer] for layer in layers], steps=[one.steps[step] for step in steps], norms=norms
    )


def scale(maps: Sequence[Map]) -> LogNorm:
    """One for all, of the runs that did not diverge where there are any."""
    sound = [one for one in maps if one.sound] or maps
    seen = np.concatenate([one.values().ravel() for one in sound])
    seen = seen[np.isfinite(seen)]
    high = float(seen.max()) if seen.size else 1.0
    low = max(float(seen.min()), high * DEEP) if seen.size else 0.1
    return LogNorm(low, high if high > low else low * 10)


def heatmaps(maps: Sequence[Map], theme: str, narrow: bool = False) -> Figure:
    columns = 1 if narrow or len(maps) == 1 else 2 if len(maps) <= 4 else 3
    rows, norm = math.ceil(len(maps) / columns), scale(maps)
    tallest = 1.15 + 0.09 * min(max(len(one.layers) for one in maps), 16)
    figure = Figure(
        figsize=(NARROW if narrow else 6.5 if columns == 1 else 9, 0.6 + tallest * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(maps) :]:
        axes.remove()
    mesh, below, above = None, False, False
    for place, (axes, one) in enumerate(zip(grid.flat, maps, strict=False)):
        axes.set_facecolor(colours(theme)["cell"])
        values, steps = one.values(), list(one.steps)
        edges = np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))
        mesh = axes.pcolormesh(edges, np.arange(len(values) + 1), values, norm=norm, cmap="viridis")
        below, above = below or bool((values < norm.vmin).any()), above or bool((values > norm.vmax).any())
        axes.invert_yaxis()
        labelled = spread(len(one.layers), NAMES)
        axes.set_yticks([index + 0.5 for index in labelled], [one.layers[i][:18] for i in labelled], fontsize=6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.set_title(one.label, fontsize=8, loc="left")
        if place >= len(maps) - columns:
            axes.set_xlabel("optimizer step")
    figure.supylabel("layer (input on top)", fontsize=9)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    used = [axes for axes in figure.axes if axes.get_visible()]
    bar = figure.colorbar(mesh, ax=used, extend=extend, aspect=12 * rows + 8)  # type: ignore[arg-type]
    decades(bar.ax.yaxis)
    bar.set_label("‖dL/dW‖")
    return figure
