"""Predictions for gated layers and for RNNs of any activation, against the gradient of real networks in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradflow.models.activation import MODULES
from gradflow.models.cells import PlainRNN
from gradflow.models.highway import Highway, HighwayLayer
from gradflow.models.init import initialize
from gradflow.models.min_gru import MinGRU
from gradflow.models.recurrent import LSTM, RNN
from gradflow.spec import Spec
from gradflow.theory.chain import predict
from gradflow.theory.layers import Signal
from gradflow.theory.modules import passed_through
from gradflow.theory.prediction import lines
from gradflow.theory.recurrent import predict_time

VECTOR = Spec("vector", (64,), "classification", outputs=10)
SMALL = {"name": "mean_field", "sigma_w": 0.8}
SEQUENCE = Spec("sequence", (100, 8), "classification", outputs=4)


pytestmark = pytest.mark.usefixtures("exact")


def through_time(model, batch=16):
    """ln of the gradient's norm at the input of the recurrent layer by time step, measured and predicted."""
    cell = next(module for module in model.modules() if isinstance(module, nn.RNNBase))
    seen = []
    handle = cell.register_forward_pre_hook(lambda cell, inputs: seen.append(inputs[0].requires_grad_()) or None)
    loss = F.cross_entropy(model(torch.randn(batch, *SEQUENCE.shape)), torch.arange(batch) % 4)
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    norms = gradient.norm(dim=(0, 2)).log()
    levels, why = predict_time(cell, seen[0])
    assert why == ""
    return norms - norms[-1], torch.tensor(levels).flip(0).log()


def rate(levels):
    steps = torch.arange(len(levels)) - (len(levels) - 1) / 2
    return math.exp(-(steps @ levels / steps.square().sum()).item())


@pytest.mark.parametrize(
    "activation",
    [
        *("sigmoid", "gelu", {"name": "leaky_relu", "negative_slope": 0.3}),
        *(pytest.param(name, marks=pytest.mark.slow) for name in MODULES if name not in ("sigmoid", "gelu")),
    ],
    ids=str,
)
def test_an_rnn_of_any_activation(activation):
    """√(σ_w² E[φ'²]) a step. 3 % is what a matrix of 128 units leaves to chance, and more where all states are large
    and of one sign."""
    seen, said = through_time(RNN(SEQUENCE, hidden=128, activation=activation))
    assert rate(said) == pytest.approx(rate(seen), rel=0.07 if activation == "softplus" else 0.03)


def test_the_slopes_of_a_prelu_count_unit_by_unit():
    """A unit whose slope is 1 on both sides is linear; if half of them are and half are ReLU, E[φ'²] is 3/4."""
    model = RNN(SEQUENCE, hidden=64, activation={"name": "prelu", "num_parameters": 64}, init=SMALL)
    with torch.no_grad():
        model.net.layer1.activation.weight.copy_((torch.arange(64) < 32).double())
    seen, said = through_time(model)
    assert rate(said) == pytest.approx(rate(seen), rel=0.03)


def test_an_input_that_repeats_has_a_prediction_where_the_activation_is_smooth():
    x = torch.zeros(4, 30, 8)
    x[:, 0] = torch.randn(4, 8)
    for activation, reason in (("sigmoid", ""), ("leaky_relu", "mostly repeats"), ("prelu", "mostly repeats")):
        assert reason in (why := predict_time(PlainRNN(8, 16, activation), x)[1])
        assert bool(why) == bool(reason)


@pytest.mark.parametrize(("init", "bias"), [("auto", "chrono"), ("auto", 0.0), ("torch", 2.0)])
def test_a_min_gru_over_time(init, bias):
    """At every step, not on average: the product of the gates is known."""
    seen, said = through_time(MinGRU(SEQUENCE, hidden=128, forget_bias=bias, init=init))
    assert (seen - said).abs().max().item() < 0.3 + 0.03 * seen.abs().max().item()
    assert rate(said) == pytest.approx(rate(seen), rel=0.02)


def test_the_product_of_constant_gates():
    model = MinGRU(SEQUENCE, hidden=16, forget_bias=2.0)
    cell = model.net.block1.cell
    with torch.no_grad():
        cell.weight_ih_l0[16:] = 0  # the gates of nothing but their bias
    levels, _ = predict_time(cell, torch.randn(3, 50, 16))
    f = 1 / (1 + math.exp(-2))
    assert levels == pytest.approx([f**lag for lag in range(50)])


def test_several_recurrent_layers_have_no_prediction_over_time():
    x = torch.randn(4, *SEQUENCE.shape)
    for kind in (LSTM, MinGRU, RNN):
        model = kind(SEQUENCE, layers=2, hidden=8)
        told = lines(model, model.net, model.trunk, x)
        assert told["time"] is None
        assert "over time, no theory for several recurrent layers" in told["no_prediction"]


@pytest.mark.parametrize(
    ("activation", "bias"),
    [
        *(("tanh", 0.5), ("sigmoid", -2.0), ("relu", 0.5), ("relu", -4.0)),
        *(pytest.param("selu", bias, marks=pytest.mark.slow) for bias in (-4.0, -2.0, 0.5)),
    ],
)
def test_a_highway_net_of_width_256(activation, bias):
    """He's ReLU with open gates is 4 % off: a state that is carried on and the next layer's are of one sign."""
    model = Highway(VECTOR, depth=12, width=256, gate_bias=bias, activation=activation)
    kept = {}
    for name in model.trunk:
        model.net.get_submodule(name).register_forward_hook(lambda part, x, h, name=name: kept.update({name: h}))
    x = torch.randn(128, 64)
    loss = F.cross_entropy(model(x), torch.arange(128) % 10)
    norms = torch.stack([g.norm() for g in torch.autograd.grad(loss, list(kept.values()))])
    prediction = predict(model.net, model.trunk, x)
    assert prediction.no_prediction == ""
    found = math.log((norms[0] / norms[-1]).item()) / 11
    off = 0.06 if (activation, bias) == ("relu", 0.5) else 0.01
    assert sum(map(math.log, prediction.factors)) / 11 == pytest.approx(found, abs=off)


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_size_and_mean_of_a_highway_signal(activation):
    """Both activations have a mean, so that what is carried on and what is new are of one sign."""
    h, signal = torch.randn(256, 256).relu(), Signal(0.5, math.nan, False, mean=(2 * math.pi) ** -0.5)
    for _ in range(4):
        layer = HighwayLayer(256, activation)
        initialize(layer, {"name": "mean_field", "sigma_w": 1.0}, activation)
        h, signal = layer(h), passed_through("", layer, signal, {}).signal
    assert signal.mean == pytest.approx(h.mean().item(), rel=0.05)
    assert signal.square == pytest.approx(h.square().mean().item(), rel=0.05)


def test_shut_gates_are_predicted_to_be_the_identity():
    model = Highway(VECTOR, depth=5, width=16, gate_bias=-50.0)
    assert predict(model.net, model.trunk, torch.randn(8, 64)).factors == pytest.approx([1.0] * 4)


def test_a_highway_layer_behind_weights_has_no_prediction():
    """What the mean of its input is nobody has said: it counts in the sum's cross term."""
    net = nn.Sequential(nn.Linear(64, 16), *list(Highway(VECTOR, depth=2, width=16).net)[1:])
    prediction = predict(net, ["0", "1"], torch.randn(8, 64))
    assert prediction.factors == [None]
    assert "mean or size is unknown" in prediction.no_prediction
