"""The lines that theory draws beside a measured profile, for the weights that a model has now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradflow.theory.chain import predict
from gradflow.theory.recurrent import predict_time

_NO_CHAIN = "the model calls its layers one by one, and theory reads those that are called as one net"


def lines(model: nn.Module, net: nn.Module, trunk: Sequence[str], x: Any) -> dict[str, Any]:
    """Return norms relative to the last, by depth and by time; None where there is no prediction, and why.

    `net` is the part of `model` that is read as a chain, `trunk` names modules in it, and `x` is a batch for `model`.
    """
    by_depth, by_time, reasons = None, None, []
    if len(trunk) > 1:
        if (received := _input_of(model, net, x)) is None:
            reasons = [_NO_CHAIN]
        else:
            prediction = predict(net, trunk, received)
            by_depth, reasons = _relative_norms(prediction.factors), [prediction.no_prediction]
    cells = [module for module in net.modules() if isinstance(module, nn.RNNBase)]
    if cells and not getattr(getattr(model, "task", None), "memory", True):
        reasons.append("over time, the loss at every step is judged, not what the last state remembers")
    elif len(cells) > 1:
        reasons.append("over time, no theory for several recurrent layers")
    elif cells and (received := _input_of(model, cells[0], x)) is not None:
        by_lag, why = predict_time(cells[0], received)
        by_time = by_lag[::-1] if by_lag else None
        reasons.append(why and f"over time, {why}")
    return {"gradient": by_depth, "time": by_time, "no_prediction": "; ".join(filter(None, reasons))}


def _relative_norms(factors: Sequence[float | None]) -> list[float | None]:
    """Return norms by depth from the factors between neighbours; the last is 1."""
    norms: list[float | None] = [1.0]
    for factor in reversed(factors):
        norms.append(None if factor is None or norms[-1] is None else norms[-1] * factor)
    return norms[::-1]


class _Stopped(Exception):
    """Ends a forward pass in the middle: nothing that comes later is touched."""


def _input_of(model: nn.Module, part: nn.Module, x: Any) -> Tensor | None:
    """Return what a part of the model gets as its input; None where it is not called. The pass leaves no trace."""
    received: list[Tensor] = []

    def stop(module: nn.Module, inputs: Any) -> None:
        received.append(inputs[0].detach())
        raise _Stopped

    handle = part.register_forward_pre_hook(stop)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices):
            functional_call(model, buffers, (x,))
    except _Stopped:
        return received[0]
    finally:
        handle.remove()
    return None
