"""MNIST-1D (Greydanus & Kobak 2024, arXiv:2011.14439), which the package mnist1d generates."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

from gradflow.data.packaged import file_in, missing
from gradflow.data.sources.source import Source, Split
from gradflow.data.streams import generators_restored
from gradflow.spec import Spec


def mnist1d() -> Source:
    """4,000 training and 1,000 test sequences of 40 numbers: a stroke a digit, moved, scaled, sheared and noisy.

    The paper has 32 % of the test right with logistic regression, 68 % with an MLP, 94 % with a CNN, 91 % with a GRU.
    """
    if file_in("mnist1d", "data.py") is None:
        raise missing("mnist1d", "mnist1d")
    spec = Spec("sequence", (40, 1), "classification", outputs=10)
    return Source("mnist1d", spec, load=_generated, origin=lambda: {"package": "mnist1d"})


@lru_cache(1)  # jobs of a sweep in one process generate it once
def _generated() -> dict[str, Split]:
    try:
        package: Any = import_module("mnist1d.data")
    except ImportError as error:
        raise missing("mnist1d", f"mnist1d and what it imports ({error})") from error
    with generators_restored():  # the package seeds them
        made = package.make_dataset(package.get_dataset_args())
    return {split: _tensors(made[f"x{end}"], made[f"y{end}"]) for split, end in (("train", ""), ("test", "_test"))}


def _tensors(x: np.ndarray, y: np.ndarray) -> Split:
    return torch.from_numpy(x.astype(np.float32))[..., None], torch.from_numpy(y.astype(np.int64))
