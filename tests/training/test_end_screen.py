"""What a run prints at its end, for a person or for a program."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from gradflow import runs
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.table import print_gradients
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


CURE = {"words": "init=mean_field init.sigma_w=2.1", "why": "χ = 1", "word": "OK", "decades": -0.1}


@pytest.mark.parametrize(
    ("found", "ratio", "text"), [(CURE, -24.6, "-24.6"), (CURE, None, "not finite"), (None, -24.6, "")]
)
def test_a_run_whose_gradient_fails_ends_with_what_cures_it(tmp_path, found, ratio, text):
    """Its own command, the cure in the place of what it changes; without one, the probe that would look for it."""
    overrides = ["model=mlp", "model.depth=30", "init=torch", "init.gain=2", "optimizer=sgd", "seed=3", "summary=full"]
    facts = {"overrides": overrides, "verdict": {"start": {"word": "FAIL", "decades": ratio}, "end": {"word": "FAIL"}}}
    asked = []
    commands = end_screen._next_commands(None, facts, tmp_path, lambda judged: asked.append(judged) or found)
    (why, command), *_ = commands
    assert asked == [facts["verdict"]["start"]]
    if found:
        assert why == f"χ = 1: OK, log₁₀ gradient ratio -0.1 instead of {text}"
        kept = ["model=mlp", "model.depth=30", "optimizer=sgd"]
        assert command == ["python", "src/train.py", *kept, "init=mean_field", "init.sigma_w=2.1"]
    else:
        assert command == ["python", "src/probe.py", "model=mlp", "model.depth=30", "init=torch", "init.gain=2"]


def test_advice_that_fails_ends_no_run(tmp_path):
    facts = {"overrides": ["model=mlp"], "verdict": {"start": {"word": "FAIL", "decades": -24.6}}}
    (_, command), *_ = end_screen._next_commands(None, facts, tmp_path, lambda judged: 1 / 0)
    assert command == ["python", "src/probe.py", "model=mlp"]


@pytest.mark.parametrize(
    ("start", "end", "loss", "added"),
    [
        ("OK", "OK", 1.0, ["-m", "seed=0,1,2"]),
        ("OK", "FAIL", 1.0, ["optimizer.lr=0.01"]),
        ("OK", "OK", None, ["optimizer.lr=0.01"]),
    ],
)
def test_other_runs_end_with_what_they_ask_for(tmp_path, start, end, loss, added):
    cfg = OmegaConf.create({"optimizer": {"lr": 0.1}})
    verdict = {"start": {"word": start}, "end": {"word": end}}
    facts = {"overrides": ["model=mlp", "optimizer.lr=0.1"], "verdict": verdict, "final": {"loss/val": loss}}
    (_, command), (_, page) = end_screen._next_commands(cfg, facts, tmp_path, None)
    assert set(added) < set(command)
    assert command.count("optimizer.lr=0.1") == ("-m" in added)
    assert page[:2] == ["python", "src/report.py"]


def test_a_command_on_a_terminal_can_be_pasted(monkeypatch, capsys):
    """Its lines end between words, each but the last with a backslash."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 24)))
    command = ["python", "src/train.py", "model=mlp", "data.path=a folder, with spaces", "model.depth=30", "x=[1,2]"]
    monkeypatch.setattr(end_screen, "_next_commands", lambda *_: [("why", command)])
    end_screen._print_next(None, {}, None, None)
    why, *lines = capsys.readouterr().out.splitlines()
    assert why == "try next    why"
    assert max(map(len, lines)) <= 60
    assert [line.endswith(" \\") for line in lines] == [True] * (len(lines) - 1) + [False]
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == command  # as a shell joins them


def test_names_of_layers_are_never_cut():
    """Two that differ only at their ends would look alike."""
    names = [f"{number:02d}.block1.self_attention.projection_of_the_{end}" for number, end in enumerate(("in", "out"))]
    steps = [{"step": 0, **dict.fromkeys(names, 1e-5)}, {"step": 64, **dict.fromkeys(names, 1.0)}]
    printed = io.StringIO()
    print_gradients(Console(file=printed, width=60), names, steps)
    rows = [re.split(r"\s{2,}", line.strip())[0] for line in printed.getvalue().splitlines()]
    assert all(name in "".join(rows) for name in names)
    assert "…" not in "".join(rows)
