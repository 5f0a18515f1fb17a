"""What modules compute on held-out samples, from a forward pass that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradflow.diagnostics.isolation import copied, isolated
from gradflow.models.attention import Attention
from gradflow.runs.errors import UserError


def attentions(model: nn.Module, diagnostic: str) -> dict[str, Attention]:
    """Return the attention layers by name, or reject a model without one."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    if not modules:
        raise UserError(f"diagnostics.{diagnostic}: {type(model).__name__} has no attention; leave it out")
    return {name.removeprefix("net.").removesuffix(".heads"): module for name, module in modules.items()}


def computed(
    model: nn.Module, x: Tensor, modules: Sequence[nn.Module], number: Callable[[Any, Tensor, Tensor], Tensor]
) -> Tensor:
    """Return `number(module, its input, its output)` of each of the modules, in float32, in their order."""
    found: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[module] = number(module, inputs[0], output)

    with isolated(model, torch.float32), torch.no_grad(), ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(record).remove)
        functional_call(model, copied(model, torch.float32), (x.float() if x.is_floating_point() else x,))
    return torch.stack([found[module] for module in modules])
