"""Checkpoint files that earlier processes left: which is intact, and whether it fits. Nothing in them is executed."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from gradflow import runs
from gradflow.models.base import Module
from gradflow.runs.errors import UserError
from gradflow.training.checkpoints import ours


def line_counts(file: Path, checkpoint: dict[str, Any]) -> dict[str, int]:
    """Return how many lines the run's growing files had when the checkpoint was written."""
    try:
        return ours(checkpoint)["lines"]
    except KeyError:
        raise UserError(
            f"{file}: does not say how many lines {', '.join(runs.GROWING)} had, so they can't be gone on with; "
            f"resume={file} begins a new run from it"
        ) from None


def newest(run: Path) -> Path | None:
    """Return the last checkpoint, or the one before it where the last is damaged; None where a run has none yet."""
    files = [run / name for name in (runs.LAST, runs.PREVIOUS) if (run / name).is_file()]
    for file in files:
        try:
            read(file)
            return file
        except UserError as damage:
            if runs.first_rank():
                print(f"resume: {damage}", file=sys.stderr)
    if files:
        raise UserError(f"{run}: no checkpoint in it can be read; begin anew without resume=…")
    return None


def read_for(file: Path, model: Module) -> dict[str, Any]:
    """Return a checkpoint of this very model."""
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint")
    checkpoint = read(file)
    saved, expected = (
        {name: tensor.shape for name, tensor in weights.items()}
        for weights in (checkpoint["state_dict"], model.state_dict())
    )
    if saved != expected:
        raise UserError(f"{file}: holds another model; choose the same data=… and model=… options as that run")
    return checkpoint


def read(file: Path) -> dict[str, Any]:
    """Return a checkpoint in which every byte is as it was written: torch would read changed numbers without a word."""
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise KeyError(f"{damaged} has changed")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
        ours(checkpoint)
        return checkpoint
    except Exception as error:  # the bytes may be anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(f"{file}: not a checkpoint of ours, or damaged ({reason})") from error


def read_to_resume(cfg: DictConfig, file: Path, model: Module) -> dict[str, Any]:
    """Return a checkpoint of the same model and optimizer, of a run that is not over yet."""
    checkpoint = read_for(file, model)
    if not checkpoint.get("optimizer_states") or model.optimizer is None:
        raise UserError(f"resume={cfg.resume}: holds weights only, nothing to go on from")
    saved, new = (
        checkpoint["optimizer_states"][0]["param_groups"][0],
        model.optimizer(model.parameters()).param_groups[0],
    )
    saved = saved | {"lr": saved.get("initial_lr", saved["lr"])}
    if set(saved) - {"initial_lr"} != set(new):
        raise UserError(
            f"resume={cfg.resume}: was trained by another optimizer; choose the same optimizer=… as that run"
        )
    for key in new:
        if key != "params" and saved[key] != new[key]:
            raise UserError(
                f"optimizer.{key}={new[key]}: the run to resume has {saved[key]}; a resumed run goes on with it"
            )
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    unfinished = runs.read_json(Path(cfg.run_dir) / runs.SUMMARY).get("status") in ("running", "interrupted", "failed")
    for unit, done in (("epochs", epochs), ("steps", checkpoint["global_step"])):
        limit, least = cfg.trainer[f"max_{unit}"], done + (not unfinished)
        if limit is not None and 0 < limit < least:
            raise UserError(
                f"resume={cfg.resume}: has {done} {unit} behind it; give trainer.max_{unit}={least} or more"
            )
    return checkpoint


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the file of the callback `best`; None when the run keeps no checkpoints."""
    best = trainer.checkpoint_callback
    return best.best_model_path or None if isinstance(best, ModelCheckpoint) else None
