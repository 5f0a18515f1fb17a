"""Where numbers stop being finite: found with no wait for the device until somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradflow.diagnostics.probe import eager, random_numbers, wide

INPUT = "the input"


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
        """The first one in depth order."""
        return next((name for name in (self.output, *self.gradients, *self.weights) if name), None)

    def sentence(self) -> str:
        return f"step {self.step}: {self.words()}"

    def words(self) -> str:
        batches = "batch" if len(self.batches) == 1 else "batches"
        return f"{self.what()} (epoch {self.epoch}, {batches} {', '.join(map(str, self.batches))})"

    def what(self) -> str:
        if self.weights:
            return f"the weights of {among(self.weights)} are not finite"
        if self.output:
            began = self.output if self.output == INPUT else f"the output of {self.output}"
            return f"{began} is not finite, the loss is {self.loss}"
        told = f"the loss is {self.loss:.4g}"
        if not self.gradients:
            return told
        return f"the gradient of {among(self.gradients)} is not finite, {told}"


def among(names: Sequence[str]) -> str:
    """The first in depth order, and the last: where a gradient that goes bad on its way back began."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} layers)"


class History:
    """Losses and gradients since somebody looked last. They stay on the device; a look fetches them at once."""

    def __init__(self, of_layers: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.layers = of_layers
        self.parameters = [p for own in of_layers.values() for p in own]
        self.owners = [index for index, own in enumerate(of_layers.values()) for _ in own]
        self.clear()

    def clear(self) -> None:
        self.places: list[Place] = []
        self.losses: list[Tensor] = []
        self.gradients: list[tuple[int, list[int], Tensor]] = []  # step, layers by number, a witness of each

    def saw_loss(self, place: Place, loss: Tensor) -> None:
        self.places.append(place)
        self.losses.append(loss.detach())

    def saw_gradient(self, step: int) -> bool:
        """True when it is known not to be finite, which only a host's own memory tells without a wait."""
        gradients = [gradient for p in self.parameters if (gradient := p.grad) is not None]
        on_host = bool(gradients) and gradients[0].device.type == "cpu"
        if not gradients or (on_host and all_finite(gradients)):
            return False
        owners = [owner for owner, p in zip(self.owners, self.parameters, strict=True) if p.grad is not None]
        self.gradients.append((step, owners, witnesses(gradients)))
        return on_host

    def read(self, average: Callable[[Tensor], Tensor] = lambda losses: losses, scale: float = 1.0) -> Finding | None:
        """What was the first not to be finite; `average` makes of each device's losses those of the whole batches, and
        `scale` is what they were multiplied with. The one wait for the device; what was read is forgotten."""
        places, gradients = self.places, self.gradients
        losses = average(torch.stack(self.losses).to(wide(self.losses[0]))) if places else torch.zeros(0)
        told = iter(torch.cat([losses, *(seen.to(losses) for *_, seen in gradients)]).tolist())
        self.clear()
        seen = [(place, next(told) / scale) for place in places]
        bad: dict[int, list[str]] = {}
        for step, owners, _ in gradients:
            if names := self.named(owner for owner in owners if not isfinite(next(told))):
                bad.setdefault(step, names)
        steps = [*bad, *(place.step for place, loss in seen if not isfinite(loss))]
        return found(min(steps), seen, bad) if steps else None

    def named(self, owners: Iterable[int]) -> list[str]:
        chosen = set(owners)
        return [name for index, name in enumerate(self.layers) if index in chosen]


def found(step: int, seen: Sequence[tuple[Place, float]], bad: Mapping[int, list[str]]) -> Finding:
    mine = [(place, loss) for place, loss in seen if place.step == step]
    began = [(place, loss) for place, loss in mine if not isfinite(loss)][:1] or mine
    batches, loss = [place.batch for place, _ in began], sum(loss for _, loss in began)  # each is its share of the mean
    return Finding(step, began[0][0].epoch, batches, loss, bad.get(step, []))


def all_finite(gradients: list[Tensor]) -> bool:
    """On a CPU, by what torch's GradScaler asks, which multiplies with 1 in passing: 13 µs for 22 tensors of 64×64, of
    which the norms take 31 µs."""
    bad = torch.zeros(())
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, bad, torch.ones(()))
    return not bad.numpy()  # which waits for nothing


@torch.no_grad()
def witnesses(gradients: list[Tensor]) -> Tensor:
    """A number for each tensor, which is finite where the tensor is: its norm, since in float64 the squares of what
    float32 holds don't overflow."""
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=wide(gradients[0])))


@torch.no_grad()
def bad_weights(of_layers: Mapping[str, Sequence[nn.Parameter]]) -> list[str]:
    """Layers with a weight that is not finite; a wait for the device."""
    names = [name for name, own in of_layers.items() for _ in own]
    seen = witnesses([p for own in of_layers.values() for p in own]).tolist()
    return list(dict.fromkeys(name for name, norm in zip(names, seen, strict=True) if not isfinite(norm)))


@torch.no_grad()
def first_output(model: nn.Module, of_layers: Mapping[str, Sequence[nn.Parameter]], x: Tensor) -> str | None:
    """The first layer, as the signal meets them, whose output is not finite; a pass that leaves no trace."""
    if x.is_floating_point() and not x.isfinite().all():
        return INPUT
    owner = {id(own[0]): name for name, own in of_layers.items()}
    bad: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            h = output[0] if isinstance(output, tuple) else output
            if not bad and not h.isfinite().all():
                bad.append(name)

        return look

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with ExitStack() as stack:
        for untouched in (random_numbers(model), eager()):
            stack.enter_context(untouched)
        for module in model.modules():
            for name in [owner[id(p)] for p in module.parameters(recurse=False) if id(p) in owner]:
                stack.callback(module.register_forward_hook(hook(name)).remove)
        functional_call(model, buffers, (x,))
    return bad[0] if bad else None
