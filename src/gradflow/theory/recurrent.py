"""What mean-field theory predicts for the gradient by time step in a given RNN, LSTM, GRU or minGRU on a real batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.theory import mean_field

_Back = Callable[[Tensor, int], Tensor]  # the gradient [H, samples] at step t, carried to the step before it
_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU)
_STEPS_TO_REST, _SAMPLES, _LAST_STEPS = 20, 16, 8


def predict_time(cell: nn.RNNBase, x: Tensor) -> tuple[list[float] | None, str]:
    """Return ‖dL/dx_t‖ by lag k = 0 … T−1 before the last step, where the loss is, 1 at lag 0; or None, and why.

    The gradient goes back through the recurrent matrix that the cell has, and through activations as mean-field theory
    sees them. With a random matrix and units that are alike the rate is √(σ_w² E[φ'²]) a step for an RNN, f + i o σ_w
    for an LSTM and z + (1 − z) r σ_w for a GRU near a state of 0; but many steps bring out the largest eigenvalue,
    which differs by 5 % between initialisations of 128 units. Gates follow from their biases and the real input, step
    by step: where the same strong input comes again and again (a blank's embedding), the units whose gate it holds open
    carry the gradient, by decades further than the average unit. Approximations: the state is at rest from the first
    step; gates do not depend on the state, and no gradient passes through them; an RNN's inputs of different steps are
    independent, which a ReLU forgives least.
    """
    if why := _why_unknown(cell, x):
        return None, why
    x = _time_first(cell, x)
    if cell.mode == "MIN_GRU":
        return _min_gru(cell, x), ""
    matrix = _gates(cell, "weight_hh_l0")[_candidate(cell)]
    generator = torch.Generator().manual_seed(0)  # its own, so that the run's random numbers stay as they are
    back = {"LSTM": _lstm_back, "GRU": _gru_back}.get(cell.mode, _rnn_back)(cell, matrix, x, generator)
    delta = torch.randn(cell.hidden_size, _SAMPLES, generator=generator, dtype=torch.float64)
    level, levels = 1.0, []
    delta /= delta.norm()
    for step in reversed(range(len(x))):
        levels.append(level)
        delta = back(delta, step)
        size = delta.norm().item()
        level, delta = level * size, delta / max(size, 1e-300)
    return levels, ""


def _why_unknown(cell: nn.RNNBase, x: Tensor) -> str:
    """Say why there is no theory of the gradient over time; "" where there is."""
    if cell.num_layers > 1 or cell.bidirectional or cell.proj_size:
        return "no theory for several layers or directions, nor for projections"
    if not all(tensor.isfinite().all() for tensor in (x, *cell.parameters())):
        return "the weights or the input are not finite"
    if cell.mode == "MIN_GRU":
        return ""
    matrix = _gates(cell, "weight_hh_l0")[_candidate(cell)]
    if torch.equal(matrix, torch.eye(cell.hidden_size, dtype=torch.float64)):
        return "no theory for recurrent weights that are the identity: units are not sums over many weights"
    x = _time_first(cell, x)
    if isinstance(_phi(cell), _KINKED) and len(x) > 1 and (x[1:] == x[:-1]).all(-1).double().mean() > 0.5:
        return "the input mostly repeats, and theory takes the ReLU units that are off at each step to be independent"
    return ""


def _time_first(cell: nn.RNNBase, x: Tensor) -> Tensor:
    """Return what the cell gets, as [T, batch, features] in float64."""
    x = x.detach().cpu().double()
    x = x.unsqueeze(0 if cell.batch_first else 1) if x.ndim == 2 else x
    return x.transpose(0, 1) if cell.batch_first else x


def _candidate(cell: nn.RNNBase) -> int:
    """Return the index among the gates of what may enter the state: (i, f, g, o) of an LSTM, (r, z, n) of a GRU."""
    return 2 if cell.mode in ("LSTM", "GRU") else 0


def _gates(cell: nn.RNNBase, name: str) -> tuple[Tensor, ...]:
    """Return a parameter in float64, gate by gate."""
    return torch.split(cell.get_parameter(name).detach().cpu().double(), cell.hidden_size)


def _biases(cell: nn.RNNBase) -> list[Tensor]:
    """Return the biases of the gates.

    PyTorch keeps two, which are added; all but the GRU's candidate, where the reset gate stands between them.
    """
    if not cell.bias:
        return [torch.zeros(cell.hidden_size, dtype=torch.float64)] * len(_gates(cell, "weight_hh_l0"))
    return [a + b for a, b in zip(_gates(cell, "bias_ih_l0"), _gates(cell, "bias_hh_l0"), strict=True)]


def _drive(cell: nn.RNNBase, x: Tensor) -> float:
    """Return the second moment of what inputs and biases bring to the candidate."""
    weight, bias = _gates(cell, "weight_ih_l0")[_candidate(cell)], _biases(cell)[_candidate(cell)]
    return (cell.input_size * weight.square().mean() * x.square().mean() + bias.square().mean()).item()


def _gates_by_step(cell: nn.RNNBase, x: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    """Return a function of t: each gate at that step, [H, samples], from the real input and the biases."""
    weight, bias = torch.cat(_gates(cell, "weight_ih_l0")), torch.cat(_biases(cell))[:, None]
    some = x[:, torch.arange(_SAMPLES) % x.shape[1]].transpose(1, 2)
    return lambda step: (weight @ some[step] + bias).sigmoid().split(cell.hidden_size)


def _final_gates(gates_at: Callable[[int], tuple[Tensor, ...]], steps: int) -> tuple[Tensor, ...]:
    """Return the gates of the last few steps, where the state is most at rest, all samples and steps together."""
    last = [gates_at(step) for step in range(max(steps - _LAST_STEPS, 0), steps)]
    return tuple(torch.cat(each, 1) for each in zip(*last, strict=True))


def _sigma2(matrix: Tensor) -> float:
    return len(matrix) * matrix.square().mean().item()


def _rnn_back(cell: nn.RNNBase, matrix: Tensor, x: Tensor, generator: torch.Generator) -> _Back:
    phi = _phi(cell)
    enters = _drive(cell, x)
    q = mean_field.fixed_point(phi, math.sqrt(_sigma2(matrix)), math.sqrt(enters), start=enters)
    sigma = math.sqrt(min(q, mean_field.EVERYTHING))
    units = torch.arange(cell.hidden_size)

    def back(delta: Tensor, step: int) -> Tensor:
        z = torch.randn(delta.numel(), generator=generator, dtype=torch.float64)
        slopes = mean_field.evaluate(phi, sigma * z)[1].view(*delta.shape, -1)
        return matrix.T @ (slopes[units, :, units % slopes.shape[2]] * delta)  # a PReLU may have one for each unit

    return back


def _phi(cell: nn.RNNBase) -> nn.Module:
    """Return φ of an RNN: that which a cell without a fused kernel holds, or one of the two that have a kernel."""
    held = getattr(cell, "activation", None)
    return held if isinstance(held, nn.Module) else nn.ReLU() if cell.mode == "RNN_RELU" else nn.Tanh()


def _lstm_back(cell: nn.RNNBase, matrix: Tensor, x: Tensor, generator: torch.Generator) -> _Back:
    """On dL/dc, with c = f c + i g, g = tanh(W h + …), h = o tanh(c)."""
    gates_at, enters, h2 = _gates_by_step(cell, x), _drive(cell, x), 0.0
    i, f, _, o = _final_gates(gates_at, len(x))
    for _step in range(_STEPS_TO_REST):
        g = mean_field.moments(nn.Tanh(), enters + _sigma2(matrix) * h2)
        c = mean_field.moments(nn.Tanh(), (i.square() / (1 - f.square())).mean().item() * g.square)
        h2 = o.square().mean().item() * c.square
    slope = math.sqrt(g.slope * c.slope)

    def back(delta: Tensor, step: int) -> Tensor:
        i, f, _, o = gates_at(step)
        return f * delta + slope * o * (matrix.T @ (i * delta))

    return back


def _gru_back(cell: nn.RNNBase, matrix: Tensor, x: Tensor, generator: torch.Generator) -> _Back:
    """On dL/dh, with h = z h + (1 − z) n, n = tanh(r W h + …)."""
    gates_at, enters, h2 = _gates_by_step(cell, x), _drive(cell, x), 0.0
    r, z, _ = _final_gates(gates_at, len(x))
    for _step in range(_STEPS_TO_REST):
        n = mean_field.moments(nn.Tanh(), enters + r.square().mean().item() * _sigma2(matrix) * h2)
        h2 = ((1 - z).square() / (1 - z.square())).mean().item() * n.square
    slope = math.sqrt(n.slope)

    def back(delta: Tensor, step: int) -> Tensor:
        r, z, _ = gates_at(step)
        return z * delta + slope * (matrix.T @ (r * (1 - z) * delta))

    return back


def _min_gru(cell: nn.RNNBase, x: Tensor) -> list[float]:
    """With h = f h + (1 − f) h̃ and f from the input alone, dL/dh_t is dL/dh_T times the product of f_{t+1} … f_T.

    From there it goes to x_t by the candidate, times 1 − f, and by the gate, times f (1 − f)(h_{t−1} − h̃_t). All these
    are known exactly from the real input; left to the theory is that the weights and dL/dh_T are random.
    """
    weights, biases = _gates(cell, "weight_ih_l0"), _gates(cell, "bias_ih_l0")
    candidate, gate = (F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
    f, size = gate.sigmoid(), [w.square().sum(1).mean().item() for w in weights]
    h, before = torch.zeros_like(f[0]), []
    for keep, new in zip(f, candidate, strict=True):
        before.append(h)
        h = keep * h + (1 - keep) * new
    by_gate = f * (torch.stack(before) - candidate)
    enters = (1 - f) * (size[0] + size[1] * by_gate.square()).sqrt()
    lived = torch.cat([f[1:], torch.ones_like(f[:1])]).log().flip(0).cumsum(0).flip(0)  # of the product
    levels = torch.logsumexp(2 * (lived + enters.clamp(min=1e-300).log()).flatten(1), 1) / 2
    return (levels - levels[-1]).exp().flip(0).tolist()
