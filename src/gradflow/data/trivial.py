"""The best answer that ignores the input: what a model has to beat before it has learnt anything."""

from __future__ import annotations

import torch
from torch import Tensor

from gradflow.data.datamodule import DataModule
from gradflow.data.loader import Generated
from gradflow.tasks.task import task_of

_MOST = 2**22  # numbers of the inputs that are generated of an endless source


def scores(data: DataModule, loss: str) -> dict[str, float]:
    """Return `loss/…` and the task's metric of each split, for a constant answer fitted to the training split."""
    targets = {split: _targets(data, split) for split in ("train", "val", "test") if data.has(split)}
    return task_of(data.spec).trivial(targets, loss)


def _targets(data: DataModule, split: str) -> Tensor:
    """Return all of a split; of an endless source those of its first epoch, or as many as are generated at once."""
    if split in data.splits:
        return data.splits[split].take("y", slice(None)).cpu()
    assert data.source.generate
    every = slice(0, max(1, min(data.sizes[split], _MOST // torch.Size(data.spec.shape).numel())))
    batches = Generated(data.source.generate, torch.device("cpu"), data.seed, split, data.batch_size)
    return batches(0, every, every)[1]
