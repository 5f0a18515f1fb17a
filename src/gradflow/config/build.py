"""Config node -> object. The only place that calls Hydra's `instantiate`; what it rejects becomes one line here."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict
from inspect import signature
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch.backends import mps
from torchmetrics import Metric

from gradflow.config import checks, options, precision
from gradflow.config.library_errors import with_key
from gradflow.config.model_size import check_size
from gradflow.config.trust import check_target, last_key, nodes
from gradflow.data.datamodule import DataModule
from gradflow.diagnostics.diagnostic import Diagnostic
from gradflow.models import later_inputs
from gradflow.models.base import Module
from gradflow.models.checks import Unfit
from gradflow.models.metrics import Metrics
from gradflow.optimizers.groups import Trial, check_named, trials
from gradflow.optimizers.schedule import with_metrics
from gradflow.runs import metric_direction
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.runs.overrides import of_command
from gradflow.spec import Spec
from gradflow.tasks.task import Task
from gradflow.training.checkpoints import Atomic
from gradflow.training.csv_logger import TableLogger
from gradflow.training.resume_checkpoint import ResumeCheckpoint

# What libraries raise for a value that they can't take.
_REJECTIONS = (ValueError, TypeError, ImportError, MisconfigurationException)

# What libraries say at every start, and a user can do nothing about; tests/ ignores the same.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for message in (
    r".isinstance\(treespec, LeafSpec",  # Lightning, with torch >= 2.14
    "The number of training batches",  # the module logs a short run often enough
    "The dirpath has changed",  # on resuming
    "Checkpoint directory .* exists and is not empty",  # likewise
    "You're resuming from a checkpoint that ended before",  # our loader goes on where it was
    "Total length of `list` across ranks is zero",  # there is no validation split
    "The `srun` command is available",  # on the machine of a cluster from which jobs are submitted
):
    warnings.filterwarnings("ignore", message)


def make(name: str, node: DictConfig, **live: Any) -> Any:
    """Return the object that a config node describes; `live` arguments are added as they are."""
    plain = OmegaConf.to_container(node, resolve=True)
    for path, target in nodes(plain):
        if last_key(path) == "_target_":
            check_target(name, str(target))
    if computed := next((key for key in live if key in node), None):
        raise UserError(f"{name}.{computed}: follows from other choices; leave it out")
    if missing := OmegaConf.missing_keys(node):
        raise UserError(f"{min(missing)}=… must be given")
    try:
        return instantiate(node, _convert_="all", **live)
    except InstantiationException as error:
        cause, rejections = error.__cause__, (*_REJECTIONS, RuntimeError) if name == "trainer" else _REJECTIONS
        if "allocate memory" in str(cause):
            raise UserError(f"{name}: is too large for the memory of this machine") from error
        if cause is None or isinstance(cause, rejections):
            raise UserError(with_key(name, plain, cause or error, of_command())) from error  # type: ignore[arg-type]
        raise cause from None


def _of_kind(kind: type, name: str, instance: Any) -> Any:
    if not isinstance(instance, kind):
        raise UserError(f"{name}: _target_ {type(instance).__name__} is not a {kind.__name__}")
    return instance


def data(cfg: DictConfig) -> DataModule:
    """Return the data, of which nothing is loaded yet."""
    return _of_kind(DataModule, "data", make("data", cfg.data))


def model(cfg: DictConfig, spec: Spec) -> Module:
    """Return the architecture. Its optimizer and schedule are tried once, so wrong values show before data load."""
    optimizer, scheduler = make("optimizer", cfg.optimizer), make("scheduler", cfg.scheduler)

    def build(node: DictConfig) -> Module:
        return make("model", node, spec=asdict(spec), optimizer=optimizer, scheduler=scheduler)

    check_size(cfg.model, build)
    try:
        built = build(cfg.model)
    except Unfit as unfit:
        raise UserError(f"{unfit}; for these data choose model={' or '.join(_options_that_take(spec))}") from None
    built.metrics = Metrics(built.task, metrics(cfg, built.task))
    checks.check_batch_norm(cfg, built)
    later_inputs.check(built, spec)
    if cfg.trainer.channels_last and any(p.ndim == 4 for p in built.parameters()) and not mps.is_available():
        built = built.to(memory_format=torch.channels_last)
    built.compiles = cfg.trainer.compile
    if built.compiles is True:
        built.compile()
    _try(cfg, built)
    return built


def _try(cfg: DictConfig, model: Module) -> None:
    """Make the optimizer of the model's own parameters, and the schedule, which changes neither them nor the RNG."""
    optimizer, scheduler = cast(Any, model.optimizer), cast(Any, model.scheduler)
    schedule: Trial = ("scheduler", cfg.scheduler, lambda: with_metrics(scheduler(10**9, 1), model.metrics))
    with torch.random.fork_rng([]):
        for name, node, draft in (*trials(optimizer, model), schedule):
            try:
                draft()
            except IndexError as error:
                raise UserError(f"{name}.betas={node.get('betas')}: expected two numbers") from error
            except (*_REJECTIONS, RuntimeError) as error:
                raise UserError(with_key(name, node, error, of_command())) from error
    check_named(of_command(), model)


