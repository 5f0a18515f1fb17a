"""Exact resume: random numbers depend on the place in the run, not on the numbers before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer


class PerBatchSeed(Callback):
    """Seed torch before each batch by (seed, rank, number of the batch), so that dropout has the masks in a resumed
    run that it would have had. No state of a generator need be saved, on any rank or device.

    The generators of the host and of the model's device are seeded directly: `torch.manual_seed` asks every kind of
    device that torch knows, and without a GPU takes as long as a third of a small network's step.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready  # counted over the run; a resume restores it
        (batch_seed,) = np.random.SeedSequence([self.seed, trainer.global_rank, number]).generate_state(1)
        torch.default_generator.manual_seed(int(batch_seed))
        if pl_module.device.type != "cpu":
            torch.get_device_module(pl_module.device).manual_seed(int(batch_seed))
