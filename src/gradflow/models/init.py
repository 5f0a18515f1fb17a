"""Initialisations by name. n_in and n_out are the fans of PyTorch: inputs (outputs) times the kernel's size.

name          Var W                          biases
torch         1 / (3 n_in)                   as PyTorch initialises them
he, kaiming   2 / ((1 + slope²) n_in)        0      He et al. 2015
glorot, xavier   2 / (n_in + n_out)          0      Glorot & Bengio 2010
lecun         1 / n_in                       0      LeCun et al. 1998
orthogonal    orthonormal rows or columns, times the activation's gain; 0
delta_orthogonal   the same at the centre tap of a convolution, 0 at every other; 0      Xiao et al. 2018
mean_field    sigma_w² / n_in                N(0, sigma_b²)      Poole et al. 2016
fixed_std     std², whatever the fans are    0
auto          he for the relu family, glorot for tanh, sigmoid and identity, lecun for selu

Weights are Gaussian, or of the same variance and, by `distribution`, uniform, or Gaussian within two standard
deviations, as Keras draws its glorot_normal, he_normal and lecun_normal (torch: uniform). Matrices that a module keeps
stacked in one are initialised each by itself: the gates of a recurrent layer or cell, whose recurrent weights are
orthogonal under `auto`, and the query, key and value weights of `nn.MultiheadAttention`. A parametrized weight gets
its value through the parametrization.

Norm layers stay at weight 1 and bias 0. An embedding keeps PyTorch's N(0, 1), or what it was made from: its rows are
the signal itself, at the mean square of 1 that the others preserve. A Linear that is tied to it initialises both.
Everything else, such as a parameter of a module's own, has no fan that could be read off it, and stays as it was made:
`uninitialized` names it, and a run says so.

Xiao et al. ask for n_out >= n_in channels, so that a convolution keeps the signal's norm. One with fewer outputs gets
orthonormal rows here, as `orthogonal` has them: it keeps the norm of the gradient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from gradflow.models.activation import Activation, best_init, gain_squared
from gradflow.runs.errors import UserError, did_you_mean

_UNCHANGED = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.Embedding, nn.EmbeddingBag)
_RECURRENT = re.compile(r"(weight|bias)_(ih|hh|hr)(_l\d+)?(_reverse)?")
Init = str | Mapping[str, Any]
_OTHER_NAMES = {"kaiming": "he", "xavier": "glorot"}
_SIZES = {"mean_field": {"sigma_w": 1.0, "sigma_b": 0.0}, "fixed_std": {"std": 0.05}}  # what a rule has to be told
_WITHOUT_VARIANCE = ("torch", "orthogonal", "delta_orthogonal")
NAMES = ("auto", "he", "glorot", "lecun", *_SIZES, *_WITHOUT_VARIANCE, *_OTHER_NAMES)
DISTRIBUTIONS = ("normal", "uniform", "truncated")
_CUT = 2  # standard deviations of the Gaussian that is truncated


def initialize(net: nn.Module, init: Init, activation: Activation) -> None:
    """Initialise every Linear, Conv, recurrent and attention layer of `net`, in place.

    Then every module that has a method `adjust_initial_weights`, as a residual block has, gets its turn.
    """
    _initialize_layers(net, init, activation)
    for module in net.modules():
        if adjust := getattr(module, "adjust_initial_weights", None):
            adjust()


def _initialize_layers(net: nn.Module, init: Init, activation: Activation) -> None:
    keywords: dict[str, Any] = {"name": init} if isinstance(init, str) else dict(init)
    name = keywords.pop("name")
    if name not in NAMES:
        raise UserError(f"init={name}: no such init; {did_you_mean(name, NAMES)}")
    known = _SIZES.get(name, {}) | ({} if name in _WITHOUT_VARIANCE else {"distribution": "normal"})
    if strange := sorted(set(keywords) - set(known)):
        raise UserError(f"init.{strange[0]}: init={name} takes no such key; {did_you_mean(strange[0], known)}")
    if name == "torch":
        return
    _check(sizes := known | keywords)
    sigma_b = sizes.pop("sigma_b", 0.0)
    weight = weight_initializer(best_init(activation) if name == "auto" else name, activation, **sizes)
    recurrent = nn.init.orthogonal_ if name == "auto" else weight
    bias = partial(nn.init.normal_, std=sigma_b)
    for module in net.modules():
        if isinstance(module, _UNCHANGED):
            mark_initialized(module.parameters(recurse=False))
        elif isinstance(module, (nn.Linear, nn.Bilinear, _ConvNd)):
            _assign(module, "weight", weight)
            _assign(module, "bias", bias)
        elif isinstance(module, nn.MultiheadAttention):
            _assign(module, "in_proj_weight", weight, 3)
            for matrix in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                _assign(module, matrix, weight)
            _assign(module, "in_proj_bias", bias)
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
            _initialize_recurrent(module, weight, recurrent, bias)


def _check(keywords: Mapping[str, Any]) -> None:
    sigma_w, sigma_b = keywords.get("sigma_w", 1.0), keywords.get("sigma_b", 0.0)
    if sigma_w <= 0 or sigma_b < 0:
        raise UserError(f"init.sigma_w={sigma_w}, init.sigma_b={sigma_b}: expected sigma_w > 0 and sigma_b >= 0")
    if (std := keywords.get("std", 1.0)) <= 0:
        raise UserError(f"init.std={std}: expected a number above 0")
    if (distribution := keywords.get("distribution", "normal")) not in DISTRIBUTIONS:
        raise UserError(f"init.distribution={distribution}: expected one of {', '.join(DISTRIBUTIONS)}")


def mark_initialized(parameters: Iterable[nn.Parameter]) -> None:
    """Mark that their initial values are chosen, by an init or by the module that made them."""
    for parameter in parameters:
        parameter.initialized = True  # type: ignore[attr-defined]


def uninitialized(model: nn.Module) -> list[str]:
    """Return the parameters that `initialize` did not meet or knows no rule for."""
    return [name for name, parameter in model.named_parameters() if not hasattr(parameter, "initialized")]


@torch.no_grad()
def _assign(module: nn.Module, name: str, fill: Callable[[Tensor], Any], stacked: int = 1) -> None:
    """Fill a parameter, or each of the matrices that are stacked in it, where the module has it."""
    value: Any = getattr(module, name, None)
    if is_lazy(value):
        kind = type(module).__name__
        raise UserError(f"init: {kind} does not know its size yet; call the net once, on zeros, before initialize()")
    if is_parametrized(module, name):
        value = value.clone()
    elif not isinstance(value, nn.Parameter):  # absent, or computed from others, as in torch.nn.utils.weight_norm
        return
    for matrix in value.chunk(stacked):
        fill(matrix)
    if isinstance(value, nn.Parameter):
        mark_initialized([value])
        return
    with suppress(RuntimeError):  # some parametrizations can't be given a value
        setattr(module, name, value)
        mark_initialized(module.parametrizations[name].parameters())  # type: ignore[index, union-attr]


def weight_initializer(
    name: str, activation: Activation, sigma_w: float = 1.0, std: float = 1.0, distribution: str = "normal"
) -> Callable[[Tensor], Any]:
    """Return a function that fills a weight tensor in place, by the table above."""
    name = _OTHER_NAMES.get(name, name)
    if name in ("orthogonal", "delta_orthogonal"):
        matrix = nn.init.orthogonal_ if name == "orthogonal" else _delta_orthogonal
        return partial(matrix, gain=math.sqrt(gain_squared(activation)))
    he = gain_squared(activation) if best_init(activation) == "he" else 2.0

    def fill(weight: Tensor) -> None:
        n_in, n_out = nn.init._calculate_fan_in_and_fan_out(weight)
        variance = {"he": he / n_in, "glorot": 2 / (n_in + n_out), "lecun": 1 / n_in, "mean_field": sigma_w**2 / n_in}
        _fill(weight, std if name == "fixed_std" else math.sqrt(variance[name]), distribution)

    return fill


def _fill(weight: Tensor, std: float, distribution: str) -> None:
    if distribution == "uniform":
        nn.init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std)
    elif distribution == "truncated":
        density = math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi)
        whole = std / math.sqrt(1 - 2 * _CUT * density / math.erf(_CUT / math.sqrt(2)))  # before the tails are cut off
        nn.init.trunc_normal_(weight, std=whole, a=-_CUT * whole, b=_CUT * whole)
    else:
        nn.init.normal_(weight, std=std)


@torch.no_grad()
def _delta_orthogonal(weight: Tensor, gain: float) -> None:
    """Fill the centre tap with an orthogonal matrix; a matrix has one tap."""
    centre: Any = (..., *(size // 2 for size in weight.shape[2:]))
    nn.init.orthogonal_(weight.zero_()[centre], gain)


def _initialize_recurrent(
    module: nn.RNNBase | nn.RNNCellBase,
    weight: Callable[[Tensor], Any],
    recurrent: Callable[[Tensor], Any],
    bias: Callable[[Tensor], Any],
) -> None:
    """Initialise gate by gate: PyTorch keeps those of a layer in one matrix, and two biases that are always added."""
    zero = partial(nn.init.normal_, std=0.0)  # unlike zeros_ it takes random numbers, so that a seed keeps its weights
    rules: dict[str, Callable[[Tensor], Any]]
    rules = {"weight_ih": weight, "weight_hh": recurrent, "weight_hr": weight, "bias_ih": bias, "bias_hh": zero}
    names = [*dict(module.named_parameters(recurse=False)), *getattr(module, "parametrizations", ())]
    for name in filter(_RECURRENT.fullmatch, names):
        kind = "_".join(name.split("_")[:2])
        gates = 1 if kind == "weight_hr" else getattr(module, name).shape[0] // module.hidden_size
        _assign(module, name, rules[kind], gates)
