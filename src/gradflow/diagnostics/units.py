"""Dead and saturated units, from the derivative of an activation at what enters it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

_BOUNDED = {nn.Sigmoid: 0.25, nn.Tanh: 1.0, nn.Hardsigmoid: 1 / 6, nn.Hardtanh: 1.0, nn.Softsign: 1.0}  # largest |φ'|
ELEMENTWISE = (
    *_BOUNDED,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Hardswish, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.LogSigmoid, nn.Threshold),
)
_SATURATED = 0.05  # of the largest |φ'|


def dead_and_saturated(phi: nn.Module, entering: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the share of units whose derivative is 0 for every sample, and that of entries with |φ'| below 5 % of its
    largest, where φ is bounded."""
    with torch.enable_grad():
        z = entering.detach().requires_grad_()
        (slope,) = torch.autograd.grad(type(phi).forward(phi, z.clone()).sum(), z)  # may change it in place
    slope = slope.reshape(-1, 1) if slope.ndim < 2 else slope
    unit = 2 if slope.ndim == 3 else 1  # [B, T, F], but [B, F] and [B, C, H, W]
    others = [axis for axis in range(slope.ndim) if axis != unit]
    dead = (vector_norm(slope, math.inf, others) == 0).to(slope.dtype).mean()
    largest = _BOUNDED.get(type(phi))
    return dead, (slope.abs() < _SATURATED * largest).to(slope.dtype).mean() if largest else None
