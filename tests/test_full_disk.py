"""A disk that fills while a run goes on: one line that names the file, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mistakes import QUIET, run

from gradflow.command import report_disk
from gradflow.data import cache
from gradflow.data.datamodule import DataModule
from gradflow.data.source import Source
from gradflow.mistakes import Mistake
from gradflow.spec import Spec

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here is always full")
DRAFTS = {  # what is written, and the name under which it is while it is not whole
    "metrics.csv": ".metrics.csv",
    "gradients.csv": ".gradients.csv",
    "flow.jsonl": "flow.jsonl",
    "summary.json": f".summary.json.{os.getpid()}",
    "checkpoints/last.ckpt": "checkpoints/.last.ckpt",
    "checkpoints/best.ckpt": "checkpoints/.best.ckpt",
}


def fill(draft: Path) -> None:
    """Whatever is written there finds no space, as the system tells it."""
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)
    draft.symlink_to("/dev/full")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "/" in name else []) for name in DRAFTS]
)
def test_a_run(tmp_path, name):
    """Status 1: nothing was wrong with the command."""
    fill(tmp_path / "run" / DRAFTS[name])
    status, said = run(f"{QUIET} hydra.run.dir=run", tmp_path)
    assert said.count("\n") == 1, said
    assert said.startswith(f"error: run/{name}: No space left on device"), said
    assert "resume=auto goes on" in said
    assert status == 1
    if name != "summary.json":
        facts = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (facts["status"], "No space left" in facts["error"]) == ("failed", True)


def test_the_first_file_is_named(capsys, monkeypatch):
    """What fails on the way out, like the last word in summary.json, followed from it."""
    monkeypatch.setenv("GRADFLOW_TRACEBACK", "")
    error = OSError(errno.ENOSPC, "No space left on device", "summary.json")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
    with pytest.raises(SystemExit) as stopped:
        report_disk(error, "score")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: metrics.csv: No space left on device: make room or give leave there\n"


@pytest.mark.slow
def test_the_last_good_checkpoint_stays_and_is_gone_on_from(tmp_path):
    status, said = run(f"{QUIET} hydra.run.dir=run", tmp_path)
    assert status == 0, said
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    fill(last.with_name(".last.ckpt"))
    status, said = run("resume=run trainer.max_epochs=2", tmp_path)
    assert status == 1
    assert said.startswith("error: run/checkpoints/last.ckpt: No space left on device"), said
    assert last.read_bytes() == before
    status, said = run("resume=run trainer.max_epochs=2", tmp_path)
    assert status == 0, said
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert last.with_name("previous.ckpt").read_bytes() == before


def test_a_cache(tmp_path, monkeypatch):
    """A mistake of the user's, who says where it goes; nothing half written stays."""

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int64)
    source = Source(
        "a", Spec("image", (1, 8, 8), "classification", outputs=2),
        prepare=lambda: cache.cached(tmp_path / "a", lambda draft: cache.write(draft, images.shape, [images], labels)),
    )  # fmt: skip
    with pytest.raises(Mistake, match=r"a: No space left on device; give data\.root=… or data\.cache=… a folder"):
        DataModule(lambda: source, batch_size=2).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]
