"""The example of docs/extending-task.md is a task like the others."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from conftest import POINTS

from gradflow.config.options import CONF
from gradflow.models.mlp import MLP
from gradflow.tasks import task

DOC = (CONF.parent / "docs" / "extending-task.md").read_text()


def test_the_documented_task_is_found_and_its_trivial_answer_is_right(tmp_path, monkeypatch):
    ((name, text),) = re.findall(r"```python\n# src/gradflow/tasks/(\w+)\.py\n(.*?)```", DOC, re.DOTALL)
    (folder := tmp_path / "tasks").mkdir()
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(task.packages, "folders", lambda: {"gradflow": tmp_path})
    monkeypatch.setattr("gradflow.tasks.__path__", [str(folder)])
    model = MLP(replace(POINTS, task=name, outputs=3), depth=0)
    target = (torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.1, 0.5, 0.8])).long()
    share = target.float().mean(0)
    scores = model.task.trivial({"train": target}, model.loss_name)
    constant = (share / (1 - share)).log().expand(500, 3)
    assert scores["loss/train"] == pytest.approx(model.loss(constant, target).item(), rel=1e-5)
    right, asked = model.task.score(constant, target)
    assert scores["accuracy/train"] == pytest.approx(int(right) / asked)
    assert (model.task.answers, model.task.moves, model.task.mixes) == ("sample", False, False)


def test_every_member_that_a_task_can_say_is_described():
    named = set(re.findall(r"`(\w+)(?:\(\))?`", DOC))
    said = {name for name in (*task.Task.__annotations__, *vars(task.Task)) if not name.startswith("_")}
    assert said - {"check_loss", "padding", "question", "classes"} <= named
