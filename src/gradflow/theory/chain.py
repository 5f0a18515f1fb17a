"""What mean-field theory predicts for the gradient in a given model on a real batch, from the weights that it has.

A pass through a model follows two numbers: the second moment q of the signal and its variance v over the batch, which
is what batch norm divides by. Backwards every part has a factor χ of the squared gradient norm:

part                 χ                                    q after it                          v after it
weights              fan_in E[w²] = σ_w²                  σ_w² q + E[b²]                      σ_w² v
activation           E[φ'²]                               E[φ²]                               `theory.batch_variance`
batch norm           γ²/(v + ε)                           γ² v/(v + ε) + β²                   γ² v/(v + ε)
layer norm           γ²/(q + ε)                           γ² q/(q + ε) + β²                   unknown
dropout              1/(1 − p)                            q/(1 − p)                           v + q p/(1 − p)
x + s branch(x)      1 + s² χ_branch                      q + s² q_branch                     v + s² v_branch

All as in training mode. The σ_w² of a convolution counts only the taps that meet the map and not its zero padding.
Weights are taken to be independent of each other and of the signal, as they are at initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from gradflow.theory import mean_field

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
RESHAPES = (nn.Flatten, nn.Identity)  # flattening a map takes all its positions to be alike
Shapes = dict[str, tuple[torch.Size, torch.Size]]  # {name: (of the input, of the output)} for one sample
Link = tuple[str, nn.Module | None]
Back = Callable[[Tensor, int], Tensor]  # the gradient [H, samples] at step t, carried to the step before it
STEPS_TO_REST, SAMPLES, FEW = 20, 16, 8


@dataclass(frozen=True)
class Prediction:
    factors: list[float | None]  # ‖dL/dh_i‖ / ‖dL/dh_{i+1}‖ = √χ for each two neighbours of the trunk
    silent: str  # why some are None; "" when none is


@dataclass(frozen=True)
class Signal:
    square: float | None  # second moment q over batch and elements
    variance: float | None  # over the batch, v
    gaussian: bool  # a sum over many weights, so that averages over an activation are those of `theory`
    lost: str = ""  # why the numbers are unknown


class Passed(NamedTuple):
    chi: float | None
    signal: Signal
    why: str = ""


def predict(net: nn.Module, trunk: Sequence[str], x: Tensor) -> Prediction:
    """The factors between the outputs h_1 … h_L of the modules `trunk` names, for the batch x that `net` gets.

    `net` is read as a chain: `nn.Sequential`, and modules that say by an attribute `skip` (a bool) what they are. With
    skip they compute x + scale · branch(x), the branch being their children in order, less those named in `after`,
    which follow the sum; without it they are just their children. Nothing of `net` is changed.
    """
    known = dict(net.named_modules())
    if missing := [name for name in trunk if name not in known]:
        raise ValueError(f"trunk: no module is called {missing[0]}")
    reached = segments(mean_field.bare(net), trunk, x)
    if (order := [name for name in trunk if name in reached]) != [name for name in reached if name]:
        raise ValueError(f"trunk: {order} is not the order of the model")
    chis = [reached[h][0] if g in reached and h in reached else None for g, h in pairwise(trunk)]
    after = set(trunk[1:]) | ({""} if trunk[-1] not in reached else set())
    reasons = dict.fromkeys(why for name in reached if name in after for why in reached[name][1])
    return Prediction([None if c is None else math.sqrt(c) for c in chis], "; ".join(reasons) if None in chis else "")


def segments(net: nn.Module, trunk: Sequence[str], x: Tensor) -> dict[str, tuple[float | None, list[str]]]:
    """{point of the trunk: (χ since the point before, why there is none)}; under "" what follows the last point.

    A point inside a module that theory takes as a whole is not reached.
    """
    shapes, links = measured(net, x), list(chain(net, ""))
    signal = entering(links, x)
    reached: dict[str, tuple[float | None, list[str]]] = {}
    chi: float | None = 1.0
    reasons: list[str] = []
    modules = [module for _, module in links if module is not None]
    if not any(isinstance(module, _BatchNorm) for module in net.modules()):
        signal = replace(signal, variance=None)  # which takes 3 ms an activation to follow
    for name, module in links:
        if module is not None:
            modules.pop(0)
            passed = through(name, module, signal, shapes)
            if picked(modules) and not isinstance(module, RESHAPES) and elementwise(module):
                passed = passed._replace(chi=None, why="no theory for an activation below max pooling")
            chi, signal = times(chi, passed.chi), passed.signal
            reasons += [passed.why] if passed.chi is None else []
        if name in trunk:
            reached[name] = chi, reasons
            chi, reasons = 1.0, []
    return {**reached, "": (chi, reasons)}


def picked(modules: Sequence[nn.Module]) -> bool:
    """Whether max pooling comes next. It sends the gradient to the largest φ, where φ' is not what it is on average."""
    behind = next((module for module in modules if not isinstance(module, RESHAPES + DROPOUTS)), None)
    return isinstance(behind, (_MaxPoolNd, _AdaptiveMaxPoolNd))


