"""Groups from the configuration, and several optimizers as one, against optimizers that are stepped by hand."""

from __future__ import annotations

import copy
import inspect
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import OPTIONS, POINTS, RGB
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from gradflow import runs
from gradflow.config import build
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import LSTM
from gradflow.optimizers import schedule
from gradflow.optimizers.groups import build_optimizer, check_named
from gradflow.optimizers.muon import Muon, orthogonalised
from gradflow.optimizers.roles import roles
from gradflow.optimizers.several import Several, difference, learning_rates
from gradflow.runs.errors import UserError

VECTORS = partial(AdamW, lr=0.1, weight_decay=0.5, vectors={"weight_decay": 0.0})
BOTH = partial(AdamW, lr=0.01, hidden=partial(Muon, lr=0.5), vectors={"lr": 0.002})


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP(POINTS, depth=3, width=4, norm="layer")


def gradients(model: nn.Module, step: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = size * torch.randn(p.shape, generator=generator)


def by_role(model: nn.Module, *wanted: str) -> list[nn.Parameter]:
    found = roles(model)
    return [p for name, p in model.named_parameters() if found[name] in wanted]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# Groups of one optimizer


@pytest.mark.parametrize("roles", [{}, {"vectors": None}])
@pytest.mark.parametrize("cls", [Adam, SGD])
def test_without_groups_nothing_is_different(model, cls, roles):
    make = partial(cls, lr=0.1, **roles)
    made, plain = build_optimizer(make, model), cls(model.parameters(), lr=0.1)
    assert type(made) is cls
    assert [*map(id, made.param_groups[0]["params"])] == [*map(id, model.parameters())]
    assert made.state_dict() == plain.state_dict()
    assert learning_rates(made) == {"lr": 0.1}
    assert type(build_optimizer(cls, model)) is cls  # a class, and no partial of one


def test_decay_on_all_but_vectors(model):
    """Without a gradient AdamW multiplies by 1 - lr · weight_decay, and does nothing else."""
    before, optimizer = weights(model), build_optimizer(VECTORS, model)
    assert type(optimizer) is AdamW
    assert learning_rates(optimizer) == {"lr/rest": 0.1, "lr/vectors": 0.1}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old if p.ndim < 2 else 0.95 * old)


def test_an_options_yaml_may_name_a_role_that_a_model_lacks():
    bare = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    (group,) = build_optimizer(VECTORS, bare).param_groups
    assert (group["name"], len(group["params"])) == ("rest", 2)


def test_where_every_parameter_is_in_a_group_there_is_no_rest():
    bare = nn.Linear(3, 3)
    made = build_optimizer(partial(SGD, output={"lr": 0.2}, vectors={"lr": 0.1}), bare)
    assert learning_rates(made) == {"lr/output": 0.2, "lr/vectors": 0.1}


def test_a_role_that_only_a_model_says():
    class Gated(nn.Sequential):
        roles = {"1": "gate"}

    model = Gated(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    made = build_optimizer(partial(SGD, lr=1.0, gate={"lr": 0.1}), model)
    assert made.param_groups[1]["params"] == [model[1].weight, model[1].bias]


# Several optimizers as one


def by_hand(model: nn.Module) -> list[Optimizer]:
    """BOTH, as separate optimizers."""
    rest, vectors = by_role(model, "input", "output", "embeddings"), by_role(model, "vectors")
    return [
        AdamW([{"params": rest}, {"params": vectors, "lr": 0.002}], lr=0.01),
        Muon(by_role(model, "hidden"), lr=0.5),
    ]


def test_several_step_as_each_alone(model):
    other = copy.deepcopy(model)
    one, many = build_optimizer(BOTH, model), by_hand(other)
    assert isinstance(one, Several)
    assert learning_rates(one) == {"lr/rest": 0.01, "lr/vectors": 0.002, "lr/hidden": 0.5}
    assert sum(len(group["params"]) for group in one.param_groups) == len(list(model.parameters()))
    for step in range(4):
        gradients(model, step)
        gradients(other, step)
        one.step()
        for optimizer in many:
            optimizer.step()
    assert equal(weights(model), weights(other))
    assert set(one.state) == set(model.parameters())
    one.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    before = weights(model)
    one.step()  # without gradients, as where a step is skipped
    assert equal(weights(model), before)


def scheduled(optimizer, factor):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


OTHERS = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
}


