"""Fused optimizers: one kernel for all weights, which takes parameter, gradient and state for flat memory.

Where these lie in other strides than each other, as with convolutions in channels_last, it mixes up their entries and
says nothing on a CPU (one step of SGD was off by .52). So gradients and loaded state take their parameter's strides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradflow.runs.errors import UserError

_DEVICES = ("cpu", "cuda")  # on others it has not been tried


def resolve(make: Callable[..., Optimizer], model: nn.Module, scaled: bool) -> Callable[..., Optimizer]:
    """Return `make` with `fused: auto` replaced by true, or by false where the fused step would be wrong, fail or, with
    `scaled` gradients, unscale them after they are measured and clipped."""
    if not isinstance(make, partial) or (fused := make.keywords.get("fused")) in (None, True, False):
        return make
    if fused != "auto":
        raise UserError(f"optimizer.fused={fused}: expected auto, true or false")
    unknown_to_it = any(make.keywords.get(key) for key in ("foreach", "differentiable", "dampening"))
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    fits = not (scaled or unknown_to_it or sparse) and all(map(_fits, model.parameters()))
    return partial(make.func, *make.args, **{**make.keywords, "fused": fits})


def _fits(parameter: Tensor) -> bool:
    """Return whether a parameter is a block of memory without gaps: only then does `empty_like` repeat its strides."""
    dense = torch.empty_like(parameter, device="meta").stride() == parameter.stride()
    return dense and parameter.is_floating_point() and parameter.device.type in _DEVICES


def prepared(optimizer: Optimizer, scaled: bool) -> Optimizer:
    """Return the optimizer, whose gradients and loaded state will take the strides of their parameter."""
    optimizer.register_load_state_dict_pre_hook(_lay_out_state)
    if not scaled:  # Lightning clips no gradient of an optimizer that unscales within its step, also under bf16-mixed
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    if any(group.get("fused") for group in optimizer.param_groups):
        optimizer.register_step_pre_hook(_lay_out_gradients)
    return optimizer


def _lay_out_state(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a saved state in the strides of the parameters, to be stepped as this optimizer was built to step."""
    groups, state = [], dict(state_dict["state"])
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=False):  # torch compares them
        groups.append(saved | {"fused": group["fused"]} if "fused" in group else saved)
        for number, parameter in zip(saved["params"], group["params"], strict=False):
            if isinstance(entry := state.get(number), dict):
                state[number] = {key: _like(parameter, value) for key, value in entry.items()}
    return {**state_dict, "state": state, "param_groups": groups + state_dict["param_groups"][len(groups) :]}


@torch.no_grad()
def _lay_out_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Autograd lays a gradient out as its parameter; this is for those that are assigned. And give each weight that has
    a gradient its momentum, of zero: the fused SGD can't begin with one after it has with others."""
    for group in optimizer.param_groups:
        starts = isinstance(optimizer, torch.optim.SGD) and group["momentum"] and not group["dampening"]
        for parameter in group["params"]:
            if (gradient := parameter.grad) is None:
                continue
            if gradient.stride() != parameter.stride():
                parameter.grad = _like(parameter, gradient)
            if starts and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _like(parameter: Tensor, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
