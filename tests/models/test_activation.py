"""Activations: what the names stand for, and what the weight init is told of them."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import OPTIONS
from omegaconf import OmegaConf
from torch import nn

from gradflow.config.options import of_group
from gradflow.models import activation as act
from gradflow.runs.errors import UserError

POINTS = (-2.0, -0.5, 0.0, 0.7, 3.0)
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017
FORMS = {
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "tanh": lambda z: (math.exp(z) - math.exp(-z)) / (math.exp(z) + math.exp(-z)),
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "prelu": lambda z: z if z > 0 else 0.25 * z,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "selu": lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * (math.exp(z) - 1)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
    "softplus": lambda z: math.log(1 + math.exp(z)),
    "identity": lambda z: z,
}
BEST = {"tanh": "glorot", "sigmoid": "glorot", "identity": "glorot", "selu": "lecun"}


@pytest.mark.parametrize("option", OPTIONS["activation"])
def test_an_option_computes_its_closed_form(option):
    module = act.make(dict(OmegaConf.load(of_group("activation")[option])))
    expected = torch.tensor([FORMS[option](z) for z in POINTS])
    torch.testing.assert_close(module(torch.tensor(POINTS)).detach(), expected)


def test_every_known_name_is_an_option_and_the_other_way_round():
    assert sorted(act.MODULES) == OPTIONS["activation"]


@pytest.mark.parametrize(
    ("words", "at_minus_two"),
    [
        (("activation=leaky_relu", "activation.negative_slope=0.3"), -0.6),
        (("activation=prelu", "activation.init=0.5"), -1.0),
        (("activation=elu", "activation.alpha=2.0"), 2 * (math.exp(-2) - 1)),
    ],
)
def test_a_keyword_reaches_the_module(composed, words, at_minus_two):
    module = act.make(dict(composed(*words).activation))
    assert module(torch.tensor(-2.0)).item() == pytest.approx(at_minus_two)


@pytest.mark.parametrize("option", OPTIONS["activation"])
def test_only_prelu_learns_and_each_layer_has_its_own_slope(option):
    first, second = act.make(option), act.make(option)
    assert first is not second
    assert [p.numel() for p in first.parameters()] == ([1] if option == "prelu" else [])
    assert {id(p) for p in first.parameters()}.isdisjoint(id(p) for p in second.parameters())


@pytest.mark.parametrize(
    ("wrong", "near"), [("rellu", "did you mean relu?"), ("sigmiod", "did you mean sigmoid?"), ("xyz", "known: elu, ")]
)
@pytest.mark.parametrize("ask", [act.make, act.parse, act.best_init, act.gain_squared])
def test_an_unknown_name_is_answered_with_one_that_is_known(ask, wrong, near):
    with pytest.raises(UserError) as told:
        ask(wrong)
    assert str(told.value).startswith(f"activation={wrong}: no such activation; {near}")


@pytest.mark.parametrize("option", OPTIONS["activation"])
def test_the_best_init_of_an_activation(option):
    assert act.best_init(option) == BEST.get(option, "he")


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", 2.0),
        ("leaky_relu", 2 / (1 + 0.01**2)),
        ({"name": "leaky_relu", "negative_slope": 0.5}, 1.6),
        ("prelu", 2 / (1 + 0.25**2)),
        ({"name": "prelu", "init": 1.0}, 1.0),
        ("elu", 2.0),
        ("gelu", 2.0),
        ("silu", 2.0),
        ("softplus", 2.0),
        ("tanh", 1.0),
        ("sigmoid", 1.0),
        ("identity", 1.0),
        ("selu", 1.0),
    ],
)
def test_the_squared_gain(activation, expected):
    assert act.gain_squared(activation) == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["relu", {"name": "leaky_relu", "negative_slope": 0.3}, "prelu", "identity"])
def test_the_squared_gain_of_a_piecewise_linear_activation_undoes_its_mean_squared_slope(activation):
    """The mean over z ~ N(0, 1), here over as many negative as positive points, of phi'(z)²."""
    z = torch.tensor([-1.5, -0.2, 0.2, 1.5], requires_grad=True)
    (slopes,) = torch.autograd.grad(act.make(activation)(z).sum(), z)
    assert act.gain_squared(activation) * slopes.square().mean().item() == pytest.approx(1.0)


def test_softplus_and_gelu_are_the_exact_forms():
    assert act.make("softplus")(torch.tensor(0.0)).item() == pytest.approx(math.log(2))
    exact = act.make("gelu")
    assert isinstance(exact, nn.GELU)
    assert exact.approximate == "none"