@pytest.mark.parametrize("name", OTHERS)
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(model, name):
    """With its schedule, for each of PyTorch's optimizers: loading makes new dictionaries, which have to be shared."""
    make = partial(AdamW, lr=0.01, hidden=partial(OTHERS[name], lr=0.5), vectors={"lr": 0.002})
    factor = schedule.cosine(10.0, 1)
    one = build_optimizer(make, model)
    clock = scheduled(one, factor)
    for step in range(3):
        gradients(model, step)
        one.step()
        clock.step()
    other = copy.deepcopy(model)
    two = build_optimizer(make, other)
    again = scheduled(two, factor)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    again.load_state_dict(clock.state_dict())
    for step in range(3, 6):
        for net, optimizer, ticking in ((model, one, clock), (other, two, again)):
            gradients(net, step)
            optimizer.step()
            ticking.step()
        assert learning_rates(one) == learning_rates(two)
        assert learning_rates(two)["lr/hidden"] == pytest.approx(0.5 * factor(step + 1))
        used = [group["lr"] for each in two.optimizers for group in each.param_groups]
        assert used == [*learning_rates(two).values()]
    assert equal(weights(model), weights(other))


def test_a_checkpoint_of_other_groups_does_not_load(model):
    saved = build_optimizer(BOTH, model).state_dict()
    saved["param_groups"][2]["params"].pop()
    with pytest.raises(ValueError, match="doesn't match the size"):
        build_optimizer(BOTH, model).load_state_dict(saved)


def test_one_that_computes_the_loss_again_is_none_of_several(model):
    make = partial(AdamW, lr=0.01, vectors=partial(torch.optim.LBFGS, lr=0.1))
    with pytest.raises(ValueError, match="LBFGS computes the loss again in its step, so it can't be one of several"):
        build_optimizer(make, model)


def test_a_closure_runs_once_with_gradients(model):
    calls = []
    optimizer = build_optimizer(BOTH, model)
    loss = optimizer.step(lambda: calls.append(torch.is_grad_enabled()) or torch.tensor(3.0))
    assert (calls, loss.item()) == ([True], 3.0)


def test_a_scaler_of_gradients_sees_one_optimizer(model):
    """It divides all gradients, and leaves out a step in which one of them is not finite."""
    other = copy.deepcopy(model)
    one, two = build_optimizer(BOTH, model), build_optimizer(BOTH, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    gradients(model, 0, 8.0)
    gradients(other, 0)
    scaler.step(one)
    scaler.update()
    two.step()
    assert equal(weights(model), weights(other))
    gradients(model, 1, 8.0)
    by_role(model, "hidden")[0].grad[0, 0] = torch.inf
    before = weights(model)
    scaler.step(one)
    scaler.update()
    assert equal(weights(model), before)
    assert scaler.get_scale() == 4.0


def test_a_group_that_comes_later_is_not_lost_in_silence(model):
    with pytest.raises(TypeError, match="belongs to one of several optimizers"):
        build_optimizer(BOTH, model).add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_the_schedule_moves_each_group_by_the_same_factor(model):
    model.optimizer, model.scheduler = BOTH, partial(schedule.cosine, warmup=3)
    model._trainer = SimpleNamespace(estimated_stepping_batches=20, num_training_batches=20, accumulate_grad_batches=1)
    made, factor = model.configure_optimizers(), model.scheduler(20.0, 20)
    for step in range(20):
        rates = learning_rates(made["optimizer"])
        base = {"lr/rest": 0.01, "lr/vectors": 0.002, "lr/hidden": 0.5}
        assert rates == pytest.approx({key: rate * factor(step) for key, rate in base.items()})
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()


# What sets a checkpoint apart


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (BOTH, None),
        (partial(BOTH, lr=0.3), r"^optimizer.lr=0.3: the run to resume has 0.01; a resumed run goes on with it$"),
        (
            partial(BOTH, hidden=partial(Muon, lr=0.1)),
            r"^optimizer.hidden.lr=0.1: the run to resume has 0.5",
        ),
        (
            partial(BOTH, vectors={"lr": 0.002, "eps": 1.0}),
            r"^optimizer.vectors.eps=1.0: the run to resume has 1e-08",
        ),
        (
            partial(AdamW, lr=0.01, hidden=partial(Muon, lr=0.5), output={"lr": 0.002}),
            r"^optimizer: the run to resume has rest \(2 parameters\), vectors \(10 parameters\), hidden \(2 par"
            r"ameters\), and not rest \(11 parameters\), output \(1 parameters\), hidden \(2 parameters\); choose",
        ),
        (AdamW, "was trained by another optimizer; choose the same optimizer=… as that run$"),
        (partial(SGD, hidden=partial(Muon, lr=0.5), vectors={"lr": 0.002}), "was trained by another optimizer"),
    ],
)
def test_groups_are_compared_one_by_one(model, make, told):
    """With the learning rates before the schedule's factor."""
    one = build_optimizer(BOTH, model)
    scheduled(one, lambda t: 0.5)
    found = difference(one.state_dict()["param_groups"], build_optimizer(make, model))
    assert found is None if told is None else re.search(told, found), found


