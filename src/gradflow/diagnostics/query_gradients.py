"""The gradient of queries and keys beside that of values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradflow.diagnostics.activations import attentions
from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.norms import norms_of
from gradflow.plots.layout import Layout


class QueryGradients(Diagnostic):
    """Measures √(‖∂L/∂W_Q‖² + ‖∂L/∂W_K‖²) / ‖∂L/∂W_V‖ of each attention layer; logs
    ``query_gradients_{median,min,max}``.

    Queries and keys get their gradient from differences between tokens, values from their mean: where tokens become
    alike, the ratio falls (Noci et al. 2022).
    """

    name = "query_gradients"
    summary = "query_gradients"

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        place = {id(p): (name, index) for name, own in layers.items() for index, p in enumerate(own)}
        attention = attentions(model, self.name)
        matrices = {
            name: [id(part.weight) for part in (own.query, own.key, own.value)] for name, own in attention.items()
        }
        self.layers = {name: own for name, own in matrices.items() if all(matrix in place for matrix in own)}
        self.places = [place[matrix] for own in self.layers.values() for matrix in own]  # frozen ones have none
        label = "‖∂L/∂W_Q, ∂L/∂W_K‖ / ‖∂L/∂W_V‖"
        return Layout({"layer": list(self.layers)}, "gradient of queries and keys", label, log=True)

    def measure(self, step: Step) -> Tensor:
        gradients = [step.data_gradient[name][index] for name, index in self.places]
        query, key, value = norms_of(gradients, step.norms.dtype).view(-1, 3).T
        ratios: Tensor = torch.hypot(query, key) / value.where(value > 0, torch.nan)
        return ratios
