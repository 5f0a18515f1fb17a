"""Checkpoint files: the best weights, how all are written (whole, or not at all), and how those that earlier processes
left are read: which is intact, and whether it fits. Nothing in them is executed."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from gradflow import runs
from gradflow.models.base import Module
from gradflow.optimizers.groups import build_optimizer
from gradflow.optimizers.several import difference
from gradflow.runs.errors import UserError

OURS = "run"  # the key under which a checkpoint holds what is not Lightning's
_FORMAT = 2  # of that; 1 had no number, and the package's name for its key


def ours(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds beside Lightning's own, whatever the package was called when it was written."""
    content = checkpoint.get(OURS)
    if content is None:
        dicts = (value for value in checkpoint.values() if isinstance(value, dict))
        content = next((value for value in dicts if {"config", "versions"} <= value.keys()), {})
    if content.get("format", 1) > _FORMAT:
        raise UserError(f"it has format {content['format']}, and this version reads formats up to {_FORMAT}")
    return content


class Atomic(TorchCheckpointIO):
    """Write a checkpoint beside its name first, force it to the disk, then rename it: under its name a file is whole.
    Lightning's own leaves it to the system when the bytes reach the disk, and where that is full a torn file. Each
    checkpoint names its run; one without the state of an optimizer holds no place to go on from either. What has the
    name already goes to the path in `storage_options` once its successor is on the disk, so one is always whole.
    """

    def __init__(self, run_dir: str) -> None:
        self.run = Path(run_dir)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        left_out = () if "optimizer_states" in checkpoint else ("loops",)
        checkpoint = {name: value for name, value in checkpoint.items() if name not in left_out}
        config = self.run / ".hydra" / "config.yaml"
        checkpoint[OURS] = checkpoint.get(OURS, {}) | {
            "format": _FORMAT,
            "step": checkpoint["global_step"],
            "config": config.read_text(encoding="utf-8") if config.is_file() else "",
            "versions": runs.read_json(self.run / runs.SUMMARY).get("versions", {}),
        }
        with runs.write_whole(path, "wb") as file:
            torch.save(checkpoint, file)
            if storage_options and path.is_file():
                file.flush()
                os.fsync(file.fileno())
                path.replace(storage_options)
        with suppress(OSError):  # Windows opens no folder, and some file systems can't force one to the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name, too
            finally:
                os.close(folder)


@rank_zero_only
def copy_checkpoint(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(old, new)


class Best(ModelCheckpoint):
    """Keep the weights with the best `monitor`, and nothing else; those at the end where nothing was validated."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and (trainer.limit_val_batches == 0 or (data is not None and not data.has("val"))):
            self.monitor = None
        self._save_on_train_epoch_end = self.monitor is None
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring along the best weights of the run from whose checkpoint this one began, and find those of a folder that
        was moved; Lightning would forget them, and remove what a stranger's checkpoint names elsewhere."""
        old, score = Path(state_dict["best_model_path"]), state_dict["best_model_score"]
        there = old.is_file() and zipfile.is_zipfile(old)
        listed = [state_dict["kth_best_model_path"], state_dict["last_model_path"], *state_dict["best_k_models"]]
        home = Path(str(self.dirpath)).resolve()
        if not all(Path(path).resolve().is_relative_to(home) for path in listed if path):
            state_dict = state_dict | {"dirpath": None}
        if score is not None and state_dict["dirpath"] != self.dirpath:
            new = Path(self.format_checkpoint_name({}))
            if there and not new.is_file():
                copy_checkpoint(old, new)
            if there or new.is_file():
                paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), str(new))
                state_dict = state_dict | paths | {"best_k_models": {str(new): score}, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)
        self.current_score = state_dict["current_score"]  # which Lightning leaves out

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:  # the run was shorter than an epoch
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path, self.save_weights_only)


def line_counts(file: Path, checkpoint: dict[str, Any]) -> dict[str, int]:
    """Return how many lines the run's growing files had when the checkpoint was written."""
    try:
        return ours(checkpoint)["lines"]
    except KeyError:
        raise UserError(
            f"{file}: does not say how many lines {runs.METRICS} and other tables had, so they can't be gone on with; "
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
        if file.suffix != ".ckpt":
            raise UserError(f"{file}: no such run folder or checkpoint")
        there = ", ".join(sorted(path.name for path in file.parent.glob("*.ckpt")))
        run, goes_on = file.parent.parent, ""
        if (run / runs.OVERRIDES).is_file() and runs.read_json(run / runs.SUMMARY).get("status") not in runs.OVER:
            goes_on = (
                f"; its training is not finished, and python src/train.py resume={os.path.relpath(run)} goes on with it"
            )
        raise UserError(f"{file}: no such checkpoint; its folder has {there or 'none'}{goes_on}")
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
    saved = checkpoint["optimizer_states"][0]["param_groups"]
    if error := difference(saved, build_optimizer(model.optimizer, model)):
        raise UserError(error)
    sums, measured = ours(checkpoint).get("sums"), model.metrics.of("train")
    if sums is not None and sums.keys() != measured.keys():
        raise UserError(f"resume={cfg.resume}: its sums are of {', '.join(sums) or 'no metric'}, and this run measures "
                        f"{', '.join(measured) or 'none'}; choose the same metrics=… as that run")  # fmt: skip
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    unfinished = runs.read_json(Path(cfg.run_dir) / runs.SUMMARY).get("status") in ("running", "interrupted", "failed")
    for unit, done in (("epochs", epochs), ("steps", checkpoint["global_step"])):
        limit, least = cfg.trainer[f"max_{unit}"], done + (not unfinished)
        if limit is not None and 0 < limit < least:
            raise UserError(
                f"resume={cfg.resume}: has {done} {unit} behind it; give trainer.max_{unit}={least} or more"
            )
    return checkpoint


def test_best(trainer: Trainer, model: Module, data: LightningDataModule) -> dict[str, Any]:
    """Test the weights of the callback `best`, or those at the end where a run keeps none; return what came of it."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", None) or None
    (scores,) = trainer.test(model, data, ckpt_path=best, weights_only=True, verbose=False)
    return {"test": scores, "tested": Path(best).name if best else "the weights at the end"}
