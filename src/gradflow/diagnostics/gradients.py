"""L2 norm of each layer's gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.layers import weighted
from gradflow.diagnostics.norms import total
from gradflow.plots.layout import OF_GRADIENTS, Layout


class Gradients(Diagnostic):
    """Logs

    ========================  ==================================================================================
    ``grad_norm/<layer>``     L2 norm of the gradient of all the parameters of one layer, without l1 and l2
    ``grad/norm``             the same of all layers
    ``grad/nonfinite``        layers whose gradient holds a nan or an infinity
    ========================  ==================================================================================
    """

    name = "gradients"

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        known = OF_GRADIENTS
        return Layout({"layer": list(layers)}, known.title, known.label, log=True, shown=weighted(layers))

    def measure(self, step: Step) -> Tensor:
        return step.norms

    def keys(self, values: Mapping[str, float]) -> Mapping[str, float]:
        bad = sum(not math.isfinite(norm) for norm in values.values())
        by_layer = {f"grad_norm/{name}": norm for name, norm in values.items()}
        return by_layer | {"grad/norm": total(list(values.values())), "grad/nonfinite": float(bad)}
