"""Architectures against hand-written forwards, closed forms and published sizes; and the base that they share.

All in float64, so that a gradient which is zero in exact arithmetic is told from one that is small.
"""

from __future__ import annotations

import io
import math
import re
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import COPY, GREY, MASKS, NUMBERS, OPTIONS, POINTS, RGB, SYMBOLS, TEXT, entries_of, inputs, plain
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn

from gradflow.config import build
from gradflow.config.options import of_group
from gradflow.diagnostics.layers import layers, weighted
from gradflow.models import base, resnet
from gradflow.models.checks import Unfit
from gradflow.models.cnn import BNCNN, CNN
from gradflow.models.densenet import DenseNet
from gradflow.models.metrics import Mean, Metrics
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN
from gradflow.models.residual import BranchScale, Residual, shortcut
from gradflow.models.resnet import ResNet
from gradflow.optimizers import schedule
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

SPECS = {"rgb": RGB, "grey": GREY, "numbers": NUMBERS, "symbols": SYMBOLS, "copy": COPY, "text": TEXT}
SPECS |= {"masks": MASKS, "points": POINTS}
KINDS = {  # of input that the shipped options take
    "mlp": {"image", "sequence", "vector"},
    "rnn": {"image", "sequence"},
    "lstm": {"image", "sequence"},
    "gru": {"image", "sequence"},
    "cnn": {"image"},
    "bn_cnn": {"image"},
    "resnet": {"image"},
    "densenet": {"image"},
    "fcn": {"image"},
}


def class_of(option):
    node = OmegaConf.load(of_group("model")[option])
    return get_class(node.get("_target_") or node.model._target_)


CLASSES = {option: class_of(option) for option in OPTIONS["model"]}
PAIRS = [(option, name) for option in CLASSES for name in SPECS]
FIT = [(option, name) for option, name in PAIRS if CLASSES[option].takes(SPECS[name])]
UNFIT = [pair for pair in PAIRS if pair not in FIT]


pytestmark = pytest.mark.usefixtures("exact")


@pytest.fixture(scope="module")
def compositions():
    return {}


@pytest.fixture
def built(composed, compositions):
    """Build the model of some overrides. Composing costs more than most of these tests, so that only choices of an
    option are composed, once each; values are set in a copy."""
    parse = OverridesParser.create().parse_override

    def make(spec, *words):
        options = tuple(word for word in words if "." not in word.partition("=")[0])
        if options not in compositions:
            compositions[options] = composed(*options)
        cfg = deepcopy(compositions[options])
        for value in (parse(word) for word in words if word not in options):
            OmegaConf.update(cfg, value.key_or_group, value.value())
        return build.model(cfg, spec)

    return make


def count(net, *kinds):
    return sum(isinstance(part, kinds) for part in net.modules())


def size(net):
    return sum(p.numel() for p in net.parameters())


