"""What a probe measured, as a table on the screen, and sentences that fit the terminal. No torch here."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradflow.plots.thinning import evenly_spaced

_ROWS = 24  # blocks or time steps that a table on the screen shows
COLOURS = {"OK": "bold green", "CAUTION": "bold yellow", "FAIL": "bold red"}  # of a verdict


def wrapped(text: str, indent: int = 0, spare: int = 0) -> str:
    """Return a text in lines that fit the terminal, broken between words; in one where stdout is none."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns - spare
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, width, subsequent_indent=" " * indent, **options)  # type: ignore[arg-type]


def print_row(console: Console, name: str, text: str, style: str = "", margin: int = 12) -> None:
    """Print a text behind its name. The style is that of a verdict's first word, or of a link."""
    line = Text(wrapped(name.ljust(margin) + text, margin))
    line.stylize(style, margin, None if "link" in style else margin + len(text.split()[0]))
    console.print(line, soft_wrap=True)


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
