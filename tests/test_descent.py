"""Gradient descent on x² + y² against its closed form, and the picture."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import descent


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9, 1.1])
def test_plain_descent_has_its_closed_form(lr):
    path = descent.descend("sgd", lr, 12, (2.0, -1.0))
    expected = (1 - 2 * lr) ** np.arange(13)[:, None] * [2.0, -1.0]
    np.testing.assert_allclose(path, expected, rtol=1e-9, atol=1e-12)


def test_momentum_and_adam_by_hand():
    """v ← 0.9 v + 2x, x ← x − η v; Adam's first step is η whatever the slope."""
    x, v, expected = 2.0, 0.0, [2.0]
    for _ in range(10):
        v = 0.9 * v + 2 * x
        x -= 0.1 * v
        expected.append(x)
    np.testing.assert_allclose(descent.descend("momentum", 0.1, 10, (2.0, 0.0))[:, 0], expected)
    np.testing.assert_allclose(descent.descend("adam", 0.1, 1, (2.0, -1.0))[1], [1.9, -0.9], rtol=1e-6)


def test_a_picture_and_a_wrong_name(tmp_path, monkeypatch, capsys):
    out = tmp_path / "picture.png"
    monkeypatch.setattr(
        sys, "argv", ["descent.py", "sgd", "adam", "--lr", "0.1", "1.1", "--steps", "5", "--out", str(out)]
    )
    assert descent.main() == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    for words, line in (
        (["adamm"], "adamm: no such optimizer; known: ada"),
        (["sgd", "--lr", "nan"], "expected finite learning rates above 0"),
        (["sgd", "--steps", "0"], "1 step or more"),
        (["sgd", "--lr", "0.1", "--out", str(tmp_path / "no" / "x.png")], "No such file or directory"),
    ):
        monkeypatch.setattr(sys, "argv", ["descent.py", *words])
        with pytest.raises(SystemExit) as ended:
            descent.main()
        assert ended.value.code == 2
        assert line in capsys.readouterr().err
