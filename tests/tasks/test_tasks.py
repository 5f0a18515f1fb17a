"""Tasks are found by the name of their file, and their trivial answers are what their losses make of a constant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import COPY, MASKS, POINTS, RGB, TEXT, entries_of, inputs

from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks import task
from gradflow.tasks.task import task_of

NAMES = sorted(path.stem for path in Path(task.__file__).parent.glob("[a-z]*.py") if path.stem != "task")
SPECS = {"classification": RGB, "regression": POINTS, "next_token": TEXT, "segmentation": MASKS}


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
    if spec.ignored is not None:
        target[torch.rand(target.shape) < 0.3] = spec.ignored
    found = task_of(spec)
    axis = -1 if found.answers != "pixel" else 1
    for loss in found.losses:
        constant = torch.zeros(spec.outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")

        def closure(constant=constant, loss=loss, optimizer=optimizer):
            optimizer.zero_grad()
            output = constant.expand(64, *entries_of(spec), -1).movedim(-1, axis)
            value = found.loss(output, target, loss)
            value.backward()
            return value

        optimizer.step(closure)
        assert found.trivial({"train": target}, loss)["loss/train"] == pytest.approx(closure().item(), rel=1e-4)


PADDED = [TEXT, MASKS, replace(COPY, ignored=-1)]


@pytest.mark.parametrize("spec", PADDED, ids=lambda spec: spec.task)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_padding_counts_neither_in_loss_nor_in_score_nor_in_the_trivial_answer(spec, smoothing):
    """The mean over the entries that are asked for, one by one."""
    torch.manual_seed(0)
    found, target = task_of(spec), inputs(spec, 5)[1]
    target[torch.rand(target.shape) < 0.4] = spec.ignored
    axis = 1 if found.answers == "pixel" else -1
    output = torch.randn(5, *entries_of(spec), spec.outputs).movedim(-1, axis)
    losses, right, asked = [], 0, 0
    for logits, label in zip(output.movedim(axis, -1).reshape(-1, spec.outputs), target.flatten(), strict=True):
        if label == spec.ignored:
            continue
        logs = logits.log_softmax(0)
        losses.append(-(1 - smoothing) * logs[label].item() - smoothing * logs.mean().item())
        if label != spec.blank:
            asked += 1
            right += int(logits.argmax() == label)
    assert found.loss(output, target, "cross_entropy", smoothing).item() == pytest.approx(sum(losses) / len(losses))
    assert int(found.count(target)) == len(losses)
    assert [int(number) for number in found.score(output, target)] == [right, asked]
    padded, scores = torch.cat([target, torch.full_like(target, spec.ignored)]), []
    for targets in (target, padded):
        scores.append(found.trivial({"train": targets, "val": targets}, "cross_entropy"))
    assert scores[0] == scores[1]


def test_a_batch_of_padding_alone_has_a_loss_of_zero_and_no_gradient():
    output = torch.randn(2, 12, 8, requires_grad=True)
    loss = task_of(TEXT).loss(output, torch.full((2, 12), -1), "cross_entropy")
    loss.backward()
    assert loss.item() == 0
    assert not output.grad.any()


def test_symbols_are_no_kind_of_their_own():
    with pytest.raises(
        ValueError, match=r"kind='tokens'.*expected image, sequence, vector; symbols are a sequence with"
    ):
        Spec("tokens", (40,), "next_token", outputs=26, per_step=True)


def test_targets_that_contradict_the_spec_are_one_line():
    mask = torch.zeros(2, 16, 16, dtype=torch.uint8)
    task_of(MASKS).check_targets(mask, "train")
    for spec, target, words in (
        (MASKS, mask + 4, "train: classes 4 to 4, but the spec says 4"),
        (MASKS, torch.full_like(mask, 255), "every target is 255, which the spec says to ignore"),
        (MASKS, mask[:, :8], r"masks of shape \(8, 16\), but the images are \(16, 16\)"),
        (MASKS, mask.float(), "targets are torch.float32; expected classes"),
        (TEXT, torch.zeros(2, 11).long(), r"targets of shape \(11,\) for 12 steps"),
    ):
        with pytest.raises(UserError, match=words):
            task_of(spec).check_targets(target, "train")
    with pytest.raises(UserError, match="next_token is for sequences of symbols"):
        task_of(replace(TEXT, per_step=False))
