"""The script that compares all architectures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import models_table  # noqa: E402

MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))


@pytest.mark.parametrize("model", MODELS)
def test_every_architecture_has_data(model):
    assert models_table.data_for(model) in (*models_table.DATA.values(), "shape_masks")


def test_no_seed_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["models_table.py", "mlp", "--seeds", "0"])
    with pytest.raises(SystemExit) as ended:
        models_table.main()
    assert ended.value.code == 2
    assert "--seeds 0 --jobs 1: expected 1 or more" in capsys.readouterr().err
