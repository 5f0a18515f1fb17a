"""The copy-memory problem (Hochreiter & Schmidhuber 1997, in the form of Arjovsky et al. 2016)."""

from __future__ import annotations

import torch
from torch import Generator

from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_SYMBOLS, _RECALLED = 8, 10  # symbols 1 … 8, of which ten are to be remembered
_BLANK, _GO = 0, _SYMBOLS + 1


def copy_memory(length: int) -> Source:
    """Ten symbols, `length` steps of waiting, the last of them a sign to go; then the ten symbols are to be repeated.

    Inputs and targets have `length` + 20 steps; the target is blank up to the last ten. The best guess without a memory
    is blank and then any symbol: a cross-entropy of 10 ln 8 / (length + 20). The accuracy leaves the blanks out, so
    that such a guess has 1/8 = 0.125.
    """
    if length < 1:
        raise UserError(f"data.length={length}: the copy problem needs at least 1 step of waiting")
    steps = length + 2 * _RECALLED

    def generate(n: int, generator: Generator) -> Split:
        symbols = torch.randint(1, _SYMBOLS + 1, (n, _RECALLED), generator=generator)
        x = torch.full((n, steps), _BLANK)
        x[:, :_RECALLED] = symbols
        x[:, -_RECALLED - 1] = _GO
        y = torch.full((n, steps), _BLANK)
        y[:, -_RECALLED:] = symbols
        return x, y

    spec = Spec("sequence", (steps,), "classification", _SYMBOLS + 1, tokens=_SYMBOLS + 2, per_step=True, blank=_BLANK)
    return Source("copy_memory", spec, generate=generate)
