"""What choices do: a matrix over two of them, and how much each of several matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from gradflow.plots.phase import LIMIT
from gradflow.plots.theme import NARROW, SERIES, colours, decades

LEAST = 0.1  # of the largest value, that the colours span at least: .600 beside .603 is not black beside yellow
WORDY = 12  # rows or columns up to which every cell tells its number


@dataclass(frozen=True)
class Matrix:
    title: str
    unit: str
    rows: Sequence[str]
    columns: Sequence[str]
    down: str
    across: str
    values: np.ndarray  # rows × columns × (mean, sd, n)
    kind: str  # up | down: which end is better; log_ratio
    troubles: Mapping[tuple[int, int], str]  # instead of a number


def matrices(pair: Sequence[Matrix], theme: str, narrow: bool = False) -> Figure:
    one = pair[0]
    cell = 1.0 if len(one.columns) <= 5 else 0.75
    width = sum(1.9 + cell * len(one.columns) for _ in pair)
    height = 1.3 + 0.5 * len(one.rows)
    wide, tall = min(max(width, 6), 14), min(max(height, 2.6), 12)
    figure = Figure(figsize=(NARROW, tall * len(pair)) if narrow else (wide, tall), layout="constrained")
    for place, matrix in enumerate(pair, 1):
        axes = figure.add_subplot(*(len(pair), 1) if narrow else (1, len(pair)), place)
        draw(axes, matrix, theme)
    return figure


def draw(axes: Axes, matrix: Matrix, theme: str) -> None:
    means = matrix.values[..., 0]
    norm, name = scale(matrix, means)
    shown = np.clip(means, -LIMIT, LIMIT) if matrix.kind == "log_ratio" else means
    axes.set_facecolor(colours(theme)["cell"])
    mesh = axes.imshow(shown, norm=norm, cmap=name, aspect="auto")
    if max(means.shape) <= WORDY:
        for place in np.ndindex(means.shape):
            told(axes, matrix, place, mesh)
    axes.set_xticks(range(len(matrix.columns)), [word[:14] for word in matrix.columns])
    axes.set_yticks(range(len(matrix.rows)), [word[:18] for word in matrix.rows])
    axes.set_xlabel(matrix.across)
    axes.set_ylabel(matrix.down)
    axes.set_title(matrix.title, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    assert axes.figure is not None
    bar = axes.figure.colorbar(mesh, ax=axes, label=matrix.unit)
    if isinstance(norm, LogNorm):
        decades(bar.ax.yaxis)


def scale(matrix: Matrix, means: np.ndarray) -> tuple[Normalize, str]:
    """Bright is good; a loss over decades gets a logarithmic scale; red vanishes and blue explodes."""
    if matrix.kind == "log_ratio":
        return TwoSlopeNorm(0, -LIMIT, LIMIT), "RdBu"
    name = "viridis" if matrix.kind == "up" else "viridis_r"
    seen = means[np.isfinite(means)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    short = LEAST * max(abs(low), abs(high)) - (high - low)
    if short > 0 or low == high:
        low, high = low - (short / 2 or 1), high + (short / 2 or 1)
    return (LogNorm(low, high) if 0 < 20 * low < high else Normalize(low, high)), name


def told(axes: Axes, matrix: Matrix, place: tuple[int, ...], mesh: AxesImage) -> None:
    mean, sd, n = matrix.values[place]
    row, column = place
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
    if np.isnan(n):
        return
    if np.isnan(mean):
        axes.text(column, row, matrix.troubles.get((row, column), "no number"), **style, color="black", style="italic")
        return
    red, green, blue, _ = mesh.cmap(mesh.norm(np.clip(mean, mesh.norm.vmin, mesh.norm.vmax)))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
    words = f"{mean:+.1f}" if matrix.kind == "log_ratio" else f"{mean:.3g}"
    if n > 1:
        words += f"\n±{sd:.2g}"
    axes.text(column, row, words, **style, color="black" if bright else "white")


def bars(
    shares: Mapping[str, float], chance: Mapping[str, float], title: str, theme: str, narrow: bool = False
) -> Figure:
    """A bar a factor, the largest on top, with a mark at what a factor without effect would show."""
    figure = Figure(figsize=(NARROW if narrow else 6.5, 0.9 + 0.3 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names, ink = list(shares), colours(theme)["ink"]
    tints = [SERIES[theme][0] if name in chance else colours(theme)["cell"] for name in names]
    axes.barh(range(len(names)), [100 * shares[name] for name in names], color=tints, height=0.66)
    for place, name in enumerate(names):
        axes.text(100 * shares[name] + 1, place, f"{100 * shares[name]:.0f} %", va="center", fontsize=8)
        if name in chance:
            axes.plot([100 * chance[name]] * 2, [place - 0.4, place + 0.4], color=ink, lw=1.4)
    axes.set_yticks(range(len(names)), [name[:28] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, max(100 * max(shares.values(), default=1) * 1.12, 10))
    axes.set_xlabel("share of the variance between runs, % (mark: by chance)")
    axes.set_title(title, loc="left")
    axes.grid(axis="x", lw=0.6)
    return figure
