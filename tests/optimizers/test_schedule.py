"""Learning-rate factors against their closed forms."""

from __future__ import annotations

import io
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import POINTS
from omegaconf import OmegaConf
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gradflow.config import build
from gradflow.config.options import of_group
from gradflow.models.mlp import MLP
from gradflow.optimizers import schedule
from gradflow.optimizers.groups import build_optimizer
from gradflow.optimizers.several import learning_rates
from gradflow.runs.errors import UserError

TOTAL, EPOCH = 200.0, 20
OURS = [name for name in of_group("scheduler") if hasattr(schedule, name)]  # a fork's own may have no warm-up


def option(name, **changes):
    """What an option of conf/scheduler stands for, with some keys set."""
    return build.make("scheduler", OmegaConf.merge(OmegaConf.load(of_group("scheduler")[name]), changes))


def factors(factor, steps=int(TOTAL)):
    return [factor(t) for t in range(steps)]


@pytest.mark.parametrize("name", OURS)
def test_an_option_is_the_function_of_its_name_with_its_defaults(name):
    given, bare = option(name)(TOTAL, EPOCH), getattr(schedule, name)(TOTAL, EPOCH)
    assert factors(given) == factors(bare)


@pytest.mark.parametrize("name", OURS)
def test_a_factor_stays_between_zero_and_one(name):
    for warmup in (0, 10):
        found = factors(option(name, warmup=warmup)(TOTAL, EPOCH))
        assert 0 < min(found) <= max(found) <= 1


@pytest.mark.parametrize("name", OURS)
def test_warm_up_rises_in_a_line_and_the_schedule_follows_on_what_is_left(name):
    warm = option(name, warmup=20)(TOTAL, EPOCH)
    after = option(name)(TOTAL - 20, EPOCH)
    assert factors(warm, 20) == pytest.approx([(t + 1) / 20 * after(0) for t in range(20)])
    assert [warm(t + 20) for t in range(180)] == pytest.approx(factors(after, 180))


@pytest.mark.parametrize("name", OURS)
def test_nothing_jumps_where_the_warm_up_ends(name):
    warm, cold = option(name, warmup=20)(TOTAL, EPOCH), option(name)(TOTAL - 20, EPOCH)
    assert warm(19) == warm(20) == pytest.approx(cold(0))
    assert warm(21) == pytest.approx(cold(0), abs=0.02)


def test_constant_is_one():
    assert set(factors(schedule.constant(TOTAL, EPOCH))) == {1.0}


def test_inverse_time_by_step():
    factor = schedule.inverse_time(TOTAL, EPOCH, epsilon=0.5)
    assert [factor(t) for t in (0, 1, 2, 10)] == pytest.approx([1, 1 / 1.5, 1 / 2, 1 / 6])


def test_inverse_time_by_epoch_stays_within_an_epoch():
    factor = schedule.inverse_time(TOTAL, EPOCH, epsilon=0.5, unit="epoch")
    assert [factor(t) for t in (0, 19, 20, 39, 40, 100)] == pytest.approx([1, 1, 1 / 1.5, 1 / 1.5, 1 / 2, 1 / 3.5])


def test_exponential_by_step_and_by_whole_epochs():
    by_step, by_epoch = (schedule.exponential(TOTAL, EPOCH, gamma=0.9, unit=unit) for unit in ("step", "epoch"))
    assert factors(by_step) == pytest.approx([0.9**t for t in range(200)])
    assert [by_epoch(t) for t in (0, 19, 20, 39, 40)] == pytest.approx([1, 1, 0.9, 0.9, 0.81])


