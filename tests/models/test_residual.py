"""Branch scales, the place of the norm and dropout in residual blocks, against formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import GREY, NUMBERS, POINTS, inputs
from torch import nn

from gradflow.models import resnet
from gradflow.models.init import initialize
from gradflow.models.mlp import MLP
from gradflow.models.residual import PLAIN, BranchScale, Residual
from gradflow.models.resnet import ResNet
from gradflow.optimizers.roles import roles
from gradflow.runs.errors import UserError

POST = {"norm_place": "post"}
NETS = {
    "mlp pre": lambda **own: MLP(POINTS, depth=5, width=6, residual=True, norm="layer", **own),
    "mlp post": lambda **own: MLP(POINTS, depth=5, width=6, residual=True, norm="layer", **POST, **own),
    "mlp bare": lambda **own: MLP(POINTS, depth=5, width=6, residual=True, **own),
    "resnet": lambda **own: ResNet(GREY, depth=8, width=3, **own),
    "resnet post": lambda **own: ResNet(GREY, depth=8, width=3, **POST, **own),
    "resnet preact": lambda **own: ResNet(GREY, depth=8, width=3, preact=True, **own),
}
WORDS = ("none", "depth", "layerscale", "zero", "deepnorm")
CASES = [(net, word) for net in NETS for word in WORDS if word != "deepnorm" or "post" in net]


def scramble(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.1, 0.4)
    return net


def blocks_of(model):
    return [part for part in model.net if isinstance(part, Residual)]


def seeded(make, **own):
    torch.manual_seed(3)
    return make(**own)


def test_the_numbers_of_each_choice():
    assert BranchScale.of("none", 9) == BranchScale.of(1, 9) == PLAIN
    assert BranchScale.of(0.25, 9) == BranchScale(0.25)
    assert BranchScale.of("depth", 16) == BranchScale(0.25)
    assert BranchScale.of("layerscale", 16) == BranchScale(1e-4, by_channel=True)
    assert BranchScale.of("zero", 16) == BranchScale(last=0)
    # Wang et al. 2022, table 1: of an encoder of N = 32 layers, two branches each, α = (2N)^¼ and β = (8N)^-¼
    scale = BranchScale.of("deepnorm", 64, "post")
    assert (scale.skip, scale.weights) == pytest.approx((64**0.25, 256**-0.25))
    assert (scale.start, scale.last) == (1, 1)
    assert BranchScale.of("depth", 0) == PLAIN  # a net of one layer has no branch, and needs none


@pytest.mark.parametrize(("net", "word"), CASES)
def test_a_choice_changes_no_other_weight_and_takes_no_random_number(net, word):
    plain, rest = seeded(NETS[net]).state_dict(), torch.rand(3)
    model = seeded(NETS[net], branch_scale=word)
    assert torch.equal(torch.rand(3), rest)
    changed = {name for name, value in plain.items() if not torch.equal(value, model.state_dict()[name])}
    in_branch = {
        f"net.{key}.{name}"
        for key, block in model.net.named_children()
        if isinstance(block, Residual)
        for name, p in block.named_parameters()
        if name.partition(".")[0] not in block.after and p.ndim > (word == "deepnorm")
    }
    assert changed == {"none": set(), "deepnorm": in_branch}.get(word, changed)
    assert changed <= in_branch
    assert len(changed) == (len(blocks_of(model)) if word == "zero" else len(changed))
    assert bool(changed) == (word in ("zero", "deepnorm"))


@pytest.mark.parametrize("init", ["auto", "torch"])
@pytest.mark.parametrize("net", NETS)
def test_zero_makes_each_branch_nothing_and_learns(net, init):
    model = NETS[net](branch_scale="zero", init=init)
    x, y = inputs(model.spec, batch=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda block, x, y: seen.append((block, x[0], y)))
    for step in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward() if y.dtype == torch.long else F.mse_loss(model(x), y).backward()
        for block, h, h_next in seen if not step else ():
            after = nn.Sequential(*[getattr(block, name) for name in block.after])
            if h.shape == h_next.shape:
                torch.testing.assert_close(h_next, after(h))
        optimizer.step()
    assert len(seen) == 2 * len(blocks_of(model))
    for name, parameter in model.named_parameters():  # what stands before the last weights learns from step 1 on
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("net", ["mlp post", "resnet post"])
def test_deepnorm_multiplies_the_weights_of_the_branches(net):
    plain, model = seeded(NETS[net]), seeded(NETS[net], branch_scale="deepnorm")
    branches = len(blocks_of(model))
    for one, other in zip(blocks_of(plain), blocks_of(model), strict=True):
        assert other.skip_scale == pytest.approx(branches**0.25)
        for name, weight in one.named_parameters():
            beta = (4 * branches) ** -0.25 if weight.ndim > 1 else 1
            torch.testing.assert_close(other.get_parameter(name), beta * weight)


def test_a_part_may_say_which_weights_deepnorm_multiplies():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

        def branch_weights(self):
            return [self.value.weight]

    scale = BranchScale.of("deepnorm", 4, "post")
    block = Residual([("part", Part()), ("norm", nn.LayerNorm(4))], scale=scale, after=("norm",))
    torch.manual_seed(0)
    initialize(block, "lecun", "relu")
    plain = Part()
    torch.manual_seed(0)
    initialize(plain, "lecun", "relu")
    torch.testing.assert_close(block.part.value.weight, plain.value.weight / 2)
    assert torch.equal(block.part.query.weight, plain.query.weight)


@pytest.mark.parametrize("net", NETS)
def test_layerscale_is_a_vector_of_channels(net):
    """The scale of channel c has the gradient Σ dL/dy_c · branch_c."""
    model = NETS[net](branch_scale="layerscale")
    for block in blocks_of(model):
        last = [m for m in block.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        assert block.scale.shape == (last.out_features if "mlp" in net else last.out_channels,)
        assert (block.scale == 1e-4).all()
    of_scales = {role for name, role in roles(model).items() if name.endswith("scale")}
    assert of_scales == {"vectors"}
    block = scramble(blocks_of(model)[0].eval())
    block.after = ()  # the sum alone; what stands after it is then part of the branch
    x = torch.randn(7, 6) if "mlp" in net else torch.randn(7, 3, 5, 5)
    y = block(x)
    weights = torch.randn_like(y)
    (weights * y).sum().backward()
    branch = nn.Sequential(*block)(x)
    scale = block.scale if "mlp" in net else block.scale[:, None, None]
    torch.testing.assert_close(y, x + scale * branch)
    torch.testing.assert_close(block.scale.grad, (weights * branch).sum([0] if "mlp" in net else [0, 2, 3]))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_post_norm_mlp_by_hand(norm, word):
    model = scramble(
        MLP(NUMBERS, depth=4, width=7, norm=norm, residual=True, activation="tanh", branch_scale=word, **POST)
    )

    def normed(h, norm_layer):
        axis = 0 if norm == "batch" else 1
        centred = h - h.mean(axis, keepdim=True)
        h = centred / (h.var(axis, correction=0, keepdim=True) + 1e-5).sqrt()
        return h * norm_layer.weight + norm_layer.bias

    x, net = inputs(NUMBERS)[0], model.net
    h = normed(F.linear(x.flatten(1), net.block1.linear.weight, net.block1.linear.bias), net.block1.norm)
    alpha = 3**0.25 if word == "deepnorm" else 1
    for block in (net.block2, net.block3, net.block4):
        h = normed(alpha * h + block.scale * F.linear(h.tanh(), block.linear.weight, block.linear.bias), block.norm)
    torch.testing.assert_close(model(x), F.linear(h.tanh(), net.head.weight, net.head.bias))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_post_norm_block_of_a_resnet_by_hand(stride):
    scale = BranchScale(start=0.7, by_channel=True, skip=1.5)
    block = resnet.block(4, 4 * stride, stride, "relu", True, False, scale, "post", dropout=0.5)
    block = scramble(block).eval()
    x = torch.randn(3, 4, 6, 6)

    def normed(h, norm):
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        return (h - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    branch = normed(F.conv2d(x, block.conv1.weight, None, stride, 1), block.norm1).relu()
    branch = F.conv2d(branch, block.conv2.weight, None, 1, 1)
    skip = torch.cat([x[:, :, ::2, ::2], torch.zeros(3, 4, 3, 3)], 1) if stride == 2 else x
    total = 1.5 * skip + block.scale.view(-1, 1, 1) * branch
    torch.testing.assert_close(block(x), normed(total, block.norm2).relu())


@pytest.mark.parametrize("preact", [False, True])
def test_dropout_of_a_resnet_stands_before_the_second_convolution(preact):
    torch.manual_seed(0)
    model = ResNet(GREY, depth=8, width=8, preact=preact, dropout=0.25)
    dry = ResNet(GREY, depth=8, width=8, preact=preact)
    assert list(model.state_dict()) == list(dry.state_dict())
    dry.load_state_dict(model.state_dict())
    x = inputs(GREY)[0]
    assert torch.equal(model.eval()(x), dry.eval()(x))
    for block in blocks_of(model):
        names = [name for name, _ in block.named_children()]
        assert names[names.index("drop") - 1 : names.index("drop") + 2] == [
            "act2" if preact else "act1",
            "drop",
            "conv2",
        ]
    seen = []
    block = model.net.block1.train()
    block.drop.register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
    block(torch.randn(64, 8, 6, 6))
    ((before, after),) = seen
    kept = after[before != 0] != 0
    assert kept.double().mean().item() == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(after[before != 0][kept], before[before != 0][kept] / 0.75)


NEEDS_POST = "model.branch_scale=deepnorm: needs a norm after each sum; add model.norm_place=post"
RESIDUAL = {"residual": True, "norm": "layer"}
SENSELESS = [
    (MLP, RESIDUAL | {"branch_scale": "deepnorm"}, NEEDS_POST),
    (ResNet, {"depth": 8, "branch_scale": "deepnorm"}, NEEDS_POST),
    (MLP, RESIDUAL | {"branch_scale": True}, "model.branch_scale=True: expected a number"),
    (MLP, RESIDUAL | {"branch_scale": "LayerScale"}, "one of none, depth, layerscale, zero, deepnorm"),
    (MLP, RESIDUAL | {"norm_place": "mid"}, "model.norm_place=mid: expected one of pre, post"),
    (MLP, {"residual": True} | POST, "model.norm_place=post: no norm is there to place"),
    (MLP, {"norm": "layer"} | POST, "model.norm_place=post: no sum is there to follow; add model.residual=true"),
    (MLP, RESIDUAL | {"depth": 1} | POST, "no sum is there to follow; add model.depth=2"),
    (MLP, {"branch_scale": "zero"}, "no branch is there to scale; add model.residual=true"),
    (ResNet, {"depth": 8, "skip": False} | POST, "no sum is there to follow; leave out model.skip=false"),
    (ResNet, {"depth": 8, "preact": True} | POST, "no norm ends a branch with model.preact=true"),
    (ResNet, {"depth": 8, "dropout": 1.0}, "model.dropout=1.0: expected a fraction"),
]


@pytest.mark.parametrize(("net", "own", "message"), SENSELESS)
def test_a_senseless_combination_is_one_line(net, own, message):
    with pytest.raises(UserError) as told:
        net(GREY, **own)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("net", "word"), CASES)
def test_every_parameter_gets_a_gradient(net, word):
    if word == "zero":
        return  # after one step: test_zero_makes_each_branch_nothing_and_learns
    model = NETS[net](branch_scale=word)
    model(inputs(model.spec, batch=8)[0]).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert math.isfinite(parameter.grad.abs().max()), name
        assert parameter.grad.abs().max() > 1e-13, name
