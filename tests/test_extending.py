"""What docs/extending.md tells to do, done as it tells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples import blocks, copied, files

from gradflow import runs

PAGE = "docs/extending.md"
COMMANDS = [line for block in blocks(PAGE) for line in block.splitlines() if line.startswith("python src/train.py")]
SHORT = ("trainer.max_steps=2", "trainer.limit_val_batches=1", "logger=none", "callbacks.progress=null")


@pytest.fixture
def fork(tmp_path) -> Path:
    return copied(tmp_path, files(PAGE))


def run(fork: Path, command: str, *more: str) -> str:
    words = [sys.executable, *command.partition("#")[0].split()[1:], *more]
    done = subprocess.run(words, cwd=fork, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_its_command_and_composes(fork):
    chosen = " ".join(COMMANDS)
    for name in files(PAGE):
        if name.startswith("conf/"):
            assert re.search(rf"\b{Path(name).stem}\b", chosen), name
    for command in COMMANDS:
        assert "_target_" in run(fork, command, "--cfg", "job")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_trains(fork, command):
    run(fork, command, *(word for word in SHORT if word.split("=")[0] not in command), f"hydra.run.dir={fork / 'done'}")
    assert runs.read_json(fork / "done" / runs.SUMMARY)["status"] == "finished"
