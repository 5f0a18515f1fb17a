"""1,797 handwritten digits of 8×8 pixels in 17 shades (Alpaydin & Kaynak 1998), which scikit-learn holds."""

from __future__ import annotations

from gradflow.data.packaged import file_in, labelled_images
from gradflow.data.sources.source import Source


def digits() -> Source:
    """They have no test split of their own: `data.test` holds out the same ones in every run."""
    return labelled_images("digits", "scikit-learn", file_in("sklearn", "datasets/data/digits.csv.gz"), size=8, top=16)
