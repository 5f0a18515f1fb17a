"""A verdict asks what the task asks: whether the last step remembers, or how the outputs at all steps do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import COPY, inputs

from gradflow.data.sources.markov import markov
from gradflow.diagnostics.probe import probe, trunk_of
from gradflow.diagnostics.subject import own_loss
from gradflow.diagnostics.verdict import judge
from gradflow.models.recurrent import GRU, RNN
from gradflow.tasks.task import task_of
from gradflow.theory.prediction import lines

TEXT_50 = markov(8, 50)


def batch(seed: int, size: int = 64):
    return TEXT_50.generate(size, torch.Generator().manual_seed(seed))


def verdict_of(model, x, y):
    return judge(probe(model, (x, y), own_loss, trunk_of(model)))


def test_a_gru_that_learns_the_next_symbol_is_not_called_fail():
    """Its last output remembers little of the first input, which the task does not ask for; 0.81 is the optimum."""
    torch.manual_seed(0)
    model = GRU(TEXT_50.spec, hidden=64)
    before = verdict_of(model, *batch(0))
    assert (before.word, before.axis) == ("OK", "time")
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(60):
        x, y = batch(step + 1)
        loss = model.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.95 < 1.3 < model.task.trivial({"train": y}, "cross_entropy")["loss/train"]
    assert verdict_of(model, *batch(0)).word != "FAIL"


def test_copy_memory_asks_the_last_step_as_before():
    """The same network and weights: a memory question over 50 steps is one that a new GRU fails."""
    torch.manual_seed(0)
    model, (x, y) = GRU(TEXT_50.spec, hidden=64), batch(0)
    model.task = task_of(replace(TEXT_50.spec, task="classification"))
    judged = verdict_of(model, x, y)
    assert (judged.word, judged.axis) == ("FAIL", "time")
    assert judged.decades < -5
    output, target = torch.randn(4, 12, 9), inputs(COPY)[1]
    last, its = task_of(COPY).question(output, target)
    assert torch.equal(last, output[:, -1:])
    assert torch.equal(its, target[:, -1:])


@pytest.mark.parametrize(("task", "predicted"), [("classification", True), ("next_token", False)])
def test_theory_over_time_is_of_a_memory(task, predicted):
    spec = replace(TEXT_50.spec, task=task)
    model = RNN(spec, hidden=64, init="mean_field")
    found = lines(model, model.net, model.trunk, batch(0)[0])
    assert (found["time"] is not None) is predicted
    assert ("over time, the loss at every step is judged" in found["no_prediction"]) is not predicted
