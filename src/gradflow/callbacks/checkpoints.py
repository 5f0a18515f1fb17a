"""Which weights are kept."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Best(ModelCheckpoint):
    """The weights with the lowest `monitor`; those at the end where nothing was validated."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and (trainer.limit_val_batches == 0 or (data is not None and not data.has("val"))):
            self.monitor = None
        self._save_on_train_epoch_end = self.monitor is None
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:  # the run was shorter than an epoch
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path)
