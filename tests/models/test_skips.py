"""Sums over several layers, sizes of kernels and widths by layer, against slow forwards by the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import GREY, MASKS, POINTS, RGB, inputs
from torch import nn

from gradflow.models.cnn import BNCNN, CNN
from gradflow.models.fcn import FCN
from gradflow.models.init import uninitialized
from gradflow.models.mlp import MLP
from gradflow.runs.errors import UserError

pytestmark = pytest.mark.usefixtures("exact")


def sums(depth, skips):
    """{layer: the earlier one that is added to it}, counted from 1, by the definition."""
    if skips == "unet":
        return {depth + 1 - i: i for i in range(1, depth // 2 + 1)}
    return {j: j - skips for j in range(1 + skips, depth + 1, skips)} if skips != "none" else {}


def by_hand(x, layers, skips):
    """[h_1, …, h_L] of functions, one after the other."""
    hidden = [x]
    for index, layer in enumerate(layers, 1):
        h = layer(hidden[-1])
        added = sums(len(layers), skips).get(index)
        hidden.append(h + hidden[added] if added else h)
    return hidden[1:]


def named(model, name):
    """The one module whose own name that is, however deep it stands."""
    (found,) = (part for key, part in model.net.named_modules() if key.rpartition(".")[2] == name)
    return found


def checked(model, x, hidden, output):
    """The trunk's outputs are h_1 … h_L, the output is that of the head, and every parameter has a gradient."""
    seen = {}
    for name in model.trunk:
        model.net.get_submodule(name).register_forward_hook(lambda part, x, y, name=name: seen.update({name: y}))
    found = model(x)
    assert list(seen) == model.trunk
    for name, h in zip(model.trunk, hidden, strict=True):
        torch.testing.assert_close(seen[name], h)
    torch.testing.assert_close(found, output)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 1e-13 for p in model.parameters())
    assert uninitialized(model) == []


@pytest.mark.parametrize("skips", ["none", 1, 2, 3, "unet"])
@pytest.mark.parametrize("depth", [4, 7])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_an_mlp_with_sums_by_hand(skips, depth, norm):
    widths = [9, 8, 7, 6, 7, 8, 9] if (skips, depth) == ("unet", 7) else [9] * depth
    model = MLP(POINTS, depth=depth, width=widths, skips=skips, norm=norm, activation="tanh", init="he")
    x, _ = inputs(POINTS, 20)
    hidden = by_hand(x, [named(model, f"block{index}") for index in range(1, depth + 1)], skips)
    assert [h.shape[1] for h in hidden] == widths
    checked(model, x, hidden, model.net.head(hidden[-1]))


@pytest.mark.parametrize("skips", [2, "unet"])
@pytest.mark.parametrize("architecture", [CNN, BNCNN])
def test_a_cnn_with_sums_within_each_stage_by_hand(architecture, skips):
    model = architecture(
        GREY, channels=(3, 4), convs=4, kernel=5, pool="avg", pool_size=3, skips=skips, dense=5, activation="tanh"
    )
    x, _ = inputs(GREY, 6)

    def layer(name):
        norm = named(model, f"norm{name}") if architecture is BNCNN else nn.Identity()
        conv = named(model, f"conv{name}")
        return lambda h: norm(F.conv2d(h, conv.weight, conv.bias, padding=2)).tanh()

    first = by_hand(x, [layer(f"1_{index}") for index in range(1, 5)], skips)
    second = by_hand(F.avg_pool2d(first[-1], 3), [layer(f"2_{index}") for index in range(1, 5)], skips)
    norm = model.net.dense_norm if architecture is BNCNN else nn.Identity()
    dense = norm(model.net.dense(second[-1].flatten(1))).tanh()
    assert second[-1].shape == (6, 4, 9, 9)
    checked(model, x, [*first, *second, dense], model.net.head(dense))


