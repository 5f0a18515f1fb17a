"""What the callback asks of any Trainer: how long the run is, where its files go, whether parameters are whole."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gradflow.runs.errors import UserError


def steps_of(trainer: Trainer, model: LightningModule) -> float:
    """Return how many optimizer steps the run has, where that is known."""
    try:
        steps = trainer.estimated_stepping_batches if model.automatic_optimization else math.inf
    except MisconfigurationException:  # accumulation that changes with the epoch
        return math.inf
    return steps if steps >= 0 else math.inf  # -1: of an endless dataset


def folder_of(trainer: Trainer, run_dir: str | None) -> Path:
    """Return where tables and pictures go: a new folder beside the logger's files, unless one is named."""
    parent = run_dir if run_dir is not None else (trainer.log_dir or trainer.default_root_dir)  # asks all ranks
    if run_dir is not None or not trainer.is_global_zero:
        Path(parent).mkdir(parents=True, exist_ok=True)
        return Path(parent)
    for number in itertools.count():
        folder = Path(parent) / (f"gradients-{number}" if number else "gradients")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def reject_shards(model: LightningModule, name: str = "gradient_flow", strategy: Any = None) -> None:
    """Reject sharded parameters: the norm of a part, shown as that of the whole, would be worse than none."""
    kinds = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
    sharded = type(strategy).__name__ if isinstance(strategy, kinds) else ""
    for key, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh") or hasattr(parameter, "_is_flat_param") or "_flat_param" in key:
            sharded = sharded or "FSDP"
    if sharded:
        raise UserError(f"callbacks.{name}: parameters are sharded ({sharded}); it reads whole ones, as in ddp")
