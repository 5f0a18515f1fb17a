"""Numbers that go bad: which layer and step began it, and what follows."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow import runs
from gradflow.config.resume import key
from gradflow.diagnostics.alarms import Alarm
from gradflow.diagnostics.gradient_flow import EARLY, GradientFlow, reject_shards
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.nonfinite import INPUT, Finding, History, Place, bad_weights, first_output
from gradflow.diagnostics.output import log_metrics, print_line
from gradflow.runs.errors import UserError

WISHES = ("stop", "skip", "log")


class Finite(Callback):
    """Finds the first step at which a loss or a gradient is not finite, and the layer in which that began.

    Losses and gradients leave their traces on the device, which are fetched at the steps that `GradientFlow` logs or
    probes, at an epoch's end and before a checkpoint is written: no other step waits. On a CPU, where nothing has to
    be waited for, a gradient is found in its own step. What is found before the weights have changed is looked at
    once more, layer by layer in the order of the signal. A checkpoint whose weights are not finite is never written,
    except under `log`, when that has been told.

    `on_nonfinite` says what follows:

    stop    `nonfinite.json` keeps the address of the batch, and the run ends, failed (exit status 1); in a sweep, where
            a run that diverges is a result, and under `on_alarm=prune` it ends as pruned
    skip    the step changes nothing, and is counted in ``grad/skipped``; every step waits for the device
    log     the alarm `nonfinite` is raised, and the run goes on

    Under 16-mixed precision only losses are watched: infinite gradients are how its scale is found.
    """

    def __init__(self, run_dir: str, seed: int, on_nonfinite: str = "stop", every_n_steps: int = 50) -> None:
        if on_nonfinite not in WISHES:
            raise UserError(f"on_nonfinite={on_nonfinite}: expected one of {', '.join(WISHES)}")
        if every_n_steps < 1:
            raise UserError(f"callbacks.finite.every_n_steps={every_n_steps}: expected 1 or more")
        self.folder, self.seed, self.wish, self.every_n_steps = Path(run_dir), seed, on_nonfinite, every_n_steps
        self.found: Finding | None = None  # the first
        self.skipped = 0
        self.place = Place(0, 0, 0)  # of the latest micro-batch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reject_shards(pl_module, "finite")
        self.layers = layers(pl_module)
        self.history = History(self.layers)
        self.watcher = next((one for one in trainer.callbacks if isinstance(one, GradientFlow)), None)  # type: ignore[attr-defined]
        self.searching = getattr(trainer.precision_plugin, "scaler", None) is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.found is None:
            (self.folder / runs.NONFINITE).unlink(missing_ok=True)  # this run goes on from before it, in its folder
        if self.wish == "skip":
            tell(trainer, "on_nonfinite=skip: each step waits for the device to see whether its gradient is finite")
        self.last = trainer.estimated_stepping_batches - 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        epoch = 0 if trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]
        self.place = Place(trainer.global_step, epoch, batch_idx)
        if self.wish == "skip" and batch_idx % trainer.accumulate_grad_batches == 0:
            self.buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self.over():
            self.history.add_loss(self.place, loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.over():
            return
        step = self.place.step
        bad = not self.searching and self.history.add_gradient(step)
        if self.wish == "skip":
            self.skip(trainer, pl_module, optimizer)
        elif bad or self.due(step):
            self.look(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.guard(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.guard(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.guard(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.guard(trainer, pl_module)

    def guard(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a checkpoint is written, of which one that holds weights alone does not tell a callback."""
        self.look(trainer, pl_module)
        if not self.over() and (names := bad_weights(self.layers)):
            self.heed(trainer, Finding(self.place.step, self.place.epoch, [self.place.batch], weights=names))

    def over(self) -> bool:
        """What is known already is not looked for."""
        return self.wish == "log" and self.found is not None

    def due(self, step: int) -> bool:
        """Where the gradient is logged, and before it is probed: an alarm has nothing to add then."""
        probed = getattr(self.watcher, "probe_steps", ())
        return step in EARLY or step % self.every_n_steps == 0 or step == self.last or step + 1 in probed

    def look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wish == "skip":
            self.history.clear()
        elif finding := self.read(trainer, pl_module):
            self.heed(trainer, finding)

    def skip(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Without gradients an optimizer changes nothing: neither weights nor momenta nor its own count of steps.
        Running statistics, in which a nan would stay for good, are put back."""
        finding = self.read(trainer, pl_module) if self.history.gradients else None
        self.history.clear()
        if finding is None or not finding.gradients:
            return
        optimizer.zero_grad()
        for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        log_metrics(trainer, {"grad/skipped": float(self.skipped)}, finding.step)
        if self.found is None:
            self.note(trainer, finding)
            self.alarm(finding)
            tell(trainer, f"{finding.sentence()}; skipped, as others will be")

    def read(self, trainer: Trainer, pl_module: LightningModule) -> Finding | None:
        scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
        average = lambda losses: trainer.strategy.reduce(losses, reduce_op="mean")  # noqa: E731
        finding = self.history.read(average, scaler.get_scale() if scaler else 1.0)
        if finding and finding.step == trainer.global_step and not math.isfinite(finding.loss):
            finding.output = output_of(trainer, pl_module, self.layers, finding)
        return finding

    def heed(self, trainer: Trainer, finding: Finding) -> None:
        self.note(trainer, finding)
        if self.wish == "log":
            if self.watcher:
                self.watcher.act_on(trainer, self.alarm(finding))
            else:
                tell(trainer, finding.sentence())
            return
        if runs.in_sweep() or (self.watcher and self.watcher.on_alarm == "prune"):
            raise runs.Pruned(finding.sentence())
        if not trainer.is_global_zero:
            sys.exit(0)  # the first rank tells; Lightning would kill it for another status
        raise runs.Diverged(finding.sentence(), self.commands())

    def alarm(self, finding: Finding) -> list[Alarm]:
        """As one of those of the watched gradient, which is not raised again then."""
        return self.watcher.alarms.new(finding.step, {"nonfinite": finding.description()}) if self.watcher else []

    def note(self, trainer: Trainer, finding: Finding) -> None:
        """The first, where it can be made again."""
        if self.found is not None:
            return
        self.found = finding
        if trainer.is_global_zero:
            last = self.folder / runs.LAST
            told = {"sentence": finding.sentence(), "seed": self.seed, "layer": finding.layer, **asdict(finding)}
            told |= {"loss": str(finding.loss)} if not math.isfinite(finding.loss) else {}
            told |= {"checkpoint": runs.LAST if last.is_file() else None, "commands": self.commands()}
            runs.write_json(self.folder / runs.NONFINITE, told)

    def commands(self) -> dict[str, str]:
        """To make the batch again, and to come to the step again, with a look at each."""
        folder, looks = os.path.relpath(self.folder), "gradient_flow" if self.watcher else "finite"
        made = {"the batch again": shlex.join(["python", "src/batch.py", f"run={folder}"])}
        if not HydraConfig.initialized():
            return made
        words = [str(word) for word in HydraConfig.get().overrides.task]
        own = [f"callbacks.{looks}.every_n_steps=1", *(["on_nonfinite=stop"] if self.wish != "stop" else [])]
        saved = (self.folder / runs.LAST).is_file()
        own += [f"resume={folder}/{runs.LAST}"] if saved else []
        keys = {key(word) for word in own} | {"resume"}
        words = [word for word in words if key(word) not in keys]
        began = "from the last good checkpoint" if saved else "the run again, with a look at each step"
        return made | {began: shlex.join(["python", "src/train.py", *words, *own])}

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "found": asdict(self.found) if self.found else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
        self.found = Finding(**state_dict["found"]) if state_dict["found"] else None


def output_of(
    trainer: Trainer, model: LightningModule, of_layers: Mapping[str, Sequence[nn.Parameter]], finding: Finding
) -> str | None:
    """The first layer on any rank whose output is not finite: the batch is made again, and goes through a model of ours
    that has not changed since. On every rank, since a norm layer may ask the others."""
    loader: Any = trainer.train_dataloader
    if not hasattr(loader, "batch") or not hasattr(model, "spec"):
        return None
    x, _ = loader.batch(finding.epoch, finding.batches[0])
    with trainer.precision_plugin.forward_context():
        name = first_output(model, of_layers, trainer.precision_plugin.convert_input(x))
    names = [INPUT, *of_layers, None]
    place = torch.tensor(names.index(name), device=model.device)
    return names[int(trainer.strategy.all_gather(place).min())]


def tell(trainer: Trainer, words: str) -> None:
    if trainer.is_global_zero:
        print_line(trainer, words)
