"""Tasks are found by the name of their file, and their trivial answers are what their losses make of a constant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import POINTS, RGB, inputs

from gradflow.runs.errors import UserError
from gradflow.tasks import task
from gradflow.tasks.task import task_of

NAMES = sorted(path.stem for path in Path(task.__file__).parent.glob("[a-z]*.py") if path.stem != "task")
SPECS = {"classification": RGB, "regression": POINTS}


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_found_by_its_file(name):
    found = task_of(replace(SPECS.get(name, RGB), task=name))
    assert type(found).__module__ == f"gradflow.tasks.{name}"
    assert found.check_loss("auto") == found.losses[0]
    with pytest.raises(UserError, match=r"model\.loss=foo: .*; expected one of auto, "):
        found.check_loss("foo")


def test_no_such_task():
    with pytest.raises(UserError, match="regresion: no such task; did you mean regression"):
        task_of(replace(POINTS, task="regresion"))


@pytest.mark.parametrize(("name", "spec"), SPECS.items())
def test_no_constant_has_a_smaller_loss_than_the_trivial_answer(name, spec):
    """By descent on the constant itself."""
    _, target = inputs(spec, 64)
    found = task_of(spec)
    for loss in found.losses:
        constant = torch.zeros(spec.outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")

        def closure(constant=constant, loss=loss, optimizer=optimizer):
            optimizer.zero_grad()
            value = found.loss(constant.expand(64, -1), target, loss)
            value.backward()
            return value

        optimizer.step(closure)
        assert found.trivial({"train": target}, loss)["loss/train"] == pytest.approx(closure().item(), rel=1e-4)