def scramble(net):
    """Weights and biases that no init would give, so that none can hide at zero or one."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0.1, 0.4)
    return net


def without_gradient(model, spec):
    """Names of the parameters that the loss of a random batch does not reach."""
    x, target = inputs(spec, batch=8)
    task_of(spec).loss(model(x), target, model.loss_name).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-13]


# -- every option ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "name"), FIT)
def test_shape_of_the_output_and_a_gradient_for_every_parameter(built, option, name):
    spec = SPECS[name]
    model = built(spec, f"model={option}")
    axis = -1 if task_of(spec).answers != "pixel" else 1
    assert model(inputs(spec, batch=3)[0]).movedim(axis, -1).shape == (3, *entries_of(spec), spec.outputs)
    assert without_gradient(model, spec) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("points", "model=mlp model.depth=0"),
        ("numbers", "model=mlp model.norm=batch"),
        ("numbers", "model=mlp model.norm=layer"),
        ("numbers", "model=mlp model.residual=true model.depth=4"),
        ("numbers", "model=mlp model.residual=true model.norm=batch model.depth=4"),
        ("numbers", "model=mlp model.residual=true model.norm=layer model.dropout=0.2"),
        ("numbers", "model=mlp model.residual=true model.branch_scale=0.5 model.depth=4"),
        ("numbers", "model=mlp model.width=[7,9,5] init=fixed_std init.distribution=truncated"),
        ("symbols", "model=mlp model.dropout=0.3 activation=prelu"),
        ("grey", "model=cnn model.channels=[8,8] model.convs=2 model.padding=0 model.pool=avg activation=prelu"),
        ("grey", "model=cnn model.dropout=0.2"),
        ("grey", "model=bn_cnn model.convs=2 model.dropout=0.2"),
        ("grey", "model=resnet model.skip=false"),
        ("grey", "model=resnet model.preact=true"),
        ("grey", "model=resnet model.preact=true model.skip=false activation=prelu"),
        ("grey", "model=resnet model.branch_scale=depth"),
        ("grey", "model=resnet model.preact=true model.branch_scale=2 init=delta_orthogonal"),
        ("grey", "model=densenet model.depth=10 model.dropout=0.2"),
        ("numbers", "model=rnn activation=relu model.identity=true"),
        *[
            (name, f"model={cell} model.layers=2 model.bidirectional=true model.dropout=0.2 model.hidden=16")
            for cell in ("rnn", "lstm", "gru")
            for name in ("numbers", "copy")
        ],
    ],
)
def test_a_gradient_for_every_parameter_of_a_variant(built, name, words):
    assert without_gradient(built(SPECS[name], *words.split()), SPECS[name]) == []


@pytest.mark.parametrize("option", KINDS)
def test_the_kinds_of_input_that_an_option_takes(option):
    assert set(CLASSES[option].kinds) == KINDS[option]


def test_a_model_of_tokens_takes_no_numbers():
    class OfTokens(base.Module):
        kinds = ("tokens",)

        def forward(self, x):
            return x

    assert OfTokens(SYMBOLS).spec == SYMBOLS
    with pytest.raises(Unfit, match="OfTokens takes tokens, not sequence of numbers"):
        OfTokens(NUMBERS)
    with pytest.raises(Unfit, match="OfTokens takes tokens, not vector"):
        OfTokens(POINTS)


@pytest.mark.parametrize(("option", "name"), UNFIT)
def test_an_unfit_architecture_is_refused_with_those_that_fit(built, option, name):
    spec = SPECS[name]
    with pytest.raises(UserError) as told:
        built(spec, f"model={option}")
    why, _, choice = str(told.value).partition("; for these data choose model=")
    reasons = "takes .*, not |has an output for each .*, not for each |sees later"
    assert re.match(f"{CLASSES[option].__name__} ({reasons})", why)
    assert choice.split(" or ") == [other for other in OPTIONS["model"] if CLASSES[other].takes(spec)]


def test_a_model_knows_the_very_spec_of_the_data(built):
    assert MLP(RGB).spec == MLP(plain(RGB)).spec == RGB
    assert built(RGB, "model=mlp").spec == RGB


@pytest.mark.parametrize(
    "words",
    [f"model={option}" for option in OPTIONS["model"]]
    + [
        "model=mlp model.residual=true model.branch_scale=0",
        "model=resnet model.depth=8 model.branch_scale=depth",
        "model=mlp model.width=[5,6,5] model.skips=unet",
        "model=cnn model.kernel=5 model.pool_size=3 model.convs=3 model.skips=2",
        "model=lstm model.forget_bias=chrono model.memory=99",
        "model=gru model.update_bias=chrono",
    ],
)
def test_what_a_checkpoint_holds_of_a_model_is_plain_and_builds_it_again(built, words):
    takes = CLASSES[words.split()[0].removeprefix("model=")].takes
    spec = next(spec for spec in (RGB, *SPECS.values()) if takes(spec))
    own = ("trainer.channels_last=false", "optimizer=rmsprop", "scheduler=cosine", "init=mean_field", "model.l2=0.5")
    model = built(spec, *words.split(), *own)  # a layout is no part of a model, and rounds in another order
    assert not {"optimizer", "scheduler"} & set(model.hparams)
    file = io.BytesIO()
    torch.save({"hyper_parameters": dict(model.hparams)}, file)
    file.seek(0)
    held = torch.load(file, weights_only=True)["hyper_parameters"]
    assert held == dict(model.hparams)
    again = type(model)(**held)
    assert (again.l2, again.spec, again.hparams) == (0.5, model.spec, model.hparams)
    again.load_state_dict(model.state_dict())
    x = inputs(spec)[0]
    assert torch.equal(again.eval()(x), model.eval()(x))


IMPOSSIBLE = [
    ("model=resnet", "model.depth=21", "; 20 is near"),
    ("model=resnet", "model.depth=-4", "; 8 is near"),
    ("model=resnet", "model.width=0", ": expected 1 or more"),
    ("model=densenet", "model.depth=24", "; 25 is near"),
    ("model=densenet", "model.depth=4", "; 7 is near"),
    ("model=densenet", "model.growth=0", ": expected 1 or more"),
    ("model=densenet", "model.dropout=1.0", ": expected a fraction"),
    ("model=mlp", "model.depth=-1", ": expected 0 or more hidden layers"),
    ("model=mlp", "model.width=-3", ": expected 1 or more"),
    ("model=mlp", "model.dropout=1.0", ": expected a fraction"),
    ("model=mlp", "model.dropout=-0.1", ": expected a fraction"),
    ("model=mlp", "model.norm=group", ": expected one of none, batch, layer"),
    ("model=mlp", "model.loss=hinge", ": these data ask for classes; expected one of auto, cross_entropy, mse"),
    ("model=mlp", "model.l1=-0.1", "expected 0 or more"),
    ("model=mlp", "model.l2=-0.1", ": expected 0 or more"),
    ("model=cnn", "model.channels=[32,0]", "model.channels=[32, 0]: expected a width of 1 or more for each stage"),
    ("model=cnn", "model.channels=[]", "model.channels=[]: expected a width of 1 or more for each stage"),
    ("model=cnn", "model.channels=[8,8,8,8,8,8,8]", ": too many stages for 32×32 images"),
    ("model=cnn", "model.convs=0", ": expected 1 or more"),
    ("model=cnn", "model.dense=0", ": expected 1 or more"),
    ("model=cnn", "model.pool=min", ": expected one of max, avg"),
    ("model=cnn", "model.padding=2", ": expected one of same, 0, 1"),
    ("model=bn_cnn", "model.dropout=1.0", ": expected a fraction"),
    *[
        (f"model={cell}", *rest)
        for cell in ("rnn", "lstm", "gru")
        for rest in (
            ("model.hidden=0", ": expected 1 or more"),
            ("model.layers=0", ": expected 1 or more"),
            ("model.dropout=1.0", ": expected a fraction"),
        )
    ],
    ("model=mlp", "model.branch_scale=0.5", ": no branch is there to scale; add model.residual=true"),
    ("model=mlp", "model.branch_scale=depth", ": no branch is there to scale; add model.residual=true"),
    ("model=resnet model.skip=false", "model.branch_scale=0", ": no branch is there to scale; leave out model.skip="),
    *[
        (f"model={option}", f"model.branch_scale={value}", ": expected a number, 0 or more, or one of none, depth")
        for option, value in (("mlp", "-0.5"), ("mlp", "inf"), ("mlp", "[0.5]"), ("resnet", "deep"), ("resnet", "nan"))
    ],
    *[
        (f"model={cell}", *rest)
        for cell, key in (("lstm", "forget_bias"), ("gru", "update_bias"))
        for rest in (
            (f"model.{key}=chorno", ": expected a number, chrono, or null"),
            ("model.memory=50", f": nothing reads it; add model.{key}=chrono"),
            *[(f"model.{key}=chrono model.memory={few}", ": chrono is for 2 time steps") for few in (1, "inf", "long")],
        )
    ],
]


@pytest.mark.parametrize(("option", "word", "answer"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_by_key_and_value(built, option, word, answer):
    with pytest.raises(UserError) as told:
        built(RGB, *option.split(), *word.split())
    assert word.split()[-1].partition("[")[0] in str(told.value)  # the key and its value; of a list, the key
    assert answer in str(told.value)


@pytest.mark.parametrize(("net", "least"), [(partial(ResNet, width=1), 8), (partial(DenseNet, growth=1), 7)])
def test_a_depth_is_legal_or_answered_with_a_legal_one(net, least):
    for depth in (*range(-2, 24), 109):
        try:
            net(GREY, depth=depth)
        except UserError as mistake:
            near = int(str(mistake).split("; ")[1].split()[0])
            assert abs(near - depth) <= 3 or near == least
            net(GREY, depth=near)


# -- residual networks -------------------------------------------------------------------------------------------------


def resnet_size(n, width, preact, channels=3, outputs=10):
    """Convolutions without bias, two numbers a channel for each norm, a head."""
    total = 9 * channels * width + (4 * width + 1) * outputs
    norms = 0
    before = width
    for w in (width, 2 * width, 4 * width):
        total += 9 * before * w + (2 * n - 1) * 9 * w * w
        norms += before + (2 * n - 1) * w if preact else 2 * n * w
        before = w
    return total + 2 * (norms + (4 * width if preact else width))


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("depth", "width"), [(8, 16), (20, 16), (26, 8)])
def test_size_and_depth_of_a_resnet(depth, width, skip, preact):
    model = ResNet(RGB, depth=depth, width=width, skip=skip, preact=preact)
    assert size(model) == resnet_size(depth // 6, width, preact)
    assert count(model, nn.Conv2d, nn.Linear) == depth


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_the_published_sizes_of_the_resnets(depth, millions):
    """He et al. 2015, table 6."""
    model = ResNet(RGB, depth=depth, init="torch")
    assert round(size(model) / 1e6, 1 if depth == 110 else 2) == millions
    assert count(model, nn.Conv2d, nn.Linear) == depth


def test_a_plain_net_has_the_parameters_of_its_resnet_and_another_function():
    plain_net, net = ResNet(GREY, depth=8, skip=False), ResNet(GREY, depth=8)
    plain_net.load_state_dict(net.state_dict())
    x = inputs(GREY)[0]
    assert not torch.allclose(plain_net(x), net(x))


@pytest.mark.parametrize("side", [8, 7])
def test_the_shortcut_takes_every_second_pixel_and_adds_zeros(side):
    x = torch.randn(2, 3, side, side)
    half = (side + 1) // 2
    y = shortcut(x, torch.zeros(2, 6, half, half))
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()
    assert y.shape == (2, 6, half, half)
    assert shortcut(x, x) is x


def norm2d(x, norm):
    """Batch norm by hand, in training."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_block_by_hand(scale, skip, stride):
    block = scramble(resnet.block(4, 4 * stride, stride, "relu", skip, preact=False, scale=BranchScale(scale)))
    x = torch.randn(3, 4, 6, 6)
    y = norm2d(F.conv2d(x, block.conv1.weight, None, stride, 1), block.norm1).relu()
    y = norm2d(F.conv2d(y, block.conv2.weight, None, 1, 1), block.norm2)
    torch.testing.assert_close(block(x), (block.scale * y + shortcut(x, y) if skip else y).relu())


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_preactivation_block_by_hand(scale, skip, stride):
    block = scramble(resnet.block(4, 4 * stride, stride, "relu", skip, preact=True, scale=BranchScale(scale)))
    x = torch.randn(3, 4, 6, 6)
    y = F.conv2d(norm2d(x, block.norm1).relu(), block.conv1.weight, None, stride, 1)
    y = F.conv2d(norm2d(y, block.norm2).relu(), block.conv2.weight, None, 1, 1)
    torch.testing.assert_close(block(x), block.scale * y + shortcut(x, y) if skip else y)


