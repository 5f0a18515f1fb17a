"""Signal-to-noise ratio of each layer's gradient: how much of it is the same from batch to batch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.isolation import wide
from gradflow.plots.layout import Layout
from gradflow.runs.errors import UserError


class SNR(Diagnostic):
    """Measures ‖m‖ / √v of each layer, with m the exponential moving average of its gradient g over steps, and v that
    of ‖g − m‖²; logs ``snr/ratio_{median,min,max}``.

    A gradient n steps back weighs decayⁿ; the weights are normalised, so that the start does not bias the averages.
    Where all is noise the ratio is about √((1 − decay) / 2), 0.07 by default; the first step has none. A step whose
    gradient is not finite is left out. One copy of the gradient is kept; of the variance, a number a layer.
    """

    name = "snr"
    summary = "snr/ratio"

    def __init__(self, decay: float = 0.99, every_n_steps: int | None = None) -> None:
        if not 0 < decay < 1:
            raise UserError(f"diagnostics.snr.decay={decay}: expected a fraction between 0 and 1")
        self.decay, self.every_n_steps = decay, every_n_steps

    def due(self, step: int, last: float, every_n_steps: int) -> bool:
        return step > 0 and super().due(step, last, every_n_steps)

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        parameters = list(itertools.chain(*layers.values()))
        device, dtype = parameters[0].device, wide(parameters[0])
        self.owner = torch.tensor([index for index, own in enumerate(layers.values()) for _ in own], device=device)
        self.mean = [torch.zeros_like(p, requires_grad=False) for p in parameters]
        self.variance = torch.zeros(len(layers), dtype=dtype, device=device)
        self.weight = torch.zeros((), dtype=dtype, device=device)  # the sum of all weights
        return Layout({"layer": list(layers)}, "gradient signal-to-noise ratio", "‖mean of g‖ / sd of g", log=True)

    @torch.no_grad()
    def update(self, step: Step) -> None:
        """Take up a gradient by West's formulas (1979): no difference of large numbers hides a small one."""
        difference = torch._foreach_sub(list(itertools.chain(*step.data_gradient.values())), self.mean)
        squares = self._squares_of(difference)
        finite = squares.isfinite().all()
        weight = self.decay * self.weight + 1
        share = (1 / weight).where(finite, 0)
        for mean, change in zip(self.mean, difference, strict=True):
            mean += (share.to(mean.dtype) * change).where(finite, 0)
        self.variance = (1 - share) * (self.variance + share * squares.where(finite, 0))
        self.weight = weight.where(finite, self.weight)

    def measure(self, step: Step) -> Tensor:
        return (self._squares_of(self.mean) / self.variance.where(self.variance > 0, torch.nan)).sqrt()

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "weight": self.weight}

    def load(self, state: Mapping[str, Any]) -> None:
        for mean, saved in zip(self.mean, state["mean"], strict=True):
            mean.copy_(saved)
        self.variance, self.weight = state["variance"].to(self.variance), state["weight"].to(self.weight)

    def _squares_of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the sum of squares of each layer, in float64: float32 loses those of gradients below 1e-23."""
        norms = torch.stack(torch._foreach_norm(list(tensors), 2, dtype=self.variance.dtype))
        return torch.zeros_like(self.variance).index_add_(0, self.owner, norms.square_())
