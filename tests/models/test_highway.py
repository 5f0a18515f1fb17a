"""Highway networks against a forward pass by hand, and at gates that are shut."""

from __future__ import annotations

import pytest
import torch
from conftest import COPY, NUMBERS, POINTS, RGB, inputs

from gradflow.models.base import as_vector
from gradflow.models.highway import Highway
from gradflow.runs.errors import UserError

pytestmark = pytest.mark.usefixtures("exact")


@pytest.mark.parametrize("spec", [POINTS, NUMBERS, COPY, RGB])
def test_a_highway_net_by_hand(spec):
    model = Highway(spec, depth=4, width=7, activation="tanh")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.4)
    x, net = inputs(spec)[0], model.net
    h = (as_vector(x, spec) @ net.block1.linear.weight.T + net.block1.linear.bias).tanh()
    for layer in (net.block2, net.block3, net.block4):
        gate = (h @ layer.gate.weight.T + layer.gate.bias).sigmoid()
        h = gate * (h @ layer.linear.weight.T + layer.linear.bias).tanh() + (1 - gate) * h
    expected = h @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(model(x).flatten(), expected.flatten())


def states(model, x):
    kept = []
    for name in model.trunk:
        model.net.get_submodule(name).register_forward_hook(lambda part, x, h: kept.append(h))
    return model(x), kept


@pytest.mark.parametrize(("bias", "off"), [(-1000.0, 0.0), (-12.0, 1e-3), (-4.0, 0.9)])
def test_shut_gates_make_the_identity(bias, off):
    """Exactly so in the limit: signal and gradient pass 50 layers unchanged."""
    model = Highway(POINTS, depth=50, width=16, gate_bias=bias, activation="sigmoid")
    output, kept = states(model, torch.randn(8, 2))
    first, last = torch.autograd.grad(output.square().sum(), [kept[0], kept[-1]])
    for found, wanted in ((kept[-1], kept[0]), (first, last)):
        assert (found - wanted).norm().item() <= off * wanted.norm().item()
        assert torch.equal(found, wanted) == (off == 0)


def test_the_gate_bias_is_that_of_every_gate_under_any_init():
    for init in ("auto", "torch", {"name": "mean_field", "sigma_b": 0.3}):
        net = Highway(POINTS, depth=3, width=5, gate_bias=-3, init=init).net
        assert {bias for layer in (net.block2, net.block3) for bias in layer.gate.bias.tolist()} == {-3.0}
        assert net.block2.linear.bias.any() == (init != "auto")


def test_depth_and_size():
    """The paper's ten layers of 50 units have two matrices each but for the first."""
    model = Highway(RGB, depth=10, width=50)
    assert sum(p.numel() for p in model.parameters()) == 3073 * 50 + 9 * 2 * 51 * 50 + 51 * 10
    assert model.trunk == [f"block{index + 1}" for index in range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"model\.depth=0: expected 1 or more"),
        ({"width": 0}, r"model\.width=0: expected 1 or more"),
        ({"gate_bias": "low"}, r"model\.gate_bias=low: expected a number"),
        ({"gate_bias": float("-inf")}, r"model\.gate_bias=-inf: expected a number"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(UserError, match=message):
        Highway(POINTS, **options)
