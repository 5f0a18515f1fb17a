"""What one look tells equals slow references, and it leaves no trace."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from copy import deepcopy
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import COPY, NUMBERS, POINTS, RGB, SYMBOLS, inputs
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from gradflow import runs
from gradflow.diagnostics import isolation, nonfinite
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.norms import gradient_norms
from gradflow.diagnostics.probe import likeness, precision, probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.verdict import judge
from gradflow.models.cnn import CNN
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN
from gradflow.models.resnet import ResNet

DOUBLE = torch.float64
OURS = {
    "mlp": lambda: (MLP(POINTS, depth=4, width=16, activation="tanh"), POINTS),
    "mlp with batch norm": lambda: (MLP(POINTS, depth=3, width=16, norm="batch"), POINTS),
    "residual mlp": lambda: (MLP(POINTS, depth=4, width=16, residual=True, norm="layer"), POINTS),
    "cnn": lambda: (CNN(RGB, channels=[4, 4], dense=8), RGB),
    "resnet": lambda: (ResNet(RGB, depth=8, width=4), RGB),
    "stacked lstm": lambda: (LSTM(NUMBERS, layers=3, hidden=8), NUMBERS),
    "bidirectional gru": lambda: (GRU(NUMBERS, layers=2, hidden=8, bidirectional=True), NUMBERS),
    "rnn of symbols": lambda: (RNN(SYMBOLS, layers=2, hidden=8), SYMBOLS),
}


class Twice(nn.Module):
    """One layer that the signal passes two times."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.again(torch.tanh(self.first(x))))))


def in_place():
    parts = [nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)]
    return nn.Sequential(*parts)


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    return model


def frozen():
    model = in_place()
    model[0].requires_grad_(False)
    return model


def all_frozen():
    return in_place().requires_grad_(False)


FOREIGN = {f.__name__: f for f in (Twice, in_place, tied, frozen, all_frozen)}


def reference(model, x, loss_of, names):
    """The norms by `autograd.grad` of hidden tensors that a slow copy retains; of weights by layer; rms."""
    torch.set_default_dtype(DOUBLE)  # of what a model makes itself
    try:
        return slow(deepcopy(model).double().requires_grad_(), x, loss_of, names)
    finally:
        torch.set_default_dtype(torch.float32)


def slow(model, x, loss_of, names):
    held = defaultdict(list)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, given, out, name=name: held[name].append(out[0] if isinstance(out, tuple) else out)
        )
    loss = loss_of(model, x.double() if x.is_floating_point() else x)
    gradient = [
        sum(g.square().sum() for g in torch.autograd.grad(loss, held[name], retain_graph=True)) ** 0.5 for name in names
    ]
    weights = {}
    for name, own in layers(model).items():
        if matrices := [parameter for parameter in own if parameter.ndim > 1]:
            squares = [g.square().sum() for g in torch.autograd.grad(loss, matrices, retain_graph=True)]
            weights[name] = sum(squares).item() ** 0.5
    rms = [held[name][0].square().mean().item() ** 0.5 for name in names]
    return loss.item(), [float(g) for g in gradient], weights, rms, held[names[-1]][0].flatten(1)


def mean_square(model, x):
    return model(x).square().mean()


@pytest.fixture(params=OURS)
def ours(request):
    torch.manual_seed(0)
    model, spec = OURS[request.param]()
    x, y = inputs(spec, 6)
    return model, x, lambda model, x: own_loss(model, (x, y)), trunk_of(model)


def check(seen, expected, names, tolerance):
    loss, gradient, weights, rms, _ = expected
    assert seen.trunk == [name.removeprefix("net.") for name in names]
    assert seen.gradient == pytest.approx(gradient, rel=tolerance, abs=0)
    assert seen.weights == pytest.approx(weights, rel=tolerance, abs=0)
    assert seen.rms == pytest.approx(rms, rel=tolerance, abs=0)
    assert seen.loss == pytest.approx(loss, rel=tolerance, abs=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 1e-4)])
def test_our_models(ours, dtype, tolerance):
    model, x, loss, trunk = ours
    check(probe(model, x, loss, trunk, dtype), reference(model, x, loss, trunk), trunk, tolerance)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 1e-4)])