@pytest.mark.parametrize(
    ("unit", "milestones"), [("run", (0.5, 0.75)), ("epoch", (5, 7.5)), ("step", (100, 150)), ("step", (150, 100))]
)
def test_step_falls_at_its_milestones(unit, milestones):
    factor = schedule.step(TOTAL, EPOCH, milestones, unit, gamma=0.1)
    assert [factor(t) for t in (0, 99, 100, 149, 150, 199)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_step_takes_gamma_and_any_number_of_milestones():
    three = schedule.step(TOTAL, EPOCH, (1, 2, 3), "step", gamma=0.5)
    assert factors(three, 5) == [1, 0.5, 0.25, 0.125, 0.125]
    assert set(factors(schedule.step(TOTAL, EPOCH, ()))) == {1}


def test_a_milestone_by_run_is_a_fraction_of_what_the_warm_up_leaves():
    factor = schedule.step(TOTAL, EPOCH, (0.5,), warmup=40)
    assert [factor(t) for t in (40, 119, 120)] == pytest.approx([1, 1, 0.1])


def test_a_milestone_falls_on_the_very_step_that_its_fraction_names():
    """Not one later where the product of two floats is a hair above the whole number (0.07 × 100, 0.55 × 100)."""
    factor = {percent: schedule.step(100.0, 10, (percent / 100,)) for percent in range(1, 100)}
    first = {percent: next(t for t in range(101) if factor[percent](t) < 1) for percent in factor}
    assert first == {percent: percent for percent in factor}


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_from_one_to_its_floor(floor):
    factor = schedule.cosine(TOTAL, EPOCH, floor)
    expected = [floor + (1 - floor) * (1 + math.cos(math.pi * t / 200)) / 2 for t in range(200)]
    assert factors(factor) == pytest.approx(expected)
    assert factor(100) == pytest.approx((1 + floor) / 2)
    assert factor(200) == pytest.approx(floor)
    assert factor(250) == pytest.approx(floor)  # past the end it does not rise again


def test_onecycle_start_peak_and_end():
    factor = schedule.onecycle(201.0, EPOCH, rise=0.25, start=0.04, end=0.001)
    assert factor(0) == pytest.approx(0.04)
    assert factor(25) == pytest.approx((0.04 + 1) / 2)
    assert factor(50) == pytest.approx(1)
    assert factor(125) == pytest.approx((1 + 0.001) / 2)
    assert factor(200) == pytest.approx(0.001)
    found = factors(factor, 201)
    assert found.index(max(found)) == 50
    assert found == sorted(found[:51]) + sorted(found[51:], reverse=True)


def test_onecycle_of_one_step():
    assert schedule.onecycle(1.0, 1)(0) == pytest.approx(0.04)


def test_triangular_up_and_down_in_lines():
    factor = schedule.triangular(TOTAL, EPOCH, rise=0.25, start=0.2, end=0.1)
    assert factors(factor, 50) == pytest.approx([0.2 + 0.8 * t / 50 for t in range(50)])
    assert [factor(t) for t in range(50, 251)] == pytest.approx([max(1 - 0.9 * t / 150, 0.1) for t in range(201)])
    assert factors(schedule.triangular(4.0, 1, rise=0.0))[:4] == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("warmup", [200, 500])
def test_a_warm_up_as_long_as_the_run_is_refused(name, warmup):
    with pytest.raises(UserError, match=rf"scheduler\.warmup={warmup}: the whole run has 200 optimizer steps"):
        option(name, warmup=warmup)(TOTAL, EPOCH)


@pytest.mark.parametrize("name", OURS)
def test_a_negative_warm_up_is_refused(name):
    with pytest.raises(UserError, match=r"scheduler\.warmup=-1: expected a number of steps, 0 or more"):
        option(name, warmup=-1)(TOTAL, EPOCH)


@pytest.mark.parametrize(
    ("name", "known"), [("inverse_time", "step, epoch"), ("exponential", "step, epoch"), ("step", "run, epoch, step")]
)
def test_an_unknown_unit_is_refused(name, known):
    with pytest.raises(UserError, match=f"scheduler.unit=week: expected one of {known}$"):
        option(name, unit="week")(TOTAL, EPOCH)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("inverse_time", "epsilon", -0.1),
        ("onecycle", "rise", -0.1),
        ("triangular", "rise", 1),
        ("exponential", "gamma", 1.5),
        ("plateau", "gamma", 0),
        ("plateau", "patience", -1),
        ("plateau", "floor", -0.1),
    ],
)
def test_an_impossible_value_is_refused_by_the_name_of_its_key(name, key, value):
    with pytest.raises(UserError, match=rf"scheduler\.{key}={value}: expected"):
        option(name, **{key: value})(TOTAL, EPOCH)


@pytest.mark.parametrize("name", ["cosine", "onecycle", "triangular", "step"])
def test_what_spans_the_run_needs_its_end(name):
    with pytest.raises(UserError, match=r"set trainer\.max_epochs or trainer\.max_steps"):
        getattr(schedule, name)(math.inf, EPOCH)


def test_what_does_not_span_the_run_goes_on_for_ever():
    assert schedule.constant(math.inf, EPOCH)(10**6) == 1
    assert schedule.inverse_time(math.inf, EPOCH, epsilon=1.0)(999) == pytest.approx(1e-3)
    assert schedule.step(math.inf, EPOCH, (2,), "epoch")(40) == pytest.approx(0.1)


# What follows the validation


def validation(**values):
    """Metrics as a model has them, each with its value."""
    metrics = {
        f"{name}/val": SimpleNamespace(compute=lambda value=value: torch.tensor(value))
        for name, value in values.items()
    }
    return type("Metrics", (dict,), {"directions": {"loss": "min", "accuracy": "max"}})(metrics)


def follow(optimizer, total=math.inf, **options):
    """The optimizer's schedule, and its factor."""
    factor = schedule.with_metrics(
        schedule.plateau(total, EPOCH, **options), validation(loss=0.0, accuracy=0.0, odd=0.0)
    )
    return schedule.Schedule(optimizer, factor), factor


