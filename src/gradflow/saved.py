"""What earlier runs left: their checkpoints and their configurations. Nothing that is read here is executed."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from gradflow import runs
from gradflow.mistakes import Mistake
from gradflow.models.module import Module


def unused_folder(cfg: DictConfig, trainer: Trainer) -> None:
    """Hydra takes any folder that is given as hydra.run.dir; a run in it must not be written over."""
    if trainer.is_global_zero and (Path(cfg.run_dir) / runs.SUMMARY).exists():
        raise Mistake(f"{cfg.run_dir}: holds a run already; give another hydra.run.dir=…, or none")


def checkpoint(path: str, model: Module) -> Path:
    """The checkpoint that a user named, by itself or by its run folder; readable, and of this very model."""
    file = Path(path) / runs.LAST if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise Mistake(f"{file}: no such checkpoint")
    shapes, wanted = ({k: v.shape for k, v in w.items()} for w in (contents(file)["state_dict"], model.state_dict()))
    if shapes != wanted:
        raise Mistake(f"{file}: holds another model; choose the same data=… and model=… options as that run")
    return file


def contents(file: Path) -> dict[str, Any]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        held["state_dict"].items()
        return held
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Mistake(f"{file}: not a checkpoint of ours, or damaged ({reason})") from error


def to_resume(cfg: DictConfig, model: Module) -> Path:
    """A checkpoint of the same model and optimizer, of a run that is not over yet."""
    file = checkpoint(cfg.resume, model)
    held = contents(file)
    if not held.get("optimizer_states") or model.optimizer is None:
        raise Mistake(f"resume={cfg.resume}: holds weights only, nothing to go on from")
    was, fresh = held["optimizer_states"][0]["param_groups"][0], model.optimizer(model.parameters()).param_groups[0]
    was = was | {"lr": was.get("initial_lr", was["lr"])}
    if set(was) - {"initial_lr"} != set(fresh):
        raise Mistake(f"resume={cfg.resume}: was trained by another optimizer; choose the same optimizer=… as that run")
    for key in fresh:
        if key != "params" and was[key] != fresh[key]:
            raise Mistake(
                f"optimizer.{key}={fresh[key]}: the run to resume has {was[key]}; a resumed run goes on with it"
            )
    done = held["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    if cfg.trainer.max_epochs is not None and 0 < cfg.trainer.max_epochs <= done:
        raise Mistake(f"resume={cfg.resume}: has {done} epochs behind it; give trainer.max_epochs={done + 1} or more")
    return file


def best_checkpoint(trainer: Trainer) -> str | None:
    """Written by the callback `best`; None when the run keeps no checkpoints."""
    best = trainer.checkpoint_callback
    return best.best_model_path or None if isinstance(best, ModelCheckpoint) else None


def finished_run(cfg: DictConfig) -> tuple[Path, DictConfig]:
    """A run's folder, and its configuration composed again from conf/ and its recorded overrides, for one device."""
    try:
        run = runs.find(cfg.run)
    except FileNotFoundError as error:
        raise Mistake(f"run={error}") from None
    dropped = ("trainer", "callbacks", "logger", "debug", "resume")
    words = [word for word in runs.overrides(run) if re.split("[=.@]", word.lstrip("+~"))[0] not in dropped]
    words += [word for word in runs.overrides(run) if word.startswith("trainer.precision=")]
    loader = GlobalHydra.instance().config_loader()
    words += [f"trainer={cfg.accelerator}", "logger=none", "callbacks=none", f"run_dir='{run}'"]
    return run, loader.load_configuration("train", words, run_mode=RunMode.RUN)
