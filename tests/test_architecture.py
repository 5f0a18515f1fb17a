"""docs/architecture.md and its drawing say what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_imports import ORDER

from gradflow import runs

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "gradflow"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DRAWING = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
ROOMS = {folder.name for folder in SRC.iterdir() if folder.is_dir() and not folder.name.startswith("_")}
QUIET = ["callbacks.progress=null", "data=regression", "trainer=cpu"]


def test_every_room_has_a_paragraph_and_no_other():
    assert set(re.findall(r"^\*\*(\w+)/\*\*", PAGE, re.MULTILINE)) == ROOMS


def test_the_drawing_shows_every_room_and_no_other():
    assert set(re.findall(r'class="(?:outer|inner)".*\n.*class="name"[^>]*>([^<]+)<', DRAWING)) == ROOMS


def test_it_names_the_order_that_the_imports_are_held_to():
    (block,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    top, *order = block.split("\n")
    assert top == "entry files"
    assert [line.strip() for line in order if line] == [line.strip() for line in ORDER.strip().splitlines()]


def test_the_drawing_names_every_entry_file():
    entries = {path.name for path in (ROOT / "src").glob("*.py") if "def main" in path.read_text(encoding="utf-8")}
    (line,) = re.findall(r"entry files: ([^<]*)", DRAWING)
    assert {Path(name).name for name in line.split(", ")} == entries


def test_the_files_that_it_names_are_there():
    named = re.findall(r"`((?:[\w.]+/)+[\w.*]*|[\w]+\.(?:py|md))`", PAGE)
    assert named
    for name in named:
        anywhere = [*ROOT.glob(name), *SRC.glob(name), *SRC.glob(f"*/{name}")]
        assert anywhere or (ROOT / "conf" / name).exists(), name


def test_a_room_that_may_be_deleted_is_a_room():
    rooms = set(re.findall(r"src/gradflow/(\w+)\s", "\n".join(deletions())))
    assert rooms == {"report", "sweeps"}


@pytest.mark.slow
def test_what_may_be_deleted_can_be_deleted(tmp_path):
    """Its own commands, and then a run, a probe and a sweep."""
    for name in ("src", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for line in deletions():
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    short = [*QUIET, "trainer.max_steps=2"]
    for words in (
        ["src/train.py", *short],
        ["src/train.py", "-m", "seed=0,1", *short],
        ["src/probe.py", "data=regression", "advice=false"],
    ):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    summaries = [*tmp_path.glob("runs/*/*/summary.json"), *tmp_path.glob("multirun/*/*/*/summary.json")]
    assert [runs.read_json(path)["steps"] for path in summaries] == [2, 2, 2]


def deletions() -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
