"""What mean-field theory predicts for a chain of attention and feed-forward blocks at initialisation.

Attention averages over the tokens of a sequence, so how alike tokens are counts beside their size. Of the signal two
numbers are followed: q, the second moment of an element, and p, the mean product of the same element of two different
tokens. Of the gradient δ at the T tokens, G = Σ ‖δ_t‖² and C = Σ δ_s·δ_t over s ≠ t. Backwards each part is a linear
map of (G, C), with A the attention's T × T weights, whose rows sum to 1:

part         q after it             p after it              G before it             C before it
weights      σ² q + E[b²]           σ² p + E[b²]            σ² G                    σ² C
activation   E[φ(u)²]               E[φ(u)φ(v)]             E[φ'(u)²] G             E[φ'(u)φ'(v)] C
layer norm   γ²/(q + ε) q + β²      γ²/(q + ε) p + β²       γ²/(q + ε) G            γ²/(q + ε) C
dropout      q/(1 − rate)           p                       G/(1 − rate)            C
φ(u) w       E[φ(u)²] q_w           E[φ(u)φ(v)] p_w         the sum of both factors' terms
values       σ² (κ q + (1 − κ) p)   σ² (κ' q + (1 − κ') p)  σ² (κ G + κ' C)         σ² (G + C) less G before it
queries      –                      –                       σ_q² σ_k² σ² r² η G     σ_q² σ_k² σ² r² η' C
keys         –                      –                       σ_k² σ² r (q_Q η G + p_Q η' C)    minus G before it
α x + s f    α² q + s² q_f          α² p + s² p_f           α² and s² times those of x and f

u and v are the same pre-activation of two tokens; σ² of the values is that of value and output weights together;
r = q − p; q_Q and p_Q are those of the queries. κ = E Σ_t A_st² and κ' = E Σ_t A_st A_rt, r ≠ s, are both 1/T for
uniform attention, as in Noci et al. 2022; η = E Σ_t A_st² (1 − 2 A_st + Σ_u A_su²), and η' likewise, is what softmax's
derivative leaves of a gradient. The four are averages over Gaussian queries and keys, which are sampled.

The tokens of the last block get equal gradients where their mean is read, none but one where the last is, and
unrelated ones where each has an output of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.theory import mean_field
from gradflow.theory.layers import elementwise, mean_squares
from gradflow.theory.modules import links_inside, links_of, scale_squared

_NO_NORM = "no theory for attention without a norm: its scores grow with the square of a signal that itself grows"
_SAMPLES = 100_000  # of scores, from which averages over attention are taken


class Unknown(Exception):
    """There is no prediction, and the text says why."""


@dataclass(frozen=True)
class Tokens:
    """What is known of a signal of `count` tokens a sample."""

    square: float  # q
    product: float  # p
    count: int
    gaussian: bool = True

    def scaled(self, factor: float, offset: float = 0.0, gaussian: bool = True) -> Tokens:
        return Tokens(factor * self.square + offset, factor * self.product + offset, self.count, gaussian)


Passed = tuple[Tokens, Tensor]  # the signal behind a part, and the part's map of (G, C)


def factors(net: nn.Module, trunk: Sequence[str], x: Tensor) -> tuple[list[float | None], str]:
    """Return ‖dL/dh_i‖ / ‖dL/dh_{i+1}‖ for each two neighbours of the trunk, or None for all, and why.

    The signal is measured at the first block's output, for the batch x, and followed from there.
    """
    net = mean_field.bare(net)
    try:
        signal = _measured(net, net.get_submodule(trunk[0]), x)
        maps, rest = _maps(net, trunk, signal)
        gradient = torch.tensor([1.0, _alike(rest, signal.count)], dtype=torch.float64)
    except Unknown as unknown:
        return [None] * (len(trunk) - 1), str(unknown)
    found: list[float | None] = []
    for of_block in reversed(maps):
        before = of_block @ gradient
        if not (before.isfinite().all() and before[0] > 0):
            return [None] * len(maps), "the weights, the signal or its gradient are not finite"
        found.append(math.sqrt(before[0] / gradient[0]))
        gradient = before / before[0]  # C relative to G is all that counts
    return found[::-1], ""


def _maps(net: nn.Module, trunk: Sequence[str], signal: Tokens) -> tuple[list[Tensor], list[nn.Module]]:
    """Return the map of each block after the first, and what follows the last block."""
    maps, rest = list[Tensor](), list[nn.Module]()
    current, started = _both(1.0), False
    for name, module in links_of(net, ""):
        if module is not None and started:
            rest.append(module)
            if len(maps) < len(trunk) - 1:
                signal, own = through(module, signal)
                current = current @ own
        if name in trunk:
            if started:
                maps.append(current)
            current, started, rest = _both(1.0), True, []
    return maps, rest


def _measured(net: nn.Module, block: nn.Module, x: Tensor) -> Tokens:
    kept: list[Tensor] = []
    handle = block.register_forward_hook(lambda module, inputs, h: kept.append(h))
    x = x.detach().cpu()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        net(x.double() if x.is_floating_point() else x)
    handle.remove()
    (h,) = kept
    if h.ndim != 3 or h.shape[1] < 2:
        raise Unknown("no theory for attention over fewer than two tokens")
    square, count = h.square().mean().item(), h.shape[1]
    whole = h.mean(1).square().mean().item()  # q / T + (1 − 1 / T) p
    return Tokens(square, (whole - square / count) * count / (count - 1), count)


def _alike(rest: Sequence[nn.Module], count: int) -> float:
    """Return C / G where the gradient enters the last block."""
    for module in rest:
        last = getattr(module, "last", None)
        if isinstance(last, bool):
            return 0.0 if last else count - 1.0
        if not isinstance(module, (nn.LayerNorm, nn.Linear)):
            raise Unknown(f"no theory for {type(module).__name__} behind the last block")
    raise Unknown("each token has an output of its own, and how alike their gradients are depends on the loss")


def through(module: nn.Module, signal: Tokens) -> Passed:
    """Return what becomes of signal and gradient in one part."""
    if getattr(module, "skip", None) is True:
        return _through_residual(module, signal)
    if is_attention(module):
        return _through_attention(module, signal)
    if isinstance(module, nn.Linear):
        sigma2, offset = _moments(module)
        return signal.scaled(sigma2, offset), _both(sigma2)
    if isinstance(module, nn.LayerNorm):
        gamma2, beta2 = mean_squares(module)
        scale = gamma2 / (signal.square + module.eps)
        return signal.scaled(scale, beta2, signal.gaussian), _both(scale)
    if isinstance(module, nn.Dropout) and module.p < 1:  # masks of its own for each token
        larger = 1 / (1 - module.p)
        signal = Tokens(larger * signal.square, signal.product, signal.count, signal.gaussian)
        return signal, torch.diag(torch.tensor([larger, 1.0], dtype=torch.float64))
    if {"gate", "act", "up"} == {name for name, _ in module.named_children()}:
        return _through_gate(module, signal)
    if elementwise(module) and signal.gaussian:
        value, slope = _pairs(module, signal)
        return Tokens(*value, signal.count, False), torch.diag(torch.tensor(slope, dtype=torch.float64))
    raise Unknown(f"no theory for {type(module).__name__} beside attention")


def _through_residual(block: Any, signal: Tokens) -> Passed:
    inner, own = signal, _both(1.0)
    parts = [part for _, part in links_inside("", block) if part is not None]
    if any(map(is_attention, parts)) and not any(isinstance(part, nn.LayerNorm) for part in block.modules()):
        raise Unknown(_NO_NORM)
    for module in parts:
        inner, part = through(module, inner)
        own = own @ part
    scale2, skip2 = scale_squared(block), float(getattr(block, "skip_scale", 1.0)) ** 2
    own = _both(skip2) + scale2 * own
    square = skip2 * signal.square + scale2 * inner.square
    signal = Tokens(square, skip2 * signal.product + scale2 * inner.product, signal.count)
    for name in getattr(block, "after", ()):
        signal, part = through(block.get_submodule(name), signal)
        own = own @ part
    return signal, own


def _through_attention(module: Any, signal: Tokens) -> Passed:
    (query2, query_offset), (key2, key_offset) = _moments(module.query), _moments(module.key)
    (value2, value_offset), (output2, output_offset) = _moments(module.value), _moments(module.output)
    queries, keys = signal.scaled(query2, query_offset), signal.scaled(key2, key_offset)
    kappa, kappa_, eta, eta_ = _of_rows(module, queries, keys)
    both2, spread = value2 * output2, signal.square - signal.product
    q, p = (both2 * (k * signal.square + (1 - k) * signal.product) for k in (kappa, kappa_))
    offset = output2 * value_offset + output_offset
    by_query = query2 * key2 * both2 * spread**2
    by_key = key2 * both2 * spread
    values = [both2 * kappa, both2 * kappa_]
    through_keys = [by_key * queries.square * eta, by_key * queries.product * eta_]
    to_g = [values[0] + by_query * eta + through_keys[0], values[1] + through_keys[1]]
    to_c = [both2 - values[0] - through_keys[0], both2 - values[1] + by_query * eta_ - through_keys[1]]
    return Tokens(q + offset, p + offset, signal.count), torch.tensor([to_g, to_c], dtype=torch.float64)


def _of_rows(module: Any, queries: Tokens, keys: Tokens) -> tuple[float, float, float, float]:
    """Return κ, κ', η and η', as means over sampled Gaussian queries and keys of one head."""
    count, width = queries.count, module.query.out_features // module.heads
    samples = max(1, _SAMPLES // count**2)
    generator = torch.Generator().manual_seed(0)  # its own, so that the run's random numbers stay as they are

    def sample(of: Tokens) -> Tensor:
        common = torch.randn(samples, 1, 1, width, generator=generator, dtype=torch.float64)
        own = torch.randn(samples, 1, count, width, generator=generator, dtype=torch.float64)
        return math.sqrt(max(of.product, 0.0)) * common + math.sqrt(of.square - max(of.product, 0.0)) * own

    rows = module.rows(sample(queries), sample(keys)).squeeze(1)
    squares, pairs = rows.square(), count * (count - 1)
    kappa = squares.sum(-1)
    eta = kappa - 2 * rows.pow(3).sum(-1) + kappa.square()
    total, total_of_squares = rows.sum(1), squares.sum(1)
    kappa_ = (total.square().sum(-1) - kappa.sum(1)) / pairs
    crossed = ((total_of_squares * total).sum(-1) - rows.pow(3).sum((1, 2))) / pairs
    eta_ = kappa_ - 2 * crossed + kappa_.square()
    return kappa.mean().item(), kappa_.mean().item(), eta.mean().item(), eta_.mean().item()


def _through_gate(module: Any, signal: Tokens) -> Passed:
    (gate2, gate_offset), (up2, up_offset) = _moments(module.gate), _moments(module.up)
    gate, up = signal.scaled(gate2, gate_offset), signal.scaled(up2, up_offset)
    value, slope = _pairs(module.act, gate)
    own = [gate2 * s * u + up2 * v for s, u, v in zip(slope, (up.square, up.product), value, strict=True)]
    behind = Tokens(value[0] * up.square, value[1] * up.product, signal.count, False)
    return behind, torch.diag(torch.tensor(own, dtype=torch.float64))


def _pairs(phi: nn.Module, signal: Tokens) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return E[φ(u)²] and E[φ(u)φ(v)], and the same of φ', for two tokens' Gaussian pre-activations u and v."""
    q, p = signal.square, min(max(signal.product, 0.0), signal.square)
    z = torch.linspace(-8, 8, 201, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    weight /= weight.sum()
    points = (math.sqrt(p) * z[:, None] + math.sqrt(q - p) * z).flatten()
    moments = mean_field.moments(phi, q)
    means = [(f.mean(1).view(len(z), len(z)) @ weight).square() @ weight for f in mean_field.evaluate(phi, points)]
    return (moments.square, means[0].item()), (moments.slope, means[1].item())


def _moments(layer: nn.Linear) -> tuple[float, float]:
    """Return σ² = fan_in E[w²], and E[b²]."""
    weight2, bias2 = mean_squares(layer)
    return layer.in_features * weight2, bias2


def _both(factor: float) -> Tensor:
    return factor * torch.eye(2, dtype=torch.float64)


def is_attention(module: nn.Module) -> bool:
    """Tell whether a module has the parts and the rows of an attention layer."""
    parts = (getattr(module, name, None) for name in ("query", "key", "value", "output"))
    return all(isinstance(part, nn.Linear) for part in parts) and callable(getattr(module, "rows", None))
