"""How a table of a run reads, stored beside it as JSON: all that a picture or a report needs to know. No torch here."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradflow import runs
from gradflow.runs.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A table has a row a step, and a column for each entry of its axis, or of two axes, joined by a slash.

    A table by `layer` is drawn as a heat map over the steps, one of two axes as a heat map of its last step, and every
    other as curves.
    """

    axes: Mapping[str, Sequence[str]]
    title: str  # of the quantity: gradient norm
    label: str  # of its scale: ‖∂L/∂W‖ before clipping
    unit: str = ""
    log: bool = False  # on a logarithmic scale
    shown: Sequence[str] = field(default=())  # columns that a picture shows; none: all

    @property
    def columns(self) -> list[str]:
        return ["/".join(entries) for entries in itertools.product(*self.axes.values())]

    @property
    def scale(self) -> str:
        """Return the label, and the unit where there is one."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def write(self, table: Path) -> None:
        runs.write_json(table.with_suffix(runs.LAYOUT), asdict(self))


OF_GRADIENTS = Layout({"layer": ()}, "gradient norm", "‖∂L/∂W‖ before clipping", log=True)  # of runs without a layout


def read_layout(table: Path) -> Layout:
    """Return a table's layout, or raise a UserError that says what is wrong with it: anybody may have written it."""
    file = table.with_suffix(runs.LAYOUT)
    content: dict[str, Any] = runs.read_json(file)
    axes, shown, log = content.get("axes"), content.get("shown", []), content.get("log")
    title, label, unit = texts = [content.get(key, "") for key in ("title", "label", "unit")]
    named = isinstance(axes, dict) and len(axes) in (1, 2) and all(map(_are_texts, axes.values()))
    if not isinstance(axes, dict) or not named or not all(map(_are_texts, (shown, texts))) or not isinstance(log, bool):
        raise UserError(f"{file}: expected one or two axes with the names of their entries, title, label, unit and log")
    return Layout(axes, title, label, unit, log, shown)


def layouts_of(run: Path) -> dict[str, Layout]:
    """Return how a run's tables read, by name; earlier versions wrote gradients.csv and no layout. What has a damaged
    layout, or a name that makes no file of a report, is left out."""
    found = {Path(runs.GRADIENTS).stem: OF_GRADIENTS} if (run / runs.GRADIENTS).is_file() else {}
    for table in [file for file in sorted(run.glob("*.csv")) if re.fullmatch(r"\w{1,64}", file.stem)]:
        with suppress(UserError):
            found[table.stem] = read_layout(table)
    return found


def _are_texts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(one, str) for one in content)


def _fits(layout: Layout, columns: Sequence[str]) -> bool:
    """Return whether these are a layout's columns; they are counted first, since a stranger may ask for any number."""
    return math.prod(map(len, layout.axes.values())) == len(columns) and layout.columns == list(columns)


Rows = tuple[list[float], list[list[float]]]  # steps, and a row of numbers for each


def chosen(layout: Layout, names: Sequence[str], rows: Sequence[Sequence[float]]) -> tuple[list[str], Rows]:
    """Return the columns that a picture shows, the steps, and those columns' numbers, of a table as it was read."""
    wanted = set(layout.shown or names[1:])
    places = [place for place, name in enumerate(names) if place and name in wanted]
    whole = [row for row in rows if len(row) == len(names) and math.isfinite(row[0])]
    if len(layout.axes) == 2 and not _fits(layout, names[1:]):
        whole = []  # the table of another layout
    return [names[place] for place in places], ([row[0] for row in whole], [[row[p] for p in places] for row in whole])