def test_a_resnet_halves_the_map_and_doubles_the_channels_twice():
    model = ResNet(RGB, depth=20, width=4)
    shapes = []
    for index in range(9):
        getattr(model.net, f"block{index + 1}").register_forward_hook(lambda m, x, y: shapes.append(tuple(y.shape[1:])))
    model(inputs(RGB, batch=2)[0])
    assert shapes == [(4, 32, 32)] * 3 + [(8, 16, 16)] * 3 + [(16, 8, 8)] * 3


def trunk_outputs(model, x):
    """What each module of the trunk has given, and the output; of a recurrent layer the states."""
    seen = []
    for name in model.trunk:
        part = model.net.get_submodule(name)
        part.register_forward_hook(lambda part, x, y: seen.append((part, y[0] if isinstance(y, tuple) else y)))
    return seen, model(x)


def trunk_gradients(model, x):
    """‖dL/dh_1‖ … ‖dL/dh_L‖."""
    seen, output = trunk_outputs(model, x)
    for _, h in seen:
        h.retain_grad()
    output.square().sum().backward()
    return [h.grad.norm().item() for _, h in seen]


SCALED = [  # and how many branches there are
    (partial(MLP, NUMBERS, depth=7, width=9, residual=True, activation="tanh"), 6),
    (partial(MLP, NUMBERS, depth=5, width=9, residual=True, norm="batch"), 4),
    (partial(ResNet, GREY, depth=14, width=3), 6),
    (partial(ResNet, GREY, depth=14, width=3, preact=True), 6),
]


def branches_of(model):
    return [part for part in model.net if isinstance(part, Residual)]


@pytest.mark.parametrize(("make", "branches"), SCALED)
def test_a_branch_is_scaled_by_a_number_that_is_learnt_or_not_at_all(make, branches):
    assert [block.scale for block in branches_of(make())] == [1.0] * branches
    for scale, start in ((0, 0.0), (0.3, 0.3), (2.0, 2.0), ("depth", branches**-0.5)):
        model = make(branch_scale=scale)
        learnt = [p for name, p in model.named_parameters() if name.endswith("scale")]
        assert learnt == [block.scale for block in branches_of(model)]
        assert [p.item() for p in learnt] == pytest.approx([start] * branches)
        assert not {f"block{index}" for index in range(9)} & {name.split(".", 1)[1] for name in weighted(layers(model))}


@pytest.mark.parametrize(("make", "branches"), SCALED)
def test_a_scale_of_one_is_the_plain_sum_and_another_draws_the_same_weights(make, branches):
    torch.manual_seed(5)
    net = make()
    torch.manual_seed(5)
    scaled = make(branch_scale=0.5)
    assert torch.equal(torch.rand(1), (torch.manual_seed(5), make(), torch.rand(1))[2])
    state = {name: value for name, value in scaled.state_dict().items() if not name.endswith(".scale")}
    assert list(state) == list(net.state_dict())
    assert len(scaled.state_dict()) == len(state) + branches
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("make", "branches"), SCALED)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_residual_module_says_what_it_is_made_of(make, branches, scale):
    """Its children in order of use, `skip`, `scale`, and `after` for those that come after the sum; bit by bit."""
    model = make(branch_scale=scale)
    told = []
    for block in branches_of(model):
        block.register_forward_hook(lambda block, x, y: told.append((block, x[0], y)))
    model(inputs(model.spec)[0])
    assert len(told) == branches
    for block, x, y in told:
        inner = [part for name, part in block.named_children() if name not in block.after]
        branch = nn.Sequential(*inner)(x)
        total = block.scale * branch + shortcut(x, branch)
        assert block.skip is True
        assert torch.equal(y, nn.Sequential(*[getattr(block, name) for name in block.after])(total))
    assert ResNet(GREY, depth=8, width=2, skip=False).net.block1.skip is False


@pytest.mark.parametrize(("make", "branches"), SCALED)
def test_a_scale_of_zero_hands_the_gradient_on_and_learns(make, branches):
    """A post-activation block differs in its last activation alone, which nothing but the pooling follows."""
    model = make(branch_scale=0)
    last = -1 if "stem_act" in model.trunk else None
    norms = trunk_gradients(model, inputs(model.spec, batch=8)[0])
    assert len(norms) == branches + 1
    assert norms[:last] == pytest.approx([norms[0]] * len(norms[:last]), rel=1e-12)
    for block in branches_of(model):
        assert block.scale.grad.abs().item() > 1e-6
        assert not any(p.grad.any() for name, p in block.named_parameters() if name != "scale")


@pytest.mark.parametrize("branches", [4, 30])
def test_branches_of_one_over_the_root_of_the_depth_never_explode(branches):
    """x + s W φ(x) of He's ReLU makes the squared norm 1 + s² times as large; s² = 1/L. Unscaled it is 2 a block."""
    logs = {1.0: 0.0, "depth": 0.0}
    for scale in logs:
        for _ in range(4):
            norms = trunk_gradients(
                MLP(POINTS, depth=branches + 1, width=200, residual=True, branch_scale=scale), torch.randn(50, 2)
            )
            logs[scale] += math.log(norms[0] / norms[-1]) / 4
    assert logs["depth"] == pytest.approx(branches / 2 * math.log(1 + 1 / branches), abs=0.15)
    assert logs[1.0] == pytest.approx(branches / 2 * math.log(2), rel=0.1)


# -- the trunk ---------------------------------------------------------------------------------------------------------

