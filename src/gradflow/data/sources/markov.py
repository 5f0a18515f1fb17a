"""Text of a Markov chain: each symbol depends on the one before it, and the best possible loss is known."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_SHARPNESS = 2.0  # standard deviation of the logarithms of the transitions, which are the same in every run


def markov(symbols: int, length: int) -> Source:
    """Sequences of `length` + 1 symbols from the stationary chain; the target of each step is the next symbol.

    No model has a cross-entropy below the chain's entropy rate, −Σ π_i P_ij ln P_ij, which one that has learnt P
    reaches. The best guess without the input is π, at its entropy: 1.447 against 0.814 for 8 symbols.
    """
    if symbols < 2 or length < 1:
        raise UserError(f"data.symbols={symbols}, data.length={length}: expected 2 or more, and 1 or more")
    chances = transitions(symbols)
    start = stationary(chances)

    def generate(n: int, generator: Generator) -> Split:
        text = torch.multinomial(start, n, replacement=True, generator=generator)[:, None].repeat(1, length + 1)
        uniform = torch.rand(n, length, generator=generator, dtype=torch.double)
        below = chances.cumsum(1)[:, :-1].contiguous()  # the inverse of the distribution of the next symbol
        for step in range(length):
            text[:, step + 1] = (uniform[:, step, None] >= below[text[:, step]]).sum(1)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    spec = Spec("sequence", (length,), "next_token", outputs=symbols, tokens=symbols, per_step=True)
    return Source("markov", spec, generate=generate)


def transitions(symbols: int) -> Tensor:
    """Return P [symbols, symbols]: a row holds the chances of what follows a symbol."""
    noise = torch.randn(symbols, symbols, generator=Generator().manual_seed(0), dtype=torch.double)
    return (_SHARPNESS * noise).softmax(1)


def stationary(chances: Tensor) -> Tensor:
    """Return π with π P = π: the solution of (Pᵀ − 1) π = 0 and Σ π = 1."""
    size = len(chances)
    equations = torch.cat([chances.T - torch.eye(size), torch.ones(1, size)]).double()
    right = torch.zeros(size + 1, 1, dtype=torch.double)
    right[-1] = 1
    solution: Tensor = torch.linalg.lstsq(equations, right).solution
    return solution[:, 0]
