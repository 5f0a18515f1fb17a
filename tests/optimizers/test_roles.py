"""What each parameter is to its network, read off the model or said by it."""

from __future__ import annotations

import pytest
import torch
from conftest import COPY, NUMBERS, OPTIONS, POINTS, RGB, SYMBOLS
from hydra.utils import get_class
from torch import nn

from gradflow.config import build
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import LSTM
from gradflow.models.resnet import ResNet
from gradflow.optimizers.roles import ROLES, roles
from gradflow.runs.errors import UserError


def matrices(model: nn.Module) -> dict[str, str]:
    """The roles of all that is no vector, without `net.`."""
    return {name.removeprefix("net."): role for name, role in roles(model).items() if role != "vectors"}


class Tiny(nn.Module):
    """Embeddings, positions beside the layers, attention whose projection is a bare weight, and a tied head."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 6, 8))
        self.embed = nn.Embedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm((6, 8))
        self.gain = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 10)
        if tied:
            self.head.weight = self.embed.weight


def test_first_middle_and_last():
    model = MLP(POINTS, depth=3, width=4, norm="layer")
    assert matrices(model) == {
        "block1.linear.weight": "input",
        "block2.linear.weight": "hidden",
        "block3.linear.weight": "hidden",
        "head.weight": "output",
    }
    assert list(roles(model)) == [name for name, _ in model.named_parameters()]
    assert roles(model)["net.block1.norm.weight"] == roles(model)["net.head.bias"] == "vectors"
    assert matrices(MLP(POINTS, depth=1)) == {"block1.linear.weight": "input", "head.weight": "output"}
    assert matrices(MLP(POINTS, depth=0)) == {"head.weight": "output"}


def test_what_stands_within_a_block_is_hidden():
    found = matrices(ResNet(RGB, depth=8, width=4))
    assert {name for name, role in found.items() if role != "hidden"} == {"stem.weight", "head.weight"}
    assert list(found.values()) == ["input", *["hidden"] * 6, "output"]


def test_what_leads_from_state_to_state_is_hidden():
    found = matrices(LSTM(NUMBERS, layers=2, hidden=4, bidirectional=True))
    of_input = {"layer1.weight_ih_l0", "layer1.weight_ih_l0_reverse"}
    assert {name for name, role in found.items() if role == "input"} == of_input
    assert {name for name, role in found.items() if role == "output"} == {"head.weight"}
    stack = nn.Sequential(nn.GRU(3, 4, num_layers=2), nn.Linear(4, 1))
    assert matrices(stack) == {
        "0.weight_ih_l0": "input",
        "0.weight_hh_l0": "hidden",
        "0.weight_ih_l1": "hidden",
        "0.weight_hh_l1": "hidden",
        "1.weight": "output",
    }
    embedded = matrices(nn.Sequential(nn.Embedding(5, 3), nn.GRU(3, 4), nn.Linear(4, 5)))
    assert embedded["0.weight"] == "embeddings"
    assert embedded["1.weight_ih_l0"] == "hidden"  # the embedding is the first layer


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_positions_and_a_tied_head(tied):
    assert matrices(Tiny(tied)) == {
        "position": "embeddings",
        "embed.weight": "embeddings",
        "attention.in_proj_weight": "hidden",
        "attention.out_proj.weight": "hidden",
        **({} if tied else {"head.weight": "output"}),
    }
    vectors = {name for name, role in roles(Tiny(tied)).items() if role == "vectors"}
    assert {"norm.weight", "gain", "head.bias"} <= vectors  # a norm over two dimensions has a matrix


def test_positions_do_not_stand_for_the_first_layer():
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 8))
            self.patch = nn.Conv2d(3, 8, 4)
            self.scale = nn.ParameterList([nn.Parameter(torch.ones(8, 1, 1))])
            self.head = nn.Linear(8, 2)

    assert matrices(Patches()) == {"token": "embeddings", "patch.weight": "input", "head.weight": "output"}


def test_the_model_knows_better():
    class Said(Tiny):
        roles = {"attention": "hidden", "attention.in_proj_weight": "router", "norm": "input"}

    found = roles(Said())
    assert found["attention.out_proj.bias"] == "hidden"
    assert found["attention.in_proj_weight"] == "router"  # a role of its own; the last entry counts
    assert found["norm.weight"] == found["norm.bias"] == "input"
    assert found["embed.weight"] == "embeddings"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"atention": "hidden"}, r"Said.roles: the model has no parameter atention; did you mean attention\?"),
        ({"hea": "hidden"}, r"the model has no parameter hea; did you mean head\?"),
        ({"head": "rest"}, "Said.roles: rest is what no group names; call head's role otherwise"),
        (["attention"], "Said.roles: expected names and their roles"),
    ],
)
def test_what_the_model_says_wrongly(said, told):
    model = type("Said", (Tiny,), {"roles": said})()
    with pytest.raises(UserError, match=told):
        roles(model)


@pytest.mark.parametrize("option", OPTIONS["model"])
def test_each_parameter_of_each_architecture_has_one(composed, option):
    cfg = composed(f"model={option}", f"optimizer={OPTIONS['optimizer'][0]}")
    takes = get_class(cfg.model._target_).takes
    for spec in [spec for spec in (RGB, NUMBERS, SYMBOLS, COPY, POINTS) if takes(spec)][:2]:
        model = build.model(cfg, spec)
        found = roles(model)
        assert list(found) == [name for name, _ in model.named_parameters()]
        assert set(found.values()) <= {*ROLES, *getattr(model, "roles", {}).values()}
        assert "output" in found.values() or "embeddings" in found.values()
