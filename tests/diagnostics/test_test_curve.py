"""The test split by epoch: right numbers, no trace in the run, the same after a resume."""

from __future__ import annotations

import pytest
import torch

from gradflow import runs
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.plots.layout import layouts_of
from gradflow.runs.errors import UserError

WORDS = (
    "data=regression",
    "data.points=60",
    "data.batch_size=20",
    "data.val=20",
    "model.width=8",
    "model.dropout=0.3",
    "model.norm=batch",
    "logger=none",
    "callbacks.progress=null",
    "trainer=cpu",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(GradientFlow, "draw", lambda *_: None)


def weights(run):
    return torch.load(run / runs.LAST, weights_only=True)["state_dict"]


def test_the_last_row_is_what_the_test_says_and_the_run_is_as_without(trained):
    words = [*WORDS, "trainer.max_epochs=3", "callbacks.best=null"]  # so that the weights at the end are tested
    plain, run = trained(*words), trained(*words, "callbacks=test_curve")
    names, rows = runs.read_table(run / "test_curve.csv")
    assert names == ["step", "loss", "mse"]
    assert [row[0] for row in rows] == [1, 3, 5]  # two steps an epoch: 40 of 60 points train
    tested = runs.read_json(run / runs.SUMMARY)["test"]
    assert rows[-1][1:] == pytest.approx([tested["loss/test"], tested["mse/test"]], rel=1e-6)
    assert len({row[1] for row in rows}) == 3
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(plain).items())
    assert (plain / runs.METRICS).read_text() == (run / runs.METRICS).read_text()
    final, without = (runs.read_json(one / runs.SUMMARY)["final"] for one in (run, plain))
    assert final == without
    assert layouts_of(run)["test_curve"].columns == ["loss", "mse"]
    assert (run / "test_curve.png").is_file()


def test_a_resumed_run_has_the_rows_of_one_that_was_never_stopped(trained):
    words = [*WORDS, "callbacks=test_curve", "test=false"]
    whole = trained(*words, "trainer.max_epochs=4")
    half = trained(*words, "trainer.max_epochs=2")
    trained(f"resume={half}", "trainer.max_epochs=4")
    assert (half / "test_curve.csv").read_text() == (whole / "test_curve.csv").read_text()


def test_what_can_not_be_is_one_line(trained):
    with pytest.raises((UserError, SystemExit)):
        trained(*WORDS, "callbacks=test_curve", "callbacks.test_curve.every_n_epochs=0")
    with pytest.raises((UserError, SystemExit)):
        trained(*WORDS, "callbacks=test_curve", "callbacks.best.monitor=mse/test")
