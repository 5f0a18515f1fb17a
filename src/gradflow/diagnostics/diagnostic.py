"""What all diagnostics share: when one is measured, what it sees of a step, how its numbers are stored and drawn.

A diagnostic is a final class in a file of its own, chosen by a YAML in conf/diagnostics/. It knows torch, and nothing
of Lightning; recorder.py runs all that are chosen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradflow.diagnostics.norms import gradient_norms, norms_of
from gradflow.plots.layout import Layout
from gradflow.runs.errors import UserError

EARLY = (0, 1, 2, 4, 8, 16, 32, 64)  # steps at which a network still changes fast
Layers = Mapping[str, Sequence[nn.Parameter]]
Tensors = Mapping[str, Sequence[Tensor]]


class Step:
    """One optimizer step, as all diagnostics see it: nothing is computed before one asks, and nothing twice.

    Gradients are those that the optimizer is about to use, before clipping: accumulated over micro-batches, unscaled
    under mixed precision, averaged over devices. They are there in `update`, and in `measure` before the optimizer's
    step; after it they have been clipped or freed, and asking for them is an error.
    """

    def __init__(
        self,
        index: int,
        layers: Layers,
        scale: float | Tensor = 1.0,
        penalty: Callable[[], Mapping[nn.Parameter, Tensor]] = dict,
        inputs: Tensor | None = None,
    ) -> None:
        self.index, self.layers = index, layers  # counted from 0; trainable parameters by layer, in depth order
        self._inputs = inputs
        self._scale, self._penalty, self._over = scale, penalty, False

    @cached_property
    def data_gradient(self) -> Tensors:
        """Return the gradient of the loss without l1 and l2, by layer; zeros where the loss did not reach."""
        self._check()
        own = {name: [_gradient_of(p) for p in parameters] for name, parameters in self.layers.items()}
        if isinstance(self._scale, float):
            return own
        return {name: [g / self._scale.to(g.device) for g in gradients] for name, gradients in own.items()}

    @cached_property
    def gradient(self) -> Tensors:
        """Return the whole gradient, by layer: that of the loss and of the penalties."""
        added = self._penalties
        return {
            name: [g + added[p] if p in added else g for p, g in zip(self.layers[name], gradients, strict=True)]
            for name, gradients in self.data_gradient.items()
        }

    @cached_property
    def norms(self) -> Tensor:
        """Return ‖data_gradient‖ of each layer, in float64 where the device has it."""
        self._check()
        return gradient_norms(self.layers, self._scale)

    @cached_property
    def norm(self) -> Tensor:
        """Return the norm of the whole gradient, which is what clipping looks at."""
        norms = self.norms
        if self._penalties:
            norms = norms_of([gradient for own in self.gradient.values() for gradient in own], norms.dtype)
        return norms_of([norms], norms.dtype)[0]

    @cached_property
    def before(self) -> Tensors:
        """Return each layer's weights before the step, without biases and norms: a copy, made when first asked for."""
        self._check()
        return {name: [w.detach().clone() for w in own] for name, own in self.after.items()}

    @cached_property
    def after(self) -> Tensors:
        """Return each layer's weights as they are now: after the step, those that it led to."""
        weights = {name: [p.detach() for p in own if p.ndim > 1] for name, own in self.layers.items()}
        return {name: own for name, own in weights.items() if own}

    @property
    def inputs(self) -> Tensor:
        """Return the few held-out samples that probes see, too: the same at every step."""
        if self._inputs is None:
            raise UserError(
                "callbacks.gradient_flow.probes=0: a diagnostic needs a probe's samples; expected 1 or more"
            )
        return self._inputs

    def end(self) -> None:
        """Let go of the gradients: the optimizer is about to use them."""
        self._over = True
        for computed in ("data_gradient", "gradient", "norms", "norm", "_penalties"):
            self.__dict__.pop(computed, None)

    def _check(self) -> None:
        if self._over:
            raise RuntimeError("after the optimizer's step its gradient is gone: keep what you need of it in `update`")

    @cached_property
    def _penalties(self) -> Mapping[nn.Parameter, Tensor]:
        return self._penalty()


def _gradient_of(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.detach()


class Diagnostic(ABC):
    """A quantity that is measured while a network trains.

    Its numbers go to `<name>.csv`, a row a measured step; `<name>.layout.json` says how they read, and the picture in
    the run folder, in W&B and in the report follows from that.
    """

    name: ClassVar[str]  # of its table and of its picture
    summary: ClassVar[str] = ""  # the prefix under which median, least and largest of its numbers are logged, if any
    after_step: ClassVar[bool] = False  # measured after the optimizer's step, with the weights before and after it
    every_n_steps: int | None = None  # beside the first steps and the last one; None: as all others

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps

    @abstractmethod
    def start(self, model: nn.Module, layers: Layers) -> Layout:
        """Get ready for a training, and return how the table reads."""

    @abstractmethod
    def measure(self, step: Step) -> Tensor:
        """Return a number for each column of the layout, in its order and any shape, on the device."""

    def due(self, step: int, last: float, every_n_steps: int) -> bool:
        """Return whether to measure at a step: 0, 1, 2, 4 … 64, every n-th and the last one."""
        return step in EARLY or step % (self.every_n_steps or every_n_steps) == 0 or step == last

    def update(self, step: Step) -> None:
        """See every step, before the optimizer's; nothing here may wait for the device."""

    def keys(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Return what the loggers get, from the numbers of a step by column."""
        return summary_keys(self.summary, values) if self.summary else {}

    def draw(self, steps: Sequence[float], rows: Sequence[Sequence[float]], path: Path) -> bool:
        """Draw the whole table in a way of its own; False leaves it to the layout."""
        return False

    def state(self) -> dict[str, Any]:
        """Return running statistics for the checkpoint: tensors and plain data."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up the statistics of a checkpoint, after `start`."""


def summary_keys(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return `<prefix>_median`, `_min` and `_max` of those numbers that are finite."""
    if not (finite := [value for value in values.values() if math.isfinite(value)]):
        return {}
    return {f"{prefix}_median": median(finite), f"{prefix}_min": min(finite), f"{prefix}_max": max(finite)}
