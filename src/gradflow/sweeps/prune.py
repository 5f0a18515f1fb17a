"""The callback that prunes a run of a search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig

from gradflow.runs.overrides import of_command
from gradflow.sweeps import study
from gradflow.sweeps.space import monitor


class Prune(Callback):
    """Report `monitor` after each validation, the first being step 1, and ask the study's pruner whether to go on.
    The first rank asks; all ranks do as it is answered."""

    def __init__(self, address: str, overrides: Sequence[str], monitor: str) -> None:
        self.address, self.overrides, self.monitor = address, overrides, monitor
        self.trial: Any = None
        self.pruned: str | None = None
        self.validations = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.trial = study.running_trial(self.address, self.overrides)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self.monitor not in metrics:
            return
        self.validations += 1
        reason = self._reason_to_prune(float(metrics[self.monitor])) if self.trial is not None else None
        self.pruned = trainer.strategy.broadcast(reason)
        if self.pruned:
            trainer.should_stop = True

    def _reason_to_prune(self, value: float) -> str | None:
        self.trial.report(value, self.validations)
        if not self.trial.should_prune():
            return None
        pruner = type(self.trial.study.pruner).__name__
        return f"by {pruner}: {self.monitor} was {value:.4g} after validation {self.validations}"

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]


def callbacks(cfg: DictConfig) -> list[Callback]:
    """Return the callback of a search that prunes, by the metric whose best value the run returns to it."""
    address, metric = os.environ.get(study.ADDRESS), monitor(cfg) or "loss/val"
    return [Prune(address, of_command(), metric)] if address else []
