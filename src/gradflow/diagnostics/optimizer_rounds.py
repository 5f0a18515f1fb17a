"""Several optimizers, as of a GAN, shown to the diagnostics as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.diagnostics.recorder import Recorder


class Rounds:
    """Gathers the steps of as many batches as it takes until each optimizer has made one; such a round is measured as
    one step, with the number of its first.

    Each parameter's gradient is that which its own optimizer was about to use, the last time in the round; what the
    loss of another has left there doesn't count. Gradients are copied in rounds that are measured, and in no other.
    """

    def __init__(self, recorder: Recorder, optimizers: Sequence[Optimizer], layers: Layers, latest: int) -> None:
        self.recorder, self.layers, self.latest = recorder, layers, latest  # the first step of the latest round
        watched = {p for own in layers.values() for p in own}
        own = {id(one): [p for group in one.param_groups for p in group["params"]] for one in optimizers}
        self.owned = {key: [p for p in parameters if p in watched] for key, parameters in own.items()}
        self.step: Step | None = None

    def add(
        self, index: int, optimizer: Optimizer, scale: float | Tensor, due: Callable[[int], list[Diagnostic]]
    ) -> None:
        """Take up a step that is about to be made; `due` says what is measured at a step."""
        if self.step is None:
            since = (due(one) for one in range(index, self.latest, -1))  # no step is missed that lies within a round
            self.step, self.due = Step(index, self.layers), next(filter(None, since), [])
            self.latest, self.gradients = index, dict[nn.Parameter, Tensor]()
            self.left = {key for key, parameters in self.owned.items() if parameters}
            if any(one.after_step for one in self.due):
                self.step.before  # noqa: B018  a copy, made now
        self.left.discard(id(optimizer))
        for p in self.owned[id(optimizer)] if self.due or self.recorder.updated else ():
            if p.grad is not None:
                self.gradients[p] = p.grad.detach().clone() if isinstance(scale, float) else p.grad / scale.to(p.device)

    def end(self) -> None:
        """Show a whole round to the recorder; the gradients stand meanwhile where a step looks for them."""
        if self.step is None or self.left:
            return
        step, self.step = self.step, None
        parameters = [p for own in self.layers.values() for p in own]
        now = [p.grad for p in parameters]
        try:
            for p in parameters:
                p.grad = self.gradients.get(p)
            self.recorder.before_step(step, self.due)
        finally:
            for p, gradient in zip(parameters, now, strict=True):
                p.grad = gradient
