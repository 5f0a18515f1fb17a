"""What fits the screen, and what its tables show."""

from __future__ import annotations

import io
import os
import sys

import pytest
import torch
from rich.console import Console

from gradflow.config.command import report_error
from gradflow.diagnostics import table
from gradflow.runs.errors import UserError, wrapped
from gradflow.runs.screen import Screen, link


def printed(shown, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return [line.split("  ") for line in console.file.getvalue().splitlines() if line.strip()]


def rows(*layers, trunk=(), whole=False):
    """The rows of a network's table, its layers being (name, shape, …)."""
    named = {f"{place:02d}.{name}": list(map(torch.zeros, own)) for place, (name, *own) in enumerate(layers)}
    lines = printed(table.parameters_table(named, trunk, whole))
    return [[cell.strip() for cell in line if cell.strip()] for line in lines][2:]


LAYERS = [f"block{number}.{layer}" for number in (1, 2, 3) for layer in "ab"]
NET = [("stem", (8, 3, 3, 3)), *((name, (4, 8), (4,)) for name in LAYERS), ("head", (2, 4))]
TRUNK = ["block1", "block2", "block3"]


def test_blocks_of_the_same_shapes_share_a_row():
    assert rows(*NET, trunk=TRUNK) == [
        ["stem", "8×3×3×3", "216"],
        ["block1 … block3", "4×8, 4×8", "3 × 72"],
        ["head", "2×4", "8"],
    ]


def test_the_whole_has_a_row_for_each_layer():
    names = ["stem", *LAYERS, "head"]
    shown = rows(*NET, trunk=TRUNK, whole=True)
    assert [name for name, *_ in shown] == [f"{place:02d}.{name}" for place, name in enumerate(names)]


def test_many_blocks_are_folded_to_a_screen():
    shown = rows(*((f"block{n}", (n + 1, 2)) for n in range(100)), trunk=[f"block{n}" for n in range(100)])
    assert len(shown) == 25
    assert shown[-1] == ["24 of 100 rows; summary=full shows all"]


def test_bars_are_long_where_the_norm_is_large():
    steps = [
        {"step": 0, "a": 1e-10, "b": 1e-5, "c": 1.0, "d": 0.0},
        {"step": 9, "a": 2.0, "b": 2.0, "c": float("nan"), "d": 2e-10},
    ]
    console = Console(file=io.StringIO(), width=80)
    table.print_gradients(console, list("abcd"), steps)
    lines = {line.split()[0]: line.split()[1:] for line in console.file.getvalue().splitlines() if line.split()}
    assert lines["a"] == ["1.0e-10", "2.0e+00", "━" * 10]
    assert lines["b"] == ["1.0e-05", "━━━━━", "2.0e+00", "━" * 10]
    assert lines["c"] == ["1.0e+00", "━" * 10, "nan", "not", "finite"]
    assert lines["d"][:2] == ["0.0e+00", "zero"]
    assert "10⁻¹⁰·⁰ of it" in console.file.getvalue()


@pytest.fixture
def terminal(monkeypatch):
    def make(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))

    return make


SENTENCE = "the gradient shrinks by a factor of 10 over state-of-the-art layers, and nothing is left at block1.linear"


@pytest.mark.parametrize("columns", [40, 80])
def test_sentences_break_between_words(terminal, columns):
    terminal(columns)
    lines = wrapped(SENTENCE, 4).splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines).split()) == SENTENCE
    assert all(line.startswith("    ") for line in lines[1:])


def test_an_error_breaks_between_words_wherever_stdout_goes(terminal, monkeypatch, capsys):
    terminal(40)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        report_error(UserError(SENTENCE))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(lines) == f"error: {SENTENCE}"


def test_a_pipe_gets_sentences_whole():
    assert wrapped(SENTENCE) == SENTENCE


@pytest.mark.parametrize(("is_terminal", "escapes"), [(True, True), (False, False)])
def test_a_link_is_for_a_terminal(tmp_path, is_terminal, escapes):
    console = Screen(file=io.StringIO(), force_terminal=is_terminal, color_system="standard" if is_terminal else None)
    console.row("run folder", "runs/x", link(tmp_path))
    text = console.file.getvalue()
    assert (f"file://{tmp_path}" in text) == escapes
    assert escapes or text == "run folder  runs/x\n"
