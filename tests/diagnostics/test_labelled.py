"""Small networks whose training is known to go well or not, and what the verdict says of them before it begins."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradflow.data.datamodule import DataModule
from gradflow.data.sources.adding import adding
from gradflow.data.sources.copy_memory import copy_memory
from gradflow.data.sources.shapes import shapes
from gradflow.data.sources.temporal_order import temporal_order
from gradflow.diagnostics.probe import PROBE_SAMPLES, probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.verdict import CAUTION, axes, judge, log_ratio
from gradflow.models.cnn import BNCNN, CNN
from gradflow.models.densenet import DenseNet
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN
from gradflow.models.resnet import ResNet

DATA = {
    "shapes": lambda: DataModule(shapes, 128, val=0.2, size=16, channels=1),
    "adding": lambda: DataModule(adding, 64, samples=640, val=64, length=20),
    "temporal order": lambda: DataModule(temporal_order, 64, samples=640, val=64, length=20),
    "copy memory": lambda: DataModule(copy_memory, 64, samples=640, val=64, length=5),
}


def mean_field(sigma_w, sigma_b=0.0):
    return {"name": "mean_field", "sigma_w": sigma_w, "sigma_b": sigma_b}


def mlp(depth, width=64, **words):
    return "shapes", lambda spec: MLP(spec, depth=depth, width=width, **words)


def killed(depth, where, share=1.0):
    """With biases that no input lifts above zero."""

    def make(spec):
        model = MLP(spec, depth=depth, width=64)
        with torch.no_grad():
            bias = model.net.get_submodule(where).linear.bias
            bias[: int(share * len(bias))] = -100
        return model

    return "shapes", make


HEALTHY = {
    "relu 3": mlp(3),
    "relu 10": mlp(10),
    "relu 20": mlp(20),
    "one block": mlp(1),
    "tanh 10": mlp(10, activation="tanh"),
    "sigmoid 2": mlp(2, 128, activation="sigmoid"),
    "selu 10": mlp(10, activation="selu"),
    "dropout": mlp(3, dropout=0.1),
    "batch norm 8": mlp(8, norm="batch"),
    "layer norm 10": mlp(10, norm="layer"),
    "residual, batch norm 20": mlp(20, norm="batch", residual=True),
    "residual, branches at 0": mlp(20, residual=True, branch_scale=0.0),
    "cnn": ("shapes", lambda spec: CNN(spec, channels=[8, 8], dense=32)),
    "bn_cnn": ("shapes", lambda spec: BNCNN(spec, channels=[8, 8], dense=32)),
    "resnet": ("shapes", lambda spec: ResNet(spec, depth=8, width=8)),
    "densenet": ("shapes", lambda spec: DenseNet(spec, depth=10, growth=8)),
    "lstm": ("adding", lambda spec: LSTM(spec, hidden=32)),
    "lstm, chrono": ("temporal order", lambda spec: LSTM(spec, hidden=32, forget_bias="chrono")),
    "gru, chrono": ("copy memory", lambda spec: GRU(spec, hidden=32, update_bias="chrono")),
    "irnn": ("adding", lambda spec: RNN(spec, hidden=32, activation="relu", identity=True)),
}
UNEVEN = {  # what the ratio of gradients shows
    "sigmoid 20": mlp(20, activation="sigmoid", init="torch"),
    "relu 20, PyTorch's init": mlp(20, init="torch"),
    "relu 20, large": mlp(20, init=mean_field(3.0)),
    "tanh 20, large": mlp(20, activation="tanh", init=mean_field(3.0)),
    "batch norm 60": mlp(60, norm="batch"),
    "residual 40": mlp(40, residual=True),
    "dead inside": killed(5, "block3"),
    "born dead, 2 wide": mlp(20, 2),  # Lu et al. 2019
    "rnn, large": ("adding", lambda spec: RNN(spec, hidden=32, activation="relu", init=mean_field(2.0))),
}
LEVEL = {  # what it does not show
    "dead": killed(1, "block1"),
    "dead but for one unit": killed(5, "block5", 0.985),
    "tanh, σ_w = 10": mlp(3, activation="tanh", init=mean_field(10.0)),
    "tanh, σ_w = 100": mlp(1, activation="tanh", init=mean_field(100.0)),
    "sigmoid, critical": mlp(10, activation="sigmoid", init=mean_field(10.15)),
    "sigmoid, σ_w = 100": mlp(2, activation="sigmoid", init=mean_field(100.0)),
    "biases of 30": mlp(3, init=mean_field(math.sqrt(2), 30.0)),
    "relu 80": mlp(80),
}
LABELLED = {**HEALTHY, **UNEVEN, **LEVEL}


@pytest.fixture(scope="module")
def data():
    modules = {name: make() for name, make in DATA.items()}
    for module in modules.values():
        module.prepare_data()
        module.setup()
    return modules


def seen(name, data):
    where, make = LABELLED[name]
    torch.manual_seed(0)
    model, (x, y) = make(data[where].spec), data[where].sample(PROBE_SAMPLES)
    return probe(model, (x, y), own_loss, trunk_of(model))


def test_every_fault_is_named_and_no_healthy_network(data):
    """By ratios alone 9 of 17."""
    profiles = {name: seen(name, data) for name in LABELLED}
    gaps = {name: [abs(log_ratio(norms)) for norms in axes(one).values()] for name, one in profiles.items()}
    by_ratio = {name for name, gap in gaps.items() if max(gap, default=0) > CAUTION}
    named = {name for name, one in profiles.items() if judge(one).word != "OK"}
    assert by_ratio == set(UNEVEN)
    assert named == {*UNEVEN, *LEVEL}
    for name in ("dead", "dead inside", "born dead, 2 wide", "tanh, σ_w = 100"):
        assert judge(profiles[name]).word == "FAIL", name


def trained(make, optimizer, data):
    """The accuracy that 300 steps reach."""
    torch.manual_seed(0)
    model = make(data.spec)
    descent, loader = optimizer(model.parameters()), data.loader("train", training=True)
    for step in range(300):
        x, y = loader.batch(*divmod(step, len(loader)))
        descent.zero_grad()
        cross_entropy(model(x), y).backward()
        descent.step()
    model.eval()
    with torch.no_grad():
        return torch.cat([(model(x).argmax(1) == y).float() for x, y in data.val_dataloader()]).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (where, _) in LABELLED.items() if where == "shapes"])
def test_the_labels_are_true(data, name):
    """A healthy network gets above twice chance, by one optimizer at least; a faulty one by none."""
    optimizers = (lambda p: torch.optim.SGD(p, 0.02, momentum=0.9), lambda p: torch.optim.Adam(p, 1e-3))
    reached = [trained(LABELLED[name][1], optimizer, data["shapes"]) for optimizer in optimizers]
    assert (max(reached) > 0.2) == (name in HEALTHY), reached


@pytest.mark.parametrize(("where", "make"), [mlp(10), HEALTHY["lstm"]])
def test_a_head_that_starts_at_zero_is_not_dead(data, where, make):
    """One step later a gradient arrives."""
    torch.manual_seed(0)
    model, (x, y) = make(data[where].spec), data[where].sample(PROBE_SAMPLES)
    torch.nn.init.zeros_(model.net.head.weight)
    first = judge(probe(model, (x, y), own_loss, trunk_of(model)))
    assert (first.word, first.decades) == ("CAUTION", 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.loss(model(x), y).backward()
    optimizer.step()
    assert judge(probe(model, (x, y), own_loss, trunk_of(model))).word == "OK"


def test_a_learning_rate_far_too_large_leaves_an_lstm_without_gradient(data):
    where, make = HEALTHY["lstm"]
    torch.manual_seed(0)
    model, (x, y) = make(data[where].spec), data[where].sample(PROBE_SAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), 1e9)
    model.loss(model(x), y).backward()
    optimizer.step()
    told = judge(probe(model, (x, y), own_loss, trunk_of(model), torch.float32))
    assert (told.word, told.axis, told.decades) == ("FAIL", "time", -math.inf)
    assert told.reason == "‖∂L/∂x₁‖ = ‖∂L/∂x₂₀‖ = 0: no gradient arrives (first against last time step)"
