"""Values from files that anybody may have written: what has not the expected type becomes empty or nan."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError, csv.Error)


def mapping(content: Any) -> dict[str, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return content if isinstance(content, dict) else {}


def number(content: Any) -> float:
    """Return a finite number, and nan for anything else: JSON's null stands for nan and the infinities."""
    try:
        return float(content) if type(content) in (int, float) and math.isfinite(content) else math.nan
    except OverflowError:
        return math.nan


def numbers(content: Any) -> list[float]:
    """Return a list of numbers, and an empty one for anything else."""
    return [number(one) for one in content] if isinstance(content, list) else []


def text(content: Any) -> str:
    """Return the text of a scalar; None has none."""
    return "" if content is None else str(content)


def normalised(value: str) -> str:
    """Return one spelling for one value: 1e-3 is 0.001, 100000000 is 1e8, True is true, and lists have no spaces."""
    if value in ("True", "False"):
        return value.lower()
    if value.startswith("["):
        return value.replace(" ", "")
    try:
        number = float(value)
    except ValueError:
        return value
    large = 1e6 <= abs(number) < 1e10 and number % 1e5 == 0
    return value if "_" in value else shortened(re.sub(r"\.?0+(?=e)", "", f"{number:e}") if large else f"{number:.10g}")


def shortened(number: str) -> str:
    """Return the text of a number without what its power of ten can do without: 1e8 for 1e+08."""
    return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", number)


def flattened(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each dotted key of a nested mapping with its value."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, normalised(text(content))


def read_lines(path: Path, head: bool = False) -> tuple[list[str], list[str]]:
    """Return the columns' names and the lines of a table of numbers, or no line but the `head`."""
    with suppress(*DAMAGE), path.open(newline="", encoding="utf-8") as file:
        names = next(csv.reader(file), [])
        return names, [] if head else [line for line in file.read().splitlines() if line]
    return [], []


def number_in(cell: str) -> float:
    """Return a cell's number; nan for an empty or a damaged one."""
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan
