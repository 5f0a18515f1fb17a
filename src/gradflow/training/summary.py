"""What a run leaves for tables (`summary.json`), and what it tells the person in front of the screen."""

from __future__ import annotations

import math
import os
import platform
import resource
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradflow import runs
from gradflow.config import no_effect, resume
from gradflow.data import trivial
from gradflow.data.datamodule import DataModule
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.layers import layers, weighted
from gradflow.models.base import Module
from gradflow.models.init import uninitialized
from gradflow.plots.heatmap import spread
from gradflow.training.csv_logger import Records
from gradflow.training.nonfinite_guard import Finite

NAMED = 8  # parameters in a line on the screen; summary.json has all of them
ROWS = 24  # layers that a table on the screen shows; of more, evenly spaced ones
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "wandb")


def before(cfg: DictConfig, trainer: Trainer, data: DataModule, model: Module) -> dict[str, Any]:
    """What is known before the first step."""
    hydra = HydraConfig.get()
    words = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(words, list)
    words = resume.noted(Path(cfg.run_dir), words)
    return {
        "command": shlex.join(["python", "src/train.py", *words]),
        "choices": {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra/")},
        "overrides": words,
        "data": {**data.describe(), "trivial": trivial.scores(data, model.loss_name)},
        "device": device_name(trainer),
        "devices": trainer.world_size,
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        **not_initialised(model),
        "versions": {"python": platform.python_version()} | dict(installed()),
    }


def not_initialised(model: LightningModule) -> dict[str, list[str]]:
    """Parameters that the init has no rule for, where there are some."""
    names = uninitialized(model) if init_name(model) not in (None, "torch") else []
    return {"not_initialised": names} if names else {}


def init_name(model: LightningModule) -> str | None:
    """None for an architecture that takes no init."""
    init = model.hparams.get("init")
    return init["name"] if isinstance(init, Mapping) else init


def installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # W&B can be left out by those who choose another logger
            yield name, version(name)


def after(trainer: Trainer) -> dict[str, Any]:
    """What came of the training."""
    (records,) = (logger for logger in trainer.loggers if isinstance(logger, Records))
    best = trainer.checkpoint_callback
    scored = isinstance(best, ModelCheckpoint) and best.monitor is not None and best.best_model_score is not None
    return {
        "steps": trainer.global_step,
        "epochs": trainer.fit_loop.epoch_loop.batch_progress.total.completed // trainer.num_training_batches,
        "peak_memory_gib": peak_memory(trainer),
        **flow(trainer),
        **skipped(trainer),
        "final": records.latest,
        "best": {best.monitor: best.best_model_score.item()} if scored else {},  # type: ignore[union-attr]
    }


def skipped(trainer: Trainer) -> dict[str, int]:
    """Steps that were left out, where they are."""
    found = (one for one in trainer.callbacks if isinstance(one, Finite))  # type: ignore[attr-defined]
    return next(({"skipped": one.skipped} for one in found if one.wish == "skip"), {})


def flow(trainer: Trainer) -> dict[str, Any]:
    """What the gradient did, where it was watched."""
    watcher = watching(trainer)
    if watcher is None or not watcher.verdicts:
        return {}
    return {"verdict": dict(zip(("start", "end"), watcher.verdicts, strict=False)), "alarms": watcher.alarms.raised}


def prune(trainer: Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if reason := getattr(callback, "pruned", None):
            raise runs.Pruned(reason)


def watching(trainer: Trainer) -> GradientFlow | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, GradientFlow)), None)  # type: ignore[attr-defined]


