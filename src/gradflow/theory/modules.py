"""What each part of a network does to the signal and to the gradient that goes back through it, at initialisation.

A pass through a model follows two numbers: the second moment q of the signal and its variance v over the batch, which
is what batch norm divides by. Backwards every part has a factor χ of the squared gradient norm:

part                 χ                                    q after it                          v after it
weights              fan_in E[w²] = σ_w²                  σ_w² q + E[b²]                      σ_w² v
activation           E[φ'²]                               E[φ²]                               `batch_variance`
batch norm           γ²/(v + ε)                           γ² v/(v + ε) + β²                   γ² v/(v + ε)
layer norm           γ²/(q + ε)                           γ² q/(q + ε) + β²                   unknown
dropout              1/(1 − p)                            q/(1 − p)                           v + q p/(1 − p)
α x + s branch(x)    α² + s² χ_branch                     α² q + s² q_branch                  α² v + s² v_branch
highway layer        `_through_highway`

Of a scale s with an entry for each channel, s² is the average. A norm after the sum (post-LN, DeepNorm) is a part of
its own, so that a block then has χ = (α² + s² χ_branch) γ²/(α² q + s² q_branch + ε).

All as in training mode. The σ_w² of a convolution counts only the taps that meet the map and not its zero padding.
Weights are taken to be independent of each other and of the signal, as they are at initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradflow.theory import mean_field
from gradflow.theory.layers import (
    Convolution,
    Passed,
    Shapes,
    Signal,
    elementwise,
    share_inside,
    through_activation,
    through_dropout,
    through_norm,
    through_weights,
    unknown,
)

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
RESHAPES = (nn.Flatten, nn.Identity)  # flattening a map takes all its positions to be alike
Link = tuple[str, nn.Module | None]
_NO_MEAN = 1e-9  # of an odd activation: then the branch is uncorrelated with what it is added to


def links_of(module: nn.Module, name: str) -> Iterator[Link]:
    """Yield leaves and residual blocks in order, by name; that of a container comes with None, after its last."""
    if not _is_sequential(module):
        yield name, module
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from links_of(child, f"{name}.{key}" if name else key)
    yield name, None


def links_inside(name: str, block: nn.Module) -> list[Link]:
    """Return the links of a residual block's branch."""
    after: tuple[str, ...] = getattr(block, "after", ())
    parts = [(f"{name}.{key}" if name else key, part) for key, part in block.named_children() if key not in after]
    return [link for key, part in parts for link in links_of(part, key)]


def scale_squared(block: nn.Module) -> float:
    """Return the mean square of what a residual block multiplies its branch with."""
    return torch.as_tensor(getattr(block, "scale", 1.0)).detach().double().square().mean().item()


def _is_sequential(module: nn.Module) -> bool:
    """Tell whether the module is no more than its children, one after the other."""
    skip = getattr(module, "skip", None)
    if isinstance(skip, bool):
        return not skip
    return skip is None and type(module).forward is nn.Sequential.forward


def passed_through(name: str, module: nn.Module, signal: Signal, shapes: Shapes) -> Passed:
    """Return what becomes of signal and gradient in one link of the chain."""
    if getattr(module, "skip", None) is True:
        return _through_residual(name, module, signal, shapes)
    if getattr(module, "gated", None) is True:
        return _through_highway(module, signal)
    if isinstance(module, RESHAPES):
        return Passed(1.0, signal)
    if isinstance(module, DROPOUTS):
        return through_dropout(float(module.p), signal)
    if isinstance(module, nn.Linear):
        return through_weights(module, signal, 1.0)
    if isinstance(module, Convolution) and (seen := shapes.get(name)) and len(seen[0]) == len(seen[1]):  # not reshaped
        if not module.groups == 1 == max(module.dilation):
            return unknown("no theory for convolutions with dilation or groups")
        return through_weights(module, signal, share_inside(module, *seen))
    if isinstance(module, _BatchNorm):
        return through_norm(module, signal, signal.variance)
    if isinstance(module, nn.LayerNorm):
        passed = through_norm(module, signal, signal.square)
        return passed._replace(
            signal=replace(passed.signal, variance=math.nan, unknown_because="batch norm after layer norm")
        )
    if elementwise(module):
        return through_activation(module, signal)
    return unknown(f"no theory for {type(module).__name__}")


