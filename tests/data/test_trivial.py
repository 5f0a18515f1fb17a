"""The trivial answer's scores: closed forms, and the losses of the module on a constant output."""

from __future__ import annotations

import math

import pytest
import torch

from gradflow.config import build
from gradflow.data import trivial
from gradflow.tasks.task import task_of


def told(composed, *words: str, loss: str = "auto"):
    data = build.data(composed(*words))
    data.prepare_data()
    data.setup()
    return data, trivial.scores(data, task_of(data.spec).check_loss(loss))


def test_known_baselines(composed):
    _, scores = told(composed, "data=copy_memory", "data.length=10", "data.samples=4000", "data.val=1000")
    assert scores["loss/val"] == pytest.approx(10 * math.log(8) / 30, rel=2e-3)
    assert scores["accuracy/val"] == pytest.approx(1 / 8, abs=0.01)  # blanks are not asked for
    _, scores = told(composed, "data=adding", "data.length=10", "data.samples=4000", "data.val=1000")
    assert scores["mse/test"] == scores["loss/test"] == pytest.approx(1 / 6, rel=0.1)
    _, scores = told(composed, "data=temporal_order", "data.length=20", "data.samples=4000", "data.val=1000")
    assert scores["loss/val"] == pytest.approx(math.log(4), rel=1e-2)


def test_regression_is_the_error_of_the_mean(composed):
    data, scores = told(composed, "data=regression", "data.points=300", loss="mse")
    train, test = (data.splits[split].take("y", slice(None)) for split in ("train", "test"))
    assert scores["mse/train"] == pytest.approx(train.var(correction=0).item(), rel=1e-5)
    assert scores["mse/test"] == pytest.approx((test - train.mean()).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_classes_are_what_the_module_would_make_of_that_constant(composed, loss):
    data, scores = told(composed, "data=shapes", "data.size=16", "data.val=777", loss=loss)
    train, val = (data.splits[split].take("y", slice(None)) for split in ("train", "val"))
    shares = torch.bincount(train, minlength=10) / len(train)
    output = (shares.log() if loss == "cross_entropy" else shares).expand(len(val), -1)
    assert scores["loss/val"] == pytest.approx(task_of(data.spec).loss(output, val, loss).item(), rel=1e-5)
    right, asked = task_of(data.spec).score(output, val)
    assert scores["accuracy/val"] == pytest.approx(float(right) / float(asked))


def test_what_is_drawn_is_what_is_validated(composed):
    data, scores = told(composed, "data=adding", "data.length=10", "data.samples=512", "data.val=300")
    _, y = data.loader("val").make(0, slice(0, 300), slice(0, 300))
    _, drawn = data.loader("train").make(0, slice(0, 512), slice(0, 512))
    assert scores["mse/val"] == pytest.approx((y - drawn.mean()).square().mean().item(), rel=1e-5)
