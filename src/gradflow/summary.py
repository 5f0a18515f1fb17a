"""What a run leaves for tables (`summary.json`), and what it tells the person in front of the screen."""

from __future__ import annotations

import math
import os
import platform
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
from gradflow.callbacks.records import Records
from gradflow.data.datamodule import DataModule
from gradflow.flow.layers import layers

ROWS = 24  # layers that a table on the screen shows; of more, evenly spaced ones
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "wandb")


def before(cfg: DictConfig, model: LightningModule) -> dict[str, Any]:
    """What is known before the first step."""
    hydra = HydraConfig.get()
    return {
        "command": " ".join(["python src/train.py", *hydra.overrides.task]),
        "choices": {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra/")},
        "overrides": list(hydra.overrides.task),
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"python": platform.python_version()} | dict(installed()),
    }


def installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # W&B can be left out by those who choose another logger
            yield name, version(name)


def after(trainer: Trainer, data: DataModule) -> dict[str, Any]:
    """What came of the training."""
    (records,) = (logger for logger in trainer.loggers if isinstance(logger, Records))
    best = trainer.checkpoint_callback
    scored = isinstance(best, ModelCheckpoint) and best.monitor is not None and best.best_model_score is not None
    return {
        "data": data.describe(),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "final": records.latest,
        "best": {best.monitor: best.best_model_score.item()} if scored else {},  # type: ignore[union-attr]
        "device": device_name(trainer),
        "devices": trainer.world_size,
    }


def log_choices(cfg: DictConfig, trainer: Trainer) -> None:
    choices = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(choices)  # type: ignore[arg-type]


def opening(cfg: DictConfig, trainer: Trainer, data: DataModule, model: LightningModule) -> None:
    """One line on what is about to be trained, and one on each choice that does nothing here."""
    if not trainer.is_global_zero:
        return
    device = f"{trainer.world_size} × {device_name(trainer)}" if trainer.world_size > 1 else device_name(trainer)
    name, samples = data.describe()["name"], data.sizes["train"]
    print(
        f"{type(model).__name__} on {name} ({samples:,} training samples), {device} -> {os.path.relpath(cfg.run_dir)}"
    )
    chosen = [word.partition("=")[0] for word in HydraConfig.get().overrides.task]
    if "activation" in chosen and "activation" not in cfg.model:
        print(f"note: activation={cfg.activation.name} is not used: the gates of {type(model).__name__} are fixed")


def device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def show(run: Path, model: LightningModule) -> None:
    """The end of a run: metrics, gradient norms in depth order, where everything is, what to try next."""
    console = Console(highlight=False)
    facts = runs.read_json(run / runs.SUMMARY)
    console.print(metrics_table(facts))
    if (run / runs.GRADIENTS).is_file():
        console.print(gradient_table(run, weighted(model)))
    rows = [("data", describe(facts["data"]))]
    rows += [("size", f"{facts['parameters']:,} parameters, {facts['steps']:,} steps, {facts['wall_seconds']:.0f} s")]
    rows += [("run folder", os.path.relpath(run))]
    rows += [("W&B", f"offline; to upload: wandb sync {os.path.relpath(path)}") for path in offline(run)]
    if HydraConfig.get().mode == RunMode.RUN:
        rows += [("try next" if not index else "", words) for index, words in enumerate(next_commands(facts))]
    for name, text in rows:
        console.print(f"{name:<11} {text}", soft_wrap=True, markup=False)


def describe(data: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{count:,} {split}" for split, count in data["samples"].items() if count)
    return f"{data['name']} ({sizes})" + (f", chosen by data=auto: {data['reason']}" if "reason" in data else "")


def offline(run: Path) -> list[Path]:
    """Folders of W&B that were not uploaded."""
    return sorted((run / "wandb").glob("offline-run-*"))


def weighted(model: LightningModule) -> list[str]:
    """Layers with a weight matrix or kernel: norm layers would double the length of the table."""
    return [name for name, parameters in layers(model).items() if any(p.ndim > 1 for p in parameters)]


def metrics_table(facts: Mapping[str, Any]) -> Table:
    final = {k: v for k, v in facts["final"].items() if k.partition("/")[2] in ("train", "val")}
    found = final | facts.get("test", {})
    splits = [split for split in ("train", "val", "test") if any(name.endswith(f"/{split}") for name in found)]
    table = Table("metric", box=SIMPLE_HEAD)
    for split in splits:
        where = f" ({facts['tested']})" if split == "test" else ""
        table.add_column(split + where, justify="right")
    for name in dict.fromkeys(name.partition("/")[0] for name in found):
        table.add_row(name, *(number(found.get(f"{name}/{split}")) for split in splits))
    return table


def gradient_table(run: Path, shown: Sequence[str]) -> Table:
    """Norms at the first and last logged step, and how many decades each is below the largest of its step."""
    names, rows = runs.read_table(run / runs.GRADIENTS)
    first, last = (dict(zip(names, row, strict=True)) for row in (rows[0], rows[-1]))
    table = Table("gradient norm by layer, input on top", box=SIMPLE_HEAD)
    for row in (first, last):
        table.add_column(f"step {row['step']:.0f}", justify="right")
        table.add_column("decades below", max_width=16)
    every = -(-len(shown) // ROWS)
    for name in shown[::every]:
        cells = [
            cell for row in (first, last) for cell in (f"{row[name]:.1e}", bar(row[name], [row[n] for n in shown]))
        ]
        table.add_row(name, *cells)
    if every > 1:
        table.caption = f"every {every}th of {len(shown)} layers; all are in {runs.GRADIENTS}"
    return table


def bar(norm: float, all_norms: Sequence[float]) -> str:
    if not norm > 0 or not math.isfinite(norm):
        return "zero" if norm == 0 else "not finite"
    decades = math.log10(max(n for n in all_norms if math.isfinite(n)) / norm)
    return f"{decades:4.1f} " + "▪" * min(round(decades), 10)


def next_commands(facts: Mapping[str, Any]) -> list[str]:
    """The same run with three seeds, and a network that does not train."""
    python = os.path.relpath(sys.executable) if sys.prefix.startswith(os.getcwd()) else "python"
    words = [word for word in facts["overrides"] if not word.startswith("seed=")]
    return [
        " ".join([python, "src/train.py -m", *words, "seed=0,1,2"]),
        f"{python} src/train.py experiment=deep_sigmoid_mlp    # a gradient that vanishes",
    ]


def show_scores(run: Path, checkpoint: str, scores: Mapping[str, float]) -> None:
    table = Table(title=f"{os.path.relpath(run)}, {checkpoint}.ckpt")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, number(value))
    Console().print(table)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
