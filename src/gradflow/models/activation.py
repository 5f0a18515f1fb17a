"""Activations by name, and what the weight init needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gradflow.runs.errors import UserError, did_you_mean

Activation = str | Mapping[str, Any]  # a name, or a name with keywords: {"name": "leaky_relu", "negative_slope": 0.1}

MODULES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
_BEST_INIT = {"tanh": "glorot", "sigmoid": "glorot", "identity": "glorot", "selu": "lecun"}  # every other: he


def parse(activation: Activation) -> tuple[str, dict[str, Any]]:
    """Return the name and the keywords."""
    keywords = {"name": activation} if isinstance(activation, str) else dict(activation)
    name = keywords.pop("name")
    if name not in MODULES:
        raise UserError(f"activation={name}: no such activation; {did_you_mean(name, MODULES)}")
    return name, keywords


def make(activation: Activation) -> nn.Module:
    """Return a new module: each layer has its own, since PReLU has a parameter."""
    name, keywords = parse(activation)
    return MODULES[name](**keywords)


def best_init(activation: Activation) -> str:
    """Return the init that keeps the gradient's size under this activation, as nearly as a simple rule can."""
    return _BEST_INIT.get(parse(activation)[0], "he")


def gain_squared(activation: Activation) -> float:
    """Return 1 / E[φ'(z)²] where that is exact: 2 / (1 + slope²) if piecewise linear, else 2 or 1 as He or not."""
    name, keywords = parse(activation)
    slope = {"leaky_relu": keywords.get("negative_slope", 0.01), "prelu": keywords.get("init", 0.25)}.get(name, 0.0)
    return 2 / (1 + slope**2) if best_init(activation) == "he" else 1.0