def peak_memory(trainer: Trainer) -> dict[str, float]:
    """The most that this process has taken so far."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kibibytes elsewhere
    taken = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if (device := trainer.strategy.root_device).type == "cuda":
        taken["device"] = torch.cuda.max_memory_allocated(device) / 2**30
    return {name: round(size, 3) for name, size in taken.items()}


def log_choices(cfg: DictConfig, trainer: Trainer) -> None:
    choices = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(choices)  # type: ignore[arg-type]


def opening(cfg: DictConfig, trainer: Trainer, data: DataModule, model: LightningModule) -> None:
    """One line on what is about to be trained, and one on each choice that does nothing here."""
    if not trainer.is_global_zero:
        return
    device = f"{trainer.world_size} × {device_name(trainer)}" if trainer.world_size > 1 else device_name(trainer)
    known, where = data.describe(), os.path.relpath(cfg.run_dir)
    print(f"{type(model).__name__} on {known['name']}, {device} -> {where}")
    print(f"data: {known['samples']['train']:,} training samples, {known['memory']}")
    if HydraConfig.get().runtime.choices.get("search") and not runs.in_sweep():
        print("note: search is not used: add -m to search")
    if names := not_initialised(model).get("not_initialised"):
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        print(f"note: init={init_name(model)} left as they were: {', '.join(names[:NAMED])}{more}")
    for word in no_effect.unused(cfg, list(HydraConfig.get().overrides.task)):
        print(f"note: {word} has no effect: nothing in the configuration of this {type(model).__name__} refers to it")


def device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def show(run: Path, model: LightningModule) -> None:
    """The end of a run: metrics, gradient norms in depth order, where everything is, what to try next."""
    console = Console(highlight=False)
    facts = runs.read_json(run / runs.SUMMARY)
    if facts["status"] == "pruned":
        console.print(f"pruned: {facts['reason']}\n", soft_wrap=True, markup=False)
    if "final" not in facts:
        return
    console.print(metrics_table(facts))
    if any(value is None for name, value in facts["final"].items() if name.startswith("loss/")):
        console.print("the run diverged (its loss is not finite): try a smaller optimizer.lr first\n", soft_wrap=True)
    if (run / runs.GRADIENTS).is_file():
        gradient_table(run, weighted(layers(model)), console)
    rows = [("verdict", words) for words in verdicts(facts)] + [("data", describe(facts["data"]))]
    took = ", ".join(f"{size:.1f} GiB of {name} memory" for name, size in facts["peak_memory_gib"].items())
    done = f"{facts['parameters']:,} parameters, {facts['steps']:,} steps, {facts['wall_seconds']:.0f} s"
    rows += [("size", f"{done}, {took}")]
    if skipped := facts.get("skipped"):
        rows += [("skipped", f"{skipped:,} of {facts['steps']:,} steps, whose gradient was not finite")]
    rows += [("run folder", os.path.relpath(run))]
    if offline(run):
        rows += [("W&B", f"offline; to upload: {program('wandb')} sync {os.path.relpath(run / 'wandb')}")]
    if HydraConfig.get().mode == RunMode.RUN:
        rows += [("try next" if not index else "", words) for index, words in enumerate(next_commands(facts))]
    for name, text in rows:
        console.print(f"{name:<11} {text}", soft_wrap=True, markup=False)


def verdicts(facts: Mapping[str, Any]) -> Iterator[str]:
    for moment, told in facts.get("verdict", {}).items():
        yield f"{told['word']} at the {moment}: {told['reason']}"


def describe(data: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{count:,} {split}" for split, count in data["samples"].items() if count)
    return f"{data['name']} ({sizes})" + (f", chosen by data=auto: {data['reason']}" if "reason" in data else "")


def offline(run: Path) -> list[Path]:
    """Folders of W&B that were not uploaded."""
    return sorted((run / "wandb").glob("offline-run-*"))


def metrics_table(facts: Mapping[str, Any]) -> Table:
    final = {k: v for k, v in facts["final"].items() if k.partition("/")[2] in ("train", "val")}
    found = final | facts.get("test", {})
    splits = [split for split in ("train", "val", "test") if any(name.endswith(f"/{split}") for name in found)]
    level = facts["data"].get("trivial", {})
    table = Table("metric", box=SIMPLE_HEAD)
    for split in splits:
        where = f" ({facts['tested']})" if split == "test" else ""
        table.add_column(split + where, justify="right")
    for name in dict.fromkeys(name.partition("/")[0] for name in found):
        cells = [number(found[key]) if (key := f"{name}/{split}") in found else "" for split in splits]
        if name == "loss" and "train" in splits:
            cells[splits.index("train")] += " (one batch)"
        table.add_row(name, *cells)
        if known := {key: value for key, value in level.items() if key.partition("/")[0] == name and key in found}:
            cells = [number(known[key]) if (key := f"{name}/{split}") in known else "" for split in splits]
            table.add_row("  trivial answer", *cells)
    return table


def gradient_table(run: Path, shown: Sequence[str], console: Console) -> None:
    """Norms at the first and last logged step, and how many decades each is below the largest of its step."""
    names, rows = runs.read_table(run / runs.GRADIENTS)
    if not rows:
        return
    moments = [dict(zip(names, row, strict=True)) for row in (rows[:1] + rows[-1:] if len(rows) > 1 else rows)]
    table = Table("gradient norm", box=SIMPLE_HEAD)
    for row in moments:
        table.add_column(f"step {row['step']:.0f}", justify="right")
        table.add_column("log₁₀ below the largest", max_width=16)
    chosen = [shown[index] for index in spread(len(shown), ROWS)]
    for name in chosen:
        cells = [(f"{row[name]:.1e}", bar(row[name], [row[other] for other in shown])) for row in moments]
        table.add_row(name, *(cell for pair in cells for cell in pair))
    console.print(table)
    if len(chosen) < len(shown):
        console.print(f"{len(chosen)} of {len(shown)} layers; all are in {runs.GRADIENTS}\n")


def bar(norm: float, all_norms: Sequence[float]) -> str:
    if not norm > 0 or not math.isfinite(norm):
        return "zero" if norm == 0 else "not finite"
    decades = math.log10(max(n for n in all_norms if math.isfinite(n)) / norm)
    return f"{decades:4.1f} " + "▪" * min(round(decades), 10)


def program(name: str) -> str:
    """How to call a program of this environment from the current folder."""
    folder = Path(sys.executable).parent
    return os.path.relpath(folder / name) if str(folder).startswith(os.getcwd()) else name


def next_commands(facts: Mapping[str, Any]) -> list[str]:
    """The same run with three seeds, and a network whose gradient vanishes, or what cures it."""
    python = program("python")
    words = [word for word in facts["overrides"] if not word.startswith(("seed=", "resume="))]
    vanishing = facts["choices"].get("experiment") == "deep_sigmoid_mlp"
    other, why = (
        ("deep_sigmoid_mlp_bn", "what cures it") if vanishing else ("deep_sigmoid_mlp", "a gradient that vanishes")
    )
    bad = facts.get("verdict", {}).get("start", {}).get("word", "OK") != "OK"
    groups = ("model", "activation", "init", "data", "experiment")
    same = [word for word in words if word.partition("=")[0].partition(".")[0] in groups]
    return [
        *([shlex.join([python, "src/probe.py", *same]) + "    # what would help, computed"] if bad else []),
        shlex.join([python, "src/train.py", "-m", *words, "seed=0,1,2"]),
        f"{python} src/train.py experiment={other}    # {why}",
    ]


def show_scores(run: Path, checkpoint: str, scores: Mapping[str, float]) -> None:
    table = Table(f"{os.path.relpath(run)}, {checkpoint}.ckpt", box=SIMPLE_HEAD)
    table.add_column("score", justify="right")
    for name, value in scores.items():
        table.add_row(name, number(value))
    Console(highlight=False).print(table)


def number(value: float | None) -> str:
    """Of JSON, which knows no nan."""
    return "nan" if value is None else f"{value:.4g}"
