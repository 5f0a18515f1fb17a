"""By how much a step changes each layer, relative to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.layers import weighted
from gradflow.diagnostics.norms import update_ratios
from gradflow.plots.layout import Layout


class Updates(Diagnostic):
    """Logs ``update/ratio_{median,min,max}``, ‖ΔW‖ / ‖W‖ of the layers, biases and norms left out."""

    name = "updates"
    summary = "update/ratio"
    after_step = True

    def start(self, model: nn.Module, layers: Layers) -> Layout:
        self.layers = weighted(layers)
        return Layout({"layer": self.layers}, "update ratio", "‖ΔW‖ / ‖W‖", log=True)

    def measure(self, step: Step) -> Tensor:
        return update_ratios(step.before, step.after)

    def draw(self, steps: Sequence[float], rows: Sequence[Sequence[float]], path: Path) -> bool:
        from gradflow.plots.profile import update_profile  # with matplotlib, which no step needs

        tables = [dict(zip(self.layers, row, strict=True)) for row in rows]
        return update_profile(
            [{"step": int(step), "updates": row} for step, row in zip(steps, tables, strict=True)], path
        )
