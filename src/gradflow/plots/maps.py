"""Gradient norm by layer and step of several runs, side by side on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.plots.heatmap import draw, explain, positive, scale, spread
from gradflow.plots.theme import NARROW, colours, decades

MOST = 12  # runs that are drawn
NAMES = 8  # layers that are named beside one map
WIDE, TALL = 240, 120  # steps and layers of a map; of more, evenly spaced ones
DEEP = 12  # decades below the largest norm, from where on everything is as dark as can be


@dataclass(frozen=True)
class Map:
    label: str
    layers: Sequence[str]
    steps: Sequence[float]
    norms: Sequence[Sequence[float]]  # a row a step
    sound: bool = True  # False: its numbers run away, and would take the colours of all others with them

    def values(self) -> np.ndarray:
        """A row a layer."""
        return np.asarray(self.norms, dtype=float).T


def thinned(one: Map) -> Map:
    layers, steps = spread(len(one.layers), TALL), spread(len(one.steps), WIDE)
    norms = [[one.norms[step][layer] for layer in layers] for step in steps]
    return replace(
        one, layers=[one.layers[layer] for layer in layers], steps=[one.steps[step] for step in steps], norms=norms
    )


def heatmaps(maps: Sequence[Map], theme: str, narrow: bool = False) -> Figure:
    columns = 1 if narrow or len(maps) == 1 else 2 if len(maps) <= 4 else 3
    rows, tables = math.ceil(len(maps) / columns), [one.values() for one in maps]
    sound = [table for one, table in zip(maps, tables, strict=True) if one.sound] or tables
    norm, zero = scale(np.concatenate([table.ravel() for table in sound]), DEEP), colours(theme)["cell"]
    tallest = 1.15 + 0.09 * min(max(len(one.layers) for one in maps), 16)
    figure = Figure(
        figsize=(NARROW if narrow else 6.5 if columns == 1 else 9, 0.6 + tallest * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(maps) :]:
        axes.remove()
    mesh, below, above = None, False, False
    for place, (axes, one, values) in enumerate(zip(grid.flat, maps, tables, strict=False)):
        mesh = draw(axes, one.steps, values, norm, zero)
        seen = positive(values)
        below, above = below or bool((seen < norm.vmin).any()), above or bool((seen > norm.vmax).any())
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
    explain(figure, tables, zero)
    return figure
