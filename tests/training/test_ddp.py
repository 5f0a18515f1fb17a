"""Two processes do what one does, on a model without batch norm and dropout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.config import build

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WORDS = (
    "model=mlp",
    "model.width=32",
    "data.val=999",  # does not divide by two, nor by the batch size
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=12",
    "trainer.log_every_n_steps=1",
    "callbacks.gradient_flow.every_n_steps=1",
    "callbacks.progress=null",
)


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "src" / "train.py"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def finished(folder: Path, *words: str) -> Path:
    before = set(folder.glob("runs/*/*"))
    done = launch(folder, *words)
    assert done.returncode == 0, done.stderr
    (run,) = set(folder.glob("runs/*/*")) - before  # one folder, whatever the number of processes
    return run


def table(run: Path, name: str) -> dict[str, list[float]]:
    columns, rows = runs.read_table(run / name)
    return {column: [row[index] for row in rows] for index, column in enumerate(columns)}


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.5"),
        ("scheduler=plateau", "scheduler.patience=0", "+trainer.val_check_interval=2", "optimizer.lr=5e-3"),
        ("metrics=[accuracy,top5,f1]", "+metrics.auroc._target_=torchmetrics.classification.MulticlassAUROC"),
    ],
)
def test_two_processes_log_what_one_logs(tmp_path, extra):
    one, two = (
        finished(tmp_path, *WORDS, "data=shapes", "logger=none", f"trainer={trainer}", *extra)
        for trainer in ("cpu", "ddp_cpu")
    )
    for name in (runs.GRADIENTS, runs.METRICS):
        single, double = table(one, name), table(two, name)
        assert list(single) == list(double)
        for column, values in single.items():
            assert double[column] == pytest.approx(values, rel=2e-5, nan_ok=True), column
    assert runs.read_json(two / runs.SUMMARY)["devices"] == 2


def test_data_auto_decides_once_and_wandb_sees_one_run(tmp_path):
    run = finished(tmp_path, *WORDS, "data=auto", "trainer=ddp_cpu", "logger.mode=offline")
    assert runs.read_json(run / runs.DATASET)["name"] == "shapes"
    assert len(list(run.glob("wandb/offline-run-*"))) == 1


def test_a_run_with_dropout_repeats(tmp_path):
    words = (*WORDS, "data=shapes", "logger=none", "trainer=ddp_cpu", "model.dropout=0.3")
    first, again = (table(finished(tmp_path, *words), runs.GRADIENTS) for _ in range(2))
    assert first == again


def test_a_batch_that_two_devices_cannot_share(tmp_path):
    done = launch(tmp_path, "data=shapes", "logger=none", "trainer=ddp_cpu", "data.batch_size=65")
    assert done.returncode == 2
    assert "data.batch_size=65: 2 devices can't share it equally" in done.stderr
    assert "Traceback" not in done.stderr


def test_each_rank_has_random_numbers_of_its_own_after_the_weights_are_drawn():
    """So that dropout masks differ."""
    drawn = []
    for rank in range(2):
        torch.manual_seed(0)
        build.reseed_rank(OmegaConf.create({"seed": 0}), SimpleNamespace(world_size=2, global_rank=rank))
        drawn.append(torch.rand(3))
    assert not torch.equal(*drawn)


def test_all_ranks_judge_one_model(tmp_path):
    """By the running statistics of the first, which are those of the checkpoint, and not each by its own."""
    words = (
        "model=bn_cnn",
        "model.channels=[4,4]",
        "model.dense=8",
        "data=shapes",
        "data.size=16",
        "data.batch_size=32",
    )
    words += ("trainer.max_epochs=1", "trainer.limit_train_batches=5", "logger=none", "callbacks.progress=null")
    run = finished(tmp_path, *words, "trainer=ddp_cpu", "test=false")
    score = [
        sys.executable,
        str(ROOT / "src" / "eval.py"),
        f"run={run}",
        "checkpoint=last",
        "split=val",
        "accelerator=cpu",
    ]
    done = subprocess.run(score, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (alone,) = runs.read_json(run / runs.SCORES).values()
    assert runs.read_json(run / runs.SUMMARY)["final"]["loss/val"] == pytest.approx(alone["loss/val"], rel=1e-5)
