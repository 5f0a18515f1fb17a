"""Weight draws against the table of `init.py`, and what they do to a deep network."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
from conftest import NUMBERS, OPTIONS, POINTS, RGB
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from gradflow import runs
from gradflow.config import build
from gradflow.config.options import of_group
from gradflow.models import init as inits
from gradflow.models.base import Module, as_vector
from gradflow.models.densenet import DenseNet
from gradflow.models.init import NAMES, initialize, uninitialized
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN
from gradflow.models.resnet import ResNet
from gradflow.runs.errors import UserError
from gradflow.training import summary

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
    "fixed_std": lambda n_in, n_out: 0.05**2,
    "auto": lambda n_in, n_out: 2 / ((1 + SLOPE**2) * n_in),
}
VARIANCES |= {"kaiming": VARIANCES["he"], "xavier": VARIANCES["glorot"]}
SIGMAS = {"sigma_w": 1.7, "sigma_b": 0.4}
LEAKY = {"name": "leaky_relu", "negative_slope": SLOPE}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def drawn(option, layer, activation=LEAKY):
    """A layer after the draw that an option of conf/init asks for."""
    init = dict(OmegaConf.load(of_group("init")[option]))
    initialize(layer, init | SIGMAS if option == "mean_field" else init, activation)
    return layer


def std(w):
    return w.detach().double().square().mean().sqrt().item()


def gates_of(layer, part):
    """Each gate's own matrix, of the recurrent or the input weights."""
    return getattr(layer, f"weight_{part}_l0").detach().split(layer.hidden_size)


@pytest.mark.parametrize(("other", "name"), [("kaiming", "he"), ("xavier", "glorot")])
def test_other_names_select_the_same(other, name):
    """Of the option, and of a model that is made in Python."""
    weights = []
    for option in (other, name):
        torch.manual_seed(1)
        weights.append(drawn(option, nn.Linear(30, 20)).weight)
        torch.manual_seed(1)
        weights.append(MLP(POINTS, depth=1, width=5, init=option).net.block1.linear.weight)
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])


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
    chosen = dict(OmegaConf.load(of_group("activation")[activation]))
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


WITH_VARIANCE = [name for name in OPTIONS["init"] if "distribution" in OmegaConf.load(of_group("init")[name])]


def test_every_rule_with_a_variance_has_the_distributions_and_no_other():
    assert sorted(WITH_VARIANCE) == sorted(set(OPTIONS["init"]) - {"torch", "orthogonal", "delta_orthogonal"})
    for name in set(OPTIONS["init"]) - set(WITH_VARIANCE):
        with pytest.raises(UserError, match=f"init.distribution: init={name} takes no such key"):
            initialize(nn.Linear(2, 2), {"name": name, "distribution": "uniform"}, "tanh")


@pytest.mark.parametrize("option", WITH_VARIANCE)
@pytest.mark.parametrize(("distribution", "fourth"), [("normal", 3.0), ("uniform", 1.8), ("truncated", 2.3656)])
def test_a_distribution_keeps_the_variance_of_its_rule(option, distribution, fourth):
    """E w⁴ / (E w²)² tells them apart; that of the truncated Gaussian by quadrature of z² and z⁴ up to two."""
    z = torch.linspace(-2, 2, 100_001, dtype=torch.float64)
    density = (-z.square() / 2).exp()
    second, last = (float((density * z**power).sum() / density.sum()) for power in (2, 4))
    assert last / second**2 == pytest.approx(2.3656, abs=1e-3)
    init = dict(OmegaConf.load(of_group("init")[option])) | {"distribution": distribution}
    layer = nn.Linear(300, 400)
    initialize(layer, init | SIGMAS if option == "mean_field" else init, LEAKY)
    w = layer.weight.detach().double()
    assert std(w) == pytest.approx(math.sqrt(VARIANCES[option](300, 400)), rel=0.01)
    assert (w**4).mean() / w.square().mean() ** 2 == pytest.approx(fourth, rel=0.03)
    limit = {"normal": 6, "uniform": math.sqrt(3), "truncated": 2 / math.sqrt(second)}[distribution]
    assert w.abs().max() <= limit * math.sqrt(VARIANCES[option](300, 400)) * (1 + 1e-6)