def _through_residual(name: str, block: nn.Module, signal: Signal, shapes: Shapes) -> Passed:
    after: tuple[str, ...] = getattr(block, "after", ())
    if not all(isinstance(block.get_submodule(part), _BatchNorm | nn.LayerNorm) for part in after):
        return unknown("something stands after the residual sum")
    before, behind = shapes.get(name, (None, None))
    if before is None or before != behind:
        return unknown("a residual block changes the shape", gaussian=True)
    chi, signal, why = _through_sum(name, block, signal, shapes)
    for part in after:
        factor, signal, reason = passed_through(part, block.get_submodule(part), signal, shapes)
        chi, why = chi * factor, why or reason
    return Passed(chi, signal, why)


def _through_sum(name: str, block: nn.Module, signal: Signal, shapes: Shapes) -> Passed:
    """The sum's two terms are uncorrelated, forwards and backwards, since the branch has weights of its own."""
    skip2, scale2 = float(getattr(block, "skip_scale", 1.0)) ** 2, scale_squared(block)
    square, variance = skip2 * signal.square, skip2 * signal.variance
    if scale2 == 0:
        return Passed(skip2, replace(signal, square=square, variance=variance))
    chi, inner, reasons = scale2, signal, []
    for key, module in links_inside(name, block):
        if module is not None:
            factor, inner, reason = passed_through(key, module, inner, shapes)
            chi *= factor
            reasons += [reason] if math.isnan(factor) else []
    why = reasons[0] if reasons else ""
    if not (inner.gaussian or abs(inner.mean) < _NO_MEAN):
        why_unknown = why or signal.unknown_because or "a residual branch that does not end in weights"
        return Passed(skip2 + chi, Signal(math.nan, math.nan, False, why_unknown), why)
    square, variance = square + scale2 * inner.square, variance + scale2 * inner.variance
    why_unknown = signal.unknown_because or inner.unknown_because
    return Passed(skip2 + chi, Signal(square, variance, signal.gaussian and inner.gaussian, why_unknown), why)


def _through_highway(block: nn.Module, signal: Signal) -> Passed:
    """y = T φ(u) + (1 − T) x, where u = W x + b, T = σ(V x + c), and x are independent of each other.

    χ = σ_w² E[T²] E[φ'²] + σ_v² E[T'²] E[(φ − x)²] + E[(1 − T)²]. The product φ x has the mean E[φ] E[x].
    """
    linear, gate, phi = (block.get_submodule(name) for name in ("linear", "gate", "act"))
    if math.isnan(signal.mean + signal.square):
        return unknown(signal.unknown_because or "a highway layer whose input's mean or size is unknown")
    into, opens = (through_weights(part, signal, 1.0) for part in (linear, gate))  # type: ignore[arg-type]
    if math.isnan(into.chi + opens.chi) or not elementwise(phi):
        return unknown(into.why or opens.why or f"no theory for {type(phi).__name__}")
    mean, square, slope = mean_field.moments(phi, into.signal.square)
    bias = gate.bias.detach().double()  # type: ignore[operator]
    spread = max(opens.signal.square - bias.mean().square().item(), 0.0)
    t = mean_field.moments(_Gate(bias.mean().item()), spread)
    carried = 1 - 2 * t.mean + t.square
    chi = into.chi * t.square * slope + carried
    chi += opens.chi * t.slope * (square + signal.square - 2 * mean * signal.mean)
    after = t.square * square + carried * signal.square + 2 * (t.mean - t.square) * mean * signal.mean
    why = signal.unknown_because or "batch norm after a highway layer"
    return Passed(chi, Signal(after, math.nan, False, why, t.mean * mean + (1 - t.mean) * signal.mean))


class _Gate(nn.Module):
    """The sigmoid of a signal whose mean is the bias."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bias).sigmoid()
