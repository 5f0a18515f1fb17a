"""What a command takes over from an earlier run: the checkpoint that it goes on from, or its whole configuration."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from gradflow import runs
from gradflow.config import precision
from gradflow.config.trust import check_recorded, check_run
from gradflow.models.base import Module
from gradflow.runs import claims
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import goes_on_in_folder, initial_resume, key, literal, quoted, record, top_key
from gradflow.training import checkpoints

_DROPPED = ("trainer", "callbacks", "logger", "debug", "resume", "hydra", "run_dir")  # when a run is evaluated


def start(cfg: DictConfig, model: Module) -> Path | None:
    """Return the checkpoint that a run goes on from, None for none, and cut off what its folder records beyond it."""
    run = Path(cfg.run_dir)
    if not cfg.resume:
        return None
    in_folder = goes_on_in_folder(cfg.resume)
    file = checkpoints.newest(run) or initial_checkpoint(run) if in_folder else Path(cfg.resume)
    if not file and runs.read_json(run / runs.SUMMARY).get("status") in runs.OVER:
        raise UserError(f"{run}: its training is over, and no checkpoint of it is here; train anew without resume=…")
    checkpoint = checkpoints.read_to_resume(cfg, file, model) if file else {}
    lines = checkpoints.line_counts(file, checkpoint) if file and file.is_relative_to(run) else {}
    runs.check_intact(run, lines)
    if claims.goes_on(run):
        where = f"step {checkpoint['global_step']}, {os.path.relpath(file, run)}" if file else "the start"
        why = "" if file else ": it has no checkpoint yet"
        print(f"resume: {os.path.relpath(run)} goes on from {where}{why}")
        runs.truncate_tables(run, lines)
        record(run, cfg)
    return file


def initial_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint of another run from which this one began."""
    file = literal("resume", check_recorded(initial_resume(run)))
    return Path(str(file)) if file else None


def finished_run(cfg: DictConfig) -> tuple[Path, DictConfig]:
    """Return a run's folder, and its configuration composed again from conf/ and its recorded overrides, for one
    device. Nothing that the folder holds is executed."""
    run = runs.find(cfg.run)
    check_run(run)
    recorded = runs.recorded_overrides(run)
    used = [one for one in recorded if top_key(one) not in _DROPPED or key(one) == "trainer.precision"]
    chosen = [f"trainer.precision={name}"] if (name := precision.recorded(run)) else []
    ours = [f"trainer={cfg.accelerator}", "logger=none", "callbacks=none", f"run_dir={quoted(run)}"]
    overrides = [*check_recorded(used), *ours, *chosen]
    return run, GlobalHydra.instance().config_loader().load_configuration("train", overrides, run_mode=RunMode.RUN)