def test_as_many_parameters_in_each_group(model):
    saved = build_optimizer(VECTORS, model).state_dict()["param_groups"]
    saved[1]["params"].pop()
    told = difference(saved, build_optimizer(VECTORS, model))
    assert told.startswith("optimizer: the run to resume has rest (4 parameters), vectors (9 parameters), and ")


# Muon


@pytest.mark.parametrize("shape", [(6, 6), (12, 4), (4, 12)])
def test_the_update_has_the_singular_vectors_of_the_momentum_and_values_near_one(shape):
    """The iteration is a polynomial on singular values, which starts from those of a matrix of norm 1."""
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    Muon([p], lr=0.1, weight_decay=0.3).step()
    u, expected, v = torch.linalg.svd(p.grad, full_matrices=False)
    found = u.T @ (-p.detach() / 0.1) @ v.T / max(1, shape[0] / shape[1]) ** 0.5
    expected = expected / expected.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(found, expected.diag(), atol=1e-5, rtol=0)
    assert expected.max() < 1.3
    assert expected.median() > 0.6


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has it from 2.9 on")
@pytest.mark.parametrize("nesterov", [True, False])
def test_as_that_of_pytorch_which_works_in_bfloat16(nesterov):
    shapes = [(8, 8)] * 3 + [(8, 5), (5, 8)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    words = {"lr": 0.02, "weight_decay": 0.2, "nesterov": nesterov}
    one, two = Muon(ours, **words), torch.optim.Muon(theirs, **words)
    for step in range(5):
        for parameters in (ours, theirs):
            generator = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
        one.step()
        two.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # 5 steps of .02, each within 2 %
        assert (a - 1).abs().max() > 0.05


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_the_matrix_of_its_output_channels(layout):
    start, slope = torch.randn(6, 3, 2, 2), torch.randn(6, 3, 2, 2)
    flat, kernel = nn.Parameter(start.flatten(1).clone()), nn.Parameter(start.clone(memory_format=layout))
    flat.grad, kernel.grad = slope.flatten(1), slope.clone(memory_format=layout)
    for p in (flat, kernel):
        Muon([p], lr=0.3, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.detach().flatten(1), flat.detach())
    assert kernel.is_contiguous(memory_format=layout)


def test_a_gradient_that_vanished_moves_a_matrix_as_any_other_does_down_to_eps():
    slope, moved = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), []
    for size, eps in ((1.0, 1e-7), (1e-12, 1e-30), (1e-12, 1e-7)):
        p = nn.Parameter(torch.zeros(3, 3))
        p.grad = size * slope
        Muon([p], lr=0.1, eps=eps).step()
        moved.append(p.detach())
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[2].norm() < 1e-3 * moved[0].norm()


def test_a_matrix_without_a_gradient_stays_finite():
    p = nn.Parameter(torch.ones(3, 3))
    p.grad = torch.zeros(3, 3)
    Muon([p]).step()
    assert torch.equal(p.detach(), torch.ones(3, 3))


def test_at_a_fixed_norm_a_step_is_relative_and_the_size_of_the_weights_has_no_effect():
    start, slope = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    ended = []
    for size in (1.0, 100.0):
        p = nn.Parameter(size * start)
        p.grad = slope
        Muon([p], lr=0.2, fixed_norm=True).step()
        ended.append(p.detach())
    direction = orthogonalised((slope * (1 - 0.95**2)).flatten(1)[None], 5).view_as(start)
    torch.testing.assert_close(ended[0], start * 3**0.5 / start.norm() - 0.2 * direction)
    torch.testing.assert_close(*ended)


# In the builder


@pytest.mark.parametrize("option", OPTIONS["optimizer"])
def test_each_option_is_tried_without_a_trace(composed, monkeypatch, option):
    """The weights and what is drawn next are those of a model whose optimizer was not tried."""
    cfg, states = composed(f"optimizer={option}", "model=cnn"), []
    for _ in range(2):
        torch.manual_seed(1)
        made = build.model(cfg, RGB)
        states.append([*weights(made), torch.rand(3)])
        assert all(p.grad is None for p in made.parameters())
        monkeypatch.setattr(build, "_try", lambda *_: None)
    assert equal(*states)


