"""Reject what the configuration alone shows to be impossible, before anything is built or a folder is used."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from gradflow.config.trust import last_key, nodes
from gradflow.config.value_types import mismatch
from gradflow.data.datamodule import DataModule
from gradflow.models.base import Module
from gradflow.models.compile_trial import missing_compiler
from gradflow.runs.errors import UserError

_LEAST = {  # of what Lightning takes, and then divides by or never ends with
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "gradient_clip_val": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
}
_NEEDED = ("accumulate_grad_batches", "num_nodes", "max_steps")
_OTHER_NODES = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR")  # what tells a process of other nodes


def check(cfg: DictConfig) -> None:
    """Reject a configuration that can't run."""
    _check_callbacks(cfg)
    if cfg.trainer.compile is True and (missing := missing_compiler(on_cpu(cfg.trainer))):
        raise UserError(f"trainer.compile=true: {missing}")
    errors = itertools.chain(_seeds(cfg), _trainer(cfg), _added(cfg.trainer), _machines(cfg.trainer))
    if error := next(errors, None):
        raise UserError(error)


def _seeds(cfg: DictConfig) -> Iterator[str]:
    """Yield what is wrong with the seeds, wherever they stand."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    for key in [path for path, value in nodes(plain) if last_key(path) == "seed" and not isinstance(value, Mapping)]:
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or not 0 <= value < 2**32:
            yield f"{key}={value}: expected a whole number from 0 to {2**32 - 1}"


def _trainer(cfg: DictConfig) -> Iterator[str]:
    """Yield what is wrong with the options that conf/trainer/ has."""
    node = cfg.trainer
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and "ddp" in str(node.strategy):
        yield "trainer=ddp in a sweep: each process would run a sweep of its own; use hydra/launcher=local"
    if cfg.optimizer.get("fused") is True and node.gradient_clip_val and str(node.precision).startswith("16"):
        yield "optimizer.fused=true: unscales 16-bit gradients too late for clipping; leave out one of the three"
    for key, least in _LEAST.items():
        if (value := node.get(key)) is not None and not (type(value) in (int, float) and value >= least):
            yield f"trainer.{key}={value}: expected {least} or more"
    for key in _NEEDED:
        if node[key] is None:
            yield f"trainer.{key}=null: expected a number"
    if cfg.get("test") and node.get("limit_test_batches") == 0:
        yield f"trainer.limit_test_batches={node.limit_test_batches}: nothing would be tested; give test=false"
    for key in ("limit_train_batches", "val_check_interval"):
        if isinstance(node.get(key), (int, float)) and node[key] <= 0:
            yield f"trainer.{key}={node[key]}: expected a number or a fraction above 0"
    for key in ("max_epochs", "max_steps"):
        if isinstance(node[key], int) and node[key] < 1 and node[key] != -1:
            yield f"trainer.{key}={node[key]}: expected 1 or more, or -1 for no limit"
    if isinstance(node.devices, int) and node.devices < 1 and (on_cpu(node) or node.devices != -1):
        yield f"trainer.devices={node.devices}: expected 1 or more{'' if on_cpu(node) else ', or -1 for all'}"
    if node.max_epochs in (None, -1) and node.max_steps == -1:
        yield "trainer.max_epochs=-1: the run has no end; give trainer.max_steps=…"


def _added(node: DictConfig) -> Iterator[str]:
    """Yield what is wrong with keys of Lightning's that no option here has: it takes many a wrong value, and stumbles
    later."""
    for key, parameter in inspect.signature(Trainer.__init__).parameters.items():
        if key in node and (expected := mismatch(parameter.default, node[key])):
            yield f"trainer.{key}={node[key]}: expected {expected}"
    if node.get("fast_dev_run"):
        yield f"trainer.fast_dev_run={node.fast_dev_run}: leaves out what a run records; debug=fast is quick, too"
    if not isinstance(node.get("max_time") or "", (str, DictConfig)):
        yield f"trainer.max_time={node.max_time}: expected days, hours, minutes and seconds, like 00:12:00:00"
    for unit in ("epochs", "steps"):
        least, most = node.get(f"min_{unit}"), node[f"max_{unit}"]
        if least and most and -1 != most < least:
            yield f"trainer.min_{unit}={least}: is more than trainer.max_{unit}={most}"


def _machines(node: DictConfig) -> Iterator[str]:
    """Yield what Lightning would replace with a warning, wait for without end, or run without our flow around it."""
    if node.num_nodes > 1 and not any(name in os.environ for name in _OTHER_NODES):
        how = "the other nodes' processes are started by torchrun or srun; without them this one would wait"
        yield f"trainer.num_nodes={node.num_nodes}: {how}"
    if any(kind in str(node.strategy) for kind in ("spawn", "fork", "notebook")):
        yield f"trainer.strategy={node.strategy}: its processes know nothing of this run; expected ddp"
    if node.accelerator == "gpu" and not _has_gpu():
        yield "trainer.accelerator=gpu: no GPU is here that this torch can use; trainer=cpu, auto or ddp_cpu runs"
    if on_cpu(node) and str(node.precision) in ("16", "16-mixed"):
        yield f"trainer.precision={node.precision}: needs a GPU; a CPU has bf16-mixed and 32-true"


def _has_gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def on_cpu(node: DictConfig) -> bool:
    return node.accelerator == "cpu" or (node.accelerator == "auto" and not _has_gpu())


def check_batch_limits(cfg: DictConfig, trainer: Trainer, data: DataModule) -> None:
    """A fraction of a split may be no batch at all, which Lightning finds out when it comes to the split."""
    for split in filter(data.has, ("train", "val", *(["test"] if cfg.test else []))):
        limit: Any = getattr(trainer, f"limit_{split}_batches")
        if not (isinstance(limit, float) and 0 < limit < 1):
            continue
        if int((batches := len(data.loader(split, training=split == "train"))) * limit) == 0:
            overfit = getattr(trainer, "overfit_batches", 0) and split != "test"
            raise UserError(
                f"trainer.{'overfit' if overfit else f'limit_{split}'}_batches={limit}: none is left of {batches} "
                f"batches of {split}; expected 1/{batches} or more, or a number of batches"
            )


def _check_callbacks(cfg: DictConfig) -> None:
    """Reject folders that Lightning would stumble over when an epoch is over."""
    folders = {"logger.save_dir": (cfg.logger or {}).get("save_dir")}
    for key, node in built_nodes(cfg, "callbacks").items():
        run_dir = node.get("run_dir", cfg.run_dir)
        if run_dir != cfg.run_dir:
            raise UserError(f"{key}.run_dir={run_dir}: follows from the run's folder; leave it out")
        folders[f"{key}.dirpath"] = node.get("dirpath")
    for key, value in folders.items():
        if not value:
            continue
        path = Path(value).absolute()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise UserError(f"{key}={value}: {existing} is not a folder that can be written to")


def built_nodes(cfg: DictConfig, group: str) -> dict[str, DictConfig]:
    """Return the nodes of a group that are built one by one, by their keys."""
    nodes = {f"{group}.{name}": node for name, node in (cfg.get(group) or {}).items() if node}
    for key, node in nodes.items():
        if not OmegaConf.is_dict(node):
            raise UserError(f"{key}={node}: expected null, or a node with a _target_")
    return {key: node for key, node in nodes.items() if "_target_" in node}


def check_batch_norm(cfg: DictConfig, model: Module) -> None:
    """Batch norm has no variance of one sample, and PyTorch says so at the first step."""
    node, samples = cfg.trainer, cfg.data.get("batch_size", 0)
    ranks = [number for number in (node.devices, node.num_nodes) if type(number) is int and number > 0]
    if samples != math.prod(ranks) or node.get("sync_batchnorm"):
        return
    spec = model.spec
    x = torch.zeros(1, *spec.shape, dtype=torch.long if spec.tokens else None)
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            copy.deepcopy(model).train()(x)
    except ValueError as error:
        if "more than 1 value" in str(error):
            raise UserError(f"data.batch_size={samples}: batch norm has no variance of one sample; expected 2 or more "
                          "for each device") from error  # fmt: skip
