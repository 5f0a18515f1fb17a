"""Gradient norms of layers, with one transfer to the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradflow.diagnostics.isolation import wide


@torch.no_grad()
def gradient_norms(layers: Mapping[str, Sequence[nn.Parameter]], scale: float | Tensor = 1.0) -> Tensor:
    """Return ‖g‖₂ of each layer, on the device, divided by `scale`; a layer that the loss did not reach has 0.

    Squares are summed in float64: float32 loses gradients below 1e-23, which deep sigmoid nets do have. Devices without
    float64 (Apple's) use float32.
    """
    reached = [(index, p.grad) for index, own in enumerate(layers.values()) for p in own if p.grad is not None]
    like = next(p for own in layers.values() for p in own)
    squares = torch.zeros(len(layers), dtype=wide(like), device=like.device)
    if reached:
        owner = torch.tensor([index for index, _ in reached]).to(like.device, non_blocking=True)
        squares.index_add_(0, owner, norms_of([gradient for _, gradient in reached], wide(like)).square_())
    return squares.sqrt_().div_(scale)


_SMALL, _TINY, _HUGE = 2**16, 1e-12, 1e15  # elements; norms between which squares in float32 are safe


@torch.no_grad()
def norms_of(gradients: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the norm of each tensor, which is finite where the tensor is: in float64 no square overflows.

    On a CPU the conversion to float64 takes most of the time; where no tensor is large and no norm near the ends of
    float32, its norms are right to 1e-7.
    """
    if all(g.dtype is torch.float32 and g.device.type == "cpu" and g.numel() <= _SMALL for g in gradients):
        quick = torch.stack(torch._foreach_norm(gradients))
        if quick.numpy().min() > _TINY and quick.numpy().max() < _HUGE:
            return quick.to(dtype)
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype))


@torch.no_grad()
def update_ratios(before: Mapping[str, Sequence[Tensor]], after: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """Return ‖ΔW‖ / ‖W‖ of each layer's weights, on the device; nan where they are all zero."""
    old, new = ([tensor for own in table.values() for tensor in own] for table in (before, after))
    owner = torch.tensor([index for index, own in enumerate(before.values()) for _ in own])
    norms = torch.stack([*torch._foreach_norm(torch._foreach_sub(new, old)), *torch._foreach_norm(old)]).float()
    squares = norms.new_zeros(2, len(before))
    squares.index_add_(1, owner.to(norms.device, non_blocking=True), norms.square().view(2, -1))
    return (squares[0] / squares[1]).sqrt().nan_to_num(nan=math.nan, posinf=math.nan)


def total(norms: Sequence[float]) -> float:
    """Return the norm of the whole gradient from those of its parts."""
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


def clip_coefficient(norm: float, limit: float | None) -> float:
    """Return what `torch.nn.utils.clip_grad_norm_` multiplies a gradient of this norm with, at most 1."""
    if not limit or math.isnan(norm):
        return 1.0 if not limit else math.nan
    return min(1.0, limit / (norm + 1e-6))