def _options_that_take(spec: Spec) -> list[str]:
    """Return the options of the group `model` whose class takes such data."""
    fitting = []
    for name, path in options.of_group("model").items():
        option: Any = OmegaConf.load(path)
        target = option.get("_target_") or option.get("model", {}).get("_target_")  # the second in @package _global_
        if target and get_class(target).takes(spec):  # type: ignore[attr-defined]
            fitting.append(name)
    return fitting


def metrics(cfg: DictConfig, task: Task) -> dict[str, Metric]:
    """Return the metrics that were chosen, with what follows from the data; none where the task's own is wanted."""
    built = {}
    for key, node in checks.built_nodes(cfg, "metrics").items():
        check_target(key, str(node._target_))
        known, name = signature(get_class(node._target_)).parameters, key.rpartition(".")[2]
        if name == "loss":
            raise UserError(f"{key}: is measured in any case; choose another name")
        if "num_classes" in known and not task.num_classes:
            raise UserError(f"{key}: {node._target_} compares classes, but these data ask for {task.asks_for}")
        live = {"num_classes": task.num_classes} if "num_classes" in known else {}
        built[name] = _of_kind(Metric, key, make(key, node, **live))
    return built


def callbacks(cfg: DictConfig, model: Module) -> list[Callback]:
    chosen = checks.built_nodes(cfg, "callbacks")
    built = [_of_kind(Callback, key, make(key, node, **_live(cfg, key, node, model))) for key, node in chosen.items()]
    return sorted(built, key=lambda callback: not isinstance(callback, ResumeCheckpoint))  # first, for what it promises


def _live(cfg: DictConfig, key: str, node: DictConfig, model: Module) -> dict[str, Any]:
    """Return the mode of a callback that monitors a metric, since Lightning's default is min for all of them, and the
    diagnostics of one that runs them."""
    check_target(key, str(node._target_))
    accepted = signature(get_class(node._target_)).parameters
    if "diagnostics" in accepted:
        chosen = checks.built_nodes(cfg, "diagnostics")
        return {"diagnostics": [_of_kind(Diagnostic, name, make(name, one)) for name, one in chosen.items()]}
    monitor, known = node.get("monitor"), ["loss/train", *(name for name in model.metrics if "/test" not in name)]
    if monitor not in (None, *known):
        raise UserError(f"{key}.monitor={monitor}: no such metric; {did_you_mean(str(monitor), known)}")
    if monitor is None or "mode" not in accepted:
        return {}
    direction = model.metrics.directions.get(monitor.partition("/")[0])
    return {"mode": metric_direction.mode(f"{key}.mode", node.get("mode"), monitor, direction)}


def loggers(cfg: DictConfig) -> list[Logger]:
    """Return the tables on disk, and the logger that was chosen."""
    chosen = [_of_kind(Logger, "logger", make("logger", cfg.logger))] if "_target_" in (cfg.logger or {}) else []
    return [TableLogger(cfg.run_dir), *chosen]


def trainer(cfg: DictConfig, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """Return the Trainer. `compile` and `channels_last` stand beside its own options, but are the model's."""
    ours = ("compile", "channels_last", "tf32", "precision")
    node = OmegaConf.masked_copy(cfg.trainer, [key for key in cfg.trainer if key not in ours])
    kinds = {"enable_progress_bar": ProgressBar, "enable_checkpointing": Checkpoint}
    quiet = {key: any(isinstance(callback, kind) for callback in callbacks) for key, kind in kinds.items()}
    live = {"callbacks": callbacks, "logger": loggers, "default_root_dir": cfg.run_dir, "enable_model_summary": False}
    live |= {"plugins": [Atomic(cfg.run_dir)], "precision": precision.resolve(cfg)}
    if cfg.trainer.tf32 and not checks.on_cpu(cfg.trainer):
        torch.set_float32_matmul_precision("high")
    trainer = make("trainer", node, **live, **quiet)
    if node.get("profiler") and not trainer.profiler.filename:  # its tables have 250 columns, too many for a screen
        trainer.profiler.dirpath, trainer.profiler.filename = cfg.run_dir, "profile"
    if trainer.world_size != (asked := trainer.num_devices * trainer.num_nodes):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: SLURM started {trainer.world_size} of {asked} ranks; "
            "use srun with a task for each"
        )
    return trainer


def seed(cfg: DictConfig) -> None:
    """Seed all that draws random numbers, before the weights are initialised."""
    seed_everything(cfg.seed, workers=True, verbose=False)


def reseed_rank(cfg: DictConfig, trainer: Trainer) -> None:
    """The weights are initialised: from here each rank has its own random numbers, so that dropout masks differ."""
    if trainer.world_size > 1:
        torch.manual_seed(cfg.seed + 1_000_003 * trainer.global_rank)
