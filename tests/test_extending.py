"""What docs/extending.md tells to do, done as it tells."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradflow import runs

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```\w+\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
FILES = {match[1]: block for block in BLOCKS if (match := re.match(r"# ((?:src|conf)/\S+)\n", block))}
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python src/train.py")]
SHORT = ("trainer.max_steps=2", "trainer.limit_val_batches=1", "logger=none", "callbacks.progress=null")


@pytest.fixture
def fork(tmp_path) -> Path:
    """A copy of the project with the files of the page added; none of them is there already."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("x") as file:
            file.write(text)
    return tmp_path


def run(fork: Path, command: str, *more: str) -> str:
    words = [sys.executable, *command.partition("#")[0].split()[1:], *more]
    done = subprocess.run(words, cwd=fork, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_has_its_command_and_composes(fork):
    chosen = " ".join(COMMANDS)
    for name in FILES:
        if name.startswith("conf/"):
            assert re.search(rf"\b{Path(name).stem}\b", chosen), name
    for command in COMMANDS:
        assert "_target_" in run(fork, command, "--cfg", "job")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_trains(fork, command):
    run(fork, command, *(word for word in SHORT if word.split("=")[0] not in command), f"hydra.run.dir={fork / 'done'}")
    assert runs.read_json(fork / "done" / runs.SUMMARY)["status"] == "finished"
