"""Over how many tokens attention is spread: 1 is an average of all, 0 a choice of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradflow.diagnostics.activations import attentions, computed
from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.models.attention import Attention
from gradflow.plots.layout import Layout


class AttentionEntropy(Diagnostic):
    """Measures the entropy −Σ A log A of the attention that a token pays, on held-out samples, as a mean over tokens,
    heads and samples; logs ``attention_entropy_{median,min,max}``.

    Its unit is the logarithm of the number of tokens that may be seen: T, or t for the t-th of a causal net, whose
    first has no choice and is left out.
    """

    name = "attention_entropy"
    summary = "attention_entropy"

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        self.model, self.layers = model, attentions(model, self.name)
        return Layout({"layer": list(self.layers)}, "entropy of attention", "entropy of rows in units of log T")

    def measure(self, step: Step) -> Tensor:
        return computed(self.model, step.inputs, list(self.layers.values()), lambda layer, x, y: entropy(layer, x))


def entropy(layer: Attention, x: Tensor) -> Tensor:
    """Return the mean entropy of the rows of an attention layer whose input is x."""
    query, key, _ = layer.in_heads(x)
    rows = layer.rows(query, key)
    steps = rows.shape[-1]
    seen = torch.arange(1, steps + 1, device=x.device) if layer.causal else torch.full((steps,), steps, device=x.device)
    by_token = -torch.xlogy(rows, rows).sum(-1).mean((0, 1))
    return (by_token / seen.log())[seen > 1].mean()
