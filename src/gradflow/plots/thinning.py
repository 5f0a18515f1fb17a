"""Which of many rows, points or names are shown where there is no room for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` positions, evenly spaced, the first and the last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})


def cut(names: Sequence[str], most: int) -> list[str]:
    """Return names of at most `most` (3 or more) letters, without their middle; those that look alike stay whole."""
    head = most // 2
    short = [name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}" for name in names]
    return [whole if short.count(name) > 1 else name for name, whole in zip(short, names, strict=True)]