def times(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a * b


def plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def chain(module: nn.Module, name: str) -> Iterator[Link]:
    """Leaves and residual blocks in order, by name; the name of what holds them comes with None, after its last."""
    if not opens(module):
        yield name, module
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from chain(child, f"{name}.{key}" if name else key)
    yield name, None


def opens(module: nn.Module) -> bool:
    """Whether the module is no more than its children, one after the other."""
    skip = getattr(module, "skip", None)
    if isinstance(skip, bool):
        return not skip
    return skip is None and type(module).forward is nn.Sequential.forward


def measured(net: nn.Module, x: Tensor) -> Shapes:
    """Of every module, from one pass of one sample; `net` is a copy, so nothing needs to be put back."""
    shapes: Shapes = {}
    for name, module in net.named_modules():

        def note(module: nn.Module, inputs: tuple, output: object, name: str = name) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                shapes[name] = inputs[0].shape, output.shape

        module.register_forward_hook(note)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        net.eval()(x[:1].detach().cpu().double())
    for module in net.modules():
        module._forward_hooks.clear()
    net.train()  # `elementwise` has to see that an AlphaDropout is none
    return shapes


def entering(links: Sequence[Link], x: Tensor) -> Signal:
    """The batch as the first weights or norm see it; channels stand in dimension 1."""
    x = x.detach().cpu().double()
    modules = (module for _, module in links if module is not None)
    for module in takewhile(lambda module: isinstance(module, RESHAPES), modules):
        x = module(x)
    variance = x.movedim(1, 0).flatten(1).var(1, correction=0).mean().item()
    return Signal(x.square().mean().item(), variance, gaussian=False)


def through(name: str, module: nn.Module, signal: Signal, shapes: Shapes) -> Passed:
    if getattr(module, "skip", None) is True:
        return residual(name, module, signal, shapes)
    if isinstance(module, RESHAPES):
        return Passed(1.0, signal)
    if isinstance(module, DROPOUTS):
        return dropout(float(module.p), signal)
    if isinstance(module, nn.Linear):
        return weights(module, signal, 1.0)
    if isinstance(module, Convolution) and name in shapes and module.groups == 1 and set(module.dilation) == {1}:
        return weights(module, signal, inside(module, *shapes[name]))
    if isinstance(module, _BatchNorm):
        return norm(module, signal, signal.variance)
    if isinstance(module, nn.LayerNorm):
        passed = norm(module, signal, signal.square)
        return passed._replace(signal=replace(passed.signal, variance=None, lost="batch norm after layer norm"))
    if elementwise(module):
        return activation(module, signal)
    return unknown(f"no theory for {type(module).__name__}")


def unknown(why: str, gaussian: bool = False) -> Passed:
    return Passed(None, Signal(None, None, gaussian, lost=why), why)


def weights(module: nn.Linear | Convolution, signal: Signal, kept: float) -> Passed:
    sigma_w2 = kept * module.weight[0].numel() * module.weight.square().mean().item()
    sigma_b2 = 0.0 if module.bias is None else module.bias.square().mean().item()
    square = None if signal.square is None else sigma_w2 * signal.square + sigma_b2
    if not (math.isfinite(sigma_w2) and math.isfinite(square or 0.0)):
        return unknown("the weights or the signal are not finite")
    variance = None if signal.variance is None else sigma_w2 * signal.variance
    return Passed(sigma_w2, Signal(square, variance, gaussian=True, lost=signal.lost))


def inside(conv: Convolution, before: torch.Size, after: torch.Size) -> float:
    """The share of a kernel's taps that meet the map and not its zero padding, over all positions."""
    if conv.padding_mode != "zeros":
        return 1.0
    share = 1.0
    sizes = zip(before[2:], after[2:], conv.kernel_size, conv.stride, padding_before(conv), strict=True)
    for size, outputs, kernel, stride, padding in sizes:
        taps = torch.arange(outputs)[:, None] * stride + torch.arange(kernel) - padding
        share *= ((taps >= 0) & (taps < size)).double().mean().item()
    return share


def padding_before(conv: Convolution) -> tuple[int, ...]:
    """In the order of the dimensions; PyTorch keeps (before, after) pairs from the last dimension to the first."""
    return tuple(conv._reversed_padding_repeated_twice[::2])[::-1]


def norm(module: _BatchNorm | nn.LayerNorm, signal: Signal, divisor: float | None) -> Passed:
    """Divides by √divisor. What follows is known again, whatever came before."""
    gamma2 = 1.0 if module.weight is None else module.weight.square().mean().item()
    beta2 = 0.0 if module.bias is None else module.bias.square().mean().item()
    if divisor is None:
        return Passed(None, Signal(gamma2 + beta2, gamma2, signal.gaussian), signal.lost)
    scale2 = gamma2 / (divisor + module.eps)
    return Passed(scale2, Signal(scale2 * divisor + beta2, scale2 * divisor, signal.gaussian))


def dropout(p: float, signal: Signal) -> Passed:
    """Zeros with probability p, and the rest divided by 1 − p."""
    if p == 1:
        return Passed(0.0, Signal(0.0, 0.0, gaussian=False))
    square = None if signal.square is None else signal.square / (1 - p)
    variance = None
    if signal.variance is not None and signal.square is not None:
        variance = signal.variance + signal.square * p / (1 - p)
    return Passed(1 / (1 - p), Signal(square, variance, signal.gaussian and p == 0, lost=signal.lost))


def activation(phi: nn.Module, signal: Signal) -> Passed:
    if not signal.gaussian:
        return unknown(signal.lost or f"{type(phi).__name__} of something other than a weighted sum")
    if signal.square is None:
        if not homogeneous(phi):
            return unknown(signal.lost)
        return Passed(mean_field.moments(phi, 1.0).slope, Signal(None, None, gaussian=False, lost=signal.lost))
    q, v = signal.square, signal.variance
    _, square, slope = mean_field.moments(phi, q)
    variance = None if v is None else mean_field.batch_variance(phi, q, v)
    return Passed(slope, Signal(square, variance, gaussian=False, lost=signal.lost))


def homogeneous(phi: nn.Module) -> bool:
    """φ(2x) = 2φ(x), as for the ReLU family: then E[φ'²] doesn't depend on q."""
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0], dtype=torch.float64)
    return torch.equal(mean_field.evaluate(phi, 2 * x)[0], 2 * mean_field.evaluate(phi, x)[0])


