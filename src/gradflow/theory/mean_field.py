"""Mean-field theory of signal and gradient in wide random networks, computed for any elementwise activation φ.

W_ij ~ N(0, σ_w²/n) and b ~ N(0, σ_b²), so a pre-activation is √q z with z ~ N(0, 1) (Poole et al. 2016). χ is the
factor of the *squared* gradient norm a layer, as papers write it (Schoenholz et al. 2017); elsewhere we print √χ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_NOTHING, EVERYTHING = 1e-12, 1e12  # a second moment below (without any offset) or above counts as 0 or inf
_WEIGHTS = (0.05, 50.0)  # the σ_w among which `critical` looks


class Moments(NamedTuple):
    mean: float  # E[φ]
    square: float  # E[φ²]
    slope: float  # E[φ'²]


def moments(phi: nn.Module, q: float) -> Moments:
    """Return Gaussian averages of φ(√q z), to 1e-9 or better.

    Gauss–Legendre on panels with edges at 0, ±2^k and ±1.5·2^k of √q z: where torch's φ bend (0, 1, 3, 6) and at every
    scale between that of φ and that of q, which Gauss–Hermite misses at large q and at kinks. q = 0 is the limit q → 0,
    where a kink at 0 counts with the mean of its squared slopes. Several slopes (PReLU) are averaged.
    """
    if not 0 <= q < math.inf:
        raise ValueError(f"q={q}: expected a finite second moment, 0 or more")
    if q == 0:
        value, _ = evaluate(phi, torch.zeros(1, dtype=torch.float64))
        _, slopes = evaluate(phi, torch.tensor([-1e-30, 1e-30], dtype=torch.float64))
        return Moments(value.mean().item(), value.square().mean().item(), slopes.square().mean().item())
    x, weight = _quadrature(math.sqrt(q))
    value, slopes = evaluate(phi, x)
    return Moments(*((weight @ f.mean(1)).item() for f in (value, value.square(), slopes.square())))


def evaluate(phi: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return φ and φ' at points [N] as [N, slopes of a PReLU], from a copy without hooks, so that φ keeps no trace."""
    with torch.inference_mode(False), torch.enable_grad():
        phi = bare(phi)
        slopes = phi.num_parameters if isinstance(phi, nn.PReLU) else 1
        points = x.unsqueeze(1).repeat(1, slopes).requires_grad_()
        value = phi(points.clone())  # the clone is for activations that work in place
        slope = torch.autograd.grad(value.sum(), points)[0] if value.requires_grad else torch.zeros_like(points)
    return value.detach(), slope


def bare(module: nn.Module) -> nn.Module:
    """Return a float64 copy on the CPU, without hooks."""
    module = deepcopy(module).cpu().double()
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return module


def _quadrature(sigma: float) -> tuple[Tensor, Tensor]:
    """Return points x and weights with E f(σz) = Σ weight·f(x); at 10σ the density is 1e-22."""
    low = math.floor(math.log2(min(1.0, sigma))) - 4
    high = math.ceil(math.log2(10 * sigma))
    edges = np.array([0.0, *(m * 2.0**k for k in range(low, high) for m in (1.0, 1.5)), 2.0**high])
    nodes, weights = _legendre()
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half * (1 + nodes)).ravel()
    density = np.exp(-((x / sigma) ** 2) / 2) / (math.sqrt(2 * math.pi) * sigma)
    weight = (half * weights).ravel() * density
    return torch.from_numpy(np.concatenate([-x, x])), torch.from_numpy(np.concatenate([weight, weight]))


@cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(24)