def test_glorot_and_he_uniform_have_the_bounds_of_their_papers():
    for name, fans in (("glorot", 700), ("he", 300)):
        layer = nn.Linear(300, 400)
        initialize(layer, {"name": name, "distribution": "uniform"}, "relu")
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / fans), rel=1e-3)


@pytest.mark.parametrize(
    ("init", "answer"),
    [
        ({"name": "he", "distribution": "cauchy"}, "init.distribution=cauchy: expected one of normal, uniform, trunc"),
        ({"name": "fixed_std", "std": 0.0}, "init.std=0.0: expected a number above 0"),
        ({"name": "fixed_std", "sigma_w": 1.0}, "init.sigma_w: init=fixed_std takes no such key"),
    ],
)
def test_an_impossible_distribution_is_refused(init, answer):
    with pytest.raises(UserError, match=answer):
        initialize(nn.Linear(2, 2), init, "relu")


def test_a_name_alone_is_a_draw_with_the_defaults():
    layer = nn.Linear(300, 400)
    initialize(layer, "mean_field", "tanh")
    assert std(layer.weight) == pytest.approx(1 / math.sqrt(300), rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1)])
def test_an_impossible_sigma_is_refused(sigma_w, sigma_b):
    with pytest.raises(UserError) as told:
        initialize(nn.Linear(2, 2), {"name": "mean_field", "sigma_w": sigma_w, "sigma_b": sigma_b}, "tanh")
    assert str(told.value).startswith(f"init.sigma_w={sigma_w}, init.sigma_b={sigma_b}: expected sigma_w > 0")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("glorott", "did you mean glorot?"), ("zzz", "known: auto, delta_orthogonal, fixed_std, ")],
)
def test_an_unknown_name_is_answered_with_one_that_is_known(wrong, near):
    with pytest.raises(UserError) as told:
        initialize(nn.Linear(2, 2), wrong, "relu")
    assert str(told.value).startswith(f"init={wrong}: no such init; {near}")


@pytest.mark.parametrize("init", [{"name": "he", "sigma_w": 2.0}, {"name": "mean_field", "sigma_ww": 2.0}])
def test_a_keyword_that_the_draw_does_not_take_is_refused(init):
    """Wrong input raises; nothing falls back in silence."""
    with pytest.raises((UserError, TypeError), match="sigma_w"):
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


# --- everything that has a fan, and what is said of the rest -------------------------------------------------------


