"""A step of our training beside a plain loop, the Trainer without anything, and the usual Lightning project; and what
each diagnostic adds to it.

Every contender is built by `src/train.py`, up to the call of `Trainer.fit`, so that all have the same network, loader
and optimizer; only then they go their ways. Validation and checkpoints at the end of an epoch are left out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import grad_norm
from timing import OURS, Clock, Comparisons, Contender, Size, Steps, Tables, mean_ms, measure
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from usual_lightning import Classifier, Images, train_loader

from gradflow.optimizers.groups import build_optimizer

Way = Callable[[Clock, Trainer, Any, Any, Callable[[], None]], None]
OFF: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Ticks(Callback):
    """Hand the clock the begin of training and the end of each step, after all other callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.clock.seconds:
            self.clock.skip()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock.tick()


class Bare(LightningModule):
    """Nothing but the step."""

    def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer


class LightningNorms(Callback):
    """Lightning's own way to log gradient norms."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class Watch(Callback):
    """`wandb.watch` at every step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = WandbLogger(save_dir=".", offline=True)
        trainer.loggers = [*trainer.loggers, logger]
        logger.watch(pl_module, log="gradients", log_freq=1)


def run(overrides: Sequence[str], way: Way, clock: Clock) -> None:
    """Build all that `python src/train.py overrides…` builds, and go another way than `Trainer.fit`."""
    fit = Trainer.fit
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
    sys.argv = ["src/train.py", *overrides, "hydra.run.dir=run"]

    def instead(trainer: Trainer, model: Any, data: Any, **more: Any) -> None:
        way(clock, trainer, model, data, partial(fit, trainer, model, data, **more))

    with patch.object(Trainer, "fit", instead):
        __import__("train").main()


def ours(clock: Clock, trainer: Trainer, model: Any, data: Any, fit: Callable[[], None], also: Any = None) -> None:
    trainer.callbacks += [*([also()] if also else []), Ticks(clock)]  # type: ignore[attr-defined]
    fit()


def loop(clock: Clock, model: nn.Module, data: Any, optimizer: Optimizer) -> None:
    loader = data.train_dataloader()
    clock.start()
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            clock.tick()
        clock.skip()


def plain(clock: Clock, trainer: Trainer, model: Any, data: Any, fit: Any) -> None:
    """The loop with our optimizer and memory layout."""
    model.to(data.device)
    loop(clock, model, data, build_optimizer(model.optimizer, model))


def as_written(clock: Clock, trainer: Trainer, model: Any, data: Any, fit: Any) -> None:
    """The loop with what PyTorch does when nothing is said."""
    model.to(data.device, memory_format=torch.contiguous_format)
    loop(clock, model, data, Adam(model.parameters(), lr=1e-3))


def bare(clock: Clock, trainer: Trainer, model: Any, data: Any, fit: Any) -> None:
    mine = Bare(model, build_optimizer(model.optimizer, model))
    accelerator = "cpu" if data.device.type == "cpu" else "gpu"
    lean = Trainer(accelerator=accelerator, devices=1, max_epochs=-1, logger=False, callbacks=[Ticks(clock)], **OFF)
    _fit(lean, mine, data.train_dataloader())


def usual(clock: Clock, trainer: Trainer, model: Any, data: Any, fit: Any) -> None:
    part, device = data.splits["train"], data.device
    rows = torch.arange(len(part))
    images = Images(part.take("x", rows).cpu(), part.take("y", rows).cpu())
    accelerator = "cpu" if device.type == "cpu" else "gpu"
    model.to(memory_format=torch.contiguous_format)
    theirs = Trainer(accelerator=accelerator, devices=1, max_epochs=-1, logger=CSVLogger("."), callbacks=[Ticks(clock)])
    _fit(theirs, Classifier(model), train_loader(images, data.batch_size))


_fit = Trainer.fit  # as it is before `run` changes it


_SAME, _WRITTEN, _USUAL = "plain loop", "plain loop as people write it", "Lightning with a DataLoader"
_SMALL = ("model=mlp", "model.width=64", "data=shapes", "data.size=16", "data.channels=1")
_RESNET, _OFF = ("model=resnet", "data=shapes"), "callbacks.gradient_flow=null"
_VARIANTS: Mapping[str, tuple[Any, ...]] = {
    f"{OURS} without diagnostics": (ours, _OFF),
    f"{OURS}, the default: every 50 steps": (ours,),
    f"{OURS}, every 10 steps": (ours, "callbacks.gradient_flow.every_n_steps=10"),
    f"{OURS}, every step": (ours, "callbacks.gradient_flow.every_n_steps=1"),
    f"{OURS}, the default with snr": (ours, "+diagnostics=snr"),
    f"{OURS} without diagnostics, with l1 and l2": (ours, _OFF, "model.l1=1e-6", "model.l2=1e-5"),
    "Lightning's grad_norm, every step": (partial(ours, also=LightningNorms), _OFF),
    "wandb.watch, every step": (partial(ours, also=Watch), _OFF),
}