def test_foreign_models(name, dtype, tolerance):
    torch.manual_seed(0)
    model, x, y = FOREIGN[name](), torch.randn(7, 6), torch.arange(7) % 3
    names = ["first", "again"] if name == "Twice" else ["0", "2"]  # the logits are left out
    loss = lambda model, x: F.cross_entropy(model(x), y)  # noqa: E731
    seen, expected = probe(model, x, loss, dtype=dtype), reference(model, x, loss, names)
    assert list(seen.weights) == list(expected[2])  # frozen ones too
    check(seen, expected, names, tolerance)
    assert seen.alike == pytest.approx(likeness(expected[-1]).item(), rel=1e-3, abs=0)


@pytest.mark.parametrize(("depth", "decades"), [(15, -11), (60, -49)])
def test_float32_holds_gradients_that_it_has_no_numbers_for(depth, decades):
    torch.manual_seed(0)
    model = MLP(POINTS, depth=depth, width=16, activation="sigmoid", init="torch")
    x, y = inputs(POINTS, 8)
    fine, coarse = (probe(model, (x, y), own_loss, trunk_of(model), dtype) for dtype in (DOUBLE, torch.float32))
    assert math.log10(fine.gradient[0] / fine.gradient[-1]) == pytest.approx(decades, abs=2)
    assert coarse.gradient == pytest.approx(fine.gradient, rel=1e-4, abs=0)
    assert coarse.weights == pytest.approx(fine.weights, rel=1e-4, abs=0)


@pytest.mark.parametrize("make", [RNN, LSTM, GRU])
@pytest.mark.parametrize("spec", [NUMBERS, SYMBOLS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-10), (torch.float32, 1e-4)])
def test_the_profile_over_time_is_the_gradient_of_the_input(make, spec, dtype, tolerance):
    torch.manual_seed(0)
    model = make(spec, layers=2, hidden=8)
    x, y = inputs(spec, 5)
    seen = probe(model, (x, y), own_loss, trunk_of(model), dtype)
    fine = deepcopy(model).double()
    entering = (F.one_hot(x, spec.tokens) if spec.tokens else x).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(fine.net(entering), y), entering)
    expected = [gradient[:, t].norm().item() for t in range(spec.shape[0])]
    assert seen.time == pytest.approx(expected, rel=tolerance, abs=0)


def test_of_outputs_at_each_step_the_last_is_judged():
    model = LSTM(COPY, hidden=8)
    x, y = inputs(COPY, 5)
    assert probe(model, (x, y), own_loss, dtype=torch.float32).loss == pytest.approx(
        F.cross_entropy(model(x)[:, -1], y[:, -1]).item(), rel=1e-5
    )


def test_a_net_without_recurrence_has_no_time():
    model = MLP(POINTS, depth=2, width=8)
    x, y = inputs(POINTS)
    assert probe(model, (x, y), own_loss).time == []


class Random(nn.Module):
    """Takes numbers from every generator."""

    def forward(self, h):
        return h * random.random() * np.random.rand() * torch.rand(())  # noqa: NPY002


