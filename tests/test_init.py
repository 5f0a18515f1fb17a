"""Weight draws against the table of `init.py`, and what they do to a deep network."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import NUMBERS, OPTIONS, POINTS
from omegaconf import OmegaConf
from torch import nn

from gradflow.command import CONF
from gradflow.mistakes import Mistake
from gradflow.models.init import NAMES, initialize
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN

SLOPE = 0.25
VARIANCES = {  # of n_in and n_out, under leaky_relu with SLOPE
    "torch": lambda n_in, n_out: 1 / (3 * n_in),
    "he": lambda n_in, n_out: 2 / ((1 + SLOPE**2) * n_in),
    "glorot": lambda n_in, n_out: 2 / (n_in + n_out),
    "lecun": lambda n_in, n_out: 1 / n_in,
    # orthonormal rows or columns: entries of mean square 1 / the longer side; n_out of a convolution is its channels
    "orthogonal": lambda n_in, n_out: 2 / (1 + SLOPE**2) / max(n_in, n_out),
    # the same at one tap of all: of a convolution, n_out is its channels times the taps
    "delta_orthogonal": lambda n_in, n_out: 2 / (1 + SLOPE**2) / max(n_in, n_out),
    "mean_field": lambda n_in, n_out: 1.7**2 / n_in,
    "auto": lambda n_in, n_out: 2 / ((1 + SLOPE**2) * n_in),
}
SIGMAS = {"sigma_w": 1.7, "sigma_b": 0.4}
LEAKY = {"name": "leaky_relu", "negative_slope": SLOPE}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(option, layer, activation=LEAKY):
    """A layer after the draw that an option of conf/init asks for."""
    init = dict(OmegaConf.load(CONF / "init" / f"{option}.yaml"))
    initialize(layer, init | SIGMAS if option == "mean_field" else init, activation)
    return layer


def std(w):
    return w.detach().double().square().mean().sqrt().item()


def gates_of(layer, part):
    """Each gate's own matrix, of the recurrent or the input weights."""
    return getattr(layer, f"weight_{part}_l0").detach().split(layer.hidden_size)


def test_every_option_is_a_name_and_the_other_way_round():
    assert sorted(NAMES) == OPTIONS["init"] == sorted(VARIANCES)


@pytest.mark.parametrize("option", OPTIONS["init"])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_the_weights_of_a_linear_layer(option, shape):
    layer = drawn(option, nn.Linear(*shape))
    assert std(layer.weight) == pytest.approx(math.sqrt(VARIANCES[option](*shape)), rel=0.03)
    assert abs(layer.weight.mean().item()) < 4 * std(layer.weight) / math.sqrt(300 * 400)


@pytest.mark.parametrize("option", OPTIONS["init"])
def test_the_weights_of_a_convolution(option):
    layer = drawn(option, nn.Conv2d(40, 60, 3))
    fans = (9 * 40, 60) if option == "orthogonal" else (9 * 40, 9 * 60)
    assert std(layer.weight) == pytest.approx(math.sqrt(VARIANCES[option](*fans)), rel=0.03)


@pytest.mark.parametrize("option", OPTIONS["init"])
@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_weights_of_each_gate(option, cell):
    """The fans are those of one gate: 200 units that read 300 inputs and 200 states; PyTorch looks at units only."""
    layer = drawn(option, cell(300, 200))
    for gate in gates_of(layer, "ih"):
        fans = (200, 200) if option == "torch" else (300, 200)
        assert std(gate) == pytest.approx(math.sqrt(VARIANCES[option](*fans)), rel=0.03)
    for gate in gates_of(layer, "hh"):
        expected = 1 / 200 if option == "auto" else VARIANCES[option](200, 200)
        assert std(gate) == pytest.approx(math.sqrt(expected), rel=0.03)


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_under_auto_each_recurrent_gate_is_orthogonal_by_itself(cell):
    layer = drawn("auto", cell(30, 20, bidirectional=True), "relu")
    gates = [*gates_of(layer, "hh"), *layer.weight_hh_l0_reverse.detach().split(20)]
    for gate in gates:
        torch.testing.assert_close(gate @ gate.T, torch.eye(20), atol=1e-5, rtol=0)
    assert len({gate[0, 0].item() for gate in gates}) == len(gates)


@pytest.mark.parametrize("option", sorted(set(OPTIONS["init"]) - {"torch"}))
@pytest.mark.parametrize("layer", [nn.Linear(30, 2000), nn.Conv2d(3, 2000, 3)])
def test_biases_are_zero_or_as_mean_field_has_them(option, layer):
    drawn(option, layer)
    if option == "mean_field":
        assert std(layer.bias) == pytest.approx(0.4, rel=0.06)
    else:
        assert not layer.bias.any()


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_two_biases_of_a_recurrent_gate_add_up_to_one_draw(cell):
    layer = drawn("mean_field", cell(3, 2000))
    for gate in (layer.bias_ih_l0 + layer.bias_hh_l0).split(2000):
        assert std(gate) == pytest.approx(0.4, rel=0.06)
    layer = drawn("he", cell(3, 20))
    assert not layer.bias_ih_l0.any()
    assert not layer.bias_hh_l0.any()


