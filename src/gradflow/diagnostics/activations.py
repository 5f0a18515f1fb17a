"""What modules compute on held-out samples, from a forward pass that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradflow.diagnostics.isolation import copied, eager, precisely, random_numbers
from gradflow.models.attention import Attention
from gradflow.runs.errors import UserError


def attentions(model: nn.Module, diagnostic: str) -> dict[str, Attention]:
    """Return the attention layers by name, or reject a model without one."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    if not modules:
        raise UserError(f"diagnostics.{diagnostic}: {type(model).__name__} has no attention; leave it out")
    return {name.removeprefix("net.").removesuffix(".heads"): module for name, module in modules.items()}


@torch.no_grad()
def computed(
    model: nn.Module, x: Tensor, modules: Sequence[nn.Module], number: Callable[[Any, Tensor, Tensor], Tensor]
) -> Tensor:
    """Return `number(module, its input, its output)` of each of the modules, in float32, in their order."""
    found: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[module] = number(module, inputs[0], output)

    handles = [module.register_forward_hook(record) for module in modules]
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        for untouched in (random_numbers(model), precisely(x.device, torch.float32), eager(), torch.no_grad()):
            stack.enter_context(untouched)
        copies = copied(model, torch.float32)
        functional_call(model, copies, (x.float() if x.is_floating_point() else x,))
    return torch.stack([found[module] for module in modules])
