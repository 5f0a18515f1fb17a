"""A batch that was trained on, made again: its content on the screen and as files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torchvision.utils import save_image

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.runs.screen import Screen

_SHOWN = 64  # images in the picture


def address(cfg: DictConfig, nonfinite: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Return epoch and batches: one that was asked for, or those of the step whose numbers are not finite."""
    if (cfg.epoch is None) != (cfg.batch is None):
        raise UserError(f"epoch={cfg.epoch} batch={cfg.batch}: give both, or none for where the numbers went bad")
    if cfg.epoch is None and not nonfinite:
        finite = f"run={cfg.run}: has no {runs.NONFINITE}, its numbers were finite"
        raise UserError(f"{finite}; give epoch=… batch=…, or to train it again the folder without run=")
    place = nonfinite if cfg.epoch is None else {"epoch": cfg.epoch, "batches": [cfg.batch]}
    epoch, batches = place.get("epoch"), place.get("batches")
    if isinstance(batches, list) and batches and all(type(n) is int and n >= 0 for n in (epoch, *batches)):
        return epoch, batches  # type: ignore[return-value]
    if cfg.epoch is None:
        raise UserError(f"{cfg.run}/{runs.NONFINITE}: is damaged (it names no batch of an epoch); give epoch=… batch=…")
    raise UserError(f"epoch={epoch} batch={cfg.batch}: expected whole numbers, 0 or more")


def joined(batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return several batches as one, on the host."""
    x, y = zip(*batches, strict=True)
    return {"x": torch.cat(x).cpu(), "y": torch.cat(y).cpu()}


def save_batch(run: Path, seed: int, epoch: int, batches: list[int], content: dict[str, Tensor]) -> None:
    """Write the batch to the run's folder, and its first images as a picture."""
    with runs.write_whole(run / runs.BATCH, "wb") as file:
        torch.save({**content, "seed": seed, "epoch": epoch, "batches": batches}, file)
    x = content["x"]
    if x.ndim == 4 and x.shape[1] in (1, 3):
        with runs.write_whole(run / runs.BATCH_IMAGE, "wb") as file:
            save_image(x[:_SHOWN].nan_to_num(0, 0, 0), file, format="png", normalize=True)


def print_batch(run: Path, sentence: str | None, epoch: int, batches: list[int], content: dict[str, Tensor]) -> None:
    """Print what was not finite there, and shape, range and labels of the batch."""
    console = Screen()
    if sentence:
        console.row("", sentence, margin=0)
    table = Table(f"epoch {epoch}, batch {', '.join(map(str, batches))}", box=SIMPLE_HEAD)
    for column in ("shape", "type", "from", "to", "mean", "not finite"):
        table.add_column(column, justify="right")
    for name, tensor in content.items():
        table.add_row(name, *_described(tensor))
    console.print(table)
    if not content["y"].is_floating_point():
        labels, counts = content["y"].unique(return_counts=True)
        listed = ", ".join(f"{label} ×{count}" for label, count in zip(labels.tolist(), counts.tolist(), strict=True))
        console.row("labels: ", listed, margin=8)
    written = [os.path.relpath(run / name) for name in (runs.BATCH, runs.BATCH_IMAGE) if (run / name).is_file()]
    console.row("written: ", ", ".join(written), margin=9)


def _described(tensor: Tensor) -> list[str]:
    finite = tensor[tensor.isfinite()].cpu().double()
    numbers = [finite.min(), finite.max(), finite.mean()] if len(finite) else [torch.tensor(torch.nan)] * 3
    shape, kind = "×".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch.")
    return [shape, kind, *(f"{number:.4g}" for number in numbers), str(tensor.numel() - len(finite))]
