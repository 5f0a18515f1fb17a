"""A recorded table as a picture, as its layout says: a heat map, or curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gradflow.plots import curves
from gradflow.plots.heatmap import Map, heatmap, heatmaps
from gradflow.plots.layout import Layout
from gradflow.plots.theme import save
from gradflow.plots.thinning import evenly_spaced

Curve = tuple[list[float], list[float]]  # steps and values
Table = tuple[Sequence[str], Sequence[float], Sequence[Sequence[float]]]  # columns, steps, and a row a step


def is_map(layout: Layout) -> bool:
    """Return whether a table is drawn as a heat map: one by layer, or of two axes."""
    return len(layout.axes) == 2 or next(iter(layout.axes)) == "layer"


def map_of(label: str, layout: Layout, names: Sequence[str], steps: Sequence[float], rows: Sequence[Sequence[float]],
           diverged: bool = False) -> Map:  # fmt: skip
    """Return the heat map of a table: layers over steps, or both axes at the last step."""
    if len(layout.axes) == 1:
        return Map(label, names, steps, rows, diverged)
    down, across = layout.axes.values()
    last = np.asarray(rows[-1], float).reshape(len(down), len(across))
    return Map(f"{label}, step {steps[-1]:.0f}", down, range(len(across)), last.T, diverged)


def draw_table(
    layout: Layout, names: Sequence[str], steps: Sequence[float], rows: Sequence[Sequence[float]], path: Path
) -> None:
    """Draw the table of one run."""
    if is_map(layout) and len(layout.axes) == 1:
        heatmap(names, [int(step) for step in steps], rows, path, layout)
    elif is_map(layout):
        save(partial(heatmaps, [map_of(layout.title, layout, names, steps, rows)], layout=layout), path)
    else:
        save(partial(_lines, layout, names, steps, rows), path)


def _lines(
    layout: Layout, names: Sequence[str], steps: Sequence[float], rows: Sequence[Sequence[float]], theme: str
) -> Figure:
    table = np.asarray(rows, float)
    shown = evenly_spaced(len(names), curves.MOST)
    lines = [curves.averaged(names[i], [_finite(steps, table[:, i].tolist())], slot) for slot, i in enumerate(shown)]
    kind = "log" if layout.log else "number"
    panel = curves.Panel(layout.title, "optimizer step", layout.scale, [line for line in lines if line], kind)
    return curves.sheet([panel], theme)


def panels(layout: Layout, entries: Sequence[tuple[str, Sequence[Table]]]) -> list[curves.Panel]:
    """Return a panel for each column of a table, with a line for each entry: a label, and the tables of its runs."""
    kind, found = "log" if layout.log else "number", []
    for column in dict.fromkeys(column for _, own in entries for names, *_ in own for column in names):
        lines = [
            curves.averaged(label, [_curve(column, *table) for table in own if column in table[0]], slot)
            for slot, (label, own) in enumerate(entries)
        ]
        found.append(curves.Panel(column, "optimizer step", layout.scale, [line for line in lines if line], kind))
    return [panel for panel in found if panel.lines][: curves.MOST]


def _curve(column: str, names: Sequence[str], steps: Sequence[float], rows: Sequence[Sequence[float]]) -> Curve:
    return _finite(steps, [row[names.index(column)] for row in rows])


def _finite(steps: Sequence[float], values: Sequence[float]) -> Curve:
    """Return the points of a curve that can be drawn."""
    points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in points], [value for _, value in points]
