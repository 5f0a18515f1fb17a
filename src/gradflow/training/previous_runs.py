"""What earlier runs left: their checkpoints and their configurations. Nothing that is read here is executed."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from gradflow import runs
from gradflow.config import resume
from gradflow.config.trust import check_recorded, check_run
from gradflow.models.base import Module
from gradflow.runs import claims
from gradflow.runs.errors import UserError
from gradflow.training.checkpoints import ours


def start(cfg: DictConfig, model: Module) -> Path | None:
    """Return the checkpoint from which a run goes on, having cut off what its folder records beyond it; None where it
    begins."""
    run = Path(cfg.run_dir)
    if not cfg.resume:
        return None
    file = newest(run) or beginning(run) if resume.goes_on(cfg.resume) else Path(cfg.resume)
    content = _to_resume(cfg, file, model) if file else {}
    lines = counted(file, content) if file and file.is_relative_to(run) else {}
    runs.check_intact(run, lines)
    if claims.goes_on(run):
        place = (
            f"step {content['global_step']}, {os.path.relpath(file, run)}"
            if file
            else "the start: it has no checkpoint yet"
        )
        print(f"resume: {os.path.relpath(run)} goes on from {place}")
        runs.truncate_tables(run, lines)
        resume.record(run, cfg)
    return file


def counted(file: Path, content: dict[str, Any]) -> dict[str, int]:
    """Return how many lines the run's growing files had when the checkpoint was written; what follows is cut off."""
    try:
        return ours(content)["lines"]
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
            contents(file)
            return file
        except UserError as error:
            if runs.first_rank():
                print(f"resume: {error}", file=sys.stderr)
    if files:
        raise UserError(f"{run}: no checkpoint in it can be read; begin a new run without resume=…")
    return None


def beginning(run: Path) -> Path | None:
    """Return the checkpoint of another run from which this one began."""
    file = resume.written("resume", check_recorded(resume.beginning(run)))
    return Path(str(file)) if file else None


def checkpoint(file: Path, model: Module) -> dict[str, Any]:
    """Return what a checkpoint holds, which has to be of this very model."""
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint")
    content = contents(file)
    shapes, wanted = ({k: v.shape for k, v in w.items()} for w in (content["state_dict"], model.state_dict()))
    if shapes != wanted:
        raise UserError(f"{file}: holds another model; choose the same data=… and model=… options as that run")
    return content


def contents(file: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, if every byte is as it was written: torch would read changed numbers silently."""
    try:
        with zipfile.ZipFile(file) as archive:
            if torn := archive.testzip():
                raise KeyError(f"{torn} has changed")
        content = torch.load(file, map_location="cpu", weights_only=True)
        {name: tensor.shape for name, tensor in content["state_dict"].items()}
        ours(content)
        return content
    except Exception as error:  # of bytes that may be anything
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(f"{file}: not a checkpoint of ours, or damaged ({reason})") from error


def _to_resume(cfg: DictConfig, file: Path, model: Module) -> dict[str, Any]:
    """Return what a checkpoint of the same model and optimizer holds, of a run that is not over yet."""
    content = checkpoint(file, model)
    if not content.get("optimizer_states") or model.optimizer is None:
        raise UserError(f"resume={cfg.resume}: holds weights only, nothing to go on from")
    was, fresh = content["optimizer_states"][0]["param_groups"][0], model.optimizer(model.parameters()).param_groups[0]
    was = was | {"lr": was.get("initial_lr", was["lr"])}
    if set(was) - {"initial_lr"} != set(fresh):
        raise UserError(
            f"resume={cfg.resume}: was trained by another optimizer; choose the same optimizer=… as that run"
        )
    for key in fresh:
        if key != "params" and was[key] != fresh[key]:
            raise UserError(
                f"optimizer.{key}={fresh[key]}: the run to resume has {was[key]}; a resumed run goes on with it"
            )
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    unfinished = runs.read_json(Path(cfg.run_dir) / runs.SUMMARY).get("status") in ("running", "interrupted", "failed")
    for unit, done in (("epochs", epochs), ("steps", content["global_step"])):
        limit = cfg.trainer[f"max_{unit}"]
        least = done + (not unfinished)
        if limit is not None and 0 < limit < least:
            raise UserError(
                f"resume={cfg.resume}: has {done} {unit} behind it; give trainer.max_{unit}={least} or more"
            )
    return content


def best_checkpoint(trainer: Trainer) -> str | None:
    """Return the file that the callback `best` wrote; None when the run keeps no checkpoints."""
    best = trainer.checkpoint_callback
    return best.best_model_path or None if isinstance(best, ModelCheckpoint) else None


def finished_run(cfg: DictConfig) -> tuple[Path, DictConfig]:
    """A run's folder, and its configuration composed again from conf/ and its recorded overrides, for one device."""
    try:
        run = runs.find(cfg.run)
    except FileNotFoundError as error:
        raise UserError(f"run={error}") from None
    check_run(run)
    dropped = ("trainer", "callbacks", "logger", "debug", "resume", "hydra", "run_dir")
    words = [word for word in runs.overrides(run) if re.split("[=.@/]", word.lstrip("+~"))[0] not in dropped]
    words += [word for word in runs.overrides(run) if word.startswith("trainer.precision=")]
    words = check_recorded(words)
    loader = GlobalHydra.instance().config_loader()
    words += [f"trainer={cfg.accelerator}", "logger=none", "callbacks=none", f"run_dir={resume.quoted(run)}"]
    return run, loader.load_configuration("train", words, run_mode=RunMode.RUN)
