"""Log the norm of every layer's gradient while a network trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch.optim import Optimizer

from gradflow import runs
from gradflow.flow.layers import layers, weighted
from gradflow.flow.norms import clip_coefficient, gradient_norms, total
from gradflow.mistakes import Mistake
from gradflow.pictures.heatmap import heatmap


class GradientFlow(Callback):
    """At step 0, every `every_n_steps`-th step and the last one, logs

    ==========================  ==============================================================================
    key                         value
    ==========================  ==============================================================================
    ``grad_norm/<ii>.<layer>``  L2 norm of the gradient of all the parameters of one layer; ``ii`` is its depth
    ``grad/norm``               L2 norm of the whole gradient
    ``grad/clip_coef``          what clipping by norm multiplies it with; 1 when it is not clipped
    ==========================  ==============================================================================

    The gradient is the one that the optimizer is about to use, before clipping: accumulated over micro-batches,
    unscaled under mixed precision, averaged over devices. A step is an optimizer step, counted from 0. The layer norms
    also go to ``gradients.csv`` in the run folder, a row a logged step, and at the end ``gradients.png`` shows them,
    layer by step. A step that logs costs one transfer from the device; the others cost nothing.

    Where an epoch's batches don't divide by ``accumulate_grad_batches``, Lightning divides the shorter last sum by the
    full number all the same: that step's norms are smaller, as its update is. A run that ends early, by a time limit or
    early stopping, has no row for its last step, because nobody knew that it was the last.
    """

    def __init__(self, run_dir: str, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise Mistake(f"callbacks.gradient_flow.every_n_steps={every_n_steps}: expected 1 or more")
        self.folder, self.every_n_steps = Path(run_dir), every_n_steps
        self.table: runs.Table | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.layers = layers(pl_module)
        if not self.layers:
            raise Mistake("callbacks.gradient_flow: the model has no trainable layer to watch")
        if trainer.is_global_zero:
            self.table = runs.Table(self.folder / runs.GRADIENTS, ["step", *self.layers])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = trainer.estimated_stepping_batches - 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step
        if step % self.every_n_steps and step != self.last:
            return
        if self.table is None:  # every rank holds the same averaged gradient; the first one tells
            return
        norms = gradient_norms(self.layers, still_scaled_by(trainer, optimizer)).tolist()
        by_layer = dict(zip(self.layers, norms, strict=True))
        self.table.add(step, by_layer)
        norm = total(norms)
        limit = trainer.gradient_clip_val if trainer.gradient_clip_algorithm != "value" else None
        values = {f"grad_norm/{name}": value for name, value in by_layer.items()}
        log(trainer, values | {"grad/norm": norm, "grad/clip_coef": clip_coefficient(norm, limit)}, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.table is None:
            return
        names, rows = runs.read_table(self.table.path)
        if rows:
            picture = self.folder / runs.HEATMAP
            shown = weighted(self.layers)
            columns = [names.index(name) for name in shown]
            heatmap(shown, [int(row[0]) for row in rows], [[row[c] for c in columns] for row in rows], picture)
            show(trainer, picture)


def still_scaled_by(trainer: Trainer, optimizer: Optimizer) -> float | torch.Tensor:
    """Lightning unscales 16-bit gradients before this hook, but for fused optimizers, which do it inside their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return scaler._get_scale_async() if scaler is not None and fused else 1.0


def log(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step)


def show(trainer: Trainer, picture: Path) -> None:
    """Hand a finished picture to the loggers that can show one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("gradients", [str(picture)])
        elif isinstance(logger, TensorBoardLogger):
            image: Any = torch.from_numpy(read_picture(picture))
            logger.experiment.add_image("gradients", image, trainer.global_step, dataformats="HWC")


def read_picture(path: Path) -> Any:
    import matplotlib.image

    return (matplotlib.image.imread(path)[..., :3] * 255).astype("uint8")