def elementwise(module: nn.Module) -> bool:
    """Whether each output depends on its own input alone, the same way everywhere, and without chance."""
    if isinstance(module, nn.PReLU):  # has a slope for each channel
        return True
    module = mean_field.bare(module)
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shaped = [module(x.view(shape).clone()) for shape in [(2, 3, 4), (24, 1), (1, 24)]]
    except Exception:  # whatever a foreign module raises for shapes that it wasn't made for
        return False
    return all(
        isinstance(y, Tensor) and y.numel() == 24 and torch.equal(y.flatten(), shaped[0].flatten()) for y in shaped
    )


def residual(name: str, block: nn.Module, signal: Signal, shapes: Shapes) -> Passed:
    """The sum's two terms are uncorrelated, forwards and backwards, since the branch has weights of its own."""
    if getattr(block, "after", ()):
        return unknown("something stands after the residual sum")
    before, behind = shapes.get(name, (None, None))
    if before is None or before != behind:
        return unknown("a residual block changes the shape", gaussian=True)
    scale2 = torch.as_tensor(getattr(block, "scale", 1.0)).detach().double().square().mean().item()
    if scale2 == 0:
        return Passed(1.0, signal)
    links = [link for key, part in block.named_children() for link in chain(part, f"{name}.{key}" if name else key)]
    chi: float | None = scale2
    inner, reasons = signal, []
    for key, module in links:
        if module is not None:
            passed = through(key, module, inner, shapes)
            chi, inner = times(chi, passed.chi), passed.signal
            reasons += [passed.why] if passed.chi is None else []
    why = reasons[0] if reasons else ""
    if not inner.gaussian:
        lost = why or signal.lost or "a residual branch that does not end in weights"
        return Passed(plus(1.0, chi), Signal(None, None, gaussian=False, lost=lost), why)
    square = plus(signal.square, times(scale2, inner.square))
    variance = plus(signal.variance, times(scale2, inner.variance))
    return Passed(plus(1.0, chi), Signal(square, variance, signal.gaussian, signal.lost or inner.lost), why)


