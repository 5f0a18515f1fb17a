"""Config node -> object. The only place that calls Hydra's `instantiate`; what it refuses becomes one line here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from inspect import signature
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from gradflow import runs
from gradflow.config import checks
from gradflow.config.command import CONF
from gradflow.config.library_errors import named
from gradflow.config.trust import last, nodes, permit
from gradflow.data.datamodule import DataModule
from gradflow.models.base import Module, Unfit
from gradflow.runs import metric_direction
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.sweeps import prune
from gradflow.training.checkpoints import Atomic
from gradflow.training.csv_logger import TableLogger
from gradflow.training.resume_checkpoint import ResumeCheckpoint
from gradflow.training.wandb_logger import ResumableWandbLogger

REFUSALS = (ValueError, TypeError, MisconfigurationException)  # what libraries raise for a value they can't take


# What libraries say at every start, and a user can do nothing about; tests/ ignores the same.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for words in (
    r".isinstance\(treespec, LeafSpec",  # Lightning, with torch >= 2.14
    "The number of training batches",  # the module logs a short run often enough
    "The dirpath has changed",  # on resuming
    "Checkpoint directory .* exists and is not empty",  # likewise
    "You're resuming from a checkpoint that ended before",  # our loader goes on where it was
    "Total length of `list` across ranks is zero",  # there is no validation split
):
    warnings.filterwarnings("ignore", words)


def make(name: str, node: DictConfig, **live: Any) -> Any:
    """The object that a config node describes; `live` arguments are added as they are."""
    plain = OmegaConf.to_container(node, resolve=True)
    for path, target in nodes(plain):
        if last(path) == "_target_":
            permit(name, str(target))
    if given := next((key for key in live if key in node and name != "trainer"), None):
        raise UserError(f"{name}.{given}: follows from other choices; leave it out")
    if missing := OmegaConf.missing_keys(node):
        raise UserError(f"{min(missing)}=… must be given")
    try:
        return instantiate(node, _convert_="all", **live)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        refused = (*REFUSALS, ImportError, RuntimeError) if name == "trainer" else (*REFUSALS, ImportError)
        if "allocate memory" in str(error.__cause__):
            raise UserError(f"{name}: is too large for the memory of this machine") from error
        if error.__cause__ is None or isinstance(error.__cause__, refused):
            raise UserError(named(name, plain, error.__cause__ or error)) from error  # type: ignore[arg-type]
        raise error.__cause__ from None


def of_kind(kind: type, name: str, made: Any) -> Any:
    if not isinstance(made, kind):
        raise UserError(f"{name}: _target_ {type(made).__name__} is not a {kind.__name__}")
    return made


def data(cfg: DictConfig) -> DataModule:
    return of_kind(DataModule, "data", make("data", cfg.data))


def model(cfg: DictConfig, spec: Spec) -> Module:
    """The architecture; its optimizer and schedule are tried once, so that bad values are told before data load."""
    optimizer, scheduler = make("optimizer", cfg.optimizer), make("scheduler", cfg.scheduler)
    for name, draft in {"optimizer": lambda: optimizer([torch.nn.Parameter(torch.zeros(1))]),
                        "scheduler": lambda: scheduler(10**9, 1)}.items():  # fmt: skip
        try:
            draft()
        except IndexError as error:
            raise UserError(f"optimizer.betas={cfg.optimizer.get('betas')}: expected two numbers") from error
        except (*REFUSALS, RuntimeError) as error:
            raise UserError(named(name, cfg[name], error)) from error
    checks.monitors(cfg, spec)
    checks.folders(cfg)
    checks.compiler(cfg.trainer)

    def build(node: DictConfig) -> Module:
        return make("model", node, spec=asdict(spec), optimizer=optimizer, scheduler=scheduler)

    checks.fits(cfg.model, build)
    try:
        built = build(cfg.model)
    except Unfit as unfit:
        raise UserError(f"{unfit}; for these data choose model={' or '.join(fitting(spec.kind))}") from None
    checks.one_sample(cfg, built)
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
    chosen = {f"callbacks.{name}": node for name, node in checks.callback_nodes(cfg).items()}
    made = [of_kind(Callback, name, make(name, node, **mode(name, node))) for name, node in chosen.items()]
    made += prune.asked_for(cfg)
    return sorted(made, key=lambda callback: not isinstance(callback, ResumeCheckpoint))  # first, for what it promises


def mode(name: str, node: DictConfig) -> dict[str, str]:
    """Of a callback that monitors a metric: Lightning's default is min for checkpoints and early stopping alike."""
    permit(name, str(node._target_))
    if node.get("monitor") is None or "mode" not in signature(get_class(node._target_)).parameters:
        return {}
    return {"mode": metric_direction.mode(f"{name}.mode", node.get("mode"), node.monitor)}


def loggers(cfg: DictConfig) -> list[Logger]:
    """The record on disk, and the one that was chosen."""
    chosen = [of_kind(Logger, "logger", make("logger", cfg.logger))] if "_target_" in (cfg.logger or {}) else []
    return [TableLogger(cfg.run_dir), *chosen]


@contextmanager
def wandb_ended(loggers: list[Logger], run: runs.Run) -> Iterator[None]:
    """End this run's W&B run with it, marked failed if it failed, and note what became of it."""
    status = 1
    try:
        yield
        status = 0
    except runs.Pruned:
        status = 0
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, ResumableWandbLogger):
                logger.close(status)
                run.note(wandb=logger.facts)


def trainer(cfg: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """`compile` and `channels_last` stand beside the Trainer's own options, but are the model's."""
    checks.trainer(cfg)
    ours = ("compile", "channels_last")
    node = OmegaConf.masked_copy(cfg.trainer, [key for key in cfg.trainer if key not in ours])
    kinds = {"enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}
    quiet = {key: any(isinstance(callback, kind) for callback in callbacks) for key, kind in kinds.items()}
    live = {"callbacks": callbacks, "logger": loggers, "default_root_dir": cfg.run_dir, "enable_model_summary": False}
    live |= {"plugins": [Atomic(cfg.run_dir)]}
    made = make("trainer", node, **live, **quiet)
    if made.world_size != (asked := made.num_devices * made.num_nodes):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: SLURM started {made.world_size} of {asked} ranks; "
            "use srun with a task for each"
        )
    return made


def seed(cfg: DictConfig) -> None:
    for key in ("seed", "data.seed", "callbacks.per_batch_seed.seed", "callbacks.nonfinite.seed"):
        value = OmegaConf.select(cfg, key, default=0)
        if not isinstance(value, int) or not 0 <= value < 2**32:
            raise UserError(f"{key}={value}: expected a whole number from 0 to {2**32 - 1}")
    seed_everything(cfg.seed, workers=True, verbose=False)


def reseed_rank(cfg: DictConfig, trainer: Trainer) -> None:
    """The weights are drawn: from here each rank has its own random numbers, so that dropout masks differ."""
    if trainer.world_size > 1:
        torch.manual_seed(cfg.seed + 1_000_003 * trainer.global_rank)
