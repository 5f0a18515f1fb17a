"""What every architecture shares: steps, loss, metrics, penalties, optimizer and schedule.

An architecture is a final class with `kinds`, `__init__` and `forward`; it keeps its layers in `self.net`, defined in
the order in which the signal meets them: that is the order, and those are the names, of every table about layers.
`self.trunk` names the modules of `net` whose outputs are the hidden layers h_1 … h_L, in order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.models import compile_trial, views
from gradflow.models.checks import Unfit, probability
from gradflow.models.metrics import Mean, Metrics
from gradflow.models.penalty import add_to_gradient, gradient_scaler, penalty_gradient, remaining_scale
from gradflow.optimizers.groups import build_optimizer
from gradflow.optimizers.schedule import Factor, Schedule, with_metrics
from gradflow.optimizers.several import learning_rates
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of


class Module(LightningModule, ABC):
    """Logs `loss/…` and the chosen metrics, or the task's own, for train, val and test, and `lr`, or `lr/<group>` where
    the optimizer has several groups.

    `loss/train` is the loss of one batch, at step 0 and every `trainer.log_every_n_steps` steps, without penalties and
    smoothing, so that it compares with `loss/val`; the others are exact over their whole split, on any number of
    devices, and are logged in the `on_…_epoch_end` hooks: an architecture that overrides one calls `super()`.
    """

    kinds: ClassVar[tuple[str, ...]]  # of input that the architecture takes; tokens: only sequences of symbols
    answers: ClassVar[tuple[str, ...]] = ("sample", "step")  # what has an output of its own; pixel: [B, outputs, H, W]
    causal: ClassVar[bool] = True  # whether outputs at each step can be had that depend on no later input
    live: ClassVar[tuple[str, ...]] = ("optimizer", "scheduler")  # arguments that a checkpoint does not hold
    net: nn.Module
    compiles: bool | str = False  # auto: where a trial shows that it pays
    compiled_before: bool | None = None  # of a run that goes on
    schedule: Schedule | None = None  # while it trains

    def __init__(
        self,
        spec: Spec | Mapping[str, Any],
        loss: str = "auto",
        l1: float = 0.0,
        l2: float = 0.0,
        label_smoothing: float = 0.0,
        test_views: str = "one",
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., Factor] | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec if isinstance(spec, Spec) else Spec(**spec)
        if not self.takes(self.spec):
            raise Unfit(f"{type(self).__name__} {self._misfit(self.spec)}")
        self.save_hyperparameters(ignore=self.live, logger=False)
        self.hparams["spec"] = asdict(self.spec)  # checkpoints hold plain data only
        self.task = task_of(self.spec)
        self.loss_name = self.task.check_loss(loss)
        if l1 < 0 or l2 < 0:
            raise UserError(f"model.l1={l1}, model.l2={l2}: expected 0 or more")
        probability(label_smoothing=label_smoothing)
        if label_smoothing and self.loss_name != "cross_entropy":
            raise UserError(f"model.label_smoothing={label_smoothing}: only cross_entropy has labels to smooth")
        views.check(test_views, self.task)
        self.l1, self.l2, self.label_smoothing, self.test_views = l1, l2, label_smoothing, test_views
        self.optimizer, self.scheduler = optimizer, scheduler
        self.metrics = Metrics(self.task)  # the task's own; the builder replaces them where others are chosen
        self.trunk: list[str] = []  # of an architecture that names none, the leaf layers are measured

    @classmethod
    def takes(cls, spec: Spec) -> bool:
        """Return whether the architecture can be built for such data."""
        return cls._misfit(spec) is None

    @classmethod
    def _misfit(cls, spec: Spec) -> str | None:
        """Return why the architecture can't be built for such data."""
        task = task_of(spec)
        if not (spec.kind in cls.kinds or ("tokens" in cls.kinds and spec.tokens > 0)):
            kind = "sequence of numbers" if "tokens" in cls.kinds and spec.kind == "sequence" else spec.kind
            return f"takes {' or '.join(cls.kinds)}, not {kind}"
        if task.answers not in cls.answers:
            return f"has an output for each {' or '.join(cls.answers)}, not for each {task.answers}"
        if task.causal and not cls.causal:
            return f"sees later inputs, and {spec.task} asks for what comes next"
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map [B, *spec.shape] to [B, outputs], or to [B, T, outputs] when the spec asks for an output at each step."""

    def adapt(self, inputs: Callable[[int], Tensor]) -> None:
        """Initialise what depends on the data, before the first step; `inputs(n)` are those of n training samples."""

    def on_fit_start(self) -> None:
        if self.compiles == "auto":
            compile_trial.settle(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["compiles"] = self.compiles

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.compiled_before = checkpoint.get("compiles")

    def on_train_start(self) -> None:
        """Make a short run log its loss once at least."""
        trainer: Any = self.trainer
        trainer.log_every_n_steps = int(min(trainer.log_every_n_steps, trainer.estimated_stepping_batches))

    def on_validation_start(self) -> None:
        """Give all ranks the running statistics of the first, which a checkpoint holds: all validate one model."""
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_test_start(self) -> None:
        self.on_validation_start()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        loss, output = self._step(batch, "train")
        trainer: Any = self.trainer
        step = trainer.global_step
        if (step + 1) % trainer.log_every_n_steps == 0:  # Lightning's rule; self.log is not free
            self.log("loss/train", loss, sync_dist=True)  # not to the bar, for which Lightning would wait at each step
            for key, rate in learning_rates(trainer.optimizers[0]).items():
                self.log(key, rate)
        elif step == batch_index == 0:  # which that rule leaves out, and every curve should begin with
            first = trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean").item()
            for logger in trainer.loggers:
                logger.log_metrics({"loss/train": first, **learning_rates(trainer.optimizers[0])}, 0)
        return self.objective(loss, output, batch[1], self._weight(batch[1], batch_index))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self._step(batch, "test")

    def on_train_epoch_end(self) -> None:
        self._log_metrics("train")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        if self.schedule is not None and not self.trainer.sanity_checking:
            self.schedule.validated(self.metrics)  # before a checkpoint is written of this validation

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of plain labels, without penalties."""
        return self.task.loss(output, target, self.loss_name)

    def objective(self, loss: Tensor, output: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        """Return what is minimised, but for the penalties: the (smoothed) loss, by the weight of its batch."""
        if self.label_smoothing:
            loss = self.task.loss(output, target, self.loss_name, self.label_smoothing)
        return loss if isinstance(weight, float) else loss * weight

    def _weight(self, target: Tensor, batch_index: int) -> Tensor | float:
        """Return 1, or what makes ranks and accumulated batches weigh alike whose targets have padding."""
        if self.spec.ignored is None:
            return 1.0
        loader: Any = self.trainer.train_dataloader
        return loader.weight(self.task, target, batch_index)

    def _step(self, batch: tuple[Tensor, Tensor], split: str) -> tuple[Tensor, Tensor]:
        x, target = batch
        output = self(x) if split != "test" else views.averaged(self, x, self.test_views)
        loss = self.loss(output, target)
        self.metrics.add(split, output.detach(), target)
        if split != "train":
            entries = self.task.count(target)
            cast(Mean, self.metrics[f"loss/{split}"]).add(loss.detach().float() * entries, entries)
        return loss, output

    def _log_metrics(self, split: str) -> None:
        for name, metric in self.metrics.of(split).items():
            if metric.update_called:  # a run resumed at an epoch's end has seen nothing
                self.log(name, metric, prog_bar=True)

    def penalty_gradient(self) -> dict[nn.Parameter, Tensor]:
        """Return the gradient of l1 Σ|w| + l2 Σw² over weights; biases and norm parameters are left out."""
        weights = [p for p in self.net.parameters() if p.ndim > 1 and p.requires_grad]
        return penalty_gradient(weights, self.l1, self.l2)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Add the penalties' gradient, once a step on every rank: after the callbacks have measured the gradient of the
        data, which could not be told from a sum that is larger by many decades, and before clipping."""
        if self.l1 or self.l2:
            add_to_gradient(self.penalty_gradient(), optimizer, remaining_scale(self.trainer, optimizer))

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise UserError(f"{type(self).__name__} was loaded without an optimizer: give optimizer=… to train it")
        optimizer = build_optimizer(self.optimizer, self, scaled=gradient_scaler(self._trainer) is not None)
        if self.scheduler is None:
            return optimizer
        total = float(self.trainer.estimated_stepping_batches)
        batches = self.trainer.num_training_batches
        epoch = math.ceil(batches / self.trainer.accumulate_grad_batches) if math.isfinite(batches) else 1
        self.schedule = Schedule(optimizer, with_metrics(self.scheduler(total, epoch), self.metrics, self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}


def _numbers(x: Tensor, spec: Spec) -> Tensor:
    """Return the input with its symbols, if it has any, as one-hot."""
    return F.one_hot(x, spec.tokens).to(torch.get_default_dtype()) if spec.tokens else x


def as_vector(x: Tensor, spec: Spec) -> Tensor:
    """Reshape [B, *shape] to [B, numbers]; symbols become one-hot."""
    return _numbers(x, spec).flatten(1)


def vector_sizes(spec: Spec) -> tuple[int, int]:
    """Return how many numbers `as_vector` gives, and how many a network has to answer with for all steps at once."""
    steps = spec.shape[0] if spec.per_step else 1
    return math.prod(spec.shape) * max(spec.tokens, 1), steps * spec.outputs


def by_step(output: Tensor, spec: Spec) -> Tensor:
    """Reshape [B, T * outputs] to [B, T, outputs] where each step has an output of its own."""
    return output.unflatten(1, (-1, spec.outputs)) if spec.per_step else output


def as_sequence(x: Tensor, spec: Spec) -> Tensor:
    """Reshape [B, *shape] to [B, time, features]: an image is read row by row, all its channels at once."""
    return x.transpose(1, 2).flatten(2) if spec.kind == "image" else _numbers(x, spec)


def sequence_shape(spec: Spec) -> tuple[int, int]:
    """Return the time steps and the features of `as_sequence`."""
    if spec.kind == "image":
        channels, height, width = spec.shape
        return height, channels * width
    return spec.shape[0], spec.tokens or spec.shape[1]
