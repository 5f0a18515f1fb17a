"""Which weights are kept."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Best(ModelCheckpoint):
    """The weights with the lowest `monitor`; those of the last epoch where there is no validation split."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None and not data.has("val"):
            self.monitor = None
        super().setup(trainer, pl_module, stage)
