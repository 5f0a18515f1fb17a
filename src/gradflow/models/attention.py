"""Attention, positions, and the blocks that `transformer` and `vit` stack."""

from __future__ import annotations

import math
from abc import ABC
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module
from gradflow.models.checks import one_of, positive, probability
from gradflow.models.init import Init, initialize
from gradflow.models.residual import BranchScale, Residual
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

POSITIONS = ("learned", "sinusoidal", "rotary")


def _angles(length: int, width: int) -> Tensor:
    """Return t / 10000^(2i / width) of each step t and each pair i of numbers, as [length, width / 2]."""
    return torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)


@final
class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V in each of the heads, d numbers wide (Vaswani et al. 2017); x is [B, T, width].

    Query, key, value and output are layers of their own: each is initialised by itself, and stands by itself in the
    tables about layers. With `rotary`, the length of the sequences, queries and keys are turned by their position, so
    that scores depend on distances alone (Su et al. 2021).
    """

    def __init__(self, width: int, heads: int, causal: bool = False, rotary: int = 0) -> None:
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=rotary > 0)  # else it adds the same to all scores of a query
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        angles = _angles(rotary, width // heads)
        self.turn: Tensor
        self.register_buffer("turn", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.in_heads(x)
        y = F.scaled_dot_product_attention(self._turned(query), self._turned(key), value, is_causal=self.causal)
        return self.output(y.transpose(1, 2).flatten(2))

    def rows(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the attention that each step pays to each, as [B, heads, T, T]; rows sum to 1."""
        query, key = self._turned(query), self._turned(key)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return scores.softmax(-1)

    def branch_weights(self) -> list[Tensor]:
        """Return the weights whose size the output's is proportional to: those that DeepNorm scales."""
        return [self.value.weight, self.output.weight]

    def in_heads(self, x: Tensor) -> list[Tensor]:
        """Return queries, keys and values, each as [B, heads, T, d]."""
        layers = (self.query, self.key, self.value)
        return [layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in layers]

    def _turned(self, x: Tensor) -> Tensor:
        """Turn the pair of the i-th number of the first and of the second half by the i-th angle of its step."""
        if not self.rotary:
            return x
        cos, sin = self.turn[:, : x.shape[2]]
        first, second = x.chunk(2, -1)
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
        return turned.to(x.dtype)  # float32 angles turn 16-bit numbers


@final
class Gated(nn.Module):
    """act(gate(x)) · up(x), the start of a gated feed-forward branch: with SiLU that is SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, activation: act.Activation) -> None:
        super().__init__()
        self.gate, self.act, self.up = nn.Linear(width, hidden), act.make(activation), nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.gate(x)) * self.up(x)


@final
class Positions(nn.Module):
    """x + a vector for each step: learned from N(0, 1) on, as large as an embedding, or sines (Vaswani et al. 2017)."""

    def __init__(self, positions: str, length: int, width: int) -> None:
        super().__init__()
        self.learned = nn.Embedding(length, width) if positions == "learned" else None
        angles = _angles(length, width)
        sines = torch.stack([angles.sin(), angles.cos()], -1).flatten(1) if positions == "sinusoidal" else None
        self.sines: Tensor
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.sines if self.learned is None else self.learned.weight
        return x + vectors[: x.shape[1]].to(x.dtype)


@final
class Readout(nn.Module):
    """What the head reads of [B, T, width]: the mean over the steps, or the last of them."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1] if self.last else x.mean(1)


class Transformer(Module, ABC):
    """`depth` blocks of two residual branches each, attention and feed-forward, over a sequence of vectors.

    pre    h ← h + attention(norm(h)),  h ← h + feedforward(norm(h)); a norm stands before the head as well
    post   h ← norm(h + attention(h)),  h ← norm(h + feedforward(h))

    `feedforward` is W₂ φ(W₁ x), 4 times as wide as the stream; with `gated` it is W₂ (φ(W₁ x) · W₃ x), 8/3 times as
    wide, so that it has as many weights. The trunk is the stream after each block. One output a sample is read from the
    mean of the stream over its steps; of a causal net, from the last, which alone has seen all others.
    """

    live = (*Module.live, "embed")

    def __init__(
        self,
        spec: Spec,
        embed: Callable[[Spec, int], Any],  # to [B, length, width]; the module knows its length
        depth: int = 3,
        width: int = 64,
        heads: int = 4,
        causal: bool | None = False,
        positions: str = "learned",
        norm: str = "layer",
        norm_place: str = "pre",
        branch_scale: float | str = "none",
        gated: bool = False,
        dropout: float = 0.0,
        activation: act.Activation = "gelu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        probability(dropout=dropout)
        _check_width(depth, width, heads, positions)
        one_of("norm", norm, ("none", "layer"))
        causal = self.task.causal if causal is None else causal
        scale = BranchScale.of(branch_scale, 2 * depth, norm_place, norm != "none")
        stem = embed(self.spec, width)
        rotary = stem.length if positions == "rotary" else 0
        net: dict[str, nn.Module] = {"embed": stem}
        net |= {} if rotary else {"positions": Positions(positions, stem.length, width)}
        branch = partial(_branch, width, norm, norm_place, scale, dropout)
        self.trunk = [f"block{index + 1}" for index in range(depth)]
        for name in self.trunk:
            attention = branch({"heads": Attention(width, heads, causal, rotary)})
            feedforward = branch(_feedforward(width, gated, activation))
            net[name] = nn.Sequential(OrderedDict(attention=attention, feedforward=feedforward))
        if norm != "none" and norm_place == "pre":
            net["norm"] = nn.LayerNorm(width)
        net |= {} if self.spec.per_step else {"readout": Readout(last=causal)}
        net["head"] = nn.Linear(width, self.spec.outputs)
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _check_width(depth: int, width: int, heads: int, positions: str) -> None:
    positive(depth=depth, width=width, heads=heads)
    one_of("positions", positions, POSITIONS)
    if width % heads:
        raise UserError(f"model.heads={heads}: expected a divisor of model.width={width}")
    pairs = {"learned": 1, "sinusoidal": 2, "rotary": 2 * heads}[positions]
    if width % pairs:
        steps = f"expected model.width in steps of {pairs}"
        raise UserError(f"model.positions={positions}: takes numbers in pairs; {steps}")


def _branch(
    width: int, norm: str, place: str, scale: BranchScale, dropout: float, parts: dict[str, nn.Module]
) -> Residual:
    """Return the parts as a residual branch, its norm first, or after the sum."""
    parts = parts | ({"drop": nn.Dropout(dropout)} if dropout else {})
    norms = {"norm": nn.LayerNorm(width)} if norm != "none" else {}
    ordered, after = (parts | norms, ("norm",)) if place == "post" else (norms | parts, ())
    return Residual(ordered.items(), scale=scale, after=after, channels=(width,))


def _feedforward(width: int, gated: bool, activation: act.Activation) -> dict[str, nn.Module]:
    hidden = round(8 / 3 * width) if gated else 4 * width
    if gated:
        return {"gated": Gated(width, hidden, activation), "down": nn.Linear(hidden, width)}
    return {"up": nn.Linear(width, hidden), "act": act.make(activation), "down": nn.Linear(hidden, width)}
