"""A disk that fills while a run goes on: one line that names the file, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invalid_input import QUIET, ROOT, run
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.config.command import report_disk
from gradflow.data import cache
from gradflow.data.datamodule import DataModule
from gradflow.data.sources.source import Source
from gradflow.models.base import Module
from gradflow.runs import claims, locks, sweep_jobs
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.sweeps import hydra_callbacks

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here is always full")
GROWS = "flow.jsonl"  # written under its own name
FILES = ("metrics.csv", "gradients.csv", GROWS, "summary.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt")


def fill(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Whatever is written there finds no space, as the system tells it: a file has another name until it is whole."""
    draft = file if file.name == GROWS else file.with_name(f".{file.name}.{os.getpid()}")
    was = Path.open

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        return was(Path("/dev/full") if path.absolute() == draft.absolute() else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "/" in name else []) for name in FILES]
)
def test_a_run(tmp_path, monkeypatch, name):
    """Status 1: nothing was wrong with the command."""
    fill(monkeypatch, tmp_path / "run" / name)
    status, said = run(f"{QUIET} hydra.run.dir=run", tmp_path)
    assert said.count("\n") == 1, said
    assert said.startswith(f"error: run/{name}: No space left on device"), said
    assert "resume=auto goes on" in said
    assert status == 1
    if name != "summary.json":
        facts = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (facts["status"], "No space left" in facts["error"]) == ("interrupted", True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder with an address of a batch, and a report; and beside it a small disk, all of it taken."""
    folder = tmp_path_factory.mktemp("finished")
    status, said = run(f"{QUIET} hydra.run.dir=run", folder)
    assert status == 0, said
    return folder


WRITES = {  # a command, and the file that it writes
    "report run": "run/report.html",
    "report run --out here": "here/report.html",
    "report run --out there": "there/report.csv",
    "eval run=run": "run/scores.json",
    "replay run=run epoch=0 batch=0": "run/batch.pt",
    "probe data=regression hydra.run.dir=probed": "probed/probe.json",
    "probe data=regression hydra.run.dir=drawn": "drawn/depth.png",
}


SLOW = ("report run", "report run --out here", "probe data=regression hydra.run.dir=drawn")


@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=[pytest.mark.slow] if command in SLOW else []) for command in WRITES]
)
def test_what_is_made_of_a_run(finished, command, monkeypatch):
    """Whole or not at all: the earlier file stays, and no half of another beside it."""
    monkeypatch.setattr(claims, "_reject_used", lambda *_: None)  # a probe would not write into the folder of another
    file = finished / WRITES[command]
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}\n")  # an earlier one
    fill(monkeypatch, file)
    before = {path.name for path in file.parent.iterdir()}
    status, said = run(command, finished)
    assert (status, said) == (1, f"error: {WRITES[command]}: No space left on device: make room or give leave there\n")
    assert file.read_text() == "{}\n"
    assert not list(file.parent.glob(".*.[0-9]*"))
    assert {path.name for path in file.parent.iterdir()} >= before - {f".{file.name}.{os.getpid()}"}


def test_a_run_whose_path_has_a_quote_is_scored(finished):
    shutil.copytree(finished / "run", finished / "it's")
    status, said = run('eval run="it\'s"', finished)
    assert (status, said) == (0, "")
    assert (finished / "it's" / runs.SCORES).is_file()


def test_a_run_whose_folder_is_removed(tmp_path, monkeypatch):
    def removed(*_) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(Module, "on_train_epoch_end", removed)
    status, said = run(f"{QUIET} hydra.run.dir=run", tmp_path)
    assert status == 1
    (line,) = said.splitlines()
    assert re.fullmatch(r"error: run/\S+: can't be written, since its folder has been removed", line)


def test_the_table_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "_claims", {})  # other tests see none of this one's
    table = sweep_jobs.Sweep(tmp_path, going_on=False)
    job = sweep_jobs.Job(0, ("seed=0",), "running", None, 0.0, tmp_path / "0")
    table.begin(job)
    before = table.table.read_text()
    fill(monkeypatch, table.table)
    job.state = "finished"
    with pytest.raises(OSError, match="No space left on device") as caught:
        table.write()
    assert caught.value.filename == str(tmp_path / runs.JOBS)
    assert table.table.read_text() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "x/report.html"), UserError("no")])
def test_the_report_of_a_sweep_is_no_warning(tmp_path, monkeypatch, error):
    """Hydra makes one of whatever a callback raises, and the status would be 0."""
    (tmp_path / "0").mkdir()
    runs.write_json(tmp_path / "0" / runs.SUMMARY, {})

    def fails(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("gradflow.report.page.write_page", fails)
    config = OmegaConf.create({"report": True, "hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(type(error)) as caught, sweep_jobs.failures_reported():
        hydra_callbacks.WriteReport().on_multirun_end(config)
    assert caught.value is error


def test_the_first_file_is_named(capsys, monkeypatch):
    """What fails on the way out, like the last word in summary.json, followed from it."""
    monkeypatch.setenv("GRADFLOW_TRACEBACK", "")
    monkeypatch.setattr(sys, "argv", ["src/eval.py"])
    error = OSError(errno.ENOSPC, "No space left on device", "summary.json")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
    with pytest.raises(SystemExit) as stopped:
        report_disk(error, "score")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: metrics.csv: No space left on device: make room or give leave there\n"


@pytest.mark.slow
def test_the_last_good_checkpoint_stays_and_is_gone_on_from(tmp_path, monkeypatch):
    status, said = run(f"{QUIET} hydra.run.dir=run", tmp_path)
    assert status == 0, said
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with monkeypatch.context() as patch:
        fill(patch, last)
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
    with pytest.raises(UserError, match=r"a: No space left on device; give data\.root=… or data\.cache=… a folder"):
        DataModule(lambda: source, batch_size=2).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [".a.lock"]


@pytest.fixture
def disk(tmp_path):
    """A disk of its own for a folder: full, or not to be written to, as often as a test wants."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(*options: str) -> bool:
        return subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0

    if not shutil.which("mount") or not mounted("-t", "tmpfs", "-o", "size=24m", "none"):
        pytest.skip("no disk can be mounted here")
    yield folder, mounted
    subprocess.run(["umount", str(folder)], check=True)


SWEEP = f"train.py -m {QUIET} seed=0,1 callbacks=minimal hydra.sweep.dir=sweep"
ON_A_DISK = {  # what is written, and by which command
    "run/report.csv": "report.py run",
    "run/batch.pt": "replay.py run=run epoch=0 batch=0",
    "run/scores.json": "eval.py run=run",
    "sweep/multirun.yaml": f"{SWEEP} continue_sweep=sweep",
}


def command_line(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"{ROOT}/src/{words.split()[0]}", *words.split()[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != locks.LOCK}


@pytest.mark.slow
def test_in_earnest(disk):
    """Each command on a full disk and on one that can't be written: one line, status 1, and nothing has changed."""
    folder, mounted = disk
    for words in (f"train.py {QUIET} hydra.run.dir=run", f"{SWEEP} report=false", "report.py run", "eval.py run=run"):
        made = command_line(words, folder)
        assert made.returncode == 0, made.stderr
    for state in ("full", "read-only"):
        if state == "full":
            with suppress(OSError), (folder / "filled").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        else:
            (folder / "filled").unlink()
            assert mounted("-o", "remount,ro")
        before = contents(folder)
        for name, words in ON_A_DISK.items():
            ended = command_line(words, folder)
            lines = [line for line in ended.stderr.splitlines() if line.startswith("error")]
            assert "Traceback" not in ended.stderr, ended.stderr
            assert ended.returncode == 1, (words, ended.stderr)
            assert len(lines) == 1, ended.stderr
            reason = "No space left on device" if state == "full" else "Read-only file system"
            assert f"{reason}: make room or give leave there" in lines[0]
            assert state == "read-only" or lines[0].startswith((f"error: {folder}/{name}: ", f"error: {name}: "))
            assert contents(folder) == before
