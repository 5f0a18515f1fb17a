"""Lion (Chen et al. 2023): steps by the sign of a momentum, so that every weight moves by the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch.optim import Optimizer


@final
class Lion(Optimizer):
    """w <- (1 - lr · weight_decay) w - lr · sign(β₁ m + (1 - β₁) g), then m <- β₂ m + (1 - β₂) g. Its learning rate is
    three to ten times smaller than AdamW's, and its decay as many times larger."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"Invalid {name}: {value}")
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise ValueError(f"Invalid betas: {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            now, later = group["betas"]
            for parameter in (p for p in group["params"] if p.grad is not None):
                state, gradient = self.state[parameter], parameter.grad
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(state["momentum"].lerp(gradient, 1 - now).sign_(), alpha=group["lr"])
                state["momentum"].lerp_(gradient, 1 - later)
        return loss
