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
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradflow.theory import mean_field

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
RESHAPES = (nn.Flatten, nn.Identity)  # flattening a map takes all its positions to be alike
Shapes = dict[str, tuple[torch.Size, torch.Size]]  # {name: (of the input, of the output)} for one sample
Link = tuple[str, nn.Module | None]
_NO_MEAN = 1e-9  # of an odd activation: then the branch is uncorrelated with what it is added to


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
        return _through_dropout(float(module.p), signal)
    if isinstance(module, nn.Linear):
        return _through_weights(module, signal, 1.0)
    if isinstance(module, Convolution) and _gives_a_map(shapes.get(name)):
        if not module.groups == 1 == max(module.dilation):
            return _unknown("no theory for convolutions with dilation or groups")
        return _through_weights(module, signal, _share_inside(module, *shapes[name]))
    if isinstance(module, _BatchNorm):
        return _through_norm(module, signal, signal.variance)
    if isinstance(module, nn.LayerNorm):
        passed = _through_norm(module, signal, signal.square)
        return passed._replace(
            signal=replace(passed.signal, variance=math.nan, unknown_because="batch norm after layer norm")
        )
    if elementwise(module):
        return _through_activation(module, signal)
    return _unknown(f"no theory for {type(module).__name__}")


def _gives_a_map(shapes: tuple[torch.Size, torch.Size] | None) -> bool:
    """Tell whether a convolution was seen at work, and its output is a map: a class of one's own may reshape it."""
    return shapes is not None and len(shapes[0]) == len(shapes[1])


def _unknown(why: str, gaussian: bool = False) -> Passed:
    return Passed(math.nan, Signal(math.nan, math.nan, gaussian, why), why)


def _through_weights(module: nn.Linear | Convolution, signal: Signal, share_inside: float) -> Passed:
    sigma_w2 = share_inside * module.weight[0].numel() * module.weight.square().mean().item()
    sigma_b2 = 0.0 if module.bias is None else module.bias.square().mean().item()
    square = sigma_w2 * signal.square + sigma_b2
    if not math.isfinite(sigma_w2 + sigma_b2) or math.isinf(square):
        return _unknown("the weights or the signal are not finite")
    return Passed(sigma_w2, Signal(square, sigma_w2 * signal.variance, True, signal.unknown_because))


def _share_inside(conv: Convolution, before: torch.Size, after: torch.Size) -> float:
    """Return the share of a kernel's taps that meet the map and not its zero padding, over all positions."""
    if conv.padding_mode != "zeros":
        return 1.0
    share = 1.0
    sizes = zip(before[2:], after[2:], conv.kernel_size, conv.stride, _padding_before(conv), strict=True)
    for size, outputs, kernel, stride, padding in sizes:
        taps = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) - padding
        share *= ((taps >= 0) & (taps < size)).double().mean().item()
    return share


def _padding_before(conv: Convolution) -> tuple[int, ...]:
    """In the order of the dimensions; PyTorch keeps (before, after) pairs from the last dimension to the first."""
    return tuple(conv._reversed_padding_repeated_twice[::2])[::-1]


def _through_norm(module: _BatchNorm | nn.LayerNorm, signal: Signal, divisor: float) -> Passed:
    """Divides by √divisor. What follows is known again, whatever came before."""
    gamma2 = 1.0 if module.weight is None else module.weight.square().mean().item()
    beta2 = 0.0 if module.bias is None else module.bias.square().mean().item()
    if math.isnan(divisor):
        return Passed(math.nan, Signal(gamma2 + beta2, gamma2, signal.gaussian), signal.unknown_because)
    scale2 = gamma2 / (divisor + module.eps)
    return Passed(scale2, Signal(scale2 * divisor + beta2, scale2 * divisor, signal.gaussian))


def _through_dropout(p: float, signal: Signal) -> Passed:
    """Zeros with probability p, and the rest divided by 1 − p."""
    if p == 1:
        return Passed(0.0, Signal(0.0, 0.0, gaussian=False))
    variance = signal.variance + signal.square * p / (1 - p)
    gaussian = signal.gaussian and p == 0
    signal = replace(signal, square=signal.square / (1 - p), variance=variance, gaussian=gaussian)
    return Passed(1 / (1 - p), signal)


def _through_activation(phi: nn.Module, signal: Signal) -> Passed:
    q, v, why = signal.square, signal.variance, signal.unknown_because
    if not signal.gaussian:
        return _unknown(why or f"{type(phi).__name__} of something other than a weighted sum")
    if math.isnan(q):
        if not _is_homogeneous(phi):
            return _unknown(why)
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


def _through_residual(name: str, block: nn.Module, signal: Signal, shapes: Shapes) -> Passed:
    after: tuple[str, ...] = getattr(block, "after", ())
    if not all(isinstance(block.get_submodule(part), _BatchNorm | nn.LayerNorm) for part in after):
        return _unknown("something stands after the residual sum")
    before, behind = shapes.get(name, (None, None))
    if before is None or before != behind:
        return _unknown("a residual block changes the shape", gaussian=True)
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
        return _unknown(signal.unknown_because or "a highway layer whose input's mean or size is unknown")
    into, opens = (_through_weights(part, signal, 1.0) for part in (linear, gate))  # type: ignore[arg-type]
    if math.isnan(into.chi + opens.chi) or not elementwise(phi):
        return _unknown(into.why or opens.why or f"no theory for {type(phi).__name__}")
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
