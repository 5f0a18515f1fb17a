"""A run that is trained again from its folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import replay
from gradflow import runs

ROOT = Path(__file__).parents[2]
SHORT = ("data=regression", "trainer=cpu", "trainer.max_steps=3", "logger=none", "callbacks.progress=null")


def test_the_summary_holds_its_command(trained):
    run = trained(*SHORT, "seed=7", "callbacks=minimal", "test=false")
    facts = runs.read_json(run / runs.SUMMARY)
    assert facts["replay"] == f"python src/replay.py runs/{run.parent.name}/{run.name}"
    assert {"torch", "numpy", "python"} <= set(facts["versions"])
    assert facts["threads"] == 1
    assert facts["processor"]
    assert replay.repeated(run, ["seed=8", "-m"]) == ["seed=8", "-m", *SHORT, "callbacks=minimal", "test=false"]


@pytest.mark.parametrize(
    ("recorded", "line"),
    [
        ("+callbacks.x._target_=os.mkdir", r"error: \+callbacks.x._target_=os.mkdir: the run's folder asks for it"),
        ("a=[", "error: a=.: not of the form key=value"),
    ],
)
def test_a_stranger_s_folder_is_rejected(tmp_path, capsys, recorded, line):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / runs.OVERRIDES).write_text(f"- {recorded!r}\n- --config-dir=evil\n")
    with pytest.raises(SystemExit) as ended:
        replay.train_again(str(tmp_path), [])
    assert ended.value.code == 2
    assert re.match(line, capsys.readouterr().err)


def test_a_flag_in_a_record_is_none_of_the_command(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / runs.OVERRIDES).write_text("- --config-dir=evil\n- seed=1\n- resume=there.ckpt\n")
    assert replay.repeated(tmp_path, []) == ["seed=1", "resume=there.ckpt"]


@pytest.mark.slow
def test_the_command_gives_the_same_numbers(trained, tmp_path):
    """As it stands in the summary, but for the folder of the program."""
    run = trained(*SHORT, "callbacks=minimal", "data.noise=0.3")
    facts = runs.read_json(run / runs.SUMMARY)
    program, folder = shlex.split(facts["replay"])[1:]
    command = [sys.executable, str(ROOT / program), folder]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"replay of {folder}: the same code and packages as then"
    (other,) = set(tmp_path.glob("runs/*/*")) - {run}
    again = runs.read_json(other / runs.SUMMARY)
    assert (again["final"], again["test"], again["overrides"]) == (facts["final"], facts["test"], facts["overrides"])
