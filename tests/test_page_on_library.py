"""docs/library.md: its code is what somebody runs in a project of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import rich.console
import torch
from conftest import PIXEL
from examples import blocks
from matplotlib.backends.backend_agg import FigureCanvasAgg

import gradflow.diagnostics
from gradflow import runs

PAGE = "docs/library.md"
PROBE, CALLBACK = (block for block in blocks(PAGE) if block.startswith("import"))


def code_lines(block: str) -> int:
    return len([line for line in block.splitlines() if line and not re.match("import|from", line)])


@pytest.mark.parametrize("notebook", [False, True])
def test_the_probe(notebook, capsys, monkeypatch):
    """In a notebook the table is a part of the text, too, where rich would show it by itself."""
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: notebook)
    torch.manual_seed(0)
    exec(compile(PROBE, PAGE, "exec"), {})
    told = capsys.readouterr().out
    assert "trunk: found 8 × BasicBlock; name another by trunk=" in told
    assert "OK: ‖∂L/∂h₁‖ = " in told
    assert "layer4.1" in told.partition("OK: ")[0]
    assert code_lines(PROBE) <= 10


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers", "ignore:GPU available")
def test_the_callback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, file: file.write(PIXEL))
    exec(compile(CALLBACK, PAGE, "exec"), {"__name__": "somebody"})
    (folder,) = tmp_path.rglob("gradients")
    assert {"gradients.csv", "gradients.png", "updates.csv", "updates.png", "flow.jsonl", "depth.png"} <= {
        path.name for path in folder.iterdir()
    }
    names, rows = runs.read_table(folder / runs.GRADIENTS)
    assert names == ["step", "00.0", "01.2", "02.4"]
    assert [row[0] for row in rows] == [0, 1, 2, 4, 8, 10, 15]
    assert code_lines(CALLBACK) <= 10
    first = runs.read_lines(folder / runs.FLOW)[0]
    assert len(first["theory"]["gradient"]) == len(first["gradient"]) == 2


def test_what_is_public():
    assert [getattr(gradflow.diagnostics, name).__name__ for name in gradflow.diagnostics.__all__]
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        gradflow.diagnostics.other  # noqa: B018
    assert Path(gradflow.__file__).read_text() == ""
