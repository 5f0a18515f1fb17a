"""What the configuration alone shows to be impossible, told before data are loaded or a folder is written to."""

from __future__ import annotations

import copy
import inspect
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.overrides import TorchFunctionMode

from gradflow.config.value_types import mismatch
from gradflow.data import memory
from gradflow.data.datamodule import DataModule
from gradflow.models.base import Module
from gradflow.runs import metric_direction
from gradflow.runs.errors import UserError, did_you_mean
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
LARGE, PERIOD = 256, 48  # sizes above the first are tried as smaller ones, which fit 6n + 2 layers and 16 heads, too
MOST = 100_000  # tensors of a network: making each takes 0.2 ms, and so does each step
Keys = tuple[str | int, ...]
STARTED = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR")  # what tells a process of other nodes


def trainer(cfg: DictConfig) -> None:
    node = cfg.trainer
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and "ddp" in str(node.strategy):
        raise UserError("trainer=ddp in a sweep: each process would run a sweep of its own; use hydra/launcher=local")
    if cfg.optimizer.get("fused") and node.gradient_clip_val and str(node.precision).startswith("16"):
        raise UserError(
            "optimizer.fused=true: unscales 16-bit gradients too late for clipping; leave out one of the three"
        )
    for key, least in LEAST.items():
        if (value := node.get(key)) is not None and not (type(value) in (int, float) and value >= least):
            raise UserError(f"trainer.{key}={value}: expected {least} or more")
    if cfg.get("test") and node.get("limit_test_batches") == 0:
        raise UserError(
            f"trainer.limit_test_batches={node.limit_test_batches}: nothing would be tested; give test=false"
        )
    for key in ("limit_train_batches", "val_check_interval"):
        if isinstance(node.get(key), (int, float)) and node[key] <= 0:
            raise UserError(f"trainer.{key}={node[key]}: expected a number or a fraction above 0")
    for key in ("accumulate_grad_batches", "num_nodes"):
        if node[key] is None:
            raise UserError(f"trainer.{key}=null: expected 1 or more")
    added(node)
    machines(node)
    for key in LIVE:
        if key in node:
            raise UserError(f"trainer.{key}: follows from other choices, callbacks=… and logger=… among them")
    for key in ("max_epochs", "max_steps"):
        if node[key] is not None and node[key] < 1 and node[key] != -1:
            raise UserError(f"trainer.{key}={node[key]}: expected 1 or more, or -1 for no limit")
    if node.max_steps is None:
        raise UserError("trainer.max_steps=null: expected 1 or more, or -1 for no limit")
    if node.max_epochs in (None, -1) and node.max_steps == -1:
        raise UserError("trainer.max_epochs=-1: the run has no end; give trainer.max_steps=…")


def added(node: DictConfig) -> None:
    """Keys of Lightning's that are in no option here; it takes many a wrong value, and stumbles later."""
    for key, parameter in inspect.signature(Trainer.__init__).parameters.items():
        if key in node and (wanted := mismatch(parameter.default, node[key])):
            raise UserError(f"trainer.{key}={node[key]}: expected {wanted}")
    if node.get("fast_dev_run"):
        raise UserError(
            f"trainer.fast_dev_run={node.fast_dev_run}: leaves out what a run records; debug=fast is quick, too"
        )
    if not isinstance(node.get("max_time", ""), (str, DictConfig)):
        raise UserError(
            f"trainer.max_time={node.max_time}: expected days, hours, minutes and seconds, like 00:12:00:00"
        )
    for unit in ("epochs", "steps"):
        least, most = node.get(f"min_{unit}"), node[f"max_{unit}"]
        if least and most and -1 != most < least:
            raise UserError(f"trainer.min_{unit}={least}: is more than trainer.max_{unit}={most}")


