"""A model that sees later inputs is caught by what it does, whatever it says of itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import COPY, TEXT
from torch import nn

from gradflow.config import build
from gradflow.models import later_inputs
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN
from gradflow.runs.errors import UserError

AHEAD = (
    r"^\w+: its output before step \d+ changes with the inputs from there on, and next_token asks for what comes next"
)
LONG = replace(TEXT, shape=(40,))


class Mixing(nn.Module):
    """A stranger's model: embeddings, a mixing of the steps by a matrix, and a head."""

    def __init__(self, mixing: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(8, 16), nn.Linear(16, 8)
        self.branch = nn.Parameter(torch.tensor([scale]))
        self.mixing = nn.Parameter(mixing, requires_grad=False)

    def forward(self, x):
        x = self.embedding(x)
        return self.head(x + self.branch * (self.mixing @ x).relu())


@pytest.mark.parametrize("model", [RNN, GRU, partial(GRU, layers=3), LSTM], ids=str)
def test_models_that_read_forwards_pass(model):
    later_inputs.check(model(LONG), LONG)
    model(COPY, bidirectional=True)
    later_inputs.check(model(COPY, bidirectional=True), COPY)  # which asks for a memory


@pytest.mark.parametrize(
    "model", [partial(RNN, bidirectional=True), partial(GRU, layers=2, bidirectional=True)], ids=str
)
def test_what_reads_backwards_is_caught(model):
    with pytest.raises(UserError, match=AHEAD):
        later_inputs.check(model(LONG), LONG)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_a_strangers_look_ahead_is_caught_behind_a_scale_of_zero_too(scale):
    past = torch.ones(40, 40).tril() / 40
    later_inputs.check(Mixing(past, scale), LONG)
    later_inputs.check(Mixing(torch.diag(torch.ones(39), -1), scale), LONG)
    one_ahead, pairs = torch.diag(torch.ones(39), 1), torch.block_diag(*[torch.ones(2, 2)] * 20)
    for mixing in (one_ahead, pairs, past.T, torch.ones(40, 40)):
        with pytest.raises(UserError, match=AHEAD):
            later_inputs.check(Mixing(mixing, scale), LONG)


def test_outputs_of_another_shape_are_one_line():
    with pytest.raises(
        UserError, match=r"Sequential: outputs of shape \[40, 16\], expected \[40, 8\], one for each step"
    ):
        later_inputs.check(nn.Sequential(nn.Embedding(8, 16)), LONG)


def test_the_model_and_the_random_numbers_stay_as_they_were():
    model = GRU(LONG, dropout=0.5, layers=2).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    later_inputs.check(model, LONG)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_builder_refuses_in_one_line(composed):
    with pytest.raises(UserError, match=AHEAD):
        build.model(composed("model=gru", "model.bidirectional=true"), LONG)
    others = r"(\w+ or )*gru or (\w+ or )*lstm or (\w+ or )*rnn( or \w+)*$"
    with pytest.raises(UserError, match=f"MLP sees later inputs, .*; for these data choose model={others}"):
        build.model(composed("model=mlp"), LONG)
    MLP(COPY)
