"""Weight draws by name. n_in and n_out are the fans of PyTorch: inputs (outputs) times the kernel's size.

name          Var W                          biases
torch         1 / (3 n_in)                   as PyTorch draws them
he            2 / ((1 + slope²) n_in)        0      He et al. 2015
glorot        2 / (n_in + n_out)             0      Glorot & Bengio 2010
lecun         1 / n_in                       0      LeCun et al. 1998
orthogonal    orthonormal rows or columns, times the activation's gain; 0
delta_orthogonal   the same at the centre tap of a convolution, 0 at every other; 0      Xiao et al. 2018
mean_field    sigma_w² / n_in                N(0, sigma_b²)      Poole et al. 2016
auto          he for the relu family, glorot for tanh, sigmoid and identity, lecun for selu

Draws are Gaussian (torch: uniform). Norm layers stay at weight 1 and bias 0. Recurrent layers draw each gate by
itself; under `auto` their recurrent weights are orthogonal.

Xiao et al. ask for n_out >= n_in channels, so that a convolution keeps the signal's norm. One with fewer outputs gets
orthonormal rows here, as `orthogonal` has them: it keeps the norm of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gradflow.mistakes import Mistake, nearest
from gradflow.models.activation import Activation, best_init, gain_squared

Init = str | Mapping[str, Any]
NAMES = ("auto", "torch", "he", "glorot", "lecun", "orthogonal", "delta_orthogonal", "mean_field")


def initialize(net: nn.Module, init: Init, activation: Activation) -> None:
    """Draw the weights of every Linear, Conv and recurrent layer of `net`, in place."""
    keywords: dict[str, Any] = {"name": init} if isinstance(init, str) else dict(init)
    name = keywords.pop("name")
    if name not in NAMES:
        raise Mistake(f"init={name}: no such init; {nearest(name, NAMES)}")
    known = {"sigma_w", "sigma_b"} if name == "mean_field" else set()
    if strange := sorted(set(keywords) - known):
        raise Mistake(f"init.{strange[0]}: init={name} takes no such key; {nearest(strange[0], known)}")
    if name == "torch":
        return
    sigma_w, sigma_b = keywords.pop("sigma_w", 1.0), keywords.pop("sigma_b", 0.0)
    if sigma_w <= 0 or sigma_b < 0:
        raise Mistake(f"init.sigma_w={sigma_w}, init.sigma_b={sigma_b}: expected sigma_w > 0 and sigma_b >= 0")
    draw = weight_draw(best_init(activation) if name == "auto" else name, activation, sigma_w)
    recurrent = nn.init.orthogonal_ if name == "auto" else draw
    for module in net.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            draw(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=sigma_b)
        elif isinstance(module, nn.RNNBase):
            initialize_recurrent(module, draw, recurrent, sigma_b)


def weight_draw(name: str, activation: Activation, sigma_w: float) -> Callable[[Tensor], Any]:
    if name in ("orthogonal", "delta_orthogonal"):
        matrix = nn.init.orthogonal_ if name == "orthogonal" else delta_orthogonal
        return partial(matrix, gain=math.sqrt(gain_squared(activation)))

    def draw(weight: Tensor) -> None:
        nn.init.normal_(weight, std=standard_deviation(name, weight, activation, sigma_w))

    return draw


@torch.no_grad()
def delta_orthogonal(weight: Tensor, gain: float) -> None:
    """A matrix has one tap: there it is `orthogonal`."""
    centre: Any = (..., *(size // 2 for size in weight.shape[2:]))
    nn.init.orthogonal_(weight.zero_()[centre], gain)


def standard_deviation(name: str, weight: Tensor, activation: Activation, sigma_w: float = 1.0) -> float:
    """Of one entry of `weight`, by the table above."""
    n_in, n_out = nn.init._calculate_fan_in_and_fan_out(weight)
    slope_gain = gain_squared(activation) if best_init(activation) == "he" else 2.0
    variance = {
        "he": slope_gain / n_in,
        "glorot": 2 / (n_in + n_out),
        "lecun": 1 / n_in,
        "mean_field": sigma_w**2 / n_in,
    }
    return math.sqrt(variance[name])


@torch.no_grad()
def initialize_recurrent(
    module: nn.RNNBase, draw: Callable[[Tensor], Any], recurrent: Callable[[Tensor], Any], sigma_b: float
) -> None:
    """PyTorch keeps the gates of a layer stacked in one matrix, and two biases that are only ever added."""
    for name, parameter in module.named_parameters():
        gates = parameter.chunk(parameter.shape[0] // module.hidden_size)
        for gate in gates:
            if name.startswith("weight_ih"):
                draw(gate)
            elif name.startswith("weight_hh"):
                recurrent(gate)
            else:
                nn.init.normal_(gate, std=sigma_b if name.startswith("bias_ih") else 0.0)