def trace(model):
    """Everything that a look might leave."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "objects": {name: (id(tensor), tensor.data_ptr(), tensor.dtype) for name, tensor in tensors.items()},
        "bits": {name: tensor.detach().clone().numpy().tobytes() for name, tensor in tensors.items()},
        "wanted": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "gradients": {name: (id(p.grad), None if p.grad is None else p.grad.tolist()) for name, p in tensors.items()},
        "hooks of tensors": {name: dict(tensor._backward_hooks or {}) for name, tensor in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))),  # noqa: NPY002
        "defaults": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
    }


def traced(kind):
    torch.manual_seed(0)
    if kind in OURS:
        return OURS[kind]()
    model = MLP(POINTS, depth=3, width=8, norm="batch", dropout=0.5)
    if kind == "random":
        model.net.block2.append(Random())
    return model, POINTS


@pytest.mark.parametrize("how", ["as it should", "the loss raises", "the model raises"])
@pytest.mark.parametrize("kind", ["dropout and batch norm", "resnet", "stacked lstm", "random"])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_no_trace(dtype, kind, how):
    model, spec = traced(kind)
    x, y = inputs(spec, 6)
    list(model.modules())[5].eval()  # modes are mixed, some gradients are there, some weights are frozen
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 3.0)
    parameters[1].register_hook(lambda gradient: gradient)
    model(x)  # buffers hold something

    def broken(*given):
        raise ZeroDivisionError

    if how == "the model raises":
        model.net.get_submodule(model.trunk[-1]).register_forward_hook(broken)
    before = trace(model)
    if how == "as it should":
        probe(model, (x, y), own_loss, trunk_of(model), dtype)
    else:
        with pytest.raises(ZeroDivisionError):
            probe(model, (x, y), broken if how == "the loss raises" else own_loss, trunk_of(model), dtype)
    after = trace(model)
    for what, was in before.items():
        assert after[what] == was, what


def test_a_gradient_still_reaches_the_hooks_that_wait_for_it():
    """Those of DDP sit on the nodes that accumulate: a change of type would throw them away."""
    model, fired = in_place(), []
    nodes = [parameter.view_as(parameter).grad_fn.next_functions[0][0] for parameter in model.parameters()]
    for node in nodes:
        node.register_hook(lambda *given: fired.append(1))
    x = torch.randn(4, 6)
    probe(model, x, mean_square, dtype=DOUBLE)
    model(x).sum().backward()
    assert len(fired) == len(nodes)


def test_under_no_grad_and_autocast():
    model, x = in_place(), torch.randn(4, 6)
    for dtype in (DOUBLE, torch.float32):
        plain = probe(model, x, mean_square, dtype=dtype)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert probe(model, x, mean_square, dtype=dtype) == plain


def test_dropout_draws_its_masks():
    torch.manual_seed(0)
    model = MLP(POINTS, depth=3, width=16, dropout=0.5, activation="tanh")
    x, y = inputs(POINTS, 8)
    looks = {}
    for mode in (True, False):
        looks[mode] = probe(model.train(mode), (x, y), own_loss, trunk_of(model))
    assert looks[True].gradient != looks[False].gradient
    assert looks[False].rms[0] != looks[True].rms[0]


def test_dead_units_are_counted_exactly():
    torch.manual_seed(0)
    model, x = MLP(POINTS, depth=3, width=16), torch.randn(64, 2)
    with torch.no_grad():
        model.net.block2.linear.bias[:5] = -100
    seen = probe(model, x, mean_square, trunk_of(model))
    z = [model.net[:1](x), model.net[:2](x), model.net[:3](x)]
    assert list(seen.dead.values()) == [(h.amax(0) <= 0).double().mean().item() for h in z]
    assert seen.dead["block2.act"] >= 5 / 16
    assert seen.saturated == {}


def test_half_of_a_healthy_layer_is_zero_and_none_of_it_dead():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.randn(64, 16)
    assert (model[:2](x) == 0).double().mean() == pytest.approx(0.5, abs=0.05)
    assert probe(model, x, mean_square).dead == {"1": 0.0}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(4, 8), (3, 5, 4)), (nn.Conv2d(4, 8, 3), (3, 4, 6, 6)), (nn.Conv3d(4, 8, 3), (3, 4, 5, 5, 5))],
)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.Hardshrink(), nn.ReLU6()])
def test_a_dead_unit_is_one_for_all_samples_times_and_places(layer, shape, activation):
    layer = deepcopy(layer)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-100.0] * 3 + [1.0] * 5))
        if isinstance(activation, nn.Hardshrink):
            layer.weight[:3] = 0
            layer.bias[:3] = 0.2
    seen = probe(nn.Sequential(layer, activation), torch.randn(shape) / 8, mean_square)
    assert seen.dead == {"1": 3 / 8}


@pytest.mark.parametrize("shape", [(6,), ()])
def test_an_activation_of_single_numbers(shape):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.gate = nn.Linear(4, 8), nn.Linear(8, 1), nn.Sigmoid()

        def forward(self, x):
            return self.gate(self.last(self.first(x)).squeeze(-1) if shape else self.last(self.first(x)).mean())

    seen = probe(Gate(), torch.randn(6, 4), mean_square)
    assert seen.dead == {"gate": 0}


@pytest.mark.parametrize(("activation", "largest"), [(nn.Sigmoid(), 0.25), (nn.Tanh(), 1.0)])
def test_saturated_entries(activation, largest):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), activation, nn.Linear(16, 2)).double(), torch.randn(8, 4).double()
    with torch.no_grad():
        model[0].weight *= 8
    y = model[:2](x)
    slope = y * (1 - y) if isinstance(activation, nn.Sigmoid) else 1 - y**2
    seen = probe(model, x, mean_square)
    assert seen.saturated == {"1": (slope < 0.05 * largest).double().mean().item()}
    assert 0.2 < seen.saturated["1"] < 0.9


def test_an_activation_that_is_used_again_is_told_apart():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.act = nn.ModuleList(nn.Linear(4, 4) for _ in range(4)), nn.ReLU()

        def forward(self, h):
            for layer in self.layers:
                h = self.act(layer(h))
            return h

    for net, names in ((model, ["1", "1#2"]), (Net(), ["act", "act#2", "act#3", "act#4"])):
        assert list(probe(net, torch.randn(5, 4), mean_square).dead) == names


def test_alike_is_the_mean_cosine_of_pairs(ours):
    model, x, loss, trunk = ours
    *_, last = reference(model, x, loss, trunk)
    pairs = [F.cosine_similarity(a, b, 0) for i, a in enumerate(last) for j, b in enumerate(last) if i != j]
    assert probe(model, x, loss, trunk, DOUBLE).alike == pytest.approx(
        torch.stack(pairs).mean().item(), rel=1e-8, abs=0
    )


def test_alike_at_its_ends():
    assert likeness(torch.ones(5, 3)) == pytest.approx(1)
    assert likeness(torch.eye(3)) == pytest.approx(0)
    assert likeness(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-1)
    assert likeness(torch.ones(1, 3)) == pytest.approx(0)
    assert likeness(torch.full((4, 2), 1e-20).double()) == pytest.approx(1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model(whole):
    torch.manual_seed(0)
    model, x = in_place(), torch.randn(5, 6)
    expected = probe(model, x, mean_square)
    if whole:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    model(x)
    assert probe(model, x, mean_square) == expected
    model(x)


def test_a_compiled_part_of_ours():
    torch.manual_seed(0)
    model = MLP(POINTS, depth=3, width=8)
    x, y = inputs(POINTS)
    expected = probe(model, (x, y), own_loss, trunk_of(model))
    model.net.compile(backend="eager")
    model(x)
    assert probe(model, (x, y), own_loss, trunk_of(model)) == expected


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_look_waits_for_the_device_once(ours, monkeypatch):
    """`tolist` of a CPU tensor passes no dispatcher, and `one_hot` looks at its symbols where they lie on a CPU."""
    model, x, loss, trunk = ours
    with Waits() as own:
        model(x)
    waits, lists = Waits(), []
    for name in ("tolist", "numpy", "cpu"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, plain=plain: lists.append(1) or plain(self))
    with waits:
        probe(model, x, loss, trunk)
    assert waits.count + len(lists) - own.count == 1


class Scaled(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.first, self.head, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.full((1,), start))

    def forward(self, x):
        return self.head(self.scale * self.first(x).relu())


@pytest.mark.parametrize(
    ("make", "waking"),
    [
        (lambda: Scaled(1.0), 0),
        (lambda: Scaled(0.0), 1),
        (lambda: LSTM(NUMBERS, hidden=8), 0),  # biases at zero are none
        (lambda: MLP(POINTS, depth=3, width=8, residual=True, branch_scale=0.0), 2),
    ],
)
def test_weights_at_zero_that_the_first_step_moves(make, waking):
    torch.manual_seed(0)
    model = make()
    x = inputs(model.spec)[0] if hasattr(model, "spec") else torch.randn(4, 6)
    assert probe(model, x, lambda model, x: mean_square(model, x) + model(x).sum()).waking == waking


def test_a_weight_at_zero_that_gets_no_gradient_or_may_not_move():
    model, x = in_place(), torch.randn(4, 6)
    nn.init.zeros_(model[4].weight)
    assert probe(model, x, mean_square).waking == 1
    model[4].weight.requires_grad_(False)
    assert probe(model, x, mean_square).waking == 0
    model[4].weight.requires_grad_(True)
    with torch.no_grad():
        model[2].bias.fill_(-100)
    assert probe(model, x, mean_square).waking == 0  # dead for good


def test_a_foreign_network_whose_branches_start_at_zero_is_not_dead():
    """Of torchvision's ResNet the last convolution of each branch gets no gradient before γ has moved."""
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model, (x, y) = ResNet(BasicBlock, [1, 1, 1, 2], num_classes=10, zero_init_residual=True), inputs(RGB, 8)
    loss = lambda model, x: F.cross_entropy(model(x), y)  # noqa: E731
    first = probe(model, x, loss)
    assert (first.waking, judge(first).word) == (5, "CAUTION")
    loss(model, x).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    after = probe(model, x, loss)
    assert after.waking == 0
    assert all(norm > 0 for norm in after.gradient)


