"""Which of many rows, points or names are shown where there is no room for all."""

from __future__ import annotations

import numpy as np


def evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` positions, evenly spaced, the first and the last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})