def predict_time(cell: nn.RNNBase, x: Tensor) -> list[float] | None:
    """‖dL/dx_t‖ by lag k = 0 … T−1 before the last step, where the loss is; 1 at lag 0. None where no theory is known
    (`silent_in_time` says why).

    The gradient goes back through the recurrent matrix that the cell has, and through activations as mean-field theory
    sees them. With a random matrix and units that are alike the rate is √(σ_w² E[φ'²]) a step for an RNN, f + i o σ_w
    for an LSTM and z + (1 − z) r σ_w for a GRU near a state of 0; but many steps bring out the largest eigenvalue,
    which differs by 5 % between draws of 128 units. Gates are what their biases and the real input make them, step by
    step: where the same strong input comes again and again (a blank's embedding), the units whose gate it holds open
    carry the gradient, by decades further than the average unit. Approximations: the state is at rest from the first
    step; gates do not hear the state, and no gradient passes through them; an RNN's inputs of different steps are
    independent, which a ReLU forgives least.
    """
    if silent_in_time(cell, x):
        return None
    matrix = gates(cell, "weight_hh_l0")[candidate(cell)]
    generator = torch.Generator().manual_seed(0)  # its own, so that the run's random numbers stay as they are
    x = sequence(cell, x)
    back = {"LSTM": lstm_back, "GRU": gru_back}.get(cell.mode, rnn_back)(cell, matrix, x, generator)
    delta = torch.randn(cell.hidden_size, SAMPLES, generator=generator, dtype=torch.float64)
    level, levels = 1.0, []
    delta /= delta.norm()
    for step in reversed(range(len(x))):
        levels.append(level)
        delta = back(delta, step)
        size = delta.norm().item()
        level, delta = level * size, delta / max(size, 1e-300)
    return levels


def silent_in_time(cell: nn.RNNBase, x: Tensor) -> str:
    """Why there is no theory of the gradient over time; "" where there is."""
    if cell.num_layers > 1 or cell.bidirectional or cell.proj_size:
        return "no theory for several layers or directions, nor for projections"
    if not all(tensor.isfinite().all() for tensor in (x, *cell.parameters())):
        return "the weights or the input are not finite"
    matrix = gates(cell, "weight_hh_l0")[candidate(cell)]
    if torch.equal(matrix, torch.eye(cell.hidden_size, dtype=torch.float64)):
        return "no theory for recurrent weights that are the identity: units are not sums over many weights"
    x = sequence(cell, x)
    if cell.mode == "RNN_RELU" and len(x) > 1 and (x[1:] == x[:-1]).all(-1).double().mean() > 0.5:
        return "the input mostly repeats, and theory draws anew at each step which ReLU units are off"
    return ""


def sequence(cell: nn.RNNBase, x: Tensor) -> Tensor:
    """What the cell gets, as [T, batch, features] in float64."""
    x = x.detach().cpu().double()
    x = x.unsqueeze(0 if cell.batch_first else 1) if x.ndim == 2 else x
    return x.transpose(0, 1) if cell.batch_first else x


def candidate(cell: nn.RNNBase) -> int:
    """The index among the gates of what may enter the state: (i, f, g, o) of an LSTM, (r, z, n) of a GRU."""
    return 2 if cell.mode in ("LSTM", "GRU") else 0


def gates(cell: nn.RNNBase, name: str) -> tuple[Tensor, ...]:
    """A parameter in float64, gate by gate."""
    return cell.get_parameter(name).detach().cpu().double().split(cell.hidden_size)


