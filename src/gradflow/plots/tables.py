"""A recorded table as a picture, as its layout says: a heat map, or curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gradflow.plots import curves
from gradflow.plots.heatmap import heatmap, heatmap_at
from gradflow.plots.layout import Layout
from gradflow.plots.theme import save
from gradflow.plots.thinning import evenly_spaced


def draw_table(
    layout: Layout, names: Sequence[str], steps: Sequence[float], rows: Sequence[Sequence[float]], path: Path
) -> None:
    """Draw the table of one run: layers over steps, both axes at the last step, or a line a column."""
    if len(layout.axes) == 2:
        heatmap_at(steps[-1], rows[-1], path, layout)
    elif "layer" in layout.axes:
        heatmap(names, steps, rows, path, layout)
    else:
        save(partial(_lines, layout, names, steps, rows), path)


def _lines(layout: Layout, names: Sequence[str], steps: Sequence[float], rows: Sequence[Sequence[float]]) -> Figure:
    table, shown = np.asarray(rows, float), evenly_spaced(len(names), curves.MOST)
    lines = [curves.line(names[column], steps, table[:, column], slot) for slot, column in enumerate(shown)]
    kind = "log" if layout.log else "number"
    panel = curves.Panel(layout.title, "optimizer step", layout.scale, [line for line in lines if line.x.size], kind)
    return curves.sheet([panel])
