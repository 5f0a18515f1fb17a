"""How the pictures of a report look: light and dark, in colours that the colour-blind can tell apart (Okabe & Ito)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gradflow import runs

Draw = Callable[[str, bool], Figure]
NARROW = 4.6  # inches, of a picture for a phone
SHARED = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a $ in the name of a run is a dollar
    "figure.dpi": 130,
}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SERIES = {
    "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a", "#7f7f7f"),
    "dark": ("#56B4E9", "#E69F00", "#2fbf97", "#CC79A7", "#F0803C", "#F0E442", "#ffffff", "#9a9a9a"),
}


def colours(theme: str) -> dict[str, str]:
    ink, paper, faint, cell = (
        ("#1f2328", "#ffffff", "#e3e6ea", "#c4c8ce")
        if theme == "light"
        else ("#e6e8eb", "#16191e", "#32373f", "#4a505a")
    )
    return {"ink": ink, "paper": paper, "faint": faint, "cell": cell}


def style(theme: str) -> dict[str, Any]:
    own = colours(theme)
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **SHARED,
        **dict.fromkeys(inked, own["ink"]),
        "axes.titlecolor": own["ink"],
        "figure.facecolor": own["paper"],
        "axes.facecolor": own["paper"],
        "savefig.facecolor": own["paper"],
        "legend.facecolor": own["paper"],
        "legend.edgecolor": own["faint"],
        "grid.color": own["faint"],
    }


def decade(value: float, place: int | None = None) -> str:
    """10⁻³ in plain letters, since mathematics is off."""
    power = math.log10(value) if value > 0 else math.nan
    if math.isnan(power) or abs(power - round(power)) > 1e-6:
        return f"{value:.2g}"
    return f"{value:g}" if -2 <= round(power) <= 2 else "10" + str(round(power)).translate(RAISED)


def decades(axis: Axis) -> None:
    """Labels of a logarithmic axis: its powers of ten; where it spans fewer than two of them, 2 and 5 as well."""
    low, high = sorted(axis.get_view_interval())
    powers = math.floor(math.log10(high)) - math.ceil(math.log10(low)) + 1 if low > 0 else 0
    axis.set_major_formatter(FuncFormatter(decade))
    axis.set_minor_formatter(FuncFormatter(between) if powers < 2 else NullFormatter())


def between(value: float, place: int | None = None) -> str:
    return decade(value) if f"{value:e}"[0] in "25" else ""


def save(figure: Figure, path: Path) -> None:
    with runs.write_whole(path, "wb") as file:
        figure.savefig(file, dpi=150)


def png(draw: Draw, theme: str, narrow: bool = False) -> bytes:
    """`draw` is told the theme, for the colours that it chooses itself, and whether it is for a phone."""
    with matplotlib.rc_context(style(theme)), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph")  # names may be in any script; the font may lack some of it
        buffer = io.BytesIO()
        figure = draw(theme, narrow)
        FigureCanvasAgg(figure).print_png(buffer)  # savefig would draw twice
        figure.clear()  # its parts hold each other; what they weigh is not to add up over a page
    return buffer.getvalue()
