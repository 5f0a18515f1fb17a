"""What the README tells to do, done as it tells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import OPTIONS, RGB
from examples import ROOT, blocks, copied, files

from gradflow import runs
from gradflow.config import build
from gradflow.diagnostics.layers import layers

README = (ROOT / "README.md").read_text()
FILES = files("README.md")
COMMANDS = [line for block in blocks("README.md") for line in block.splitlines() if line.startswith("python src/")]


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("fork"), FILES)


ADDED = ("model=maxout", "optimizer=adadelta", "data=spirals")


@pytest.mark.parametrize("choices", [ADDED, *(pytest.param([choice], marks=pytest.mark.slow) for choice in ADDED)])
def test_what_it_adds_trains_two_steps(fork, choices):
    """As its command says, or all three together."""
    (command,) = [line for line in COMMANDS if choices[0] in line]
    own = command.split()[1:] if len(choices) == 1 else ["src/train.py", *choices]
    short = [
        "trainer.max_steps=2",
        "trainer.limit_val_batches=1",
        "test=false",
        "logger=none",
        "callbacks.progress=null",
    ]
    done = subprocess.run([sys.executable, *own, *short], cwd=fork, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = max(fork.glob("runs/*/*"), key=lambda path: path.stat().st_mtime)
    summary = runs.read_json(run / runs.SUMMARY)
    assert (summary["status"], summary["steps"]) == ("finished", 2)


@pytest.mark.slow
def test_its_model_learns(fork):
    """Its command, for five of its ten epochs; chance is 0.1."""
    (command,) = [line for line in COMMANDS if "model=maxout" in line]
    quiet = ["trainer.max_epochs=5", "logger=none", "callbacks=minimal", "callbacks.progress=null"]
    words = [sys.executable, *command.split()[1:], *quiet, "hydra.run.dir=learnt"]
    done = subprocess.run(words, cwd=fork, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert runs.read_json(fork / "learnt" / runs.SUMMARY)["test"]["accuracy/test"] > 0.3


def test_the_keys_that_it_names_are_logged(composed):
    cfg = composed("model=resnet")
    watched = layers(build.model(cfg, RGB))
    keys = re.findall(r"`grad_norm/([^`<]+)`", README)
    assert keys
    assert set(keys) <= set(watched)


def test_a_data_set_is_under_15_lines():
    source = [name for name in FILES if name.startswith(("src/gradflow/data", "conf/data"))]
    assert len(source) == 2
    assert all(len([line for line in FILES[name].splitlines() if line.strip()]) < 15 for name in source)


def test_its_commands_compose(composed):
    """Those that train, but for the ones that need its new files or a finished run."""
    composed_any = 0
    for line in COMMANDS:
        words = [word for word in line.split("#")[0].split()[2:] if word != "-m"]
        if "train.py" in line and not any(word in line for word in ("maxout", "adadelta", "spirals", "<run>")):
            composed(*(re.sub(r",[^\]]*$", "", word) for word in words))
            composed_any += 1
    assert composed_any >= 4


@pytest.mark.parametrize("group", [name for name in OPTIONS if f"| `{name}` |" in README])
def test_its_table_names_options_that_exist(group):
    """A fork's own options need not join it."""
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{group}` |")]
    options = row.split("|")[2].split("(")[0] if group == "init" else row.split("|")[2]
    named = set(re.findall(r"`(\w+)`", options))
    assert named - {"warmup", "PyTorch"} <= set(OPTIONS[group])
    assert group == "experiment" or named
