"""Whole commands: how soon a run says a word and does a step, a run from command to test score, and sweeps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timing import OURS, ROOT, Command, Comparison, Comparisons, Size, command

TRAIN, HERE = str(ROOT / "src/train.py"), ROOT / "scripts/bench"
IMPORTS, EPOCHS, JOBS = "import torch, lightning", 10, 24
_RUN = ("model=mlp", "data=shapes", "logger=none")


def start(size: Size) -> Comparisons:
    """The first word and the first step of a run, and a run of one epoch, beside the imports of torch and Lightning."""
    found = {
        "start_word": Comparison("From a command to its first word", "s"),
        "start_step": Comparison("From a command to its first step", "s"),
        "start_epoch": Comparison("One epoch of an MLP on shapes, the whole command", "s"),
    }
    short = ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1") if size.quick else ()
    for _ in range(size(3)):
        bound = run("-c", IMPORTS)
        ours = run(TRAIN, *_RUN, f"trainer={size.device}", "trainer.max_epochs=1", *short, watch="run/gradients.csv")
        for table, seconds in zip(found.values(), (ours.first_word, ours.first_step, ours.seconds), strict=True):
            table.add(f"python -c '{IMPORTS}'", bound.seconds)
            table.add(OURS, seconds)
    return found


def whole_run(size: Size) -> Comparisons:
    """The same MLP, images and epochs from command to test score: metrics of training at every 50th step, validation
    and two checkpoints an epoch, a test of the best. Ours measures the gradient, too."""
    epochs = size(EPOCHS)
    lines = {
        "plain PyTorch script": (str(HERE / "usual_pytorch.py"), str(epochs)),
        "Lightning, DataLoader, CSVLogger": (str(HERE / "usual_lightning.py"), str(epochs)),
        OURS: (TRAIN, *_RUN, f"trainer={size.device}", f"trainer.max_epochs={epochs}"),
    }
    found = {
        "whole_run": Comparison(f"An MLP on shapes, {epochs} epochs: from the command to the test score", "s"),
        "whole_run_cpu": Comparison("The whole run: CPU time of all processes", "s"),
        "whole_run_memory": Comparison("The whole run: peak memory of the largest process", "MiB"),
    }
    for _ in range(size(2)):
        for who, line in lines.items():
            took = run(*line, steps=epochs * (9_000 // 128))
            for table, value in zip(found.values(), (took.seconds, took.cpu, took.memory), strict=True):
                table.add(who, value)
    return found


def sweep(size: Size) -> Comparisons:
    """Jobs an hour of a sweep of small MLPs for an epoch, a thread each: by our launcher, by Hydra's own, which is a
    loop in one process, and with a fresh process for each job."""
    few, jobs = size(4, 2), size(JOBS, 2)
    small = (*_RUN, "data.size=16", "trainer.max_epochs=1", f"trainer={size.device}", "callbacks.progress=null")
    found = {
        "sweep": Comparison(f"A sweep of {jobs} small MLPs, an epoch each", "jobs/h"),
        "sweep_cpu": Comparison("The sweep: CPU time a job", "s"),
    }

    def add(who: str, took: Sequence[Command], done: int) -> None:
        found["sweep"].add(who, 3600 * done / sum(one.seconds for one in took))
        found["sweep_cpu"].add(who, sum(one.cpu for one in took) / done)

    seeds = ",".join(map(str, range(jobs)))
    for who, launcher in {"a loop in one process": ("hydra/launcher=basic",), OURS: ()}.items():
        add(who, [run(TRAIN, "-m", *small, f"seed={seeds}", *launcher, threads=1, expect=jobs)], jobs)
    add("a fresh process a job", [run(TRAIN, *small, f"seed={seed}", threads=1) for seed in range(few)], few)
    return found


def run(
    *words: str, watch: str | None = None, threads: int | None = None, expect: int = 1, steps: int | None = None
) -> Command:
    """Run a command in a folder of its own; of ours, all runs must have finished with a score of their test. Whoever
    is asked for a number of steps must have done so many."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = [] if TRAIN not in words or "-m" in words else ["hydra.run.dir=run"]
        took = command([*words, *own], folder, watch, threads)
        if TRAIN in words:
            facts = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("summary.json")]
            finished = [one for one in facts if one["status"] == "finished" and "accuracy/test" in one["test"]]
            assert len(finished) == expect, f"{len(finished)} of {expect} runs finished"
        done = finished[0]["steps"] if TRAIN in words else int(took.output.split()[-2]) if steps else None
        assert steps in (None, done), f"{done} steps instead of {steps}"
        return took