def test_precision():
    assert precision(MLP(POINTS)) == DOUBLE
    assert precision(ResNet(RGB, depth=8)) == torch.float32  # slow in float64 on a CPU


def test_plain_holds_numbers_and_names_only(ours):
    model, x, loss, trunk = ours
    told = probe(model, x, loss, trunk).plain()
    assert set(told) == {"loss", "trunk", "gradient", "rms", "weights", "time", "dead", "saturated", "alike", "waking"}
    assert all(isinstance(number, float) for number in (told["loss"], *told["gradient"], *told["dead"].values()))


def resnet18():
    from torchvision.models import resnet18

    names = [f"layer{stage}.{block}.conv{number}" for stage in range(1, 5) for block in (0, 1) for number in (1, 2)]
    for stage in (2, 3, 4):  # its shortcut is used after the two convolutions
        names.insert(names.index(f"layer{stage}.0.conv2") + 1, f"layer{stage}.0.downsample.0")
    return resnet18(num_classes=10), ["conv1", *names]


def transformer():
    from torchvision.models import VisionTransformer

    size = {"num_layers": 3, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 10}
    model = VisionTransformer(image_size=32, patch_size=8, **size)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # which starts at zero, and lets no gradient pass
    parts = ("self_attention", "mlp.0", "mlp.3")
    names = [f"encoder.layers.encoder_layer_{index}.{part}" for index in range(3) for part in parts]
    return model, ["conv_proj", *names, "encoder"]


