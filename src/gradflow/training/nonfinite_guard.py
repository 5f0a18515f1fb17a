"""The guard against losses and gradients that are not finite: which layer and step began it, and what follows."""

from __future__ import annotations

import math
import os
import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from gradflow import runs
from gradflow.diagnostics.alarms import Alarm
from gradflow.diagnostics.diagnostic import EARLY
from gradflow.diagnostics.gradient_flow import GradientFlow
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.nonfinite import INPUT, Finding, History, Place, bad_weights, first_output
from gradflow.diagnostics.output import log_metrics, print_line
from gradflow.diagnostics.trainer_facts import reject_shards
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import key, of_command

_ACTIONS = ("stop", "skip", "log")


class NonFiniteGuard(Callback):
    """Find the first step at which a loss or a gradient is not finite, and the layer in which that began.

    Losses and gradients leave their traces on the device, which are fetched at the steps that `GradientFlow` logs or
    probes, at an epoch's end and before a checkpoint is written: no other step waits. On a CPU, where nothing has to
    be waited for, a gradient is found in its own step. What is found before the weights have changed is looked at
    once more, layer by layer in the order of the signal. A checkpoint whose weights are not finite is never written,
    except under `log`, once the alarm is raised.

    `on_nonfinite` says what follows:

    stop    `nonfinite.json` keeps the address of the batch, and the run ends, failed (exit status 1); in a sweep, where
            a run that diverges is a result, and under `on_alarm=prune` it ends as pruned
    skip    the step changes nothing, and is counted in ``grad/skipped``; every step waits for the device
    log     the alarm `nonfinite` is raised, and the run goes on

    Under 16-mixed precision only losses are watched: infinite gradients are how its scale is found.
    """

    def __init__(self, run_dir: str, seed: int, on_nonfinite: str = "stop", every_n_steps: int = 50) -> None:
        if on_nonfinite not in _ACTIONS:
            raise UserError(f"on_nonfinite={on_nonfinite}: expected one of {', '.join(_ACTIONS)}")
        if every_n_steps < 1:
            raise UserError(f"callbacks.nonfinite.every_n_steps={every_n_steps}: expected 1 or more")
        self.folder, self.seed, self.action, self.every_n_steps = Path(run_dir), seed, on_nonfinite, every_n_steps
        self.first: Finding | None = None
        self.skipped = 0
        self.place = Place(0, 0, 0)  # of the latest micro-batch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reject_shards(pl_module, "nonfinite")
        self.trainer, self.model = trainer, pl_module
        self.layers = layers(pl_module)
        self.history = History(self.layers)
        self.watcher = next((one for one in trainer.callbacks if isinstance(one, GradientFlow)), None)  # type: ignore[attr-defined]
        self.searching = getattr(trainer.precision_plugin, "scaler", None) is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.first is None:
            (self.folder / runs.NONFINITE).unlink(missing_ok=True)  # this run goes on from before it, in its folder
        if self.action == "skip":
            self._print("on_nonfinite=skip: each step waits for the device to see whether its gradient is finite")
        self.last = trainer.estimated_stepping_batches - 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        epoch = 0 if trainer.overfit_batches else trainer.current_epoch  # type: ignore[attr-defined]
        self.place = Place(trainer.global_step, epoch, batch_idx)
        if self.action == "skip" and batch_idx % trainer.accumulate_grad_batches == 0:
            self.buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self._is_settled():
            self.history.add_loss(self.place, loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._is_settled():
            return
        step = self.place.step
        bad = not self.searching and self.history.add_gradient(step)
        if self.action == "skip":
            self._skip_if_bad(optimizer)
        elif bad or self._is_due(step):
            self._check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._check_before_saving()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_before_saving()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_before_saving()

    def _check_before_saving(self) -> None:
        """Check where a checkpoint may be written next; no callback is called for one that holds weights alone."""
        self._check()
        if not self._is_settled() and (names := bad_weights(self.layers)):
            self._respond(Finding(self.place.step, self.place.epoch, [self.place.batch], weights=names))

    def _is_settled(self) -> bool:
        """Return whether the alarm is raised already: then nothing more is looked for."""
        return self.action == "log" and self.first is not None

    def _is_due(self, step: int) -> bool:
        """Return whether the device is asked at a step: where the gradient is logged, and before it is probed."""
        probed = getattr(self.watcher, "probe_steps", ())
        return step in EARLY or step % self.every_n_steps == 0 or step == self.last or step + 1 in probed

    def _check(self) -> None:
        if self.action != "skip" and (finding := self._read()):
            self._respond(finding)

    def _skip_if_bad(self, optimizer: Optimizer) -> None:
        """Without gradients an optimizer changes nothing: neither weights nor momenta nor its own count of steps.
        Running statistics, in which a nan would stay for good, are put back."""
        finding = self._read() if self.history.gradients else None
        self.history.clear()
        if finding is None or not finding.gradients:
            return
        optimizer.zero_grad()
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        self.skipped += 1
        log_metrics(self.trainer, {"grad/skipped": float(self.skipped)}, finding.step)
        if self.first is None:
            self._record(finding)
            self._raise_alarm(finding)
            self._print(f"{finding.sentence()}; skipped, as others will be")

    def _read(self) -> Finding | None:
        scaler: Any = getattr(self.trainer.precision_plugin, "scaler", None)
        average = partial(self.trainer.strategy.reduce, reduce_op="mean")
        finding = self.history.read(average, scaler.get_scale() if scaler else 1.0)
        if finding and finding.step == self.trainer.global_step and not math.isfinite(finding.loss):
            finding.output = self._first_bad_output(finding)
        return finding

    def _first_bad_output(self, finding: Finding) -> str | None:
        """Return the first layer on any rank whose output is not finite: the batch is made again, and goes through a
        model of ours that has not changed since. On every rank, since a norm layer may ask the others."""
        loader: Any = self.trainer.train_dataloader
        if not hasattr(loader, "batch") or not hasattr(self.model, "spec"):
            return None
        x, _ = loader.batch(finding.epoch, finding.batches[0])
        with self.trainer.precision_plugin.forward_context():
            name = first_output(self.model, self.layers, self.trainer.precision_plugin.convert_input(x))
        names = [INPUT, *self.layers, None]
        place = torch.tensor(names.index(name), device=self.model.device)
        return names[int(self.trainer.strategy.all_gather(place).min())]

    def _respond(self, finding: Finding) -> None:
        self._record(finding)
        if self.action == "log":
            if self.watcher:
                self.watcher.act_on(self.trainer, self._raise_alarm(finding))
            else:
                self._print(finding.sentence())
            return
        if runs.in_sweep() or (self.watcher and self.watcher.on_alarm == "prune"):
            raise runs.Pruned(finding.sentence())
        if not self.trainer.is_global_zero:
            sys.exit(0)  # the first rank reports it; Lightning would kill it for another status
        raise runs.Diverged(finding.sentence(), self._commands())

    def _raise_alarm(self, finding: Finding) -> list[Alarm]:
        """Raise `nonfinite` among the alarms of the watched gradient, which does not raise it again then."""
        return self.watcher.alarms.new(finding.step, {"nonfinite": finding.description()}) if self.watcher else []

    def _record(self, finding: Finding) -> None:
        """Write the first finding to nonfinite.json, with all that makes its batch again."""
        if self.first is not None:
            return
        self.first = finding
        if self.trainer.is_global_zero:
            content = {"sentence": finding.sentence(), "seed": self.seed, "layer": finding.layer, **asdict(finding)}
            content |= {"loss": finding.loss if math.isfinite(finding.loss) else str(finding.loss)}
            content |= {"checkpoint": runs.LAST if self._has_checkpoint() else None, "commands": self._commands()}
            runs.write_json(self.folder / runs.NONFINITE, content)

    def _has_checkpoint(self) -> bool:
        return (self.folder / runs.LAST).is_file()

    def _commands(self) -> dict[str, str]:
        """Return commands that make the batch again, and that train up to the step again, measuring every step."""
        folder, watcher = os.path.relpath(self.folder), "gradient_flow" if self.watcher else "nonfinite"
        commands = {"the batch again": shlex.join(["python", "src/replay.py", f"run={folder}"])}
        if not HydraConfig.initialized():
            return commands
        own = [f"callbacks.{watcher}.every_n_steps=1"]
        own += ["on_nonfinite=stop"] if self.action != "stop" else []
        own += [f"resume={folder}/{runs.LAST}"] if self._has_checkpoint() else []
        replaced = {"resume", *map(key, own)}
        overrides = [one for one in of_command() if key(one) not in replaced]
        what = "from the last good checkpoint" if self._has_checkpoint() else "the run again, measuring every step"
        return commands | {what: shlex.join(["python", "src/train.py", *overrides, *own])}

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "found": asdict(self.first) if self.first else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
        self.first = Finding(**state_dict["found"]) if state_dict["found"] else None

    def _print(self, message: str) -> None:
        if self.trainer.is_global_zero:
            print_line(self.trainer, message)
