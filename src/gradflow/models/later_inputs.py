"""Whether a model's outputs look at later inputs: found out by trying, so that any model is caught."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

_TOLERANCE = 1e-5  # of the largest output: float32 rounds otherwise in another batch


def check(model: nn.Module, spec: Spec) -> None:
    """Reject a model whose output at a step changes with a later input, where the task forbids it.

    A derivative would say the same, but symbols have none: they are exchanged from some step on, and the outputs before
    it have to stay. Weights that are zero, behind which a look ahead would hide, get random values in a copy.
    """
    if not task_of(spec).causal:
        return
    steps = spec.shape[0]
    cuts = sorted({1, 2, 3, steps // 2, steps // 2 + 1, steps - 1} & set(range(1, steps)))
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        tried = copy.deepcopy(model).eval()
        for parameter in tried.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
        output = tried(_exchanged(spec, cuts))
    if output.shape != (expected := (1 + len(cuts), steps, spec.outputs)):
        found = f"outputs of shape {list(output.shape[1:])}, expected {list(expected[1:])}, one for each step"
        raise UserError(f"{type(model).__name__}: {found}")
    for row, cut in enumerate(cuts, 1):
        if (output[row, :cut] - output[0, :cut]).abs().max() > _TOLERANCE * output.abs().max():
            why = f"its output before step {cut + 1} changes with the inputs from there on"
            raise UserError(
                f"{type(model).__name__}: {why}, and {spec.task} asks for what comes next; expected a model that reads "
                "forwards only"
            )


def _exchanged(spec: Spec, cuts: list[int]) -> Tensor:
    """Return a sequence, and for each cut the same with other inputs from the cut on."""
    if spec.tokens:
        first = torch.randint(spec.tokens, (1, *spec.shape))
        other = (first + torch.randint(1, max(spec.tokens, 2), first.shape)) % spec.tokens
    else:
        first, other = torch.randn(2, 1, *spec.shape)
    rows = [first, *(torch.cat([first[:, :cut], other[:, cut:]], 1) for cut in cuts)]
    return torch.cat(rows)
