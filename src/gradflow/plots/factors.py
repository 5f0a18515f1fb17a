"""What choices do: a matrix over two of them, and the importance of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from gradflow.plots.theme import EMPTY, INK, SERIES, label_powers_of_ten, spanned
from gradflow.plots.thinning import cut

_LIMIT = 6.0  # |log10 gradient ratio| at which the colours end
_LUMINANCE = 0.299, 0.587, 0.114  # of red, green and blue
_LEGIBLE = 12  # rows or columns up to which every cell has its number


@dataclass(frozen=True)
class Matrix:
    """Hold mean, standard deviation and n of a value by two factors' levels."""

    title: str
    unit: str
    rows: Sequence[str]
    columns: Sequence[str]
    down: str
    across: str
    values: Mapping[tuple[str, str], tuple[float, float, int]]  # by row and column
    kind: str  # up | down: which end is better; log_ratio
    replaced: Mapping[tuple[str, str], str]  # text instead of a mean that is nan
    notes: Mapping[tuple[str, str], str] = field(default_factory=dict)  # below the number

    @property
    def means(self) -> np.ndarray:
        """Return rows × columns; nan where there is none."""
        none = (np.nan, np.nan, 0)
        return np.array([[self.values.get((row, column), none)[0] for column in self.columns] for row in self.rows])


def matrices(pair: Sequence[Matrix], theme: str) -> Figure:
    """Draw matrices of the same factors side by side."""
    rows, columns = len(pair[0].rows), len(pair[0].columns)
    width = len(pair) * (1.9 + (1.0 if columns <= 5 else 0.75) * columns)
    size = min(max(width, 6), 14), min(max(1.3 + 0.5 * rows, 2.6), 12)
    figure = Figure(figsize=size, layout="constrained")
    for place, matrix in enumerate(pair, 1):
        _draw(figure, figure.add_subplot(1, len(pair), place), matrix, theme)
    return figure


def _draw(figure: Figure, axes: Axes, matrix: Matrix, theme: str) -> None:
    norm, colour_map = colour_scale(matrix)
    axes.set_facecolor(EMPTY[theme])
    mesh = axes.imshow(np.clip(matrix.means, norm.vmin, norm.vmax), norm=norm, cmap=colour_map, aspect="auto")
    for cell in matrix.values if max(len(matrix.rows), len(matrix.columns)) <= _LEGIBLE else ():
        _write(axes, matrix, cell, mesh)
    axes.set_xticks(range(len(matrix.columns)), [level or "–" for level in cut(matrix.columns, 14)])
    axes.set_yticks(range(len(matrix.rows)), [level or "–" for level in cut(matrix.rows, 18)])
    axes.set_xlabel(matrix.across)
    axes.set_ylabel(matrix.down)
    axes.set_title(matrix.title, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(mesh, ax=axes, label=matrix.unit)
    if isinstance(norm, LogNorm):
        label_powers_of_ten(bar.ax.yaxis)


def colour_scale(matrix: Matrix) -> tuple[Normalize, str]:
    """Return bright for good, logarithmic for a loss over powers of ten; red for vanishing and blue for exploding."""
    if matrix.kind == "log_ratio":
        return TwoSlopeNorm(0, -_LIMIT, _LIMIT), "RdBu"
    name = "viridis" if matrix.kind == "up" else "viridis_r"
    seen = matrix.means[np.isfinite(matrix.means)]
    low, high = spanned(float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    return (LogNorm(low, high) if 0 < 20 * low < high else Normalize(low, high)), name


def _write(axes: Axes, matrix: Matrix, cell: tuple[str, str], mesh: AxesImage) -> None:
    """Write the number of a cell, or why it has none, in black or white."""
    mean, sd, n = matrix.values[cell]
    x, y = matrix.columns.index(cell[1]), matrix.rows.index(cell[0])
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8}
    if np.isnan(mean):
        axes.text(x, y, matrix.replaced.get(cell, "no number"), **style, color="black", style="italic")
        return
    number, spread = f"{mean:+.1f}" if matrix.kind == "log_ratio" else f"{mean:.3g}", f"±{sd:.2g}" if n > 1 else ""
    lines = filter(None, (number, spread, matrix.notes.get(cell, "")))
    bright = np.dot(mesh.to_rgba(np.clip(mean, *mesh.get_clim()))[:3], _LUMINANCE) > 0.5
    axes.text(x, y, "\n".join(lines), **style, color="black" if bright else "white")


def importance(shares: Mapping[str, float], chance: Mapping[str, float], title: str, theme: str) -> Figure:
    """Draw a bar a factor, the largest on top, with a mark at what a factor without effect would show."""
    figure = Figure(figsize=(6.5, 0.9 + 0.3 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    tints = [SERIES[theme][0] if name in chance else EMPTY[theme] for name in shares]
    bars = axes.barh(range(len(shares)), [100 * share for share in shares.values()], color=tints, height=0.66)
    axes.bar_label(bars, fmt="%.0f %%", padding=4, fontsize=8)
    for place, name in enumerate(shares):
        if name in chance:
            axes.plot([100 * chance[name]] * 2, [place - 0.4, place + 0.4], color=INK[theme], lw=1.4)
    axes.set_yticks(range(len(shares)), cut(list(shares), 28))
    axes.invert_yaxis()
    axes.set_xlim(0, max(100 * max(shares.values(), default=1) * 1.12, 10))
    axes.set_xlabel("share of the variance between runs, % (mark: by chance)")
    axes.set_title(title, loc="left")
    axes.grid(axis="x", lw=0.6)
    return figure
