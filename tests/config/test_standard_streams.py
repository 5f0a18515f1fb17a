"""What is printed ends no run, whoever reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from invalid_input import QUIET

from gradflow import runs
from gradflow.config import standard_streams

SRC = Path(standard_streams.__file__).parents[2]
PRINTS = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
from gradflow.config import standard_streams as screen
screen.outlast_reader()
for number in range(30000):
    print(number, "‖dL/dh₁‖ 10⁻⁰·⁷ · …é")
subprocess.run([sys.executable, "-c", "print('a child, too')"], check=True)
open("end", "w").close()
"""


@pytest.mark.parametrize("reader", ["| head -1", "> /dev/full 2>&1", "2>&- >&-", "| cat"])
def test_nobody_reads(tmp_path, reader):
    (tmp_path / "prints.py").write_text(PRINTS)
    command = f"set -o pipefail; {sys.executable} prints.py {SRC} {reader}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "end").exists()
    if "|" in reader:
        assert ended.stdout.splitlines()[0] == r"0 ||dL/dh1|| 10^-0.7 * ...\xe9"
    assert len(ended.stdout.splitlines()) == {"| head -1": 1, "| cat": 30001}.get(reader, 0)


@pytest.mark.slow
def test_a_run_whose_reader_is_gone_is_finished(tmp_path):
    command = f"{sys.executable} {SRC}/train.py {QUIET} hydra.run.dir=run 2>&1 | head -1; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.stdout.splitlines()[1] == "0"
    assert runs.read_json(tmp_path / "run" / runs.SUMMARY)["status"] == "finished"
