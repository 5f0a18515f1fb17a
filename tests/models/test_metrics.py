"""Chosen metrics: what they compare, on which splits, and that their sums can be handed on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import COPY, OPTIONS, POINTS, RGB, inputs
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassCohenKappa, MulticlassF1Score
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef, R2Score

from gradflow.config import build
from gradflow.models import metrics
from gradflow.models.metrics import Mean, Metrics
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

ACCURACY = MulticlassAccuracy(10, average="micro")
F1 = MulticlassF1Score(10, average="macro")


def batches(spec: Spec, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    made = []
    for size in sizes:
        _, target = inputs(spec, size)
        made.append((torch.randn(*target.shape[: 1 + spec.per_step], spec.outputs), target))
    return made


def own(spec: Spec, parts: list[tuple[Tensor, Tensor]]) -> float:
    score = Mean()
    for output, target in parts:
        score.update(*task_of(spec).score(output, target))
    return score.compute().item()


def values(spec: Spec, parts: list[tuple[Tensor, Tensor]], split: str = "val", **chosen: object) -> dict[str, float]:
    measured = Metrics(task_of(spec), chosen)
    for output, target in parts:
        measured.add(split, output, target)
    return {name: metric.compute().item() for name, metric in measured.of(split).items() if metric.update_called}


@pytest.mark.parametrize(
    ("spec", "metric"),
    [
        (RGB, ACCURACY),
        (COPY, MulticlassAccuracy(9, average="micro")),
        (POINTS, MeanSquaredError()),
        (replace(POINTS, outputs=3), MeanSquaredError()),
    ],
)
def test_a_chosen_metric_is_the_tasks_own_of_the_same_kind(spec, metric):
    """Of unequal batches; the blank of the second is left out."""
    parts = batches(spec, 7, 64, 1)
    assert values(spec, parts, m=metric)["m/val"] == pytest.approx(own(spec, parts), rel=1e-6)


def test_a_mixed_target_is_of_the_class_of_its_larger_share():
    parts = batches(RGB, 32)
    shares = 0.7 * torch.eye(10)[parts[0][1]] + 0.3 * torch.eye(10)[parts[0][1].flip(0)]
    assert values(RGB, [(parts[0][0], shares)], f1=F1) == values(RGB, parts, f1=F1)


def test_values_are_those_of_a_slow_reference():
    parts = batches(RGB, 50, 13)
    output, target = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    answer, scores = output.argmax(1), []
    for label in range(10):
        hits = ((answer == label) & (target == label)).sum()
        scores.append(2 * hits / ((answer == label).sum() + (target == label).sum()))
    top5 = np.mean([label in row.argsort()[-5:] for row, label in zip(output, target, strict=True)])
    found = values(RGB, parts, f1=F1, top5=MulticlassAccuracy(10, average="micro", top_k=5))
    assert found == {"f1/val": pytest.approx(np.mean(scores)), "top5/val": pytest.approx(top5)}

    parts = batches(POINTS, 50, 13)
    output, target = (torch.cat(each).double().numpy() for each in zip(*parts, strict=True))
    found = values(POINTS, parts, mae=MeanAbsoluteError(), r2=R2Score())
    assert found["mae/val"] == pytest.approx(abs(output - target).mean())
    assert found["r2/val"] == pytest.approx(1 - ((output - target) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def test_adding_is_what_updating_is():
    added, updated = Mean(), Mean()
    for total, count in ((torch.tensor(3.0), 4), (torch.tensor(0.25), torch.tensor(2))):
        added.add(total, count)
        updated.update(total, count)
        assert torch.equal(added.compute(), updated.compute())
    assert added.update_count == updated.update_count == 2
    added.reset()
    assert (added.total, added.count, added.update_called) == (0, 0, False)


def test_nothing_is_asked_of_the_device_in_training():
    """On the device meta nothing can be; counting in the other way gives the same numbers."""
    output, target = batches(RGB, 64)[0]
    with pytest.raises(NotImplementedError):
        metrics._update(F1.clone().to("meta"), output.to("meta"), target.to("meta"), waits=True)
    metrics._update(F1.clone().to("meta"), output.to("meta"), target.to("meta"), waits=False)
    one, other = F1.clone(), F1.clone()
    metrics._update(one, output, target, waits=True)
    metrics._update(other, output, target, waits=False)
    assert one.compute() == other.compute()


def test_which_are_measured_on_the_training_split():
    """Those whose states are sums, and that need no choice of entries: which are blank only the device knows."""
    chosen = {"f1": F1, "auroc": MulticlassAUROC(10), "binned": MulticlassAUROC(10, thresholds=9)}
    found = Metrics(task_of(RGB), chosen)
    assert found.not_on_train == ["auroc"]
    assert [name for name in found if name.startswith("auroc")] == ["auroc/val", "auroc/test"]
    assert Metrics(task_of(POINTS), {"r": PearsonCorrCoef()}).not_on_train == ["r"]
    assert Metrics(task_of(COPY), {"f1": MulticlassF1Score(9)}).not_on_train == ["f1"]


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 2)])
def test_sums_can_be_handed_on(before, after):
    """To as many ranks or to another number: the sums of all are those of a run that was never interrupted."""
    chosen = {"f1": F1, "kappa": MulticlassCohenKappa(10), "accuracy": ACCURACY}
    parts = batches(RGB, *[16] * 8)
    old = [Metrics(task_of(RGB), chosen) for _ in range(before)]
    for place, (output, target) in enumerate(parts[:4]):
        old[place % before].add("train", output, target)
    each = [one.sums(lambda state: state) for one in old]
    sums = {n: {s: torch.stack([one[n][s] for one in each]) for s in states} for n, states in each[0].items()}
    new = [Metrics(task_of(RGB), chosen) for _ in range(after)]
    for rank, one in enumerate(new):
        one.restore(sums, rank, after)
    assert any(metric.update_called for metric in new[0].of("train").values())
    for place, (output, target) in enumerate(parts[4:]):
        new[place % after].add("train", output, target)
    whole = Metrics(task_of(RGB), chosen)
    for output, target in parts:
        whole.add("train", output, target)
    for name, metric in whole.of("train").items():
        for state, value in metric.metric_state.items():
            assert torch.equal(sum(one[name].metric_state[state] for one in new), value), (name, state)


@pytest.mark.parametrize("option", OPTIONS["metrics"])
def test_each_option_fits_a_task_and_is_refused_by_the_others(composed, option):
    cfg, fits, reasons = composed("model=mlp", "model.width=4", f"metrics=[{option}]"), [], []
    for spec in (RGB, POINTS):
        try:
            fits.append(set(build.model(cfg, spec).metrics))
        except UserError as error:
            reasons.append(str(error))
    assert fits
    assert all({f"{option}/val", f"{option}/test"} <= names for names in fits)
    assert all(reason.startswith(f"metrics.{option}: ") for reason in reasons)


T = "torchmetrics.classification."


@pytest.mark.parametrize(
    ("spec", "words", "message"),
    [
        (POINTS, "metrics=[f1]", "MulticlassF1Score compares classes, but these data ask for numbers"),
        (RGB, "metrics=[r2]", "R2Score does not fit classes, for which the data ask: Predictions and"),
        (RGB, f"+metrics.m._target_={T}BinaryAccuracy", "BinaryAccuracy does not fit classes"),
        (RGB, f"+metrics.m._target_={T}MulticlassConfusionMatrix", "is no single number; an option like"),
        (
            RGB,
            f"+metrics.m={{_target_: {T}MulticlassF1Score, num_classes: 3}}",
            r"metrics\.m\.num_classes: follows from",
        ),
        (RGB, f"+metrics.m={{_target_: {T}MulticlassF1Score, average: mean}}", r"metrics\.m\.average=mean: Expected"),
        (replace(RGB, outputs=4), "metrics=[top5]", r"metrics\.top5\.top_k=5: .* smaller or equal to `num_classes`"),
        (RGB, f"+metrics.loss._target_={T}MulticlassF1Score", "metrics.loss: is measured in any case"),
        (RGB, "+metrics.m._target_=torch.nn.ReLU", "metrics.m: _target_ ReLU is not a Metric"),
    ],
)
def test_what_can_not_be_right_is_one_line(composed, spec, words, message):
    cfg = composed("model=mlp", "model.width=4", words)
    with pytest.raises(UserError, match=message):
        build.model(cfg, spec)