@pytest.mark.parametrize(("activation", "squared"), [("relu", 2.0), (LEAKY, 2 / (1 + SLOPE**2)), ("tanh", 1.0)])
def test_orthogonal_rows_or_columns_times_the_gain(activation, squared):
    wide, tall = (drawn("orthogonal", nn.Linear(*shape), activation).weight.detach() for shape in ((60, 40), (40, 60)))
    conv = drawn("orthogonal", nn.Conv2d(5, 40, 3), activation).weight.detach().flatten(1)
    for w in (wide, tall.T, conv):
        torch.testing.assert_close(w @ w.T, squared * torch.eye(40), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("activation", "squared"), [("relu", 2.0), (LEAKY, 2 / (1 + SLOPE**2)), ("tanh", 1.0)])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 1), (1, 1)])
def test_delta_orthogonal_is_a_matrix_at_the_centre_tap(kernel, activation, squared):
    for channels in ((20, 12), (12, 20)):
        weight = drawn("delta_orthogonal", nn.Conv2d(*channels, kernel).double(), activation).weight.detach()
        tap = weight[:, :, kernel[0] // 2, kernel[1] // 2]
        assert weight.count_nonzero() == tap.count_nonzero() == 240
        w = tap if channels == (20, 12) else tap.T  # fewer outputs: orthonormal rows; more: columns
        torch.testing.assert_close(w @ w.T, squared * torch.eye(12).double(), atol=1e-6, rtol=0)


def signal_and_gradient(init, channels, depth=40):
    """Norms of the signal after a deep linear convolutional net, and of a gradient that went back, of 1 before."""
    net = nn.Sequential(*[nn.Conv2d(*channels, 3, padding=1, bias=False) for _ in range(depth)]).double()
    initialize(net, init, "identity")
    x = nn.functional.normalize(torch.randn(2, channels[0], 7, 7).double(), dim=(0, 1, 2, 3)).requires_grad_()
    y = net(x)
    y.backward(nn.functional.normalize(torch.randn_like(y), dim=(0, 1, 2, 3)))
    return y.norm().item(), x.grad.norm().item()


def test_a_delta_orthogonal_net_keeps_every_signal_and_gradient():
    assert signal_and_gradient("delta_orthogonal", (8, 8)) == pytest.approx((1, 1), abs=1e-9)
    assert max(signal_and_gradient("orthogonal", (8, 8))) < 0.1


def test_a_delta_orthogonal_layer_keeps_the_signal_if_it_widens_and_the_gradient_if_it_narrows():
    wider, narrower = (signal_and_gradient("delta_orthogonal", channels, depth=1) for channels in ((6, 9), (9, 6)))
    assert (wider[0], narrower[1]) == pytest.approx((1, 1), abs=1e-9)
    assert max(wider[1], narrower[0]) < 0.99


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_delta_orthogonal_gates_are_orthogonal(cell):
    layer = drawn("delta_orthogonal", cell(30, 20), "tanh")
    for gate in gates_of(layer, "hh") + gates_of(layer, "ih"):
        torch.testing.assert_close(gate @ gate.T, torch.eye(20), atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", OPTIONS["activation"])
def test_auto_chooses_by_the_activation(activation):
    chosen = dict(OmegaConf.load(CONF / "activation" / f"{activation}.yaml"))
    layer = drawn("auto", nn.Linear(300, 500), chosen)
    slope = {"leaky_relu": 0.01, "prelu": 0.25}.get(activation, 0.0)
    variance = {"sigmoid": 2 / 800, "tanh": 2 / 800, "identity": 2 / 800, "selu": 1 / 300}
    expected = variance.get(activation, 2 / ((1 + slope**2) * 300))
    assert std(layer.weight) == pytest.approx(math.sqrt(expected), rel=0.01)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "selu", "identity", "relu"])
def test_he_of_an_activation_without_a_slope_has_a_factor_of_two(activation):
    layer = drawn("he", nn.Linear(300, 500), activation)
    assert std(layer.weight) == pytest.approx(math.sqrt(2 / 300), rel=0.01)


