"""What a single layer does to the signal and to the gradient that goes back through it: the rows of modules.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradflow.theory import mean_field

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Shapes = dict[str, tuple[torch.Size, torch.Size]]  # {name: (of the input, of the output)} for one sample


@dataclass(frozen=True)
class Signal:
    """What is known of a signal; an unknown number is nan."""

    square: float  # second moment q over batch and elements
    variance: float  # over the batch, v
    gaussian: bool  # a sum over many weights, so that averages over an activation are those of `mean_field`
    unknown_because: str = ""
    mean: float = math.nan  # over batch and elements


class Passed(NamedTuple):
    """The factor χ of the squared gradient norm, nan where there is no prediction and `why`, and the signal behind."""

    chi: float
    signal: Signal
    why: str = ""


def mean_squares(module: Any) -> tuple[float, float]:
    """Return those of weights and biases; what a module lacks is 1 and 0."""
    parts = ((module.weight, 1.0), (module.bias, 0.0))
    weight2, bias2 = (default if part is None else part.square().mean().item() for part, default in parts)
    return weight2, bias2


def unknown(why: str, gaussian: bool = False) -> Passed:
    return Passed(math.nan, Signal(math.nan, math.nan, gaussian, why), why)


def through_weights(module: nn.Linear | Convolution, signal: Signal, share_inside: float) -> Passed:
    weight2, sigma_b2 = mean_squares(module)
    sigma_w2 = share_inside * module.weight[0].numel() * weight2
    square = sigma_w2 * signal.square + sigma_b2
    if not math.isfinite(sigma_w2 + sigma_b2) or math.isinf(square):
        return unknown("the weights or the signal are not finite")
    return Passed(sigma_w2, Signal(square, sigma_w2 * signal.variance, True, signal.unknown_because))


def share_inside(conv: Convolution, before: torch.Size, after: torch.Size) -> float:
    """Return the share of a kernel's taps that meet the map and not its zero padding, over all positions."""
    if conv.padding_mode != "zeros":
        return 1.0
    share = 1.0
    paddings = conv._reversed_padding_repeated_twice[::2][::-1]  # PyTorch's (before, after) pairs begin with the last
    sizes = zip(before[2:], after[2:], conv.kernel_size, conv.stride, paddings, strict=True)
    for size, outputs, kernel, stride, padding in sizes:
        taps = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) - padding
        share *= ((taps >= 0) & (taps < size)).double().mean().item()
    return share


def through_norm(module: _BatchNorm | nn.LayerNorm, signal: Signal, divisor: float) -> Passed:
    """Divides by √divisor. What follows is known again, whatever came before."""
    gamma2, beta2 = mean_squares(module)
    if math.isnan(divisor):
        return Passed(math.nan, Signal(gamma2 + beta2, gamma2, signal.gaussian), signal.unknown_because)
    scale2 = gamma2 / (divisor + module.eps)
    return Passed(scale2, Signal(scale2 * divisor + beta2, scale2 * divisor, signal.gaussian))


def through_dropout(p: float, signal: Signal) -> Passed:
    """Zeros with probability p, and the rest divided by 1 − p."""
    if p == 1:
        return Passed(0.0, Signal(0.0, 0.0, gaussian=False))
    variance = signal.variance + signal.square * p / (1 - p)
    gaussian = signal.gaussian and p == 0
    signal = replace(signal, square=signal.square / (1 - p), variance=variance, gaussian=gaussian)
    return Passed(1 / (1 - p), signal)


def through_activation(phi: nn.Module, signal: Signal) -> Passed:
    q, v, why = signal.square, signal.variance, signal.unknown_because
    if not signal.gaussian:
        return unknown(why or f"{type(phi).__name__} of something other than a weighted sum")
    if math.isnan(q):
        if not _is_homogeneous(phi):
            return unknown(why)
        return Passed(mean_field.moments(phi, 1.0).slope, Signal(math.nan, math.nan, False, why))
    mean, square, slope = mean_field.moments(phi, q)
    variance = v if math.isnan(v) else mean_field.batch_variance(phi, q, v)
    return Passed(slope, Signal(square, variance, False, why, mean))


def _is_homogeneous(phi: nn.Module) -> bool:
    """Tell whether φ(2x) = 2φ(x), as for the ReLU family: then E[φ'²] doesn't depend on q."""
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0], dtype=torch.float64)
    return torch.equal(mean_field.evaluate(phi, 2 * x)[0], 2 * mean_field.evaluate(phi, x)[0])


def elementwise(module: nn.Module) -> bool:
    """Tell whether each output depends on its own input alone, the same way everywhere, and without chance."""
    if isinstance(module, nn.PReLU):  # has a slope for each channel
        return True
    module = mean_field.bare(module)
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shaped = [module(x.view(shape).clone()) for shape in [(2, 3, 4), (24, 1), (1, 24)]]
    except Exception:  # whatever a foreign module raises for shapes that it does not take
        return False
    return all(
        isinstance(y, Tensor) and y.numel() == 24 and torch.equal(y.flatten(), shaped[0].flatten()) for y in shaped
    )
