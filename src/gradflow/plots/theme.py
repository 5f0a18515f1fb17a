"""The look of all pictures on disk, in colours that the colour-blind can tell apart (Okabe & Ito)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gradflow import runs

Draw = Callable[[], Figure]
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a", "#7f7f7f")
INK = "#1f2328"
EMPTY = "#c4c8ce"  # of a cell without a number
_PAPER, _FAINT = "#ffffff", "#e3e6ea"
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,  # 2.3026, not 2.6e-4 with +2.3023 in a corner
    "axes.formatter.limits": (-6, 10),  # powers of ten from which a factor stands in a corner
    "text.parse_math": False,  # a $ in the name of a run is a dollar
    "figure.dpi": 130,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), _PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("legend.edgecolor", "grid.color"), _FAINT),
}
DPI = 150  # of a picture on disk
_LEAST = 0.1  # of the largest number, that an axis or a scale of colours spans at least
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def save(draw: Draw, path: Path) -> None:
    """Write a picture into a file."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings(), runs.write_whole(path, "wb") as file:  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph")  # names may be in any script; the font may lack some of it
        figure = draw()
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(file)  # savefig would draw twice


def spanned(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a linear scale, so far apart that what is flat looks flat: a loss of 2.3026 beside 2.3023."""
    short = max(0.0, _LEAST * max(abs(low), abs(high)) - (high - low)) / 2
    return (low - short, high + short) if high > low or short else (low - 1, high + 1)


def power_of_ten(value: float, place: int | None = None) -> str:
    """Return 10⁻³ in plain letters, since mathematics is off."""
    power = math.log10(value) if value > 0 else math.nan
    if math.isnan(power) or abs(power - round(power)) > 1e-6:
        return f"{value:.2g}"
    return f"{value:g}" if -2 <= round(power) <= 2 else "10" + str(round(power)).translate(_RAISED)


def label_powers_of_ten(axis: Axis) -> None:
    """Label a logarithmic axis at its powers of ten; where it spans fewer than two of them, at 2 and 5 as well."""
    low, high = sorted(axis.get_view_interval())
    powers = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1 if low > 0 else 0
    axis.set_major_formatter(FuncFormatter(power_of_ten))
    axis.set_minor_formatter(FuncFormatter(_two_and_five) if powers < 2 else NullFormatter())


def _two_and_five(value: float, place: int | None = None) -> str:
    return power_of_ten(value) if f"{value:e}"[0] in "25" else ""
