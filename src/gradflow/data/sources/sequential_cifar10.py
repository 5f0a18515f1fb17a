"""CIFAR-10 pixel by pixel: 1024 steps of three colours (the sequential CIFAR-10 of Trinh et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gradflow.data.sources.cifar10 import cifar10
from gradflow.data.sources.source import Source, Split
from gradflow.spec import Spec


def sequential_cifar10(root: str, cache: str | None = None) -> Source:
    """The pixels in reading order; `data=cifar10` gives recurrent models the image row by row."""
    images = cifar10(root, cache)

    def load() -> Mapping[str, Split]:
        assert images.load
        return {split: (x.flatten(2).transpose(1, 2), y) for split, (x, y) in images.load().items()}

    spec = Spec("sequence", (32 * 32, 3), "classification", outputs=10)
    return replace(images, name="sequential_cifar10", spec=spec, load=load)
