"""Random numbers by name: each use has a generator of its own, seeded by what the numbers are for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Generator

STREAMS = ("order", "augment", "train", "val", "test", "split", "flip", "mixup", "cutout")  # append only


def entropy(stream: str, *numbers: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([STREAMS.index(stream), *numbers])


def generator(stream: str, *numbers: int) -> Generator:
    """Return a new CPU generator for one use of random numbers; the global one is never touched."""
    (seed,) = entropy(stream, *numbers).generate_state(1)  # torch's generator takes 32 bits
    return Generator().manual_seed(int(seed))


@contextmanager
def generators_restored() -> Iterator[None]:
    """Give Python's and NumPy's global generators, which foreign code draws from and seeds, their states back."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