def test_trying_draws_nothing(model):
    """Even where the optimizer does."""

    def draws(params, lr):
        torch.rand(5)
        return SGD(params, lr=lr)

    model.optimizer, model.scheduler = partial(draws, lr=0.1), schedule.constant
    torch.manual_seed(2)
    expected = torch.rand(2)
    torch.manual_seed(2)
    build._try(SimpleNamespace(scheduler={}), model)
    assert torch.equal(torch.rand(2), expected)


WRONG = {
    "optimizer.vectors.lr=-1": r"optimizer.vectors.lr=-1: Invalid",
    "optimizer.vectors.lrr=1": r"optimizer.vectors.lrr: no such key; did you mean lr\?",
    "optimizer=muon optimizer.hidden.eta=1": "hidden.eta: no such key; known: eps, fixed_norm, lr, momentum",
    "optimizer=adamw_no_decay optimizer.lr=-1": "optimizer.lr=-1: Invalid learning rate",
    "optimizer=adamw_no_decay optimizer.vectors.betas=[.9]": r"optimizer.vectors.betas=\[0.9\]: expected two numbers",
    "optimizer.vector.lr=1": r"optimizer.vector: no such role; did you mean vectors\?",
    "optimizer.bodies.lr=1": "optimizer.bodies: no such role; known: embeddings, hidden, input, output, vectors",
    "+optimizer.vectors=3": "optimizer.vectors=3: expected values of the optimizer",
    "optimizer=muon optimizer.hidden.momentum=1": "optimizer.hidden.momentum=1: Invalid momentum: 1",
    "optimizer=muon model.depth=1": "optimizer.hidden: this model has no such parameters; its roles are input,",
    "optimizer=muon optimizer.hidden._target_=torch.optim.Foo": "torch.optim has no Foo",
    "optimizer=muon optimizer.hidden._target_=os.system": "_target_ os.system is neither named",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_values_are_named_with_their_group(composed, line):
    with pytest.raises(UserError, match=WRONG[line]):
        build.model(composed(*line.split()), RGB)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has it from 2.9 on")
def test_what_takes_no_kernels_says_so(composed):
    target = "optimizer.hidden._target_=torch.optim.Muon"
    ours = (f"~optimizer.hidden.{key}" for key in ("ns_steps", "fixed_norm"))
    words = ("model=cnn", "optimizer=muon", target, *ours)
    with pytest.raises(UserError, match=r"optimizer.hidden: Muon only supports 2D parameters"):
        build.model(composed(*words), RGB)


def test_a_role_that_was_named_on_purpose_has_to_be_there(model):
    named = ["optimizer=adamw", "+optimizer.vectors.lr=1", "~optimizer.embeddings", "seed=1"]
    check_named(named, model)
    with pytest.raises(UserError, match=r"optimizer.embeddings: this model has no such parameters; its roles are"):
        check_named([*named, "optimizer.embeddings.lr=1"], model)


def test_a_value_of_a_role_needs_no_plus_and_counts_for_it_alone(composed):
    overrides = ("optimizer.vectors.weight_decay=0.5", "optimizer.hidden.lr=0.1", "optimizer=adamw", "data=shapes")
    made = build.model(composed(*overrides), RGB)
    optimizer = build_optimizer(made.optimizer, made)
    assert learning_rates(optimizer) == {"lr/rest": 1e-3, "lr/vectors": 1e-3, "lr/hidden": 0.1}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.5, 0.01]
    off = composed("optimizer=muon", "optimizer.hidden=null", "optimizer.vectors=null")
    assert learning_rates(build_optimizer(build.make("optimizer", off.optimizer), made)) == {"lr": 1e-3}


def test_the_overrides_of_an_older_run_are_read_under_todays_names(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / runs.OVERRIDES).write_text("[+optimizer.groups.vectors.lr=1, ~optimizer.groups.hidden, seed=1]")
    assert runs.recorded_overrides(tmp_path) == ["+optimizer.vectors.lr=1", "~optimizer.hidden", "seed=1"]


def test_a_node_that_the_constructor_takes_is_no_role(model):
    class Takes(SGD):
        def __init__(self, params, lr, nested):
            super().__init__(params, lr * nested["factor"])

    assert learning_rates(build_optimizer(partial(Takes, lr=0.1, nested={"factor": 2}), model)) == {"lr": 0.2}


def test_recurrent_weights_go_to_muon():
    model = LSTM(RGB, hidden=4)
    made = build_optimizer(BOTH, model)
    assert [group["name"] for group in made.param_groups] == ["rest", "vectors", "hidden"]
    assert made.param_groups[2]["params"] == [model.net.layer1.weight_hh_l0]