def batch_variance(phi: nn.Module, q: float, v: float) -> float:
    """Return the variance of φ over a batch, averaged over units: E_m Var_z φ(√(q−v) m + √v z), to 1e-3 at a kink.

    √v of a pre-activation's √q varies within the batch; the rest is each unit's own mean, Gaussian over the units.
    """
    if v >= q * (1 - 1e-9):
        m = moments(phi, q)
        return max(0.0, m.square - m.mean**2)
    z = torch.linspace(-8, 8, 401, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    weight /= weight.sum()
    value, _ = evaluate(phi, (math.sqrt(q - v) * z[:, None] + math.sqrt(v) * z).flatten())
    value = value.mean(1).view(401, 401)
    spread = value - (value @ weight)[:, None]
    return (weight @ spread.square() @ weight).item()


def step(phi: nn.Module, sigma_w: float, sigma_b: float, q: float) -> float:
    """Return the second moment of the next layer's pre-activations, σ_w² E[φ²] + σ_b² (Poole et al. 2016)."""
    return sigma_w**2 * moments(phi, q).square + sigma_b**2


def fixed_point(phi: nn.Module, sigma_w: float, sigma_b: float, start: float = 1.0) -> float:
    """Return the q* where `step` comes to rest from `start`: 0 when the signal dies out, inf when it grows for ever.

    Near criticality plain iteration closes in as 1/layer only; after 200 layers the rest is found by bisection.
    """

    def growth(q: float) -> float:
        return step(phi, sigma_w, sigma_b, q) / q - 1

    def limit(q: float) -> float | None:
        return math.inf if q > EVERYTHING else 0.0 if dies and q < _NOTHING else None

    dies = step(phi, sigma_w, sigma_b, 0.0) == 0
    q = start
    for _ in range(200):
        last, q = q, step(phi, sigma_w, sigma_b, q)
        if (end := limit(q)) is not None:
            return end
        if abs(q - last) <= 1e-13 * last:
            return last if last == start else q
    grows = growth(q) > 0
    while (growth(q) > 0) == grows:
        last, q = q, q * (math.sqrt(2) if grows else math.sqrt(0.5))
        if (end := limit(q)) is not None:
            return end
    return _root(growth, last, q)


def _root(f: Callable[[float], float], a: float, b: float) -> float:
    """Return where f is 0 between a and b > 0, at which its sign differs, by bisection of ln q."""
    sign = f(a) > 0
    while abs(b - a) > 1e-13 * a and (middle := math.sqrt(a) * math.sqrt(b)) not in (a, b):
        a, b = (middle, b) if (f(middle) > 0) == sign else (a, middle)
    return b


def critical(phi: nn.Module, sigma_b: float = 0.0) -> tuple[float, float] | None:
    """Return (σ_w, q*) at the edge of chaos, χ(q*) = 1; None where there is none with σ_w in [0.05, 50].

    χ = 1 fixes σ_w² = 1/E[φ'²] at each q, so what is left is one equation in q: E[φ²] = (q − σ_b²) E[φ'²]. A root
    counts when a signal that starts at q = 1 comes to rest there; of several, the one with the smallest σ_w is
    returned. q* = 0 (tanh, ELU) is a limit. ReLU-like activations are critical at every q and return q* = 1. None is a
    true answer: where GELU, SiLU or Softplus have χ = 1, the signal does not rest but grows or dies out, unless σ_b
    makes it.
    """

    def gap(q: float) -> float:
        m = moments(phi, q)
        return m.square - (q - sigma_b**2) * m.slope

    grid = np.geomspace(1e-8, 1e6, 141).tolist()
    gaps = [gap(q) for q in grid]
    if all(abs(g) < 1e-9 * q for g, q in zip(gaps, grid, strict=True)):
        roots = [1.0]
    else:
        pairs = zip(grid, grid[1:], gaps, gaps[1:], strict=False)
        roots = [0.0] if gap(0.0) == 0 else []
        roots += [_root(gap, a, b) for a, b, left, right in pairs if left * right < 0]
    found = [(1 / math.sqrt(slope), q) for q in roots if (slope := moments(phi, q).slope) > 0]
    for sigma_w, q in sorted(found):
        rests = math.isclose(fixed_point(phi, sigma_w, sigma_b), q, rel_tol=1e-6)
        if _WEIGHTS[0] <= sigma_w <= _WEIGHTS[1] and rests:
            return sigma_w, q
    return None
