"""The gradient of l1 Σ|w| + l2 Σw², in closed form: it joins the loss's own only when that has been measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from gradflow.runs.errors import UserError


@torch.no_grad()
def penalty_gradient(weights: Sequence[nn.Parameter], l1: float, l2: float) -> dict[nn.Parameter, Tensor]:
    """Return l1 sign(w) + 2 l2 w of each weight."""
    if not weights or not (l1 or l2):
        return {}
    values: list[Tensor] = list(weights)
    gradients = torch._foreach_mul(values, 2 * l2)
    if l1:
        torch._foreach_add_(gradients, torch._foreach_sign(values), alpha=l1)
    return dict(zip(weights, gradients, strict=True))


@torch.no_grad()
def add_to_gradient(penalty: Mapping[nn.Parameter, Tensor], optimizer: Optimizer, scale: float | Tensor) -> None:
    """Add a penalty's gradient to that of the loss, which is still multiplied with `scale`. A step without any
    gradient, which `on_nonfinite=skip` has emptied, stays so."""
    if isinstance(optimizer, LBFGS):
        raise UserError("model.l1, model.l2: LBFGS compares losses, which leave out penalties; leave one of them out")
    if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
        return
    for weight, gradient in penalty.items():
        gradient = gradient if isinstance(scale, float) else gradient * scale.to(gradient.device)
        weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


def gradient_scaler(trainer: Any) -> Any:
    """Return what multiplies the loss under 16-mixed precision; None under any other, and without a trainer."""
    return getattr(getattr(trainer, "precision_plugin", None), "scaler", None)


def remaining_scale(trainer: Any, optimizer: Optimizer) -> float | Tensor:
    """Return what the gradient is still multiplied with.

    Lightning unscales 16-bit gradients before `on_before_optimizer_step`, but for fused optimizers, which do it inside
    their step.
    """
    scaler = gradient_scaler(trainer)
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    return scaler._get_scale_async() if scaler is not None and fused else 1.0