TRUNKS = {  # words: the names
    "model=mlp": ["block1", "block2", "block3"],
    "model=mlp model.depth=0": [],
    "model=mlp model.residual=true model.norm=layer": ["block1", "block2", "block3"],
    "model=cnn": ["act1", "act2", "act3", "dense_act"],
    "model=bn_cnn model.convs=2 model.channels=[4,4]": ["act1_1", "act1_2", "act2_1", "act2_2", "dense_act"],
    "model=resnet model.depth=8": ["stem_act", "block1", "block2", "block3"],
    "model=resnet model.depth=8 model.preact=true": ["stem", "block1", "block2", "block3"],
    "model=resnet model.depth=8 model.skip=false": ["stem_act", "block1", "block2", "block3"],
    "model=densenet model.depth=7": ["stem", "block1_1", "transition1", "block2_1", "transition2", "block3_1"],
    **{
        f"model={cell} model.layers=2 model.bidirectional=true": ["layer1", "layer2"] for cell in ("rnn", "lstm", "gru")
    },
}


@pytest.mark.parametrize("words", TRUNKS)
def test_a_trunk_is_named_in_the_order_in_which_the_signal_meets_it(built, words):
    model = built(GREY, *words.split())
    seen, output = trunk_outputs(model, inputs(GREY, batch=3)[0])
    assert model.trunk == TRUNKS[words]
    assert [part for part, _ in seen] == [model.net.get_submodule(name) for name in model.trunk]
    assert all(h.shape[0] == 3 and h.is_floating_point() for _, h in seen)
    for _, h in reversed(seen):  # each is reached from the next
        (gradient,) = torch.autograd.grad(output.square().sum(), h, retain_graph=True)
        assert gradient.norm() > 0
        output = h


def test_an_architecture_that_names_no_trunk_has_an_empty_one():
    class Foreign(base.Module):
        kinds = ("vector",)

        def forward(self, x):
            return x

    assert Foreign(POINTS).trunk == []


# -- MLPs --------------------------------------------------------------------------------------------------------------

NORM_BY_HAND = {
    "none": lambda h, norm: h,
    "batch": lambda h, norm: (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt() * norm.weight + norm.bias,
    "layer": lambda h, norm: (
        (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    ),
}


def affine(x, linear):
    return x @ linear.weight.T + (0 if linear.bias is None else linear.bias)


@pytest.mark.parametrize("norm", sorted(NORM_BY_HAND))
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_plain_mlp_by_hand(norm, depth):
    net = scramble(MLP(NUMBERS, depth=depth, width=7, norm=norm, activation="tanh")).net
    x = inputs(NUMBERS)[0]
    h = x.reshape(4, 24)
    for index in range(depth):
        block = getattr(net, f"block{index + 1}")
        h = NORM_BY_HAND[norm](affine(h, block.linear), getattr(block, "norm", None)).tanh()
    torch.testing.assert_close(net(x.flatten(1)), affine(h, net.head))


@pytest.mark.parametrize("norm", sorted(NORM_BY_HAND))
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, "depth"])
def test_a_residual_mlp_by_hand(norm, depth, scale):
    keywords = {"norm": norm, "activation": "tanh", "residual": True, "branch_scale": scale}
    model = scramble(MLP(NUMBERS, depth=depth, width=7, **keywords))
    x = inputs(NUMBERS)[0]
    by_hand = NORM_BY_HAND[norm]
    h = affine(x.reshape(4, 24), model.net.block1.linear)
    for index in range(1, depth):
        block = getattr(model.net, f"block{index + 1}")
        h = h + block.scale * affine(by_hand(h, getattr(block, "norm", None)).tanh(), block.linear)
    h = by_hand(h, getattr(model.net.last, "norm", None)).tanh()
    torch.testing.assert_close(model(x), affine(h, model.net.head))


def test_size_of_an_mlp():
    assert size(MLP(NUMBERS, depth=3, width=7)) == (24 + 1) * 7 + 2 * (7 + 1) * 7 + (7 + 1) * 1
    assert size(MLP(RGB, depth=0)) == (3072 + 1) * 10


@pytest.mark.parametrize("spec", [SYMBOLS, COPY])
def test_an_mlp_reads_symbols_as_one_hot(spec):
    model = MLP(spec, depth=1, width=5)
    x = inputs(spec)[0]
    codes = torch.eye(spec.tokens)[x].reshape(len(x), -1)
    expected = model.net(codes).reshape(len(x), *([spec.shape[0]] if spec.per_step else []), spec.outputs)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("residual", [False, True])
def test_dropout_of_an_mlp_in_training_alone(residual):
    without = MLP(POINTS, depth=3, width=200, residual=residual)
    model = MLP(POINTS, depth=3, width=200, dropout=0.25, residual=residual)
    model.load_state_dict(without.state_dict())
    x = torch.randn(50, 2)
    assert torch.equal(model.eval()(x), without(x))
    seen = []
    model.net.block2.drop.register_forward_hook(lambda m, x, y: seen.append((x[0], y)))
    model.train()(x)
    ((before, after),) = seen
    kept = after != 0
    assert kept[before != 0].double().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(after[kept], before[kept] / 0.75)


# -- convolutional networks --------------------------------------------------------------------------------------------


def test_the_small_cnn_of_the_tutorial():
    """conv32-pool-conv64-pool-conv64-dense64-dense10 without padding, tensorflow.org/tutorials/images/cnn."""
    model = CNN(RGB, channels=(32, 64, 64), padding=0, dense=64)
    assert size(model) == 122_570
    assert [size(part) for part in model.net if size(part)] == [896, 18_496, 36_928, 65_600, 650]
    assert model.net.dense.in_features == 1024


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_cnn_by_hand(pool, padding):
    model = scramble(CNN(GREY, channels=(3, 4), convs=2, padding=padding, pool=pool, dense=5))
    x, _ = inputs(GREY)
    h = x
    for stage in (1, 2):
        if stage == 2:
            h = F.max_pool2d(h, 2) if pool == "max" else F.avg_pool2d(h, 2)
        for index in (1, 2):
            conv = getattr(model.net, f"conv{stage}_{index}")
            h = F.conv2d(h, conv.weight, conv.bias, padding=padding).relu()
    h = affine(h.flatten(1), model.net.dense).relu()
    torch.testing.assert_close(model(x), affine(h, model.net.head))


def test_a_cnn_with_batch_norm_by_hand():
    net = scramble(BNCNN(GREY, channels=(3, 4), dense=5)).net
    x, _ = inputs(GREY)
    h = norm2d(F.conv2d(x, net.conv1.weight, padding=1), net.norm1).relu()
    h = norm2d(F.conv2d(F.max_pool2d(h, 2), net.conv2.weight, padding=1), net.norm2).relu()
    h = NORM_BY_HAND["batch"](h.flatten(1) @ net.dense.weight.T, net.dense_norm).relu()
    torch.testing.assert_close(net(x), affine(h, net.head))


def test_batch_norm_costs_one_number_a_channel_more_than_the_bias_that_it_replaces():
    assert size(BNCNN(RGB)) - size(CNN(RGB)) == 32 + 64 + 64 + 64


