"""What a run says before it starts: its choices, its data and device, and the network as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig

from gradflow.data.datamodule import DataModule
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.table import parameters_table
from gradflow.models.base import Module
from gradflow.runs.screen import Screen, link
from gradflow.training.summary import device_name, init_name, not_initialised

_NAMED = 8  # parameters in a line on the screen; summary.json has all of them


def print_start(
    cfg: DictConfig, trainer: Trainer, data: DataModule, model: Module, facts: Mapping[str, Any], notes: Iterable[str]
) -> None:
    """Print what is about to be trained, what changed since a run was interrupted, and what does nothing here."""
    if not trainer.is_global_zero:
        return
    console = Screen()
    notes = [*notes, *facts.get("changed_when_resumed", ())]
    named = layers(model, frozen=True)
    count = sum(parameter.numel() for parameters in named.values() for parameter in parameters)
    device = (f"{trainer.world_size} × " if trainer.world_size > 1 else "") + device_name(trainer)
    console.row("model", f"{type(model).__name__}, {count:,} parameters")
    console.row("choices", " ".join(facts["overrides"]) or "none but the defaults")
    console.row("data", f"{describe(data.describe())}, batches of {data.batch_size}")
    console.row("device", f"{device}, precision {trainer.precision}")
    console.row("run folder", os.path.relpath(cfg.run_dir), link(Path(cfg.run_dir)))
    if cfg.summary not in ("short", "json"):
        console.print(parameters_table(named, model.trunk, whole=cfg.summary == "full"))
    if names := not_initialised(model):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        notes = [*notes, f"init={init_name(model)} left as they were: {', '.join(names[:_NAMED])}{more}"]
    if names := model.metrics.not_on_train:
        why = "their states are no sums, or to find which entries count waits for the device"
        notes = [*notes, f"no training metric {', '.join(names)}: {why}; of val and test only"]
    if isinstance(cfg.trainer.get("profiler"), str):
        notes = [*notes, "the profiler's tables go to *-profile.txt in the run folder"]
    for note in notes:
        console.row("note:", note, margin=6)


def describe(data: Mapping[str, Any]) -> str:
    """Return which data these are, and where they come from."""
    known = dict(data)
    name, samples, home = (known.pop(key) for key in ("name", "samples", "memory"))
    sizes = ", ".join(f"{count:,} {split}" for split, count in samples.items() if count)
    origin = next((f", {key} {value}" for key, value in known.items() if isinstance(value, str)), "")
    if "reason" in known:
        origin = f", chosen by data=auto: {known['reason']}"
    return f"{name} ({sizes}){origin}, {home}"
