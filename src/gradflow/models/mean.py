"""The exact mean of a loss or a metric over a split."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


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