@pytest.mark.parametrize(("depth", "growth"), [(7, 5), (22, 12), (40, 12)])
def test_channels_size_and_depth_of_a_densenet(depth, growth):
    model = DenseNet(RGB, depth=depth, growth=growth, init="torch")
    n, total, channels = (depth - 4) // 3, 9 * 3 * 16, 16
    for block in range(3):
        if block:
            total += channels**2 + 2 * channels
        for _ in range(n):
            total += 2 * channels + 9 * channels * growth
            channels += growth
    assert channels == 16 + 3 * n * growth == model.net.head.in_features
    assert size(model) == total + 2 * channels + (channels + 1) * 10
    assert count(model, nn.Conv2d, nn.Linear) == depth
    assert model.net.transition1.conv.out_channels == 16 + n * growth
    assert model.net.transition2.conv.out_channels == 16 + 2 * n * growth


def test_the_published_size_of_densenet_40():
    """Huang et al. 2017, table 2: 1.0 M."""
    assert round(size(DenseNet(RGB, depth=40, growth=12, init="torch")) / 1e6, 1) == 1.0


def test_a_densenet_by_hand():
    net = scramble(DenseNet(GREY, depth=10, growth=3)).net
    x, _ = inputs(GREY)
    h = F.conv2d(x, net.stem.weight, padding=1)
    for block in (1, 2, 3):
        if block > 1:
            part = getattr(net, f"transition{block - 1}")
            h = F.avg_pool2d(F.conv2d(norm2d(h, part.norm).relu(), part.conv.weight), 2)
        seen = [h]
        for index in (1, 2):
            part = getattr(net, f"block{block}_{index}")
            seen.append(F.conv2d(norm2d(torch.cat(seen, 1), part.norm).relu(), part.conv.weight, padding=1))
        h = torch.cat(seen, 1)
    expected = affine(norm2d(h, net.last_norm).relu().mean((2, 3)), net.head)
    torch.testing.assert_close(net(x), expected)


def test_images_too_small_for_a_densenet_are_refused():
    with pytest.raises(UserError, match="too small"):
        DenseNet(replace(GREY, shape=(1, 3, 3)))


# -- recurrent networks ------------------------------------------------------------------------------------------------