def biases(cell: nn.RNNBase) -> list[Tensor]:
    """PyTorch keeps two, which are added; all but the GRU's candidate, where the reset gate stands between them."""
    if not cell.bias:
        return [torch.zeros(cell.hidden_size, dtype=torch.float64)] * len(gates(cell, "weight_hh_l0"))
    return [a + b for a, b in zip(gates(cell, "bias_ih_l0"), gates(cell, "bias_hh_l0"), strict=True)]


def drive(cell: nn.RNNBase, x: Tensor) -> float:
    """Second moment of what inputs and biases bring to the candidate."""
    weight, bias = gates(cell, "weight_ih_l0")[candidate(cell)], biases(cell)[candidate(cell)]
    return (cell.input_size * weight.square().mean() * x.square().mean() + bias.square().mean()).item()


def opened(cell: nn.RNNBase, x: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    """Each gate at step t, [H, samples], from the real input and the biases."""
    weight, bias = torch.cat(gates(cell, "weight_ih_l0")), torch.cat(biases(cell))[:, None]
    some = x[:, torch.arange(SAMPLES) % x.shape[1]].transpose(1, 2)
    return lambda step: (weight @ some[step] + bias).sigmoid().split(cell.hidden_size)


def average(gates_at: Callable[[int], tuple[Tensor, ...]], steps: int) -> tuple[Tensor, ...]:
    """Gates at the end of the sequence, where the state is most at rest, all samples and a few steps together."""
    found = [gates_at(step) for step in range(max(steps - FEW, 0), steps)]
    return tuple(torch.cat(each, 1) for each in zip(*found, strict=True))


def sigma2(matrix: Tensor) -> float:
    return len(matrix) * matrix.square().mean().item()


def rnn_back(cell: nn.RNNBase, matrix: Tensor, x: Tensor, generator: torch.Generator) -> Back:
    phi = nn.ReLU() if cell.mode == "RNN_RELU" else nn.Tanh()
    enters = drive(cell, x)
    q = mean_field.fixed_point(phi, math.sqrt(sigma2(matrix)), math.sqrt(enters), start=enters)
    sigma = math.sqrt(min(q, mean_field.EVERYTHING))

    def back(delta: Tensor, step: int) -> Tensor:
        z = torch.randn(delta.numel(), generator=generator, dtype=torch.float64)
        return matrix.T @ (mean_field.evaluate(phi, sigma * z)[1].view_as(delta) * delta)

    return back


def lstm_back(cell: nn.RNNBase, matrix: Tensor, x: Tensor, generator: torch.Generator) -> Back:
    """On dL/dc, with c = f c + i g, g = tanh(W h + …), h = o tanh(c)."""
    gates_at, enters, h2 = opened(cell, x), drive(cell, x), 0.0
    i, f, _, o = average(gates_at, len(x))
    for _step in range(STEPS_TO_REST):
        g = mean_field.moments(nn.Tanh(), enters + sigma2(matrix) * h2)
        c = mean_field.moments(nn.Tanh(), (i.square() / (1 - f.square())).mean().item() * g.square)
        h2 = o.square().mean().item() * c.square
    slope = math.sqrt(g.slope * c.slope)

    def back(delta: Tensor, step: int) -> Tensor:
        i, f, _, o = gates_at(step)
        return f * delta + slope * o * (matrix.T @ (i * delta))

    return back


def gru_back(cell: nn.RNNBase, matrix: Tensor, x: Tensor, generator: torch.Generator) -> Back:
    """On dL/dh, with h = z h + (1 − z) n, n = tanh(r W h + …)."""
    gates_at, enters, h2 = opened(cell, x), drive(cell, x), 0.0
    r, z, _ = average(gates_at, len(x))
    for _step in range(STEPS_TO_REST):
        n = mean_field.moments(nn.Tanh(), enters + r.square().mean().item() * sigma2(matrix) * h2)
        h2 = ((1 - z).square() / (1 - z.square())).mean().item() * n.square
    slope = math.sqrt(n.slope)

    def back(delta: Tensor, step: int) -> Tensor:
        r, z, _ = gates_at(step)
        return z * delta + slope * (matrix.T @ (r * (1 - z) * delta))

    return back
