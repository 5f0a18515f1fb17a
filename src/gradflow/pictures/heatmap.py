"""Gradient norm by layer and step, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradflow.pictures.theme import save

LEGIBLE = 40  # layer names that fit beside the picture; of more, some are shown


def heatmap(layers: Sequence[str], steps: Sequence[int], norms: Sequence[Sequence[float]], path: Path) -> None:
    """`norms` holds a row a step. The input is on top; zeros and non-finite values are grey."""
    values = np.asarray(norms, dtype=float).T
    seen = values[np.isfinite(values) & (values > 0)]
    low, high = (seen.min(), seen.max()) if seen.size else (1.0, 1.0)
    figure = Figure(figsize=(8, 1.8 + 0.16 * min(max(len(layers), 8), LEGIBLE)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.8")
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    edges = np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))
    scale = LogNorm(low, high if high > low else low * 10)
    mesh = axes.pcolormesh(edges, np.arange(len(layers) + 1), shown, norm=scale, cmap="viridis", rasterized=True)
    axes.invert_yaxis()
    labelled = spread(len(layers), LEGIBLE)
    axes.set_yticks([index + 0.5 for index in labelled], [layers[index] for index in labelled], fontsize=7)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer (input on top)")
    axes.set_title(f"gradient norm by layer: {np.log10(high / low):.1f} decades from darkest to brightest", fontsize=10)
    figure.colorbar(mesh, label="‖dL/dW‖ of a layer, before clipping")
    save(figure, path)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, evenly spaced, the first and the last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, most))})
