"""The adding problem (Hochreiter & Schmidhuber 1997, in the form of Le et al. 2015)."""

from __future__ import annotations

import torch
from torch import Generator

from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def adding(length: int) -> Source:
    """At each of `length` steps a number from U(0, 1) and a marker; the target is the sum of the two marked numbers.

    One marker stands in the first half, one in the second. The best constant guess is 1, with a mean squared error of
    1/6 = 0.167, the variance of the sum of two uniform numbers.
    """
    if length < 2:
        raise UserError(f"data.length={length}: the adding problem needs at least 2 steps")

    def generate(n: int, generator: Generator) -> Split:
        numbers = torch.rand(n, length, generator=generator)
        half = length // 2
        first = torch.randint(half, (n, 1), generator=generator)
        second = torch.randint(half, length, (n, 1), generator=generator)
        marks = torch.zeros(n, length).scatter_(1, torch.cat([first, second], 1), 1.0)
        return torch.stack([numbers, marks], 2), (numbers * marks).sum(1, keepdim=True)

    return Source("adding", Spec("sequence", (length, 2), "regression", outputs=1), generate=generate)
