"""What is printed ends no run, whoever reads it."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from invalid_input import QUIET
from rich.table import Table

from gradflow import runs
from gradflow.config import standard_streams
from gradflow.runs.errors import wrapped
from gradflow.runs.screen import Screen

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


def test_no_file_is_read_or_written_in_the_encoding_of_the_terminal():
    """In one of ASCII conf/ could not be read, and on Windows some letters would change."""
    found = 0
    for file in sorted([*SRC.rglob("*.py"), *SRC.parent.glob("scripts/**/*.py")]):
        source = file.read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(source)) if re.search(r"read_text|\bopen\(", source) else ()
        for call in (node for node in nodes if isinstance(node, ast.Call)):
            mode = getattr((call.args or [ast.Constant("r")])[0], "value", None)
            name = getattr(call.func, "attr", "")
            text = name == "read_text" or (name == "open" and re.fullmatch(r"[rwa]\+?", str(mode)))
            found += bool(text)
            assert not text or any(one.arg == "encoding" for one in call.keywords), (file, call.lineno)
    assert found > 10


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_rows_fit_the_terminal_in_every_encoding(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, "spell")
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("‖dL/dh‖", "…")
    table.add_row("block1 … block9", "3.1 ± 0.2")
    console = Screen()
    console.print(table)
    print(wrapped("‖∂L/∂h₁‖ = 10⁰·⁰ · ‖∂L/∂h₃‖ " * 4))
    stream.flush()
    rows = re.sub(r"\x1b\[[\d;]*m", "", stream.buffer.getvalue().decode(encoding)).splitlines()
    assert max(map(len, rows)) <= 40
    assert len({len(row) for row in rows[:5]}) == 1
    assert any(("block1 ... block9" if encoding == "ascii" else "block1 … block9") in row for row in rows)