@pytest.mark.parametrize(("metric", "mode"), [("loss", "min"), ("accuracy", "max")])
@pytest.mark.parametrize("patience", [0, 2])
def test_a_plateau_lowers_the_rate_when_that_of_pytorch_does(metric, mode, patience):
    ours, theirs = (
        SGD(
            [{"params": nn.Parameter(torch.ones(1)), "lr": 0.5}, {"params": nn.Parameter(torch.ones(1)), "lr": 2.0}],
            lr=1.0,
        )
        for _ in range(2)
    )
    one, _ = follow(ours, monitor=f"{metric}/val", patience=patience, gamma=0.5, floor=0.01)
    two = ReduceLROnPlateau(theirs, mode, 0.5, patience, threshold=0.0, min_lr=[0.005, 0.02], eps=0.0)
    values = torch.randint(0, 30, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    for value in values:
        one.validated(validation(**{metric: float(value)}))
        two.step(value)
        assert [*learning_rates(ours).values()] == [*learning_rates(theirs).values()]  # at once, before the next step
        ours.step()
        one.step()
        assert [*learning_rates(ours).values()] == [*learning_rates(theirs).values()]
    assert learning_rates(ours) == {"lr/0": 0.005, "lr/1": 0.02}


def test_a_plateau_in_numbers():
    """Two validations are waited for after the best, and after each fall."""
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    clock, factor = follow(optimizer, patience=2, gamma=0.1, floor=0.05)
    seen = []
    for loss in (3.0, 2.0, 2.0, 2.5, math.nan, 2.0, 1.9, 2.0, 2.0, 2.0):
        clock.validated(validation(loss=loss))
        seen.append(factor(0))
    assert seen == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05])


def test_what_is_validated_within_the_warm_up_does_not_count():
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    clock, _ = follow(optimizer, 100, patience=0, gamma=0.5, warmup=4)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        clock.step()
        clock.validated(validation(loss=1.0))  # the first that counts, after 4 steps, is the best
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.5, 0.25, 0.125])


def test_every_group_of_several_optimizers_follows_and_a_checkpoint_holds_where_it_is():
    """Its options are those of the new run."""
    make = partial(Adam, lr=0.1, hidden=partial(SGD, lr=2.0), vectors={"lr": 0.3})
    model = MLP(POINTS, depth=3, width=4)
    one = build_optimizer(make, model)
    clock, _ = follow(one, patience=1, gamma=0.5)
    for loss in (1.0, 2.0, 2.0, 2.0):
        clock.validated(validation(loss=loss))
    assert learning_rates(one) == {"lr/rest": 0.05, "lr/vectors": 0.15, "lr/hidden": 1.0}
    file = io.BytesIO()
    torch.save((one.state_dict(), clock.state_dict()), file)
    two = build_optimizer(make, model)
    again, factor = follow(two, patience=2, gamma=0.1)
    for part, state in zip((two, again), torch.load(io.BytesIO(file.getvalue()), weights_only=True), strict=True):
        part.load_state_dict(state)
    assert learning_rates(two) == learning_rates(one)
    assert (factor.best, factor.waited, factor.patience) == (1.0, 1, 2)
    for expected in (0.5, 0.05):  # the second validation without a best was before the checkpoint
        again.validated(validation(loss=2.0))
        assert factor(0) == pytest.approx(expected)
    assert learning_rates(two) == pytest.approx({"lr/rest": 0.005, "lr/vectors": 0.015, "lr/hidden": 0.1})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"monitor": "acuracy/val"}, r"scheduler.monitor=acuracy/val: no such metric; did you mean accuracy/val\?"),
        ({"monitor": "loss/train"}, "scheduler.monitor=loss/train: no such metric"),
        ({"mode": "max"}, "scheduler.mode=max: a lower loss/val is better"),
        ({"monitor": None}, "scheduler.monitor=None: no such metric; known: "),
        ({"mode": "foo"}, "scheduler.mode=foo: expected min or max"),
        ({"monitor": "odd/val"}, "scheduler.mode=… must be given, min or max"),
    ],
)
def test_a_metric_that_can_not_be_followed(options, told):
    with pytest.raises(UserError, match=told):
        follow(SGD([nn.Parameter(torch.ones(1))], lr=1.0), **options)


@pytest.mark.parametrize(
    "trainer",
    [
        SimpleNamespace(limit_val_batches=0),
        SimpleNamespace(limit_val_batches=1.0, datamodule=SimpleNamespace(has=lambda split: split != "val")),
    ],
)
def test_a_run_that_validates_nothing_has_no_plateau(trainer):
    with pytest.raises(UserError, match=r"scheduler.monitor=loss/val: this run validates nothing"):
        schedule.with_metrics(schedule.plateau(TOTAL, EPOCH), validation(loss=0.0), trainer)