def formerly(net, init, activation):
    """The walk over Linear, Conv and recurrent layers with which the published figures were measured."""
    keywords = {"name": init} if isinstance(init, str) else dict(init)
    name, sigma_w, sigma_b = keywords["name"], keywords.get("sigma_w", 1.0), keywords.get("sigma_b", 0.0)
    if name == "torch":
        return
    draw = inits.weight_initializer(inits.best_init(activation) if name == "auto" else name, activation, sigma_w)
    recurrent = nn.init.orthogonal_ if name == "auto" else draw
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            draw(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=sigma_b)
        elif isinstance(module, nn.RNNBase):
            for key, parameter in module.named_parameters():
                for gate in parameter.detach().chunk(parameter.shape[0] // module.hidden_size):
                    if key.startswith("weight_ih"):
                        draw(gate)
                    elif key.startswith("weight_hh"):
                        recurrent(gate)
                    else:
                        nn.init.normal_(gate, std=sigma_b if key.startswith("bias_ih") else 0.0)


SHIPPED = [
    (MLP, POINTS, {"depth": 3, "width": 20, "norm": "batch", "residual": True, "branch_scale": 0.5}),
    (ResNet, RGB, {"depth": 8, "width": 4, "activation": "prelu"}),
    (DenseNet, RGB, {"depth": 10}),
    (RNN, NUMBERS, {"layers": 2, "hidden": 20}),
    (LSTM, NUMBERS, {"hidden": 20, "bidirectional": True}),
    (GRU, NUMBERS, {"hidden": 20, "update_bias": "chrono"}),
]


@pytest.mark.parametrize("init", [*sorted(set(NAMES) - {"fixed_std"}), {"name": "mean_field", **SIGMAS}], ids=str)
@pytest.mark.parametrize(("architecture", "spec", "words"), SHIPPED)
def test_what_ships_is_initialised_bit_for_bit_as_it_was(monkeypatch, architecture, spec, words, init):
    models = []
    for walk in (initialize, formerly):
        monkeypatch.setattr(sys.modules[architecture.__module__], "initialize", walk)
        torch.manual_seed(5)
        models.append((architecture(spec, init=init, **words).state_dict(), torch.rand(1)))
    (ours, after), (theirs, before) = models
    assert torch.equal(after, before)  # as many random numbers were taken
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize(("architecture", "spec", "words"), SHIPPED)
def test_nothing_that_ships_is_left_as_it_was(architecture, spec, words):
    assert uninitialized(architecture(spec, init="he", **words)) == []


@pytest.mark.parametrize("option", [name for name in OPTIONS["init"] if name != "torch"])
@pytest.mark.parametrize("others", [{}, {"kdim": 200, "vdim": 100}])
def test_queries_keys_and_values_are_three_matrices(option, others):
    layer = drawn(option, nn.MultiheadAttention(300, 4, **others))
    sides = [300, others.get("kdim", 300), others.get("vdim", 300)]
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    found = [getattr(layer, name) for name in names] if others else layer.in_proj_weight.chunk(3)
    for weight, side in zip([*found, layer.out_proj.weight], [*sides, 300], strict=True):
        assert weight.shape == (300, side)
        assert std(weight) == pytest.approx(math.sqrt(VARIANCES[option](side, 300)), rel=0.03)
    bias = layer.in_proj_bias
    assert std(bias) == (pytest.approx(0.4, rel=0.1) if option == "mean_field" else 0)
    assert uninitialized(layer) == []


def test_orthogonal_attention_is_orthogonal_part_by_part():
    for part in drawn("orthogonal", nn.MultiheadAttention(32, 4), "tanh").in_proj_weight.chunk(3):
        torch.testing.assert_close(part @ part.T, torch.eye(32), atol=1e-5, rtol=0)


def test_a_transformer_layer_has_nothing_left_and_its_clones_differ():
    """PyTorch copies one layer, so that all begin with the same weights."""
    net = drawn("he", nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256), 2, enable_nested_tensor=False))
    assert uninitialized(net) == []
    one, other = (layer.self_attn.in_proj_weight for layer in net.layers)
    assert std(one - other) == pytest.approx(math.sqrt(2) * std(one), rel=0.05)
    assert std(net.layers[0].linear2.weight) == pytest.approx(math.sqrt(VARIANCES["he"](256, 64)), rel=0.03)


def test_the_keys_that_attention_learns_are_left():
    assert uninitialized(drawn("he", nn.MultiheadAttention(8, 2, add_bias_kv=True))) == ["bias_k", "bias_v"]


@pytest.mark.parametrize("option", OPTIONS["init"])
def test_an_embedding_keeps_rows_of_mean_square_one_and_what_it_was_made_from(option):
    layer = drawn(option, nn.Embedding(400, 300, padding_idx=7))
    assert std(layer.weight) == pytest.approx(math.sqrt(399 / 400), rel=0.02)
    assert not layer.weight[7].any()
    known = torch.rand(5, 3)
    assert torch.equal(drawn(option, nn.Embedding.from_pretrained(known, freeze=False)).weight, known)


@pytest.mark.parametrize("first", ["embedding", "head"])
def test_a_head_that_is_tied_to_an_embedding_initialises_both(first):
    embedding, head = nn.Embedding(400, 300), nn.Linear(300, 400, bias=False)
    head.weight = embedding.weight
    net = drawn("he", nn.Sequential(*([embedding, head] if first == "embedding" else [head, embedding])))
    assert std(embedding.weight) == pytest.approx(math.sqrt(VARIANCES["he"](300, 400)), rel=0.02)
    assert uninitialized(net) == []


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_cell_is_initialised_as_its_layer(cell):
    layer = drawn("auto", cell(300, 200))
    for gate in layer.weight_hh.detach().split(200):
        torch.testing.assert_close(gate @ gate.T, torch.eye(200), atol=1e-5, rtol=0)
    for gate in layer.weight_ih.split(200):
        assert std(gate) == pytest.approx(math.sqrt(VARIANCES["auto"](300, 200)), rel=0.03)
    assert not layer.bias_ih.any()
    assert uninitialized(layer) == []


