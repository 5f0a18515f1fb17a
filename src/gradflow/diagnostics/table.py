"""What a probe measured, as a table on the screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from torch import nn

from gradflow.diagnostics.verdict import superscript
from gradflow.plots.thinning import evenly_spaced
from gradflow.runs.errors import wrapped
from gradflow.runs.screen import Screen

_ROWS = 24  # blocks, layers or time steps that a table on the screen shows; of more, evenly spaced ones
_WHOLE = 34  # letters of a layer's name, with which the table still fits 80 columns
_BAR = 10  # letters
_LEAST = 4.0  # log₁₀ that a bar spans at least, so that layers within a factor of ten look alike
COLOURS = {"OK": "bold green", "CAUTION": "bold yellow", "FAIL": "bold red"}  # of a verdict


def _norms_table(
    title: str,
    names: Sequence[str],
    norms: Sequence[float],
    predicted: Sequence[float | None] | None,
    rms: Sequence[float] | None = None,
) -> Table:
    """Norms, decades below or above the last place, and the same as theory has them."""
    shown = Table(title, box=SIMPLE_HEAD)
    columns = ["‖dL/dh‖" if title == "block" else "‖dL/dx‖", "log₁₀ to last"]
    columns += ["theory"] if predicted else []
    columns += ["rms of h"] if rms else []
    for column in columns:
        shown.add_column(column, justify="right")
    for index in evenly_spaced(len(names), _ROWS):
        cells = [f"{norms[index]:.1e}", _decade(norms[index] / norms[-1] if norms[-1] else math.nan)]
        cells += [_decade(predicted[index])] if predicted else []
        cells += [f"{rms[index]:.2g}"] if rms else []
        shown.add_row(names[index], *cells)
    return shown


def print_norms(console: Screen, profile: Mapping[str, Any], theory: Mapping[str, Any]) -> None:
    """Print the norms by depth and by time, those that a profile as plain data has."""
    if len(profile["gradient"]) > 1:
        shown = _norms_table("block", profile["trunk"], profile["gradient"], theory["gradient"], profile["rms"])
        console.print(shown)
    if profile["time"]:
        steps = [f"step {number + 1}" for number in range(len(profile["time"]))]
        console.print(_norms_table("time", steps, profile["time"], theory["time"]))


def _decade(ratio: float | None) -> str:
    if ratio is None or math.isnan(ratio):
        return "–"
    return f"{math.log10(ratio):+.1f}" if ratio > 0 else "zero"


def print_gradients(
    console: Screen, layers: Sequence[str], steps: Sequence[Mapping[str, float]], whole: bool = False
) -> None:
    """Print the layers' gradient norms at some logged steps, with bars that are long where the norm is large."""
    uncut = max(map(len, layers)) <= _WHOLE
    table = Table(Column("gradient norm", overflow="fold", no_wrap=uncut), box=SIMPLE_HEAD)  # cut, two could look alike
    tops = [max((row[name] for name in layers if math.isfinite(row[name])), default=0.0) for row in steps]
    both = list(zip(steps, tops, strict=True))
    below = [math.log10(top / row[name]) for row, top in both for name in layers if 0 < row[name] <= top]
    span = max([_LEAST, *below])
    for row in steps:
        table.add_column(f"step {row['step']:.0f}", min_width=8 + _BAR)
    chosen = [layers[index] for index in evenly_spaced(len(layers), len(layers) if whole else _ROWS)]
    for name in chosen:
        table.add_row(name, *(f"{row[name]:.1e} {_bar(row[name], top, span)}" for row, top in both))
    console.print(table)
    note = f"bars: log₁₀ of the norm, full at the step's largest, empty at 10{superscript(-span)} of it"
    if len(chosen) < len(layers):
        note += f"; {len(chosen)} of {len(layers)} layers, summary=full shows all"
    console.print(f"{wrapped(note)}\n", soft_wrap=True)


def _bar(norm: float, largest: float, span: float) -> str:
    if not norm > 0 or not math.isfinite(norm):
        return "zero" if norm == 0 else "not finite"
    halves = round(2 * _BAR * (1 - math.log10(largest / norm) / span))
    return "━" * (halves // 2) + "╸" * (halves % 2)


def parameters_table(layers: Mapping[str, Sequence[nn.Parameter]], trunk: Sequence[str], whole: bool = False) -> Table:
    """Return the parameters by block of the trunk, neighbours of the same shapes in one row; or the whole by layer."""

    def block(layer: str) -> str:
        name = layer.partition(".")[2]
        return layer if whole else next((one for one in trunk if name.startswith(f"{one}.")), name.partition(".")[0])

    blocks = [
        (name, [tuple(p.shape) for layer in members for p in layers[layer]])
        for name, members in groupby(layers, key=block)
    ]
    rows = []
    for _, neighbours in groupby(blocks, key=lambda one: one[0] if whole else one[1]):
        (first, shapes), *others = neighbours
        name = f"{first} … {others[-1][0]}" if others else first
        matrices = ", ".join("×".join(map(str, shape)) for shape in shapes if len(shape) > 1)
        times = f"{1 + len(others)} × " if others else ""
        rows.append((name, matrices, f"{times}{sum(map(math.prod, shapes)):,}"))
    columns = Column("block", overflow="fold"), Column("weights", no_wrap=True), Column("parameters", justify="right")
    table = Table(*columns, box=SIMPLE_HEAD)
    shown = evenly_spaced(len(rows), len(rows) if whole else _ROWS)
    for index in shown:
        table.add_row(*rows[index])
    if len(shown) < len(rows):
        table.add_row(f"{len(shown)} of {len(rows)} rows; summary=full shows all")
    return table