@pytest.mark.parametrize("make", [resnet18, transformer])
def test_models_of_others_in_order_of_use_and_without_logits(make):
    torch.manual_seed(0)
    model, names = make()
    x, y = inputs(RGB, 8)
    seen = probe(model, x, lambda model, x: F.cross_entropy(model(x), y))
    assert all(0 < norm < math.inf for norm in (*seen.gradient, *seen.rms))
    assert seen.trunk == names


class Others(LightningModule):
    def __init__(self, body, criterion=None):
        super().__init__()
        self.body = body
        if criterion:
            self.loss = criterion

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train_others(folder, model, *tensors, steps=3):
    size = len(tensors[0]) // steps
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    where = {"accelerator": "cpu", "logger": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=1, callbacks=[GradientFlow(str(folder), 1, on_alarm="log")], **where, **quiet)
    with patch.object(Figure, "savefig"):
        trainer.fit(model, DataLoader(TensorDataset(*tensors), batch_size=size))
    assert trainer.global_step == steps
    _, rows = runs.read_table(folder / runs.GRADIENTS)
    return rows, runs.read_lines(folder / runs.FLOW)


others = pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")


@others
@pytest.mark.parametrize("make", [resnet18, transformer])
def test_models_of_others_train(tmp_path, make):
    torch.manual_seed(0)
    rows, looks = train_others(tmp_path, Others(make()[0]), *inputs(RGB, 12))
    assert [row[0] for row in rows] == [0, 1, 2]
    assert all(0 < norm < math.inf for norm in rows[0][1:])
    assert [look["step"] for look in looks] == [0, 1, 2, 3]


@others
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss()])
def test_modules_of_others_that_keep_their_loss_and_have_more_in_a_batch(tmp_path, criterion, extra):
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    rows, looks = train_others(tmp_path, Others(in_place(), criterion), x, y, *[torch.ones(12)] * extra)
    assert len(rows) == 3
    assert len(looks) in (0, 4)


class NoFloat64(TorchDispatchMode):
    """Fails where an operation yields float64, as an Apple device does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not any(isinstance(one, torch.Tensor) and one.dtype == torch.float64 for one in tree_leaves(result)), (
            func
        )
        return result


@pytest.mark.parametrize("make", [lambda: MLP(POINTS, depth=3), lambda: LSTM(NUMBERS, hidden=8)], ids=["mlp", "lstm"])
def test_a_device_without_float64_is_never_asked_for_it(make, monkeypatch):
    model = make()
    x, y = inputs(model.spec)
    exact = probe(model, (x, y), own_loss, trunk_of(model), torch.float64)
    monkeypatch.setattr(isolation, "WITHOUT_FLOAT64", ("cpu", "mps"))
    watched = layers(model)
    history = nonfinite.History(watched)
    with NoFloat64():
        seen = probe(model, (x, y), own_loss, trunk_of(model))
        loss = model.loss(model(x), y)
        loss.backward()
        norms = gradient_norms(watched)
        history.add_loss(nonfinite.Place(0, 0, 0), loss)
        history.add_gradient(0)
        assert history.read() is None
        assert nonfinite.bad_weights(watched) == []
    assert norms.dtype == torch.float32
    assert seen.gradient == pytest.approx(exact.gradient, rel=1e-4)


def test_a_probe_leaves_the_random_numbers_of_an_apple_device_alone(monkeypatch):
    state, restored = object(), []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=torch.device("mps"))])
    with isolation.random_numbers(model):
        assert restored == []
    assert restored == [state]
