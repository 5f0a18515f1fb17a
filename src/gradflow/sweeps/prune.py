"""Ends a run that the search it belongs to thinks not worth going on with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from omegaconf import DictConfig

from gradflow.sweeps import search, space


class Prune(Callback):
    """Reports `monitor` after each validation, the first being step 1, and asks the study's pruner whether to go on.
    The first rank asks; all ranks do as it was told."""

    def __init__(self, address: str, words: Sequence[str], monitor: str) -> None:
        self.address, self.words, self.monitor = address, words, monitor
        self.trial: Any = None
        self.pruned: str | None = None
        self.validations = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.trial = search.running(self.address, self.words)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = trainer.callback_metrics
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self.monitor not in found:
            return
        self.validations += 1
        reason = self.judged(float(found[self.monitor])) if self.trial is not None else None
        self.pruned = trainer.strategy.broadcast(reason)
        if self.pruned:
            trainer.should_stop = True

    def judged(self, value: float) -> str | None:
        self.trial.report(value, self.validations)
        if not self.trial.should_prune():
            return None
        name = type(self.trial.study.pruner).__name__.removesuffix("Pruner").lower()
        return f"{self.monitor} was {value:.4g} after validation {self.validations}, which the {name} rule ends"

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]


def callbacks(cfg: DictConfig) -> list[Callback]:
    """Where a search has left word that it prunes: by the metric whose best value the run returns to it."""
    address, monitor = os.environ.get(search.ADDRESS), space.monitor(cfg) or "loss/val"
    return [Prune(address, list(HydraConfig.get().overrides.task), monitor)] if address else []
