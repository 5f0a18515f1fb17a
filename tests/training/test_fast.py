"""Runs on each fast path against the plain one: the same curves, but for rounding."""

from __future__ import annotations

import re

import pytest

from gradflow import runs
from gradflow.config import precision

PLAIN = ("optimizer.fused=false", "trainer.channels_last=false")
OPTIMIZERS = (  # with steps so small that rounding is not magnified by what follows
    "optimizer=adamw optimizer.lr=3e-4",
    "optimizer=momentum optimizer.lr=0.003",
    "optimizer=muon optimizer.lr=3e-4 optimizer.hidden.lr=0.001",
)
WORDS = (
    "data=shapes",
    "data.size=16",
    "model=resnet",
    "model.depth=8",
    "model.width=8",
    "logger=none",
    "callbacks.progress=null",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=8",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "callbacks.gradient_flow.every_n_steps=1",
)


def columns(run, file: str, *names: str) -> dict[str, list[float]]:
    """Return the numbers of a table by column, all but the step's where none is named."""
    known, rows = runs.read_table(run / file)
    wanted = names or [name for name in known if name != "step"]
    return {
        name: [row[known.index(name)] for row in rows if row[known.index(name)] == row[known.index(name)]]
        for name in wanted
    }


def agree(run, expected, loss: float, gradient: float) -> None:
    """Compare every loss and every layer's gradient norm, relative to it."""
    for file, names, tolerance in ((runs.METRICS, ("loss/train", "loss/val"), loss), (runs.GRADIENTS, (), gradient)):
        reference = columns(expected, file, *names)
        for name, values in columns(run, file, *names).items():
            assert values == pytest.approx(reference[name], rel=tolerance), name


@pytest.mark.parametrize(
    "optimizer", [OPTIMIZERS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in OPTIMIZERS[1:])]
)
def test_the_defaults_differ_from_the_plain_path_by_rounding(trained, optimizer):
    words = (*WORDS, *optimizer.split(), "model.l2=1e-4", "trainer.gradient_clip_val=1.0")
    agree(trained(*words), trained(*words, *PLAIN), 1e-3, 0.01)


@pytest.mark.parametrize("optimizer", [pytest.param(OPTIMIZERS[0], marks=pytest.mark.slow), OPTIMIZERS[1]])
def test_bf16_differs_from_the_plain_path_by_its_rounding(trained, monkeypatch, capsys, optimizer):
    """And an evaluation takes the precision of the run, whatever the machine would choose."""
    monkeypatch.setattr(precision, "_is_native", lambda node: True)
    words = (*WORDS, *optimizer.split(), "trainer.gradient_clip_val=1.0")
    fast = trained(*words, "trainer=fast")
    screen = capsys.readouterr().out
    assert re.search(r"^device +cpu, precision bf16-mixed$", screen, re.M)
    assert re.search(r"^compile: no, ", screen, re.M)
    facts = runs.read_json(fast / runs.SUMMARY)
    assert facts["precision"] == "bf16-mixed"
    monkeypatch.setattr(precision, "_is_native", lambda node: False)
    trained(f"run={fast}", "accelerator=cpu", program="eval")
    assert runs.read_json(fast / runs.SCORES)["best on test"]["loss/test"] == pytest.approx(facts["test"]["loss/test"])
    agree(fast, trained(*words, *PLAIN), 0.03, 0.2)
