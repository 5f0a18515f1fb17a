"""Recurrent layers of our own against loops over time, and against PyTorch's kernels where there is one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import COPY, NUMBERS, inputs
from torch import nn

from gradflow.diagnostics.probe import probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.models.activation import MODULES, make
from gradflow.models.cells import MinGRU, PlainRNN
from gradflow.models.init import initialize, uninitialized
from gradflow.models.recurrent import RNN
from gradflow.models.scan import linear_recurrence
from gradflow.optimizers.roles import roles

SLOPED = {"name": "leaky_relu", "negative_slope": 0.3}


pytestmark = pytest.mark.usefixtures("exact")


def loop(a, b):
    """h_t = a_t h_{t-1} + b_t, a step after the other."""
    h, states = torch.zeros_like(b[:, 0]), []
    for keep, new in zip(a.unbind(1), b.unbind(1), strict=True):
        h = keep * h + new
        states.append(h)
    return torch.stack(states, 1)


def gates(steps, batch=2, width=3):
    return torch.rand(batch, steps, width, requires_grad=True), torch.randn(batch, steps, width, requires_grad=True)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 100])
def test_a_scan_is_the_loop_and_so_is_its_gradient(steps):
    a, b = gates(steps)
    weight = torch.randn(2, steps, 3)
    states, expected = linear_recurrence(a, b), loop(a, b)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-14)
    found = torch.autograd.grad((weight * states).sum(), (a, b))
    wanted = torch.autograd.grad((weight * expected).sum(), (a, b))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("logit", [-20.0, 0.0, 3.0, 9.0])
def test_a_scan_over_2000_steps_is_exact_in_float32(logit):
    """Gates that forget at once, whose product is 0 after some steps, and such as keep for thousands."""
    a, b = (logit + torch.randn(1, 2000, 4)).sigmoid(), torch.randn(1, 2000, 4)
    exact = [x.float().double().requires_grad_() for x in (a, b)]
    short = [x.float().requires_grad_() for x in (a, b)]
    expected, states = loop(*exact), linear_recurrence(*short)
    for h in (expected, states):
        h.square().mean().backward()
    pairs = [(states, expected), *((x.grad, y.grad) for x, y in zip(short, exact, strict=True))]
    for found, wanted in pairs:
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_a_min_gru_by_hand():
    cell = MinGRU(4, 5)
    x = torch.randn(3, 9, 4)
    candidate, forget = F.linear(x, cell.weight_ih_l0, cell.bias_ih_l0).split(5, -1)
    expected = loop(forget.sigmoid(), (1 - forget.sigmoid()) * candidate)
    states, last = cell(x)
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(last, expected[None, :, -1])
    x[:, 5:] = 0  # what is read later changes no earlier state
    torch.testing.assert_close(cell(x)[0][:, :5], expected[:, :5])


def test_a_min_gru_remembers_in_16_bits():
    """1 − 1/2000 is 1 in bfloat16, in which the state would never lose what it has read."""
    cell, x = MinGRU(4, 16), torch.randn(2, 2000, 4)
    with torch.no_grad():
        cell.bias_ih_l0[16:] = torch.linspace(3, 7.6, 16)  # of f: memories of 20 to 2,000 steps
        cell.weight_ih_l0[16:] *= 0.1
    expected = cell(x)[0]
    cell.float()
    with torch.autocast("cpu", torch.bfloat16):
        states = cell(x.float())[0]
    assert states.dtype == torch.bfloat16
    off = (states.double() - expected).norm(dim=(0, 1)) / expected.norm(dim=(0, 1))
    assert off.max().item() < 0.03


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_plain_cell_is_the_fused_one(nonlinearity, bidirectional):
    fused = nn.RNN(3, 5, nonlinearity=nonlinearity, batch_first=True, bidirectional=bidirectional)
    own = PlainRNN(3, 5, nonlinearity, bidirectional=bidirectional)
    assert list(own.state_dict()) == list(fused.state_dict())
    own.load_state_dict(fused.state_dict())
    x = torch.randn(4, 8, 3, requires_grad=True)
    found, wanted = own(x), fused(x)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found[0])
    grads = [
        torch.autograd.grad((weight * y).sum(), [x, *cell.parameters()])
        for cell, (y, _) in zip((own, fused), (found, wanted), strict=True)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("activation", [*MODULES, SLOPED], ids=str)
def test_an_rnn_of_any_activation_by_hand(activation):
    model = RNN(NUMBERS, hidden=5, activation=activation, init={"name": "mean_field", "sigma_b": 0.5})
    assert uninitialized(model) == []
    layer, phi, x = model.net.layer1, make(activation), inputs(NUMBERS)[0]
    h = torch.zeros(len(x), 5)
    for t in range(x.shape[1]):
        h = phi(x[:, t] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0)
    torch.testing.assert_close(model(x), h @ model.net.head.weight.T + model.net.head.bias)


@pytest.mark.parametrize("spec", [NUMBERS, COPY])
def test_every_parameter_of_a_plain_stack_gets_a_gradient(spec):
    options = {"layers": 2, "bidirectional": True, "dropout": 0.2, "hidden": 16}
    model = RNN(spec, activation={"name": "prelu", "num_parameters": 16}, **options)
    x, target = inputs(spec, batch=8)
    model.loss(model(x), target).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-13] == []
    names = {name for name in roles(model) if not name.endswith("activation.weight")}
    assert {name: role for name, role in roles(model).items() if name in names} == roles(RNN(spec, **options))


def test_a_plain_cell_is_initialised_as_a_fused_one():
    drawn = []
    for cell in (PlainRNN(30, 20, "tanh"), nn.RNN(30, 20, batch_first=True)):
        torch.manual_seed(3)
        initialize(cell, "auto", "tanh")
        drawn.append(cell.state_dict())
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
    identity = RNN(NUMBERS, hidden=6, activation=SLOPED, identity=True).net.layer1
    assert torch.equal(identity.weight_hh_l0, torch.eye(6))
    gain = RNN(NUMBERS, hidden=6, activation=SLOPED, init="orthogonal").net.layer1.weight_hh_l0.detach()
    torch.testing.assert_close(gain @ gain.T, 2 / 1.09 * torch.eye(6))


def test_tanh_and_relu_keep_their_kernel_and_another_says_what_it_costs(capsys):
    for name in ("tanh", "relu", "sigmoid"):
        model = RNN(NUMBERS, activation=name)
        model._trainer = SimpleNamespace(is_global_zero=True)
        model.on_fit_start()
        assert isinstance(model.net.layer1, nn.RNN) == (name != "sigmoid")
    assert capsys.readouterr().out.startswith("note: activation=sigmoid runs one time step after the other, slower")


def test_a_probe_measures_a_plain_cell_as_a_fused_one():
    """A profile over time, and no entry for each time step among the activations."""
    model = RNN(NUMBERS, hidden=8, activation="sigmoid", layers=2)
    x, target = inputs(NUMBERS)
    profile = probe(model, (x, target), own_loss, trunk_of(model))
    x = x.requires_grad_()
    model.loss(model(x), target).backward()
    assert profile.time == pytest.approx(x.grad.norm(dim=(0, 2)).tolist())
    assert profile.dead == profile.saturated == {}
    assert [name.partition(".")[2] for name in profile.weights] == ["layer1", "layer2", "head"]