def next_state(kind, x, h, c, w, u, b, v):
    """One time step by hand: hidden and cell state."""
    from_x, from_h = x @ w.T + b, h @ u.T + v
    if kind == "gru":
        (r, z, n), (r_h, z_h, n_h) = from_x.chunk(3, -1), from_h.chunk(3, -1)
        z = (z + z_h).sigmoid()
        return (1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh() + z * h, c
    if kind == "lstm":
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    return getattr(from_x + from_h, kind)(), c


def read(kind, x, layer, suffix):
    """States in the order of reading."""
    weights = [getattr(layer, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    h = c = torch.zeros(len(x), layer.hidden_size)
    states = []
    for t in range(x.shape[1]):
        h, c = next_state(kind, x[:, t], h, c, *weights)
        states.append(h)
    return states


def stack_by_hand(kind, model, x, number, bidirectional, per_step):
    for index in range(number):
        layer = getattr(model.net, f"layer{index + 1}")
        forwards = read(kind, x, layer, "")
        backwards = read(kind, x.flip(1), layer, "_reverse") if bidirectional else []
        x = torch.stack(forwards, 1)
        if bidirectional:
            x = torch.cat([x, torch.stack(backwards[::-1], 1)], 2)
    last = torch.cat([forwards[-1], *backwards[-1:]], 1)
    return affine(x if per_step else last, model.net.head)


CELLS = {"tanh": RNN, "relu": partial(RNN, activation="relu"), "lstm": LSTM, "gru": GRU}


@pytest.mark.parametrize("kind", sorted(CELLS))
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("spec", [NUMBERS, COPY])
def test_a_recurrent_stack_is_a_loop_over_time(kind, bidirectional, number, spec):
    model = scramble(CELLS[kind](spec, layers=number, hidden=5, bidirectional=bidirectional))
    x, _ = inputs(spec)
    codes = torch.eye(spec.tokens)[x] if spec.tokens else x
    torch.testing.assert_close(model(x), stack_by_hand(kind, model, codes, number, bidirectional, spec.per_step))


@pytest.mark.parametrize(("cell", "gates"), [(RNN, 1), (LSTM, 4), (GRU, 3)])
def test_size_of_a_recurrent_stack(cell, gates):
    model = cell(SYMBOLS, layers=2, hidden=6)
    assert size(model) == gates * 6 * ((8 + 6 + 2) + (6 + 6 + 2)) + (6 + 1) * 4
    both = cell(SYMBOLS, layers=2, hidden=6, bidirectional=True)
    assert size(both) == 2 * gates * 6 * ((8 + 6 + 2) + (12 + 6 + 2)) + (12 + 1) * 4


@pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
@pytest.mark.parametrize("spec", [RGB, GREY])
def test_an_image_is_read_row_by_row(cell, spec):
    channels, height, width = spec.shape
    of_images = cell(spec, hidden=5)
    of_rows = cell(Spec("sequence", (height, channels * width), "classification", outputs=10), hidden=5)
    of_rows.load_state_dict(of_images.state_dict())
    x, _ = inputs(spec)
    rows = torch.stack([x[:, :, row].flatten(1) for row in range(height)], 1)
    assert torch.equal(of_images(x), of_rows(rows))


@pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
def test_dropout_stands_between_recurrent_layers_only(cell):
    x, _ = inputs(NUMBERS)
    alone = cell(NUMBERS, hidden=5, dropout=0.5)
    assert torch.equal(alone(x), alone.eval()(x))
    two = cell(NUMBERS, layers=2, hidden=50, dropout=0.5)
    assert not torch.allclose(two(x), two.eval()(x))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("init", ["auto", "torch", "he"])
def test_an_irnn_starts_at_the_identity(bidirectional, init):
    model = RNN(NUMBERS, layers=2, hidden=6, activation="relu", identity=True, bidirectional=bidirectional, init=init)
    for name, parameter in model.net.named_parameters():
        if "weight_hh" in name:
            assert torch.equal(parameter, torch.eye(6)), name
        elif "bias_" in name:
            assert not parameter.any(), name
        elif "weight_ih" in name:
            assert parameter.abs().min() > 0, name


def test_an_irnn_keeps_what_it_has_read():
    layer = RNN(NUMBERS, hidden=6, activation="relu", identity=True).net.layer1
    x = torch.zeros(1, 12, 2)
    x[:, 0] = torch.randn(2)
    states, _ = layer(x)
    assert states[0, 0].any()
    assert torch.equal(states[0, -1], states[0, 0])


@pytest.mark.parametrize("value", [1.0, 0.0, -2.5])
@pytest.mark.parametrize("init", ["auto", "torch", {"name": "mean_field", "sigma_b": 0.3}])
def test_the_forget_bias_is_what_the_gate_adds_up_to(value, init):
    model = LSTM(NUMBERS, layers=2, hidden=6, bidirectional=True, forget_bias=value, init=init)
    for layer in (model.net.layer1, model.net.layer2):
        for suffix in ("", "_reverse"):
            total = getattr(layer, f"bias_ih_l0{suffix}") + getattr(layer, f"bias_hh_l0{suffix}")
            i, f, g, o = total.detach().split(6)
            assert torch.equal(f, torch.full((6,), value))
            assert torch.cat([i, g, o]).any() == (init != "auto")


def test_the_default_forget_bias_is_one_and_null_leaves_the_draw(built):
    assert built(NUMBERS, "model=lstm").net.layer1.bias_ih_l0.chunk(4)[1].unique().item() == 1
    assert not built(NUMBERS, "model=lstm", "model.forget_bias=null").net.layer1.bias_ih_l0.any()


def chrono_biases(model, gate):
    """Of each layer and direction: what that gate's two biases add up to."""
    for layer in (part for part in model.net.modules() if isinstance(part, nn.RNNBase)):
        for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
            first, second = (getattr(layer, f"bias_{part}_l0{suffix}").detach() for part in ("ih", "hh"))
            yield (first + second).split(layer.hidden_size)[gate]


CHRONO = [(partial(LSTM, forget_bias="chrono"), 4), (partial(GRU, update_bias="chrono"), 3)]


@pytest.mark.parametrize(("make", "gates"), CHRONO)
@pytest.mark.parametrize(("spec", "memory", "steps"), [(NUMBERS, None, 12), (RGB, None, 32), (SYMBOLS, 500, 500)])
@pytest.mark.parametrize("init", ["torch", "auto"])
def test_chrono_draws_memories_uniformly_up_to_the_time_steps(make, gates, spec, memory, steps, init):
    """Tallec & Ollivier 2018: b = log U(1, T-1) for the gate that keeps, -b for the one that lets in (GRU: 1 - z)."""
    model = make(spec, hidden=200, layers=2, bidirectional=True, memory=memory, init=init)
    drawn = list(chrono_biases(model, 1))
    assert len({b[0].item() for b in drawn}) == 4
    u = ((torch.cat(drawn).exp() - 1) / (steps - 2)).sort().values
    assert 0 <= u[0] < u[-1] <= 1
    even = (torch.arange(800) + 0.5) / 800
    assert (u - even).abs().max().item() < 1.63 / math.sqrt(800)  # Kolmogorov and Smirnov at 1 %
    for b, i, others in zip(drawn, chrono_biases(model, 0), chrono_biases(model, gates - 1), strict=True):
        assert torch.equal(i, -b) if gates == 4 else not torch.equal(i, -b)
        assert others.any().item() == (init == "torch")  # as they were


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_the_update_bias_is_what_the_gate_adds_up_to(value):
    model = GRU(NUMBERS, layers=2, hidden=6, bidirectional=True, update_bias=value, init="torch")
    assert all(torch.equal(b, torch.full((6,), value)) for b in chrono_biases(model, 1))
    assert all(b.all() for gate in (0, 2) for b in chrono_biases(model, gate))


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        (partial(LSTM, forget_bias=None, init="torch"), 0.5, 0.7),
        (partial(GRU, init="torch"), 0.5, 0.7),
        (LSTM, 0.85, 0.95),
        (partial(LSTM, forget_bias="chrono"), 0.97, 1.0),
        (partial(GRU, update_bias="chrono"), 0.97, 1.0),
    ],
)
def test_what_a_gradient_loses_in_a_time_step(make, low, high):
    spec = replace(NUMBERS, shape=(200, 2))
    x = inputs(spec, batch=8)[0].requires_grad_()
    make(spec, hidden=32)(x).sum().backward()
    norms = x.grad.norm(dim=(0, 2))
    assert low < (norms[0] / norms[-1]).item() ** (1 / 199) < high


# -- the base ----------------------------------------------------------------------------------------------------------


def cross_entropy_by_hand(logits, classes):
    losses = [math.log(sum(math.exp(z) for z in row)) - row[c] for row, c in zip(logits, classes, strict=True)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("spec", [RGB, COPY])
def test_cross_entropy_is_the_mean_over_samples_and_steps(spec):
    _, target = inputs(spec)
    output = torch.randn(*target.shape, spec.outputs)
    expected = cross_entropy_by_hand(output.reshape(-1, spec.outputs).tolist(), target.flatten().tolist())
    assert task_of(spec).loss(output, target, "cross_entropy").item() == pytest.approx(expected)


@pytest.mark.parametrize("spec", [RGB, COPY])
def test_mse_compares_with_one_hot_targets(spec):
    _, target = inputs(spec)
    output = torch.randn(*target.shape, spec.outputs)
    rows = zip(output.reshape(-1, spec.outputs).tolist(), target.flatten().tolist(), strict=True)
    squares = [(z - (k == c)) ** 2 for row, c in rows for k, z in enumerate(row)]
    assert task_of(spec).loss(output, target, "mse").item() == pytest.approx(sum(squares) / len(squares))


def test_mse_of_numbers_and_its_half_whose_gradient_is_the_error():
    output, target = torch.tensor([[1.0], [4.0]], requires_grad=True), torch.tensor([[0.5], [6.0]])
    assert task_of(NUMBERS).loss(output, target, "mse").item() == pytest.approx((0.25 + 4) / 2)
    half = task_of(NUMBERS).loss(output, target, "half_mse")
    half.backward()
    assert half.item() == pytest.approx((0.25 + 4) / 4)
    torch.testing.assert_close(output.grad, (output - target).detach() / 2)  # the mean of two


@pytest.mark.parametrize("spec", [RGB, POINTS])
def test_half_of_the_loss_leaves_the_metric_as_it_was(spec):
    """A constant answer has half the loss and the same score."""
    found, target = task_of(spec), inputs(spec, 30)[1]
    whole, half = (found.trivial({"train": target}, name) for name in ("mse", "half_mse"))
    assert half.pop("loss/train") == pytest.approx(whole.pop("loss/train") / 2)
    assert half == whole


@pytest.mark.parametrize(
    ("name", "spec", "resolved"),
    [("auto", RGB, "cross_entropy"), ("auto", POINTS, "mse"), ("mse", RGB, "mse"), ("mse", POINTS, "mse")],
)
def test_the_loss_that_fits_the_task(name, spec, resolved):
    assert MLP(spec, loss=name).loss_name == resolved


def test_cross_entropy_of_numbers_is_refused():
    with pytest.raises(
        UserError, match=r"model\.loss=cross_entropy: these data ask for numbers; expected one of auto, mse, half_mse"
    ):
        MLP(POINTS, loss="cross_entropy")


def score_over(spec, *batches):
    score = Mean()
    for output, target in batches:
        score.update(*task_of(spec).score(output, target))
    return score.compute().item()


def test_accuracy_leaves_out_the_blank():
    target = torch.tensor([[0, 0, 3, 5], [0, 2, 2, 0]])
    answer = torch.tensor([[0, 1, 3, 4], [0, 2, 2, 7]])  # 3 of the 4 that are not blank; 4 of all 8
    output = F.one_hot(answer, 9).double()
    assert score_over(COPY, (output, target)) == pytest.approx(3 / 4)
    assert score_over(replace(COPY, blank=None), (output, target)) == pytest.approx(5 / 8)


def test_accuracy_is_of_samples_not_of_batches():
    output = F.one_hot(torch.tensor([1, 2, 3, 4, 5]), 10).double()
    target = torch.tensor([1, 2, 3, 0, 0])
    parts = [(output[:4], target[:4]), (output[4:], target[4:])]
    assert score_over(RGB, *parts) == pytest.approx(3 / 5)


def test_mse_score_of_numbers():
    parts = [
        (torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])),
        (torch.tensor([[3.0]]), torch.tensor([[0.0]])),
    ]
    assert score_over(POINTS, *parts) == pytest.approx((1 + 4 + 9) / 3)