@pytest.mark.parametrize(
    ("make", "fan"),
    [(lambda: nn.Linear(300, 400), 300), (lambda: nn.Conv2d(20, 60, 3), 180), (lambda: nn.LSTM(30, 100), 100)],
)
def test_torch_leaves_the_very_draw_of_pytorch(make, fan):
    torch.manual_seed(3)
    untouched = make()
    torch.manual_seed(3)
    layer = drawn("torch", make())
    for mine, theirs in zip(layer.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.abs().max().item() <= 1 / math.sqrt(fan)
        assert std(mine) == pytest.approx(1 / math.sqrt(3 * fan), rel=0.08)


@pytest.mark.parametrize("option", OPTIONS["init"])
def test_norm_layers_and_slopes_are_left_alone(option):
    norms = nn.Sequential(nn.BatchNorm1d(5), nn.BatchNorm2d(5), nn.LayerNorm(5), nn.PReLU(init=0.3))
    drawn(option, nn.Sequential(nn.Linear(5, 5), norms))
    for norm in norms[:3]:
        assert torch.equal(norm.weight, torch.ones(5))
        assert torch.equal(norm.bias, torch.zeros(5))
    assert norms[3].weight.item() == pytest.approx(0.3)


def test_a_name_alone_is_a_draw_with_the_defaults():
    layer = nn.Linear(300, 400)
    initialize(layer, "mean_field", "tanh")
    assert std(layer.weight) == pytest.approx(1 / math.sqrt(300), rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1)])
def test_an_impossible_sigma_is_refused(sigma_w, sigma_b):
    with pytest.raises(Mistake) as told:
        initialize(nn.Linear(2, 2), {"name": "mean_field", "sigma_w": sigma_w, "sigma_b": sigma_b}, "tanh")
    assert str(told.value).startswith(f"init.sigma_w={sigma_w}, init.sigma_b={sigma_b}: expected sigma_w > 0")


@pytest.mark.parametrize(
    ("wrong", "near"), [("glorott", "did you mean glorot?"), ("zzz", "known: auto, delta_orthogonal, glorot")]
)
def test_an_unknown_name_is_answered_with_one_that_is_known(wrong, near):
    with pytest.raises(Mistake) as told:
        initialize(nn.Linear(2, 2), wrong, "relu")
    assert str(told.value).startswith(f"init={wrong}: no such init; {near}")


@pytest.mark.parametrize("init", [{"name": "he", "sigma_w": 2.0}, {"name": "mean_field", "sigma_ww": 2.0}])
def test_a_keyword_that_the_draw_does_not_take_is_refused(init):
    """Wrong input raises; nothing falls back in silence."""
    with pytest.raises((Mistake, TypeError), match="sigma_w"):
        initialize(nn.Linear(2, 2), init, "relu")


@pytest.mark.parametrize(("activation", "gain"), [("tanh", 2 / 600), ("relu", 2 / 300)])
def test_a_model_hands_its_activation_to_the_draw(activation, gain):
    model = MLP(POINTS, depth=2, width=300, activation=activation)
    assert std(model.net.block2.linear.weight) == pytest.approx(math.sqrt(gain), rel=0.02)


@pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
def test_a_recurrent_model_draws_its_cells_and_its_head(cell):
    model = cell(NUMBERS, hidden=200, init="mean_field")
    assert std(model.net.layer1.weight_hh_l0) == pytest.approx(1 / math.sqrt(200), rel=0.02)
    assert std(model.net.head.weight) == pytest.approx(1 / math.sqrt(200), rel=0.15)


def rms_by_depth(init, depth=30, width=256):
    """Root mean square of each hidden layer's output and of the loss's gradient at it, biases at zero."""
    model = MLP(POINTS, depth=depth, width=width, init=init)
    hidden = []
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    for index in range(depth):
        act = getattr(model.net, f"block{index + 1}").act
        act.register_forward_hook(lambda module, x, h: (h.retain_grad(), hidden.append(h))[0])
    model.double()(torch.randn(64, 2, dtype=torch.float64)).sum().backward()
    return [std(h) for h in hidden], [std(h.grad) for h in hidden]


def test_he_keeps_the_size_of_activations_and_gradients_through_thirty_layers():
    forward, backward = rms_by_depth("he")
    assert all(0.5 < rms / forward[0] < 2 for rms in forward)
    assert all(0.5 < rms / backward[-1] < 2 for rms in backward)


def test_pytorchs_own_draw_loses_a_factor_of_the_root_of_six_a_layer():
    forward, backward = rms_by_depth("torch")
    assert (forward[0] / forward[-1]) ** (1 / 29) == pytest.approx(math.sqrt(6), rel=0.03)
    assert (backward[-1] / backward[0]) ** (1 / 29) == pytest.approx(math.sqrt(6), rel=0.03)


@pytest.mark.parametrize("sigma_w", [1.0, 1.6])
def test_mean_field_scales_by_sigma_over_the_root_of_two_a_relu_layer(sigma_w):
    forward, _ = rms_by_depth({"name": "mean_field", "sigma_w": sigma_w})
    assert (forward[-1] / forward[0]) ** (1 / 29) == pytest.approx(sigma_w / math.sqrt(2), rel=0.03)
