"""Which weights are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def copy(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(old, new)


class Best(ModelCheckpoint):
    """The weights with the lowest `monitor`; those at the end where nothing was validated."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and (trainer.limit_val_batches == 0 or (data is not None and not data.has("val"))):
            self.monitor = None
        self._save_on_train_epoch_end = self.monitor is None
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run resumed in a folder of its own brings the best weights so far along; Lightning would forget them."""
        old, score = Path(state_dict["best_model_path"]), state_dict["best_model_score"]
        if score is not None and old.is_file() and state_dict["dirpath"] != self.dirpath:
            new = self.format_checkpoint_name({})
            copy(old, Path(new))
            kept = {"best_model_path": new, "kth_best_model_path": new, "best_k_models": {new: score}}
            state_dict = state_dict | kept | {"dirpath": self.dirpath}
        super().load_state_dict(state_dict)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not self.best_model_path:  # the run was shorter than an epoch
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path)