WEIGHTY = (nn.Linear, nn.Conv2d)
PENALISED = [
    partial(BNCNN, GREY, channels=(3, 4), dense=5, activation="prelu"),
    partial(ResNet, GREY, depth=8, width=2, activation="prelu"),
    partial(MLP, NUMBERS, width=5, norm="layer"),
    partial(MLP, NUMBERS, width=5, residual=True, branch_scale="depth"),
    partial(LSTM, NUMBERS, layers=2, hidden=3, bidirectional=True),
]


def weights_of(net):
    """Of linear, convolutional and recurrent layers; neither biases nor what norms and activations learn."""
    for part in net.modules():
        if isinstance(part, WEIGHTY):
            yield part.weight
        elif isinstance(part, nn.RNNBase):
            yield from (p for name, p in part.named_parameters() if name.startswith("weight"))


def value_of_penalty(model):
    """l1 Σ|w| + l2 Σw², for autograd."""
    return sum(model.l1 * weight.abs().sum() + model.l2 * weight.square().sum() for weight in weights_of(model))


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.7), (0.3, 0.7)])
@pytest.mark.parametrize("make", PENALISED)
def test_the_gradient_of_the_penalty_is_that_of_a_sum_over_weights(make, l1, l2):
    model = make(l1=l1, l2=l2)
    scramble(model)
    found = model.penalty_gradient()
    weights = list(weights_of(model))
    expected = torch.autograd.grad(value_of_penalty(model), weights)
    assert set(found) == (set(weights) if l1 or l2 else set())
    for weight, gradient in zip(weights if found else (), expected, strict=bool(found)):
        torch.testing.assert_close(found[weight], gradient)


def test_a_frozen_weight_is_not_penalised():
    model = MLP(POINTS, depth=1, width=5, l2=1.0)
    model.net.block1.linear.weight.requires_grad_(False)
    assert list(model.penalty_gradient()) == [model.net.head.weight]


@pytest.mark.parametrize("scale", [None, 64.0])
def test_the_penalty_joins_the_gradient_of_the_loss_before_the_step(scale):
    """Also where a fused optimizer still holds it multiplied, and where the loss reached a weight not at all."""
    model = scramble(MLP(POINTS, depth=2, width=5, l1=0.3, l2=0.7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer._step_supports_amp_scaling = True
    scaler = SimpleNamespace(_get_scale_async=lambda: torch.tensor(scale)) if scale else None
    model._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    model.on_before_optimizer_step(optimizer)
    assert all(p.grad is None for p in model.parameters())  # a step that was skipped stays empty
    w = model.net.head.weight
    w.grad = torch.full_like(w, scale or 1.0)
    model.on_before_optimizer_step(optimizer)
    torch.testing.assert_close(w.grad, (scale or 1.0) * (1 + 0.3 * w.sign() + 1.4 * w.detach()))
    first = model.net.block1.linear.weight
    torch.testing.assert_close(first.grad, (scale or 1.0) * (0.3 * first.sign() + 1.4 * first.detach()))
    assert model.net.head.bias.grad is None


def test_a_penalty_is_rejected_where_the_optimizer_compares_losses():
    model = MLP(POINTS, depth=1, width=5, l2=1.0)
    model._trainer = SimpleNamespace(precision_plugin=SimpleNamespace())
    with pytest.raises(UserError, match="LBFGS compares losses"):
        model.on_before_optimizer_step(torch.optim.LBFGS(model.parameters()))


def fitted(model, **facts):
    """A model that a trainer has in hand, without a run; what it logs."""
    logged = {}
    model.log = lambda name, value, **rest: logged.update({name: value})
    groups = [SimpleNamespace(param_groups=[{"lr": 0.5}])]
    model._trainer = SimpleNamespace(global_step=0, log_every_n_steps=1, optimizers=groups, **facts)
    return logged


def test_a_training_step_returns_and_logs_the_loss_without_the_penalty():
    model = MLP(NUMBERS, depth=1, width=5, l1=0.1, l2=0.2)
    logged = fitted(model)
    x, target = inputs(NUMBERS)
    loss = (model(x) - target).square().mean().item()
    assert model.training_step((x, target), 0).item() == pytest.approx(loss)
    assert logged["loss/train"].item() == pytest.approx(loss)
    assert sorted(logged) == ["loss/train", "lr"]
    model.on_train_epoch_end()
    assert logged["mse/train"].compute().item() == pytest.approx(loss)
    assert logged["lr"] == 0.5


def test_the_loss_of_the_first_step_is_logged_however_seldom_losses_are():
    model, told = MLP(NUMBERS, depth=1, width=5), []
    logger = SimpleNamespace(log_metrics=lambda values, step: told.append((values, step)))
    logged = fitted(model, loggers=[logger], strategy=SimpleNamespace(reduce=lambda value, reduce_op: value))
    model.trainer.log_every_n_steps = 50
    loss = model.training_step(inputs(NUMBERS), 0).item()
    model.trainer.global_step = 1
    model.training_step(inputs(NUMBERS), 1)
    assert told == [({"loss/train": pytest.approx(loss), "lr": 0.5}, 0)]
    assert logged == {}


def test_smoothed_labels_are_learnt_and_plain_ones_logged():
    model = MLP(RGB, depth=1, width=5, label_smoothing=0.2)
    logged = fitted(model)
    x, target = inputs(RGB, batch=7)
    minus_log = -model(x).log_softmax(1)
    plain_loss, spread = minus_log.gather(1, target[:, None]).mean().item(), minus_log.mean().item()
    assert model.training_step((x, target), 0).item() == pytest.approx(0.8 * plain_loss + 0.2 * spread, rel=1e-5)
    assert logged["loss/train"].item() == pytest.approx(plain_loss, rel=1e-5)
    model.validation_step((x, target), 0)
    model.on_validation_epoch_end()
    assert logged["loss/val"].compute().item() == pytest.approx(plain_loss, rel=1e-5)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_share_of_a_label_is_a_fraction(value):
    with pytest.raises(UserError, match=r"model\.label_smoothing=.*: expected a fraction"):
        MLP(RGB, label_smoothing=value)


@pytest.mark.parametrize(("spec", "loss"), [(RGB, "mse"), (POINTS, "auto")])
def test_smoothing_needs_cross_entropy(spec, loss):
    with pytest.raises(UserError, match=r"model\.label_smoothing=0\.1: only cross_entropy"):
        MLP(spec, loss=loss, label_smoothing=0.1)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_mixed_sample_has_the_mixed_loss_and_the_class_of_its_larger_share(loss):
    """Cross-entropy is linear in the target; the squared error is that to the shares themselves."""
    output, share = torch.randn(6, 10), torch.rand(6, 1) / 2 + 0.5
    own, other = torch.arange(6), torch.arange(6) + 4
    target = torch.lerp(F.one_hot(other, 10).double(), F.one_hot(own, 10).double(), share)
    found = task_of(RGB).loss(output, target, loss)
    if loss == "mse":
        assert found.item() == pytest.approx((output - target).square().mean().item())
    else:
        parts = [F.cross_entropy(output, labels, reduction="none") for labels in (own, other)]
        expected = share[:, 0] * parts[0] + (1 - share[:, 0]) * parts[1]
        assert found.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    right = F.one_hot(torch.tensor([0, 1, 2, 3, 8, 9]), 10).double()
    assert score_over(RGB, (right, target)) == pytest.approx(4 / 6)


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_is_exact_over_batches_of_unequal_size(split):
    model = MLP(RGB, depth=1, width=5, l2=0.2).eval()
    logged = fitted(model)
    x, target = inputs(RGB, batch=7)
    for part in (slice(0, 5), slice(5, 7)):
        getattr(model, {"val": "validation_step", "test": "test_step"}[split])((x[part], target[part]), 0)
    output = model(x)
    getattr(model, {"val": "on_validation_epoch_end", "test": "on_test_epoch_end"}[split])()
    assert sorted(logged) == [f"accuracy/{split}", f"loss/{split}"]
    assert logged[f"loss/{split}"].compute().item() == pytest.approx(F.cross_entropy(output, target).item())
    right = (output.argmax(1) == target).double().mean().item()
    assert logged[f"accuracy/{split}"].compute().item() == pytest.approx(right)


@pytest.mark.parametrize(("accumulate", "epoch"), [(1, 10), (4, 3)])
def test_the_schedule_is_told_the_optimizer_steps_of_the_run_and_of_an_epoch(accumulate, epoch):
    told = []
    model = MLP(
        POINTS,
        optimizer=partial(torch.optim.SGD, lr=0.8),
        scheduler=lambda *lengths: told.append(lengths) or schedule.constant(*lengths),
    )
    fitted(model, estimated_stepping_batches=30, num_training_batches=10, accumulate_grad_batches=accumulate)
    model.configure_optimizers()
    assert told == [(30.0, epoch)]


def test_the_learning_rate_is_the_optimizers_times_the_factor_at_each_step():
    scheduler = partial(schedule.cosine, warmup=4)
    model = MLP(POINTS, optimizer=partial(torch.optim.SGD, lr=0.8), scheduler=scheduler)
    fitted(model, estimated_stepping_batches=20, num_training_batches=10, accumulate_grad_batches=1)
    made = model.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    factor = scheduler(20.0, 10)
    assert rates == pytest.approx([0.8 * factor(t) for t in range(20)])
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])


