"""Values from files that anybody may have written: what has not the expected type becomes empty or nan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


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
    """Return one spelling for one value: 1e-3 is 0.001, True is true, and lists have no spaces."""
    if value in ("True", "False"):
        return value.lower()
    if value.startswith("["):
        return value.replace(" ", "")
    try:
        return f"{float(value):.10g}" if "_" not in value else value
    except ValueError:
        return value


def flattened(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each dotted key of a nested mapping with its value."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, normalised(text(content))
