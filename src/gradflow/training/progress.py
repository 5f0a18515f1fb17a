"""The progress bar."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from gradflow.training.csv_logger import TableLogger


class Progress(TQDMProgressBar):
    """Lightning's progress bar, without the W&B run's id, and with the last logged loss: no step waits for it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.fit_loop.restarted_mid_epoch:
            super().on_train_epoch_start(trainer)  # which Lightning leaves out there

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """End the bars' lines, so that what is said next has one of its own, and is the last."""
        for bar in (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        for logger in trainer.loggers:
            if isinstance(logger, TableLogger) and "loss/train" in logger.latest:
                shown = {"loss/train": f"{logger.latest['loss/train']:.3g}"} | shown
        return shown
