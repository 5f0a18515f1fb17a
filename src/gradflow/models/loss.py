"""Losses and scores of a batch, and their exact means over a split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_LOSSES = ("auto", "cross_entropy", "mse")


class Mean(Metric):
    """A mean from sums and counts: exact for unequal batches and devices, and without waiting for the device.

    Lightning's own mean is not exact on several devices; torchmetrics' MeanMetric either waits at each batch to look
    for nans or, if that is switched off, ignores the weights (1.9), and its accuracy waits when it leaves a class out.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        self.total = self.total.float() + total  # half precision, which a 16-bit model gives its states, can't count
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count


def resolve_loss(name: str, spec: Spec) -> str:
    """Return the name of the loss that fits the data, or reject one that does not."""
    if name not in _LOSSES:
        raise UserError(f"model.loss={name}: expected one of {', '.join(_LOSSES)}")
    if name == "cross_entropy" and spec.task == "regression":
        raise UserError("model.loss=cross_entropy: these data ask for numbers, not classes; model.loss=mse fits")
    return {"classification": "cross_entropy", "regression": "mse"}[spec.task] if name == "auto" else name


def loss_of(output: Tensor, target: Tensor, name: str, spec: Spec, smoothing: float = 0.0) -> Tensor:
    """Return the mean over samples (and steps).

    `mse` on classes compares with one-hot targets, over all outputs. Targets of mixed samples are a share a class.
    """
    mixed = spec.task == "classification" and target.is_floating_point()
    if name == "cross_entropy":
        target = target if mixed else target.flatten()
        return F.cross_entropy(output.flatten(0, -2), target, label_smoothing=smoothing)
    if spec.task == "classification":
        target = target if mixed else F.one_hot(target, spec.outputs)
    elif output.shape != target.shape:
        raise UserError(
            f"targets of shape {list(target.shape)}, but outputs of {list(output.shape)}: they must be alike"
        )
    dtype = torch.promote_types(output.dtype, torch.float32)
    return F.mse_loss(output.to(dtype), target.to(dtype))


def score_of(output: Tensor, target: Tensor, spec: Spec) -> tuple[Tensor, Tensor | int]:
    """Return right answers and how many were asked for, blanks left out; or the sum and number of squared errors."""
    if spec.task == "regression":
        return (output - target).square().sum(), target.numel()
    if target.is_floating_point():  # a mixed sample is of the class of its larger share
        target = target.argmax(-1)
    right = output.argmax(-1) == target
    if spec.blank is None:
        return right.sum(), target.numel()
    asked = target != spec.blank
    return (right & asked).sum(), asked.sum()
