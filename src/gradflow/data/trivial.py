"""The best answer that ignores the input: what a model has to beat before it has learnt anything."""

from __future__ import annotations

import torch
from torch import Tensor

from gradflow.data.datamodule import DataModule
from gradflow.data.loader import Generated
from gradflow.spec import Spec

_MOST = 2**22  # numbers of the inputs that are generated of an endless source


def scores(data: DataModule, loss: str) -> dict[str, float]:
    """Return `loss/…` and `accuracy/…` or `mse/…` of each split, for a constant fitted to the training split: the
    frequencies of the classes, or the mean target. Where there is an output at each time step, one for each."""
    spec = data.spec
    by_split = {split: _targets(data, split) for split in ("train", "val", "test") if data.has(split)}
    if spec.task == "regression":
        mean = by_split["train"].double().mean(0)
        mse = {split: (y.double() - mean).square().mean().item() for split, y in by_split.items()}
        return {f"{name}/{split}": error for split, error in mse.items() for name in ("loss", "mse")}
    counted = {split: _counts(y, spec.outputs) for split, y in by_split.items()}
    constant = counted["train"] / counted["train"].sum(-1, keepdim=True)
    losses = {f"loss/{split}": _loss_of(constant, count, loss) for split, count in counted.items()}
    return losses | {f"accuracy/{split}": _accuracy(constant, count, spec) for split, count in counted.items()}


def _targets(data: DataModule, split: str) -> Tensor:
    """Return all of a split; of an endless source those of its first epoch, or as many as are generated at once."""
    if split in data.splits:
        return data.splits[split].take("y", slice(None)).cpu()
    assert data.source.generate
    every = slice(0, max(1, min(data.sizes[split], _MOST // torch.Size(data.spec.shape).numel())))
    batches = Generated(data.source.generate, torch.device("cpu"), data.seed, split, data.batch_size)
    return batches(0, every, every)[1]


def _counts(y: Tensor, classes: int) -> Tensor:
    """Count in [N, *steps], as [steps or 1, classes], how often each class is the target."""
    y = y.flatten(1).T if y.ndim > 1 else y[None]
    return torch.zeros(len(y), classes, dtype=torch.double).scatter_add_(
        1, y.long(), torch.ones_like(y, dtype=torch.double)
    )


def _loss_of(constant: Tensor, count: Tensor, name: str) -> float:
    """Return what `models.loss.loss_of` is for that constant: the mean over samples, steps and, of `mse`, classes."""
    if name == "cross_entropy":
        return (-torch.xlogy(count, constant).sum() / count.sum()).item()
    square = constant.square().sum(-1, keepdim=True)  # |onehot − constant|² = 1 − 2 constant[class] + |constant|²
    return ((count * (1 - 2 * constant + square)).sum() / count.sum() / constant.shape[-1]).item()


def _accuracy(constant: Tensor, count: Tensor, spec: Spec) -> float:
    """Return the accuracy of that constant; blanks are never asked for."""
    if spec.blank is not None:
        asked = torch.arange(spec.outputs, device=count.device) != spec.blank
        constant, count = constant * asked, count * asked
    right = count.gather(-1, constant.argmax(-1, keepdim=True))
    return (right.sum() / count.sum()).item()
