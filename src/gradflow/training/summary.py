"""What a run records about itself in `summary.json`: its choices before the first step, and what came of them."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from gradflow import runs
from gradflow.data import trivial
from gradflow.data.datamodule import DataModule
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.models.base import Module
from gradflow.models.init import uninitialized
from gradflow.runs import provenance
from gradflow.runs.overrides import to_record
from gradflow.training.csv_logger import TableLogger
from gradflow.training.lightning_loops import batches_done
from gradflow.training.nonfinite_guard import NonFiniteGuard

try:
    import resource
except ImportError:  # on Windows, where the memory of the process is then not recorded
    resource = None  # type: ignore[assignment]


def before(cfg: DictConfig, trainer: Trainer, data: DataModule, model: Module) -> dict[str, Any]:
    """Return what is known before the first step."""
    hydra = HydraConfig.get()
    unresolved: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    run = Path(cfg.run_dir)
    overrides, names = to_record(run, unresolved), not_initialised(model)
    return {
        "command": shlex.join(["python", "src/train.py", *overrides]),
        "replay": shlex.join(["python", "src/replay.py", os.path.relpath(run)]),
        "choices": {group: choice for group, choice in hydra.runtime.choices.items() if not group.startswith("hydra/")},
        "overrides": overrides,
        "data": {**data.describe(), "trivial": trivial.scores(data, model.loss_name)},
        "directions": model.metrics.directions,
        "device": device_name(trainer),
        "devices": trainer.world_size,
        "precision": trainer.precision,
        "seed": cfg.seed,
        "planned_steps": planned_steps(trainer, data),
        "parameters": sum(p.numel() for p in model.parameters()),
        **({"not_initialised": names} if names else {}),
        **(provenance.record(run) if trainer.is_global_zero else {}),
        "threads": torch.get_num_threads(),
    }


def planned_steps(trainer: Trainer, data: DataModule) -> int | None:
    """Return how many optimizer steps the run takes at most; None where only time ends it."""
    batches, limit = len(data.loader("train", training=True)), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    in_epochs = (trainer.max_epochs or -1) * math.ceil(batches / trainer.accumulate_grad_batches)
    return min((steps for steps in (in_epochs, trainer.max_steps) if steps >= 0), default=None)


def not_initialised(model: LightningModule) -> list[str]:
    """Return the parameters that the chosen initialisation has no rule for."""
    return uninitialized(model) if init_name(model) not in (None, "torch") else []


def init_name(model: LightningModule) -> str | None:
    """Return the name of the initialisation; None for an architecture that takes none."""
    init = model.hparams.get("init")
    return init["name"] if isinstance(init, Mapping) else init


def after(trainer: Trainer) -> dict[str, Any]:
    """Return what came of the training."""
    (table,) = (logger for logger in trainer.loggers if isinstance(logger, TableLogger))
    best = trainer.checkpoint_callback
    monitored = isinstance(best, ModelCheckpoint) and best.monitor is not None and best.best_model_score is not None
    facts = {
        "steps": trainer.global_step,
        "epochs": batches_done(trainer) // trainer.num_training_batches,
        "steps_per_epoch": math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches),
        "peak_memory_gib": _peak_memory(trainer),
        "final": table.latest,
        "best": {best.monitor: best.best_model_score.item()} if monitored else {},  # type: ignore[union-attr]
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientFlow) and callback.verdicts:
            verdicts = dict(zip(("start", "end"), callback.verdicts, strict=False))
            facts |= {"verdict": verdicts, "alarms": callback.alarms.raised}
        if isinstance(callback, NonFiniteGuard) and callback.action == "skip":
            facts |= {"skipped": callback.skipped}
    return facts


def prune(trainer: Trainer) -> None:
    """End the run as pruned where a callback has asked for it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if reason := getattr(callback, "pruned", None):
            raise runs.Pruned(reason)


def _peak_memory(trainer: Trainer) -> dict[str, float]:
    """Return the most memory that this process has taken so far, in GiB."""
    taken = {}
    if resource:
        unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kibibytes elsewhere
        taken["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    if (device := trainer.strategy.root_device).type == "cuda":
        taken["device"] = torch.cuda.max_memory_allocated(device) / 2**30
    return {name: round(size, 3) for name, size in taken.items()}


def log_choices(cfg: DictConfig, trainer: Trainer) -> None:
    """Give every logger the whole configuration."""
    choices = OmegaConf.to_container(cfg, resolve=True)
    for logger in trainer.loggers:
        logger.log_hyperparams(choices)  # type: ignore[arg-type]


def device_name(trainer: Trainer) -> str:
    """Return what a person calls the device: the model of a GPU, else its kind."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
