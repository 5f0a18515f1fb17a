"""The lines that theory draws beside a measured profile, for the weights that a model has now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.theory import chain


def lines(model: nn.Module, net: nn.Module, trunk: Sequence[str], x: Tensor) -> dict[str, Any]:
    """Norms relative to the last, by depth and by time; None where theory does not speak, and why (`silent`).

    `net` is the part of `model` that is read as a chain, `trunk` names modules in it, and `x` is a batch for `model`.
    """
    told: dict[str, Any] = {"gradient": None, "time": None, "silent": ""}
    if len(trunk) > 1:
        found = chain.predict(net, trunk, entering(model, net, x))
        told["gradient"], told["silent"] = relative(found.factors), found.silent
    cell = next((module for module in net.modules() if isinstance(module, nn.RNNBase)), None)
    if cell is not None:
        enters = entering(model, cell, x)
        by_lag, silent = chain.predict_time(cell, enters), chain.silent_in_time(cell, enters)
        told["time"] = by_lag[::-1] if by_lag else None
        told["silent"] = "; ".join(filter(None, [told["silent"], silent and f"over time, {silent}"]))
    return told


def relative(factors: Sequence[float | None]) -> list[float | None]:
    """Norms by depth from the factors between neighbours; the last is 1."""
    norms: list[float | None] = [1.0]
    for factor in reversed(factors):
        norms.append(None if factor is None or norms[-1] is None else norms[-1] * factor)
    return norms[::-1]


class Caught(Exception):
    """Ends a forward pass in the middle: nothing that comes later is touched."""


def entering(model: nn.Module, part: nn.Module, x: Tensor) -> Tensor:
    """What a part of the model gets as its input."""
    held: list[Tensor] = []

    def catch(module: nn.Module, inputs: Any) -> None:
        held.append(inputs[0].detach())
        raise Caught

    handle = part.register_forward_pre_hook(catch)
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(x)
    except Caught:
        return held[0]
    finally:
        handle.remove()
    raise ValueError("the model does not use that part")
