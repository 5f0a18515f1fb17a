"""Where numbers stop being finite: recorded with no wait for the device until the record is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradflow.diagnostics.isolation import eager, random_numbers, wide
from gradflow.diagnostics.norms import norms_of

INPUT = "the input"
_BAD, _ONE = torch.zeros(()), torch.ones(())  # made once, since to make them takes as long as to use them


class Place(NamedTuple):
    """The address of a micro-batch, and the optimizer step that it is part of."""

    step: int
    epoch: int
    batch: int


@dataclass
class Finding:
    """The first step at which a loss, a gradient or a weight is not finite."""

    step: int
    epoch: int
    batches: list[int]  # the micro-batch that began it; all of the step where its loss does not tell
    loss: float = 0.0
    gradients: list[str] = field(default_factory=list)  # layers whose gradient is not finite, in depth order
    weights: list[str] = field(default_factory=list)
    output: str | None = None  # the first layer whose output was not finite, where that could be seen

    @property
    def layer(self) -> str | None:
        """Return the first one in depth order."""
        return next((name for name in (self.output, *self.gradients, *self.weights) if name), None)

    def sentence(self) -> str:
        return f"step {self.step}: {self.description()}"

    def description(self) -> str:
        event = f"the loss is {self.loss:.4g}"
        if self.weights:
            event = f"the weights of {_span(self.weights)} are not finite"
        elif self.output:
            began = self.output if self.output == INPUT else f"the output of {self.output}"
            event = f"{began} is not finite, {event}"
        elif self.gradients:
            event = f"the gradient of {_span(self.gradients)} is not finite, {event}"
        batches = "batch" if len(self.batches) == 1 else "batches"
        return f"{event} (epoch {self.epoch}, {batches} {', '.join(map(str, self.batches))})"


def _span(names: Sequence[str]) -> str:
    """Name the first in depth order, and the last: where a gradient that goes bad on its way back began."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} layers)"


class History:
    """Losses and gradients since the last `read`. They stay on the device until it fetches them at once."""

    def __init__(self, of_layers: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.owned = [(name, p) for name, own in of_layers.items() for p in own]
        self.clear()

    def clear(self) -> None:
        self.losses: list[tuple[Place, Tensor]] = []
        self.gradients: list[tuple[int, list[str], Tensor]] = []  # step, the layer of each gradient, its norm

    def add_loss(self, place: Place, loss: Tensor) -> None:
        self.losses.append((place, loss.detach()))

    def add_gradient(self, step: int) -> bool:
        """Return True when it is known not to be finite, which only a host's own memory tells without a wait."""
        gradients = [gradient for _, p in self.owned if (gradient := p.grad) is not None]
        on_host = bool(gradients) and gradients[0].is_cpu
        if not gradients or (on_host and all_finite(gradients)):
            return False
        names = [name for name, p in self.owned if p.grad is not None]
        self.gradients.append((step, names, norms_of(gradients, wide(gradients[0]))))
        return on_host

    def read(self, average: Callable[[Tensor], Tensor] = lambda losses: losses, scale: float = 1.0) -> Finding | None:
        """Return the first that was not finite; `average` makes of each device's losses those of the whole batches, and
        `scale` is what they were multiplied with. The one wait for the device; the record is cleared."""
        places, tensors = [place for place, _ in self.losses], [loss for _, loss in self.losses]
        gradients = self.gradients
        self.clear()
        losses = average(torch.stack(tensors).to(wide(tensors[0]))) if tensors else torch.zeros(0)
        numbers = iter(torch.cat([losses, *(norms.to(losses) for *_, norms in gradients)]).tolist())
        by_place = [(place, next(numbers) / scale) for place in places]
        bad: dict[int, list[str]] = {}
        for step, names, _ in gradients:
            if not_finite := _not_finite(names, numbers):
                bad.setdefault(step, not_finite)
        steps = [*bad, *(place.step for place, loss in by_place if not isfinite(loss))]
        if not steps:
            return None
        of_step = [(place, loss) for place, loss in by_place if place.step == min(steps)]
        began = [(place, loss) for place, loss in of_step if not isfinite(loss)][:1] or of_step
        loss = sum(loss for _, loss in began)  # each is its share of the mean
        return Finding(
            min(steps), began[0][0].epoch, [place.batch for place, _ in began], loss, bad.get(min(steps), [])
        )


def _not_finite(names: Sequence[str], norms: Iterable[float]) -> list[str]:
    """Return the layers of which a norm is not finite; as many norms are read as there are names."""
    return list(dict.fromkeys(name for name, norm in zip(names, norms, strict=False) if not isfinite(norm)))


def all_finite(gradients: list[Tensor]) -> bool:
    """Tell whether gradients on a CPU are finite, by what torch's GradScaler asks, which multiplies with 1 in passing.

    13 µs for 22 tensors of 64×64, whose norms take 31 µs.
    """
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, _BAD.zero_(), _ONE)
    return not _BAD.numpy()  # which waits for nothing


@torch.no_grad()
def bad_weights(of_layers: Mapping[str, Sequence[nn.Parameter]]) -> list[str]:
    """Return the layers with a weight that is not finite; a wait for the device."""
    names, weights = zip(*((name, p) for name, own in of_layers.items() for p in own), strict=True)
    return _not_finite(names, norms_of(list(weights), wide(weights[0])).tolist())


@torch.no_grad()
def first_output(model: nn.Module, of_layers: Mapping[str, Sequence[nn.Parameter]], x: Tensor) -> str | None:
    """Return the first layer, as the signal meets them, whose output is not finite; a pass that leaves no trace."""
    if x.is_floating_point() and not x.isfinite().all():
        return INPUT
    owner = {own[0]: name for name, own in of_layers.items()}
    bad: list[str] = []

    def check(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        h = output[0] if isinstance(output, tuple) else output
        if not bad and not h.isfinite().all():
            bad.append(name)

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with random_numbers(model), eager(), ExitStack() as hooks:
        for module in model.modules():
            for p in module.parameters(recurse=False):
                if p in owner:
                    hooks.callback(module.register_forward_hook(partial(check, owner[p])).remove)
        functional_call(model, buffers, (x,))
    return bad[0] if bad else None
