"""What a probe measured, as a table on the screen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gradflow.plots.thinning import evenly_spaced

_ROWS = 24  # blocks or time steps that a table on the screen shows


def norms_table(
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


def _decade(ratio: float | None) -> str:
    if ratio is None or math.isnan(ratio):
        return "–"
    return f"{math.log10(ratio):+.1f}" if ratio > 0 else "zero"
