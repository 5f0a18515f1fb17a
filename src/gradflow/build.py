"""Config node -> object. The only place that calls Hydra's `instantiate`; what it refuses becomes one line here."""

from __future__ import annotations

import logging
import netrc
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from gradflow.callbacks import prune
from gradflow.callbacks.records import Records
from gradflow.command import CONF
from gradflow.data.datamodule import DataModule
from gradflow.mistakes import Mistake, nearest
from gradflow.models.module import Module, Unfit
from gradflow.spec import Spec

ALLOWED = ("gradflow.", "torch.optim.", "torch.nn.", "lightning.", "torchmetrics.", "torchvision.")
REFUSALS = (ValueError, TypeError, MisconfigurationException)  # what libraries raise for a value they can't take


# What libraries say at every start, and a user can do nothing about; tests/ ignores the same.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for words in (
    r".isinstance\(treespec, LeafSpec",  # Lightning, with torch >= 2.14
    "The number of training batches",  # the module logs a short run often enough
    "The dirpath has changed",  # on resuming
    "You're resuming from a checkpoint that ended before",  # our loader goes on where it was
    "Total length of `list` across ranks is zero",  # there is no validation split
):
    warnings.filterwarnings("ignore", words)


def make(name: str, node: DictConfig, **live: Any) -> Any:
    """The object that a config node describes; `live` arguments are added as they are."""
    for target in targets(OmegaConf.to_container(node, resolve=True)):
        if not target.startswith(ALLOWED):
            raise Mistake(f"{name}: _target_ {target} is not one of {', '.join(f'{prefix}*' for prefix in ALLOWED)}")
    if missing := OmegaConf.missing_keys(node):
        raise Mistake(f"{min(missing)}=… must be given")
    try:
        return instantiate(node, _convert_="all", **live)
    except InstantiationException as error:
        if isinstance(error.__cause__, Mistake):
            raise error.__cause__ from None
        if error.__cause__ is None or isinstance(error.__cause__, (*REFUSALS, ImportError)):
            raise Mistake(f"{name}: {error.__cause__ or error}") from error
        raise error.__cause__ from None


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from targets(child)


def data(cfg: DictConfig) -> DataModule:
    return make("data", cfg.data)


def model(cfg: DictConfig, spec: Spec) -> Module:
    """The architecture; its optimizer and schedule are tried once, so that bad values are told before data load."""
    optimizer, scheduler = make("optimizer", cfg.optimizer), make("scheduler", cfg.scheduler)
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (*REFUSALS, IndexError) as error:
        raise Mistake(f"optimizer: {error}") from error
    scheduler(10**9, 1)
    try:
        built = make("model", cfg.model, spec=asdict(spec), optimizer=optimizer, scheduler=scheduler)
    except Unfit as unfit:
        raise Mistake(f"{unfit}; for these data choose model={' or '.join(fitting(spec.kind))}") from None
    if cfg.trainer.channels_last:
        built = built.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        built.compile()
    return built


def fitting(kind: str) -> list[str]:
    """Options of the group `model` whose class takes that kind of input."""
    found = []
    for path in sorted((CONF / "model").glob("*.yaml")):
        option: Any = OmegaConf.load(path)
        target = option.get("_target_") or option.get("model", {}).get("_target_")  # the second in @package _global_
        if target and kind in get_class(target).kinds:  # type: ignore[attr-defined]
            found.append(path.stem)
    return found


def callbacks(cfg: DictConfig) -> list[Callback]:
    nodes = {name: node for name, node in (cfg.callbacks or {}).items() if node and "_target_" in node}
    return [make(f"callbacks.{name}", node) for name, node in nodes.items()] + prune.asked_for()


def loggers(cfg: DictConfig) -> list[Logger]:
    """The record on disk, and the one that was chosen."""
    node = OmegaConf.to_container(cfg.logger, resolve=True) if cfg.logger else {}
    assert isinstance(node, dict)
    os.environ.setdefault("WANDB_SILENT", "true")  # the run's own words say where it went
    chosen = [make("logger", OmegaConf.create(node | wandb_mode(node)))] if "_target_" in node else []
    for logger in chosen:
        if isinstance(logger, WandbLogger):
            logger._wandb_init.pop("anonymous", None)  # Lightning always passes it; W&B warns that it is no more
    return [Records(cfg.run_dir), *chosen]


