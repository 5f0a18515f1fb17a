"""What a diagnostic says on the screen and hands to the loggers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def log_metrics(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Hand numbers to all loggers."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step)


def print_line(trainer: Trainer, line: str) -> None:
    """Print a line above the progress bar, where there is one."""
    bar: Any = trainer.progress_bar_callback
    bar.print(line) if bar is not None and bar.is_enabled else print(line)


def working(trainer: Trainer, on: str) -> AbstractContextManager[None]:
    """Name what takes long while it does, where our own progress bar shows what goes on."""
    line: Any = getattr(trainer.progress_bar_callback, "line", None)
    return line.working(on) if line is not None else nullcontext()


def shows_pictures(trainer: Trainer) -> bool:
    """Return whether a logger takes pictures."""
    return any(hasattr(one, "log_image") or isinstance(one, TensorBoardLogger) for one in trainer.loggers)


def log_picture(trainer: Trainer, name: str, picture: Path) -> None:
    """Hand a finished picture to the loggers that can show one."""
    for logger in trainer.loggers:
        if log_image := getattr(logger, "log_image", None):  # of W&B's, and those of its kind
            log_image(name, [str(picture)])
        elif isinstance(logger, TensorBoardLogger):
            image: Any = torch.from_numpy(_pixels(picture))
            logger.experiment.add_image(name, image, trainer.global_step, dataformats="HWC")


def _pixels(path: Path) -> Any:
    import matplotlib.image

    return (matplotlib.image.imread(path)[..., :3] * 255).astype("uint8")
