"""How alike the tokens of a sample become with depth: at 1 all are the same, and nothing is left to choose from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gradflow.diagnostics.activations import attentions, computed
from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.probe import likeness, trunk_of
from gradflow.plots.layout import Layout


class TokenSimilarity(Diagnostic):
    """Measures the mean cosine between different tokens of a sample, in the stream after each block, on held-out
    samples; logs ``token_similarity/last``, that of the last block.

    Without skips it goes to 1 with depth (rank collapse, Dong et al. 2021); where it is near 1, queries and keys get no
    gradient (Noci et al. 2022).
    """

    name = "token_similarity"

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        attentions(model, self.name)
        self.model, names = model, trunk_of(model)
        self.blocks = [model.get_submodule(name) for name in names]
        columns = [name.removeprefix("net.") for name in names]
        return Layout({"layer": columns}, "similarity of tokens", "mean cosine between tokens of a sample")

    def measure(self, step: Step) -> Tensor:
        return computed(self.model, step.inputs, self.blocks, lambda block, x, h: torch.vmap(likeness)(h).mean())

    def keys(self, values: Mapping[str, float]) -> Mapping[str, float]:
        return {"token_similarity/last": [*values.values()][-1]}