def test_the_projection_of_an_lstm_is_a_matrix_of_its_own():
    layer = drawn("he", nn.LSTM(300, 200, proj_size=100))
    for part, side in (("ih", 300), ("hh", 100)):
        for gate in gates_of(layer, part):
            assert std(gate) == pytest.approx(math.sqrt(VARIANCES["he"](side, 200)), rel=0.03)
    assert std(layer.weight_hr_l0) == pytest.approx(math.sqrt(VARIANCES["he"](200, 100)), rel=0.03)
    assert uninitialized(layer) == []


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrized_weight_gets_its_value_through_the_parametrization(wrap):
    layer = drawn("orthogonal", wrap(nn.Linear(40, 40)), "tanh")  # of spectral norm 1 already
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(40), atol=1e-4, rtol=0)
    assert uninitialized(layer) == []


def test_a_parametrized_recurrent_layer_has_weights():
    layer = drawn("auto", parametrizations.weight_norm(nn.GRU(30, 20), "weight_hh_l0"))
    for gate in gates_of(layer, "hh"):
        torch.testing.assert_close(gate @ gate.T, torch.eye(20), atol=1e-5, rtol=0)
    assert uninitialized(layer) == []


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_weight_that_can_not_be_set_is_left_and_told():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Doubled())
    before = layer.weight.clone()
    assert uninitialized(drawn("he", layer)) == ["parametrizations.weight.original"]
    assert torch.equal(layer.weight, before)
    assert uninitialized(drawn("he", nn.utils.spectral_norm(nn.Linear(4, 4)))) == ["weight_orig"]  # of the older kind


def test_a_layer_without_a_size_is_refused():
    """It would be drawn by PyTorch, later."""
    with pytest.raises(UserError, match="LazyLinear does not know its size yet; call the net once, on zeros"):
        initialize(nn.Sequential(nn.LazyLinear(3)), "he", "relu")
    net = nn.Sequential(nn.LazyLinear(300))
    net(torch.zeros(1, 200))
    assert std(drawn("he", net)[0].weight) == pytest.approx(math.sqrt(VARIANCES["he"](200, 300)), rel=0.03)


class Bare(Module):
    kinds = ("vector",)

    def __init__(self, spec, init="auto", **training):
        super().__init__(spec, **training)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Linear(8, self.spec.outputs))
        self.net[0].gate = nn.Parameter(torch.ones(8))
        self.net[2].mix = nn.Parameter(torch.ones(10, 10))
        initialize(self.net, init, "relu")

    def forward(self, x):
        return self.net(as_vector(x, self.spec))


def test_a_run_says_and_records_what_an_init_left(trained, monkeypatch, capsys):
    name, names = "gradflow.models.bare", ["net.0.gate", "net.2.mix"]
    assert summary.not_initialised(Bare(POINTS, init="he")) == names
    assert summary.not_initialised(Bare(POINTS, init="torch")) == []  # nothing was to be changed
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(Bare, "__module__", name)
    monkeypatch.setattr(sys.modules[name], "Bare", Bare, raising=False)
    monkeypatch.setattr(build, "check_target", lambda *_: None)  # a fork would name the class in conf/model/
    quiet = ["logger=none", "callbacks=none", "test=false", "trainer.max_steps=1", "trainer.limit_val_batches=0"]
    others = ["activation", "depth", "width", "norm", "skips", "residual", "branch_scale", "dropout"]
    words = ["model=mlp", f"model._target_={name}.Bare", *(f"~model.{key}" for key in others), "data=regression"]
    run = trained(*words, "init=he", *quiet)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: init")]
    assert said == [f"note: init=he left as they were: {', '.join(names)}"]
    assert runs.read_json(run / runs.SUMMARY)["not_initialised"] == names