def contender(size: Size, steps: int, way: Way, *overrides: str) -> tuple[Contender, int]:
    """Return who runs by these overrides, on this way, and for how many steps."""
    warnings.filterwarnings("ignore")
    always = ("logger=none", "test=false", "trainer.max_epochs=-1", f"trainer.max_steps={steps + 1}")
    return partial(run, (f"trainer={size.device}", *always, *overrides), way), steps


def five(size: Size, steps: int, few: int, *overrides: str) -> dict[str, tuple[Contender, int]]:
    """Return the plain loop and ours, and for a `few` steps the others."""
    ways = {_SAME: plain, OURS: ours, "Trainer without anything": bare, _WRITTEN: as_written, _USUAL: usual}
    return {who: contender(size, steps if who in (_SAME, OURS) else few, way, *overrides) for who, way in ways.items()}


def small_steps(size: Size) -> Comparisons:
    """A step of a small MLP and of an LSTM on one thread. The mean is of ten epochs, or one, with all that is done at
    logged steps and probes, but not between epochs."""
    found: Comparisons = {}
    kinds = {
        "mlp": ("10×64 MLP", 1400, (*_SMALL, "model.depth=10")),
        "lstm": ("LSTM", 140, ("model=lstm", "data=shapes")),
    }
    for name, (title, full, overrides) in kinds.items():
        steps, title = size(full, 4), f"{title}, batches of 64, one thread"
        tables = {
            f"step_{name}": (f"{title}: mean of {steps} steps", "ms a step", mean_ms),
            f"step_{name}_median": (f"{title}: a median step", "ms a step", lambda one: median(one.seconds) * 1e3),
        }
        found |= measure(five(size, steps, steps, *overrides, "data.batch_size=64"), size(140, 2), 1, size(2), tables)
    return found


def resnet_steps(size: Size) -> Comparisons:
    """A ResNet-20 on all cores: over the first 60 steps, and ours and the plain loop with our optimizer over 400."""
    steps, few, title = size(400, 4), size(60, 2), "ResNet-20, batches of 128 images of 32×32"
    contenders = five(size, steps, few, *_RESNET)
    overrides = (*_RESNET, "trainer=fast", f"trainer.accelerator={size.device}")
    contenders[f"{OURS}, trainer=fast"] = contender(size, steps, ours, *overrides)

    def first(one: Steps) -> float:
        return mean(one.seconds[:few])

    def whole(one: Steps) -> float | None:
        return mean_ms(one) if len(one.seconds) == steps else None

    tables: Tables = {
        "step_resnet20": (f"{title}: mean of {steps} steps", "ms a step", whole),
        "step_resnet20_first": (f"{title}: mean of the first {few} steps", "ms a step", lambda one: first(one) * 1e3),
        "speed_resnet20": (f"{title}: all steps, {steps} or {few}", "images/s", lambda one: 128 / mean(one.seconds)),
        "memory_resnet20": (f"{title}: peak memory", "MiB", lambda one: one.memory),
    }
    return measure(contenders, size(20, 2), torch.get_num_threads(), 1, tables)


def diagnostics(size: Size) -> Comparisons:
    """A step when the gradient is watched, at each cadence, and by Lightning's `grad_norm` and `wandb.watch`."""
    found: Comparisons = {}
    kinds = {
        "mlp": ("20-layer MLP, width 64, one thread", size(700, 4), (*_SMALL, "model.depth=20"), 1),
        "resnet20": ("ResNet-20", size(40, 2), _RESNET, torch.get_num_threads()),
    }
    for name, (title, steps, overrides, threads) in kinds.items():
        brief = (f"{OURS} without diagnostics", f"{OURS}, every step")
        variants = {who: own for who, own in _VARIANTS.items() if name == "mlp" or OURS not in who or who in brief}
        contenders = {who: contender(size, steps, way, *overrides, *own) for who, (way, *own) in variants.items()}
        table = (f"{title}, batches of 128: mean of {steps} steps", "ms a step", mean_ms)
        found |= measure(contenders, size(20, 2), threads, 1, {f"diagnostics_{name}": table})
    return found


def gpu_busy(size: Size) -> Comparisons:
    """On a GPU, the share of time in which it computes, in turns of 1,000 steps, since nvidia-smi looks rarely."""
    steps = size(2000, 4)
    contenders = {who: one for who, one in five(size, steps, steps, *_RESNET).items() if who != _USUAL}
    title = "ResNet-20, batches of 128: share of time in which the GPU computes"
    return measure(contenders, steps // 2, 1, 1, {"gpu_busy": (title, "% of time", lambda one: one.busy * 100)})
