"""What the configuration alone shows to be impossible, told before data are loaded or a folder is written to."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gradflow import metrics
from gradflow.mistakes import Mistake, nearest
from gradflow.spec import Spec

LEAST = {  # what Lightning takes, and then divides by or never ends with
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "gradient_clip_val": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
}
LIVE = ("callbacks", "logger", "default_root_dir", "plugins", "enable_progress_bar", "enable_checkpointing")
STARTED = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR")  # what tells a process of other nodes


def trainer(cfg: DictConfig) -> None:
    node = cfg.trainer
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and "ddp" in str(node.strategy):
        raise Mistake("trainer=ddp in a sweep: each process would run a sweep of its own; use hydra/launcher=local")
    if cfg.optimizer.get("fused") and node.gradient_clip_val and str(node.precision).startswith("16"):
        raise Mistake(
            "optimizer.fused=true: unscales 16-bit gradients too late for clipping; leave out one of the three"
        )
    for key, least in LEAST.items():
        if node.get(key) is not None and node[key] < least:
            raise Mistake(f"trainer.{key}={node[key]}: expected {least} or more")
    for key in ("limit_train_batches", "val_check_interval"):
        if isinstance(node.get(key), (int, float)) and node[key] <= 0:
            raise Mistake(f"trainer.{key}={node[key]}: expected a number or a fraction above 0")
    if node.accumulate_grad_batches is None:
        raise Mistake("trainer.accumulate_grad_batches=null: expected 1 or more")
    machines(node)
    for key in LIVE:
        if key in node:
            raise Mistake(f"trainer.{key}: follows from other choices, callbacks=… and logger=… among them")
    for key in ("max_epochs", "max_steps"):
        if node[key] is not None and node[key] < 1 and node[key] != -1:
            raise Mistake(f"trainer.{key}={node[key]}: expected 1 or more, or -1 for no limit")
    if node.max_epochs in (None, -1) and node.max_steps == -1:
        raise Mistake("trainer.max_epochs=-1: the run has no end; give trainer.max_steps=…")


def machines(node: DictConfig) -> None:
    """What Lightning would replace with a warning, wait for without end, or run without our flow around it."""
    if isinstance(node.devices, int) and node.devices < 1 and node.devices != -1:
        raise Mistake(f"trainer.devices={node.devices}: expected 1 or more, or -1 for all GPUs")
    if node.num_nodes > 1 and not any(name in os.environ for name in STARTED):
        raise Mistake(
            f"trainer.num_nodes={node.num_nodes}: the other nodes' processes are started by torchrun or srun; "
            "without them this one would wait"
        )
    if any(kind in str(node.strategy) for kind in ("spawn", "fork", "notebook")):
        raise Mistake(f"trainer.strategy={node.strategy}: its processes know nothing of this run; expected ddp")
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if node.accelerator == "gpu" and not gpu:
        raise Mistake(
            "trainer.accelerator=gpu: no GPU is here that this torch can use; trainer=cpu, auto or ddp_cpu runs"
        )
    on_cpu = node.accelerator == "cpu" or (node.accelerator == "auto" and not gpu)
    if on_cpu and str(node.precision) in ("16", "16-mixed"):
        raise Mistake(f"trainer.precision={node.precision}: needs a GPU; a CPU has bf16-mixed and 32-true")


def monitors(cfg: DictConfig, spec: Spec) -> None:
    """Lightning finds out when an epoch is over."""
    score = "accuracy" if spec.task == "classification" else "mse"
    known = [f"{metric}/{split}" for metric in ("loss", score) for split in ("train", "val")]
    for name, node in callback_nodes(cfg).items():
        if (monitor := node.get("monitor")) not in (None, *known):
            raise Mistake(f"callbacks.{name}.monitor={monitor}: no such metric; {nearest(str(monitor), known)}")
        if monitor and node.get("mode") is not None:
            metrics.mode(f"callbacks.{name}.mode", node.mode, monitor)


def folders(cfg: DictConfig) -> None:
    chosen = {f"callbacks.{name}.dirpath": node.get("dirpath") for name, node in callback_nodes(cfg).items()}
    chosen["logger.save_dir"] = (cfg.logger or {}).get("save_dir")
    for key, value in chosen.items():
        path = Path(value or ".").absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise Mistake(f"{key}={value}: {there} is not a folder that can be written to")


def callback_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    nodes = {str(name): node for name, node in (cfg.callbacks or {}).items() if node}
    for name, node in nodes.items():
        if not OmegaConf.is_dict(node):
            raise Mistake(f"callbacks.{name}={node}: expected null, or a node with a _target_")
    return {name: node for name, node in nodes.items() if "_target_" in node}
