"""h_t = a_t h_{t−1} + b_t for all t at once, from h = 0, in 2 log₂ T steps over whole tensors.

Each step of the recursion joins two neighbours into one, (a₂, b₂) after (a₁, b₁) being (a₂ a₁, a₂ b₁ + b₂), so that all
steps together cost as much as one over twice the length (Blelloch 1990). Nothing is divided and no logarithm is taken:
with 0 <= a <= 1 it is as exact as the loop over time, also where a product of many a is too small for the number type.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """Return the states [B, T, H] of h_t = a_t h_{t−1} + b_t with h before the first step at 0."""
    states: Tensor = _LinearRecurrence.apply(a, b)
    return states


@final
class _LinearRecurrence(torch.autograd.Function):
    """Its gradient is a recurrence backwards in time. Kept for it are a and h alone, not each step of the recursion."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        h = _scan(a, b)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        kept = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)  # δ_t = dL/dh_t + a_{t+1} δ_{t+1}
        delta = _scan(kept.flip(1), gradient.flip(1)).flip(1)
        before = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1)
        return delta * before, delta


def _scan(a: Tensor, b: Tensor) -> Tensor:
    steps = b.shape[1]
    if steps == 1:
        return b
    pairs = 2 * (steps // 2)
    a1, a2, b1, b2 = a[:, 0:pairs:2], a[:, 1:pairs:2], b[:, 0:pairs:2], b[:, 1:pairs:2]
    second = _scan(a2 * a1, torch.addcmul(b2, a2, b1))  # the states after each pair
    h = torch.empty_like(b)
    h[:, 1:pairs:2] = second
    h[:, 0] = b[:, 0]
    h[:, 2::2] = torch.addcmul(b[:, 2::2], a[:, 2::2], second[:, : (steps - 1) // 2])
    return h
