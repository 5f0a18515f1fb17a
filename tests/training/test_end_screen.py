"""What a run prints at its end, for a person or for a program."""

from __future__ import annotations

import io
import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from gradflow import runs
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.training import end_screen

SMALL = ("data=regression", "data.points=100", "debug=fast", "logger=none")


def test_the_last_line_is_json(trained, capsys):
    run = trained(*SMALL, "summary=json")  # with the progress bar, which must have ended its line
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    facts = runs.read_json(run / runs.SUMMARY)
    assert (result["status"], result["steps"], result["seconds"]) == ("finished", 1, facts["wall_seconds"])
    assert result["metrics"]["mse/val"] == facts["final"]["mse/val"]
    assert result["metrics"]["mse/test"] == facts["test"]["mse/test"]
    assert result["best"] == {"loss/val": facts["best"]["loss/val"]}
    assert result["verdict"] == facts["verdict"]
    assert result["alarms"] == list(facts["alarms"])
    assert (run.parents[2] / result["run_folder"]).samefile(run)


@pytest.mark.parametrize(("logger", "first"), [("none", "result"), ("tensorboard", "pictures")])
def test_the_result_does_not_wait_for_pictures_that_no_logger_wants(trained, capsys, monkeypatch, logger, first):
    drawn = []

    def draw(callback, trainer):
        if callback.undrawn:
            drawn.append("best loss/val" in capsys.readouterr().out)
        callback.undrawn = False

    monkeypatch.setattr(GradientFlow, "draw", draw)
    trained(*SMALL, f"logger={logger}", "summary=short")
    assert drawn == [first == "result"]


def test_two_lines_are_enough(trained, capsys):
    run = trained(*SMALL, "callbacks.progress=null", "summary=short")
    *_, best, folder = capsys.readouterr().out.splitlines()
    value = runs.read_json(run / runs.SUMMARY)["best"]["loss/val"]
    assert best.startswith(f"best loss/val {value:.4f}; OK at the end: ")
    assert folder == f"run folder  {run.relative_to(run.parents[2])}"


@pytest.mark.parametrize(
    ("error", "status"), [(runs.Diverged("loss is nan"), "failed"), (SystemExit(143), "interrupted")]
)
@pytest.mark.parametrize("kind", ["json", "short", "full"])
def test_a_run_that_fails_has_a_json_line_too(tmp_path, capsys, kind, error, status):
    cfg = SimpleNamespace(run_dir=str(tmp_path), summary=kind)
    with (
        pytest.raises(type(error)),
        end_screen.print_end(cfg, SimpleNamespace(is_global_zero=True), None, None),
        runs.Run(str(tmp_path), {}, writes=True),
    ):
        raise error
    printed = capsys.readouterr().out
    assert printed.count("\n") == (kind == "json")
    if kind == "json":
        result = json.loads(printed)
        assert (result["status"], result["metrics"], result["verdict"]) == (status, {}, {})
        assert str(error) in result["reason"] if status == "failed" else result["reason"] is None


def test_names_of_layers_are_never_cut(tmp_path):
    """Two that differ only at their ends would look alike."""
    names = [f"{number:02d}.block1.self_attention.projection_of_the_{end}" for number, end in enumerate(("in", "out"))]
    runs.Table(tmp_path / runs.GRADIENTS, ["step", *names]).add(0, {name: 1e-5 for name in names})
    runs.Table(tmp_path / runs.GRADIENTS).add(64, {name: 1.0 for name in names})
    printed = io.StringIO()
    end_screen._gradient_table(tmp_path, names, Console(file=printed, width=60))
    rows = [re.split(r"\s{2,}", line.strip())[0] for line in printed.getvalue().splitlines()]
    assert all(name in "".join(rows) for name in names)
    assert "…" not in "".join(rows)