@contextmanager
def wandb_closed() -> Iterator[None]:
    """End this run's W&B run with it, marked failed if it failed; the next run of this process starts a new one."""
    status = 1
    try:
        yield
        status = 0
    finally:
        if (wandb := sys.modules.get("wandb")) and wandb.run:
            wandb.run.finish(exit_code=status)


def wandb_mode(node: Mapping[Any, Any]) -> dict[str, str]:
    """`auto` is online when a key is configured, else offline, so that no run ever stops to ask."""
    if not str(node["_target_"]).endswith(".WandbLogger"):
        return {}
    known = ("auto", "online", "offline", "disabled")
    if node["mode"] not in known:
        raise Mistake(f"logger.mode={node['mode']}: no such mode; {nearest(str(node['mode']), known)}")
    wish = os.environ.get("WANDB_MODE", node["mode"]) if node["mode"] == "auto" else node["mode"]
    if wish == "online" and not wandb_key():
        raise Mistake("logger.mode=online: no W&B key is configured; run  wandb login  or set WANDB_API_KEY")
    return {"mode": wish if wish != "auto" else "online" if wandb_key() else "offline"}


def wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


LEAST = {  # what Lightning takes, and then divides by or never ends with
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 1,
    "gradient_clip_val": 0,
}


def check_trainer(cfg: DictConfig) -> None:
    node = cfg.trainer
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN and "ddp" in str(node.strategy):
        raise Mistake("trainer=ddp in a sweep: each process would run a sweep of its own; use hydra/launcher=local")
    if cfg.optimizer.get("fused") and node.gradient_clip_val and str(node.precision).startswith("16"):
        raise Mistake(
            "optimizer.fused=true: unscales 16-bit gradients too late for clipping; leave out one of the three"
        )
    for key, least in LEAST.items():
        if node[key] is not None and node[key] < least:
            raise Mistake(f"trainer.{key}={node[key]}: expected {least} or more")
    if node.limit_train_batches is not None and node.limit_train_batches <= 0:
        raise Mistake(
            f"trainer.limit_train_batches={node.limit_train_batches}: expected a number or a fraction above 0"
        )
    for key in ("max_epochs", "max_steps"):
        if node[key] is not None and node[key] < 1 and node[key] != -1:
            raise Mistake(f"trainer.{key}={node[key]}: expected 1 or more, or -1 for no limit")
    if node.max_epochs in (None, -1) and node.max_steps == -1:
        raise Mistake("trainer.max_epochs=-1: the run has no end; give trainer.max_steps=…")


def trainer(cfg: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """`compile` and `channels_last` stand beside the Trainer's own options, but are the model's."""
    check_trainer(cfg)
    ours = ("compile", "channels_last")
    node = OmegaConf.masked_copy(cfg.trainer, [key for key in cfg.trainer if key not in ours])
    kinds = {"enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}
    quiet = {key: any(isinstance(callback, kind) for callback in callbacks) for key, kind in kinds.items()}
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise Mistake(
            "trainer.accelerator=gpu: no GPU is here that this torch can use; trainer=cpu, auto or ddp_cpu runs"
        )
    live = {"callbacks": callbacks, "logger": loggers, "default_root_dir": cfg.run_dir, "enable_model_summary": False}
    return make("trainer", node, **live, **quiet)


def seed(cfg: DictConfig) -> None:
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise Mistake(f"seed={cfg.seed}: expected a whole number from 0 to {2**32 - 1}")
    seed_everything(cfg.seed, workers=True, verbose=False)


def reseed_rank(cfg: DictConfig, trainer: Trainer) -> None:
    """The weights are drawn: from here each rank has its own random numbers, so that dropout masks differ."""
    if trainer.world_size > 1:
        torch.manual_seed(cfg.seed + 1_000_003 * trainer.global_rank)