@pytest.mark.parametrize("skips", [3, "unet"])
def test_an_fcn_with_sums_by_hand(skips):
    model = FCN(MASKS, depth=5, width=4, skips=skips, activation="tanh")
    x, _ = inputs(MASKS, 3)

    def layer(index):
        conv, dilation = named(model, f"conv{index}"), 2 ** ((index - 1) % 4)
        return lambda h: F.conv2d(h, conv.weight, conv.bias, padding=dilation, dilation=dilation).tanh()

    hidden = by_hand(x, [layer(index) for index in range(1, 6)], skips)
    checked(model, x, hidden, model.net.head(hidden[-1]))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize(("kernel", "padding", "pool_size", "side"), [(5, "same", 3, 9), (5, 1, 3, 6), (1, 0, 4, 7)])
def test_kernels_and_pooling_of_another_size_by_hand(pool, kernel, padding, pool_size, side):
    model = CNN(GREY, channels=(3, 4), kernel=kernel, padding=padding, pool=pool, pool_size=pool_size, dense=5)
    x, _ = inputs(GREY)
    pixels = kernel // 2 if padding == "same" else padding
    pooling = F.max_pool2d if pool == "max" else F.avg_pool2d
    h = F.conv2d(x, model.net.conv1.weight, model.net.conv1.bias, padding=pixels).relu()
    h = F.conv2d(pooling(h, pool_size), model.net.conv2.weight, model.net.conv2.bias, padding=pixels).relu()
    assert model.net.conv1.weight.shape == (3, 1, kernel, kernel)
    assert h.shape[-1] == side
    torch.testing.assert_close(model(x), model.net.head(model.net.dense(h.flatten(1)).relu()))


def test_widths_by_layer():
    model = MLP(RGB, depth=3, width=[512, 256, 128])
    sizes = [(3072, 512), (512, 256), (256, 128), (128, 10)]
    found = [part for part in model.modules() if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in found] == sizes


def test_equal_widths_are_one_width_bit_for_bit():
    states = []
    for width in (9, [9, 9, 9, 9]):
        torch.manual_seed(3)
        states.append(MLP(POINTS, depth=4, width=width, residual=True).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("make", "options", "answer"),
    [
        (MLP, {"width": []}, r"model.width=\[\]: expected a width of 1 or more for each hidden layer"),
        (MLP, {"width": [4, 0, 4]}, r"model.width=\[4, 0, 4\]: expected a width of 1 or more"),
        (MLP, {"width": [4, 5]}, r"model.width=\[4, 5\]: 2 widths for 3 hidden layers; add model.depth=2"),
        (MLP, {"width": [4, 5, 4], "residual": True}, "the sums of model.residual=true need equal widths"),
        (MLP, {"skips": 2, "residual": True}, "model.skips=2: model.residual=true has sums of its own"),
        (MLP, {"skips": 2, "width": [4, 4, 5]}, "layer 1 has width 4, layer 3 has 5; a sum needs equal widths"),
        (MLP, {"skips": 3}, "model.skips=3: takes 4 layers in a row or more; here are 3"),
        (MLP, {"skips": "unet", "depth": 1}, "model.skips=unet: takes 2 layers in a row or more; here are 1"),
        (MLP, {"skips": 0}, "model.skips=0: expected a number of layers, 1 or more, unet, or none"),
        (MLP, {"skips": True}, "model.skips=True: expected a number of layers, 1 or more, unet, or none"),
        (MLP, {"skips": "resnet"}, "model.skips=resnet: expected a number of layers"),
        (CNN, {"skips": 1}, "model.skips=1: takes 2 layers in a row or more; here are 1"),
        (CNN, {"skips": 1, "convs": 2, "padding": 0}, "sums need maps of one size; add model.padding=same"),
        (CNN, {"kernel": 0}, "model.kernel=0: expected an odd number, 1 or more"),
        (CNN, {"kernel": 4}, "model.kernel=4: expected an odd number, 1 or more"),
        (CNN, {"kernel": 5, "padding": 3}, "model.padding=3: expected one of same, 0, 1, 2"),
        (CNN, {"pool_size": 0}, "model.pool_size=0: expected 1 or more"),
        (CNN, {"pool_size": 40}, r"model.pool_size=40: too many stages for 32×32 images: pool1 meets a map of 32×32"),
        (CNN, {"kernel": 9, "padding": 0, "pool_size": 3}, "kernel=9, .*: conv2 meets a map of 8×8"),
    ],
)
def test_what_can_not_be_built_is_one_line(make, options, answer):
    with pytest.raises(UserError, match=answer):
        make(RGB, **options)
