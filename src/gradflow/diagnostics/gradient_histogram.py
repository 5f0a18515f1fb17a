"""How the sizes of a layer's gradient entries are spread over powers of ten."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.layers import weighted
from gradflow.plots.layout import Layout

_LOW, _HIGH = -20, 4  # powers of ten


class GradientHistogram(Diagnostic):
    """Measures, of each layer with weights, the share of gradient entries g with log₁₀|g| in [n, n + 1).

    What is smaller than the first bin, zero included, counts for the first; what is larger or not finite for the last.
    """

    name = "gradient_histogram"

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        bins = [f"<{_LOW + 1}", *map(str, range(_LOW + 1, _HIGH - 1)), f"≥{_HIGH - 1}"]
        self.layers = weighted(layers)
        return Layout({"layer": self.layers, "log₁₀ |g|": bins}, "sizes of gradient entries", "share of the entries")

    @torch.no_grad()
    def measure(self, step: Step) -> Tensor:
        return torch.stack([self._shares(step.data_gradient[name]) for name in self.layers])

    def _shares(self, gradients: Sequence[Tensor]) -> Tensor:
        sizes = torch.cat([g.flatten() for g in gradients]).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        bins = (sizes.log10().floor() - _LOW).clamp(0, _HIGH - _LOW - 1).long()
        counts = torch.zeros(_HIGH - _LOW, dtype=torch.long, device=sizes.device)
        return counts.index_add_(0, bins, torch.ones_like(bins)) / len(bins)