def test_the_optimizer_has_every_parameter_and_may_go_without_a_schedule():
    model = MLP(POINTS, norm="layer", optimizer=torch.optim.Adam)
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == size(model)


def test_training_without_an_optimizer_is_refused():
    with pytest.raises(UserError, match="MLP was loaded without an optimizer"):
        MLP(POINTS).configure_optimizers()


# -- layers by name ----------------------------------------------------------------------------------------------------


def used_in_order(model, spec):
    """Modules with parameters of their own, in order of first use; attention never calls its last layer."""
    used = []
    for part in model.modules():
        if any(True for _ in part.parameters(recurse=False)):
            part.register_forward_pre_hook(lambda part, x: used.append(part))
    model(inputs(spec, batch=2)[0])
    return used


def listed(model):
    """The modules whose parameters `layers` lists, in its order."""
    owner = {p: part for part in model.modules() for p in part.parameters(recurse=False)}
    return [owner[own[0]] for own in layers(model).values()]


@pytest.mark.parametrize(
    ("name", "words"),
    [(name, f"model={option}") for option, name in FIT if name in ("grey", "numbers")]
    + [
        ("grey", "model=resnet model.preact=true activation=prelu"),
        ("grey", "model=bn_cnn model.convs=2 activation=prelu"),
        ("numbers", "model=mlp model.residual=true model.norm=layer activation=prelu"),
        ("numbers", "model=lstm model.layers=3 model.bidirectional=true"),
    ],
)
def test_layers_are_all_parameters_once_in_the_order_in_which_the_signal_meets_them(built, name, words):
    model = built(SPECS[name], *words.split())
    found = layers(model)
    assert [p for own in found.values() for p in own] == list(model.parameters())
    assert list(found) == sorted(found)
    used = used_in_order(model, SPECS[name])
    assert [part for part in listed(model) if part in used] == used


def test_names_of_layers():
    assert list(layers(MLP(POINTS, depth=2))) == ["00.block1.linear", "01.block2.linear", "02.head"]
    assert list(layers(LSTM(NUMBERS, layers=2))) == ["00.layer1", "01.layer2", "02.head"]
    assert list(layers(CNN(GREY, channels=(2, 2)))) == ["00.conv1", "01.conv2", "02.dense", "03.head"]
    assert list(layers(ResNet(GREY, depth=8)))[:6] == [
        "00.stem",
        "01.stem_norm",
        "02.block1.conv1",
        "03.block1.norm1",
        "04.block1.conv2",
        "05.block1.norm2",
    ]


def test_more_than_a_hundred_layers_have_three_digits():
    names = list(layers(ResNet(GREY, depth=110, width=1)))
    assert (names[0], names[2], names[-1]) == ("000.stem", "002.block1.conv1", "218.head")
    assert names == sorted(names)
    assert list(layers(MLP(POINTS, depth=99, width=1)))[-1] == "99.head"
    assert list(layers(MLP(POINTS, depth=100, width=1)))[-1] == "100.head"


def test_a_frozen_layer_is_left_out():
    model = MLP(POINTS, depth=2)
    model.net.block1.requires_grad_(False)
    model.net.head.bias.requires_grad_(False)
    found = layers(model)
    assert list(found) == ["00.block2.linear", "01.head"]
    assert found["01.head"] == [model.net.head.weight]


def test_a_shared_parameter_counts_for_the_first_layer():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    net[2].weight = net[0].weight
    net[3].weight = net[0].weight
    assert {name: len(own) for name, own in layers(net).items()} == {"00.0": 2, "01.2": 1}


def test_a_bare_layer_and_a_compiled_one():
    assert list(layers(nn.Linear(2, 2))) == ["00"]
    held = nn.Module()
    held.net = nn.Module()
    held.net._orig_mod = nn.Sequential(nn.Linear(2, 2))
    assert list(layers(held)) == ["00.0"]


def test_means_count_in_full_precision_in_a_16_bit_model():
    metrics = Metrics(task_of(RGB)).to(torch.bfloat16)
    for _ in range(351):
        metrics["loss/val"].update(torch.tensor(100), 128)
    assert metrics["loss/val"].compute().item() == pytest.approx(100 / 128, rel=1e-6)


def test_targets_are_not_rounded_to_the_precision_of_the_outputs():
    output, target = torch.full((4, 1), 1.0, dtype=torch.bfloat16), torch.full((4, 1), 1.002)
    assert task_of(POINTS).loss(output, target, "mse").item() == pytest.approx(4e-6, rel=1e-3)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"shape \[4\], but outputs of \[4, 1\]"):
        task_of(POINTS).loss(torch.zeros(4, 1), torch.zeros(4), "mse")
