"""Muon (Jordan et al. 2024): the momentum of a weight matrix, with all its singular values brought near 1."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the iteration x -> a x + b x³ + c x⁵ on singular values


@final
class Muon(Optimizer):
    """Takes what `torch.optim.Muon` takes, and kernels of convolutions: a matrix with a row for each output channel.

    W <- (1 - lr · weight_decay) W - lr · √max(1, rows / columns) · O, with O the orthogonalised momentum. Matrices of
    one shape are orthogonalised together, which for a deep network of equal layers is one call instead of `depth`.

    With `fixed_norm` each matrix is first brought to the norm √rows, that of orthonormal rows, so that `lr` is the
    relative size of a step: for layers that a norm follows, whose output does not depend on the norm of their weights.

    A momentum of a norm below `eps` is not brought to full size: that is how far a gradient may vanish.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        weight_decay: float = 0.0,
        fixed_norm: bool = False,
        eps: float = 1e-7,
    ) -> None:
        for name, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}.items():
            if not 0 <= value < (1 if name == "momentum" else float("inf")):
                raise ValueError(f"Invalid {name}: {value}")
        if not eps > 0:
            raise ValueError(f"Invalid eps: {eps}")
        if not 1 <= ns_steps < 100:
            raise ValueError(f"Invalid ns_steps: {ns_steps}")
        values = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
        self.eps = eps  # in no group, so that checkpoints of before still fit
        super().__init__(params, {**values, "weight_decay": weight_decay, "fixed_norm": fixed_norm})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon takes matrices and kernels only, not a parameter of shape {[*parameter.shape]}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[Any, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in (p for p in group["params"] if p.grad is not None):
                direction = self._direction(parameter, group)
                alike[direction.shape, direction.dtype, direction.device].append((parameter, direction))
            for (shape, *_), pairs in alike.items():
                size = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                stacked = torch.stack([direction for _, direction in pairs])
                updates = orthogonalised(stacked, group["ns_steps"], self.eps)
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    if group.get("fixed_norm"):  # absent from checkpoints of before
                        parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=self.eps))
                    parameter.add_(update.view(parameter.shape), alpha=-size)
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Move the parameter's momentum on, and return it as a matrix."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return (gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum).flatten(1)


def orthogonalised(matrices: Tensor, steps: int, eps: float = 1e-7) -> Tensor:
    """Return U S Vᵀ of each [n, rows, columns] matrix U Σ Vᵀ, with S between about 0.7 and 1.2 after 5 steps of
    Newton–Schulz. bfloat16 is precise enough, and on a CPU 20 to 40 times as slow as float32."""
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x if wide else x.mT).to(matrices.dtype)
