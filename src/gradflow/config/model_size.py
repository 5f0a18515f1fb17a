"""How large a network would be, found without building it: what this machine can't hold is rejected at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.overrides import TorchFunctionMode

from gradflow.config.trust import nodes
from gradflow.data import memory
from gradflow.runs.errors import UserError

_LARGE, _PERIOD = 256, 48  # sizes above the first are tried as smaller ones, which fit 6n + 2 layers and 16 heads, too
_MOST_TENSORS = 100_000  # making each takes 0.2 ms, and so does each step


def check_size(node: DictConfig, build: Callable[[DictConfig], nn.Module]) -> None:
    """Reject a model whose weights and gradients would fill this machine, or that would be built for hours."""
    plain: Any = OmegaConf.to_container(node, resolve=True)
    large = large_numbers(plain)
    try:
        quiet = warnings.catch_warnings(action="ignore")
        with torch.random.fork_rng([]), torch.device("meta"), _Uninitialised(), quiet:
            needed, tensors = size(plain, large, build)
    except Exception:  # of a model that can't be built so, or with other numbers: building it tells more
        return
    cause = ", ".join(f"model.{key}={number}" for key, number in large) or "model"
    memory.check_room(cause, "its weights and gradients", needed)
    if tensors > _MOST_TENSORS:
        network = f"a network of {tensors:,} weight and bias tensors"
        raise UserError(f"{cause}: {network}; expected {_MOST_TENSORS:,} or fewer")


class _Uninitialised(TorchFunctionMode):
    """Skip the initialisation of weights: it has no effect on the device meta, and takes 1 ms a tensor there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "orthogonal_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def size(plain: Any, large: Sequence[tuple[str, int]], build: Callable[[DictConfig], nn.Module]) -> Any:
    """Return the bytes of a model's weights and gradients, and how many tensors it has. For a large number they follow
    from three smaller ones: exactly where they are polynomials of the second degree, as in a depth and in a width."""
    if not large:
        each = [2 * p.nbytes for p in build(OmegaConf.create(plain)).parameters()]
        return np.array([sum(each), len(each)], dtype=object)  # whole numbers without an end
    (key, number), *rest = large
    periods, first = number // _PERIOD - 1, _PERIOD + number % _PERIOD
    a, b, c = (size(_with_number(plain, key, first + k * _PERIOD), rest, build) for k in range(3))
    return a + periods * (b - a) + periods * (periods - 1) // 2 * (c - 2 * b + a)  # Newton's differences


def large_numbers(plain: Any) -> list[tuple[str, int]]:
    """Return the numbers that are tried as smaller ones, each with its key."""
    return [(key, value) for key, value in nodes(plain) if type(value) is int and value > _LARGE]


def _with_number(plain: Any, key: str, number: int) -> Any:
    changed = OmegaConf.create(plain)
    OmegaConf.update(changed, key, number)
    return OmegaConf.to_container(changed)
