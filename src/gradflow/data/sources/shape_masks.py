"""The images of `shapes` with a mask each: which pixels are of which shape."""

from __future__ import annotations

import torch

from gradflow.data.sources.shapes import CLASSES, TEST, TRAIN, render, spec_of
from gradflow.data.sources.source import Source, Split

_PADDING = 255  # what a crop brings into a mask


def shape_masks(size: int, channels: int) -> Source:
    """Eleven classes: 0 is the background, the others are the ten shapes. A bar may hide a part of a shape, and the
    mask is of the whole."""

    def masked(n: int, seed: int) -> Split:
        images, labels, inside = render(n, seed, size, channels)
        return images, ((labels + 1).view(-1, 1, 1) * inside).to(torch.uint8)

    spec = spec_of(size, channels, "segmentation", 1 + len(CLASSES), ignored=_PADDING)
    return Source("shape_masks", spec, load=lambda: {"train": masked(TRAIN, 1), "test": masked(TEST, 2)})
