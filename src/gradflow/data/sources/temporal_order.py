"""The temporal-order problem (Hochreiter & Schmidhuber 1997, experiment 6a)."""

from __future__ import annotations

import torch
from torch import Generator

from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_DISTRACTORS, _X, _START, _END = 4, 4, 6, 7  # symbols 0 … 3 are distractors, 4 and 5 are X and Y


def temporal_order(length: int) -> Source:
    """A sequence of distractors between a start and an end sign; at two places stands X or Y: in which order?

    The places are random in the second and in the sixth tenth of the `length` steps, where the paper has 10–20 and
    50–60 of 100–110. Four classes: XX, XY, YX, YY. The best constant guess is right in 1/4 of the cases, at a
    cross-entropy of ln 4 = 1.386.
    """
    if length < 10:
        raise UserError(f"data.length={length}: the temporal-order problem needs at least 10 steps")
    tenth = length // 10

    def generate(n: int, generator: Generator) -> Split:
        x = torch.randint(_DISTRACTORS, (n, length), generator=generator)
        x[:, 0], x[:, -1] = _START, _END
        which = torch.randint(2, (n, 2), generator=generator)
        places = torch.randint(tenth, (n, 2), generator=generator) + torch.tensor([tenth, 5 * tenth])
        x.scatter_(1, places, _X + which)
        return x, 2 * which[:, 0] + which[:, 1]

    return Source(
        "temporal_order", Spec("sequence", (length,), "classification", outputs=4, tokens=8), generate=generate
    )