def machines(node: DictConfig) -> None:
    """What Lightning would replace with a warning, wait for without end, or run without our flow around it."""
    if isinstance(node.devices, int) and node.devices < 1 and node.devices != -1:
        raise UserError(f"trainer.devices={node.devices}: expected 1 or more, or -1 for all GPUs")
    if node.num_nodes > 1 and not any(name in os.environ for name in STARTED):
        raise UserError(
            f"trainer.num_nodes={node.num_nodes}: the other nodes' processes are started by torchrun or srun; "
            "without them this one would wait"
        )
    if any(kind in str(node.strategy) for kind in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={node.strategy}: its processes know nothing of this run; expected ddp")
    if node.accelerator == "gpu" and not gpu():
        raise UserError(
            "trainer.accelerator=gpu: no GPU is here that this torch can use; trainer=cpu, auto or ddp_cpu runs"
        )
    if on_cpu(node) and str(node.precision) in ("16", "16-mixed"):
        raise UserError(f"trainer.precision={node.precision}: needs a GPU; a CPU has bf16-mixed and 32-true")


def gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def on_cpu(node: DictConfig) -> bool:
    return node.accelerator == "cpu" or (node.accelerator == "auto" and not gpu())


def compiler(node: DictConfig) -> None:
    """torch.compile looks for one at the first step: for C++ on a CPU, for C on a GPU, as Inductor and Triton do."""
    names = ["CXX", "clang++" if sys.platform == "darwin" else "g++"] if on_cpu(node) else ["CC", "gcc", "clang"]
    wanted = [named] if (named := os.environ.get(names[0])) else names[1:]
    if node.compile and not any(shutil.which(name.split()[0]) for name in wanted):
        raise UserError(f"trainer.compile=true: needs a compiler, {' or '.join(wanted)}, and none is on the PATH")


def limits(cfg: DictConfig, trainer: Trainer, data: DataModule) -> None:
    """A fraction of a split may be no batch at all, which Lightning finds out when it comes to the split."""
    overfit: Any = getattr(trainer, "overfit_batches", 0)
    for split in ("train", "val", *(["test"] if cfg.test else [])):
        limit = getattr(trainer, f"limit_{split}_batches")
        if not (data.has(split) and isinstance(limit, float) and 0 < limit < 1):
            continue
        if int((batches := len(data.loader(split, training=split == "train"))) * limit) == 0:
            key = "overfit_batches" if overfit and split != "test" else f"limit_{split}_batches"
            raise UserError(
                f"trainer.{key}={limit}: none is left of {batches} batches of {split}; expected 1/{batches} or more, "
                "or a number of batches"
            )


def one_sample(cfg: DictConfig, model: Module) -> None:
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


def monitors(cfg: DictConfig, spec: Spec) -> None:
    """Lightning finds out when an epoch is over."""
    score = "accuracy" if spec.task == "classification" else "mse"
    known = [f"{metric}/{split}" for metric in ("loss", score) for split in ("train", "val")]
    for name, node in callback_nodes(cfg).items():
        if (monitor := node.get("monitor")) not in (None, *known):
            raise UserError(f"callbacks.{name}.monitor={monitor}: no such metric; {did_you_mean(str(monitor), known)}")
        if monitor and node.get("mode") is not None:
            metric_direction.mode(f"callbacks.{name}.mode", node.mode, monitor)


def folders(cfg: DictConfig) -> None:
    for name, node in callback_nodes(cfg).items():
        if (given := node.get("run_dir", cfg.run_dir)) != cfg.run_dir:
            raise UserError(f"callbacks.{name}.run_dir={given}: follows from the run's folder; leave it out")
    chosen = {f"callbacks.{name}.dirpath": node.get("dirpath") for name, node in callback_nodes(cfg).items()}
    chosen["logger.save_dir"] = (cfg.logger or {}).get("save_dir")
    for key, value in chosen.items():
        if not value:
            continue
        path = Path(value).absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UserError(f"{key}={value}: {there} is not a folder that can be written to")


def callback_nodes(cfg: DictConfig) -> dict[str, DictConfig]:
    nodes = {str(name): node for name, node in (cfg.callbacks or {}).items() if node}
    for name, node in nodes.items():
        if not OmegaConf.is_dict(node):
            raise UserError(f"callbacks.{name}={node}: expected null, or a node with a _target_")
    return {name: node for name, node in nodes.items() if "_target_" in node}


def fits(node: DictConfig, build: Callable[[DictConfig], nn.Module]) -> None:
    """A model whose weights and gradients this machine can't hold would fill it, or be built for hours."""
    plain: Any = OmegaConf.to_container(node, resolve=True)
    large = list(large_numbers(plain))
    try:
        with torch.random.fork_rng([]), torch.device("meta"), Undrawn(), warnings.catch_warnings(action="ignore"):
            needed, tensors = size(plain, large, build)
    except Exception:  # of a model that can't be built so, or with other numbers: building it tells more
        return
    given = ", ".join(f"model.{'.'.join(map(str, path))}={number}" for path, number in large) or "model"
    memory.check_room(given, "its weights and gradients", needed)
    if tensors > MOST:
        raise UserError(f"{given}: a network of {tensors:,} weight and bias tensors; expected {MOST:,} or fewer")


class Undrawn(TorchFunctionMode):
    """Leaves weights as they are made: nothing can be seen of a draw on the device meta, and it takes 1 ms there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "orthogonal_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def size(plain: Any, large: Sequence[tuple[Keys, int]], build: Callable[[DictConfig], nn.Module]) -> Any:
    """Bytes of a model's weights and gradients, and how many tensors it has. Of large numbers from three smaller ones
    each: exact where they are polynomials of at most the second degree, as they are in a depth and in a width."""
    if not large:
        each = [2 * p.nbytes for p in build(OmegaConf.create(plain)).parameters()]
        return np.array([sum(each), len(each)], dtype=object)  # whole numbers without an end
    (path, number), *rest = large
    periods, first = number // PERIOD - 1, PERIOD + number % PERIOD
    a, b, c = (size(with_number(plain, path, first + k * PERIOD), rest, build) for k in range(3))
    return a + periods * (b - a) + periods * (periods - 1) // 2 * (c - 2 * b + a)  # Newton's differences


def large_numbers(plain: Any, path: Keys = ()) -> Iterator[tuple[Keys, int]]:
    if isinstance(plain, (dict, list)):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from large_numbers(value, (*path, key))
    elif type(plain) is int and plain > LARGE:
        yield path, plain


def with_number(plain: Any, path: Keys, number: int) -> Any:
    changed = node = copy.deepcopy(plain)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = number
    return changed
