"""minGRU as an architecture: against a loop over time, its gates at the start, and what a probe says of it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import COPY, NUMBERS, RGB, SYMBOLS, inputs

from gradflow.diagnostics.probe import probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.verdict import judge
from gradflow.models.base import as_sequence
from gradflow.models.min_gru import MinGRU
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

pytestmark = pytest.mark.usefixtures("exact")


def normed(x, norm):
    """Layer norm by hand."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def recurrence(x, cell):
    """h_t = (1 − z) h_{t−1} + z h̃_t, a step after the other."""
    h, states = torch.zeros(len(x), cell.hidden_size), []
    for t in range(x.shape[1]):
        candidate, forget = (x[:, t] @ cell.weight_ih_l0.T + cell.bias_ih_l0).split(cell.hidden_size, 1)
        z = 1 - forget.sigmoid()
        h = (1 - z) * h + z * candidate
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.parametrize("spec", [NUMBERS, COPY, SYMBOLS, RGB])
def test_a_min_gru_is_a_loop_over_time(spec):
    model = MinGRU(spec, layers=2, hidden=6, activation="tanh")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.4)
    x, _ = inputs(spec)
    net = model.net
    h = as_sequence(x, spec) @ net.input.weight.T + net.input.bias
    for block in (net.block1, net.block2):
        h = h + recurrence(normed(h, block.norm1), block.cell)
        inner = (normed(h, block.norm2) @ block.linear1.weight.T + block.linear1.bias).tanh()
        h = h + inner @ block.linear2.weight.T + block.linear2.bias
    h = normed(h if spec.per_step else h[:, -1], net.norm)
    torch.testing.assert_close(model(x), h @ net.head.weight.T + net.head.bias)


def biases_of(model):
    """Of each block: those of the candidate and of the gate."""
    return [getattr(model.net, name).cell.bias_ih_l0.detach().chunk(2) for name in model.trunk]


@pytest.mark.parametrize(("memory", "steps"), [(None, 12), (500, 500)])
def test_chrono_draws_memories_uniformly_up_to_the_time_steps(memory, steps):
    model = MinGRU(NUMBERS, layers=2, hidden=300, memory=memory)
    (first, b), (second, c) = biases_of(model)
    assert not torch.cat([first, second]).any()
    assert not torch.equal(b, c)
    u = ((torch.cat([b, c]).exp() - 1) / (steps - 2)).sort().values
    assert 0 <= u[0] < u[-1] <= 1
    assert (u - (torch.arange(600) + 0.5) / 600).abs().max().item() < 1.63 / math.sqrt(600)  # Kolmogorov, Smirnov


def test_the_forget_bias_is_a_number_or_what_the_init_sets():
    assert biases_of(MinGRU(NUMBERS, hidden=5, forget_bias=3))[0][1].unique().tolist() == [3.0]
    assert not biases_of(MinGRU(NUMBERS, hidden=5, forget_bias=None))[0][1].any()
    assert len(biases_of(MinGRU(NUMBERS, hidden=5, forget_bias=None, init="torch"))[0][1].unique()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, r"model\.hidden=0: expected 1 or more"),
        ({"layers": 0}, r"model\.layers=0: expected 1 or more"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0: expected a fraction"),
        ({"forget_bias": "chorno"}, r"model\.forget_bias=chorno: expected a number, chrono, or null"),
        ({"forget_bias": 1.0, "memory": 9}, r"model\.memory=9: nothing reads it; add model\.forget_bias=chrono"),
        ({"memory": 1}, r"model\.memory=1: chrono is for 2 time steps or more"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(UserError, match=message):
        MinGRU(NUMBERS, **options)


@pytest.mark.parametrize(("bias", "word"), [("chrono", "OK"), (0.0, "FAIL")])
def test_the_verdict_is_that_of_the_gates(bias, word):
    """Over 200 steps with f = 1/2 the gradient is 2^−200, and with chrono's gates it arrives."""
    spec = Spec("sequence", (200, 2), "regression", outputs=1)
    model = MinGRU(spec, hidden=32, forget_bias=bias, init="torch")
    x, target = inputs(spec, batch=16)
    verdict = judge(probe(model, (x, target), own_loss, trunk_of(model)))
    assert (verdict.word, verdict.axis) == (word, "time")
    if bias == 0:
        assert -80 < verdict.decades < -25
