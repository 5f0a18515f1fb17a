"""How large a network would be, found without building it: what this machine can't hold is rejected at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.overrides import TorchFunctionMode

from gradflow.data import memory
from gradflow.runs.errors import UserError

LARGE, PERIOD = 256, 48  # sizes above the first are tried as smaller ones, which fit 6n + 2 layers and 16 heads, too
MOST_TENSORS = 100_000  # making each takes 0.2 ms, and so does each step
Path = tuple[str | int, ...]


def check_size(node: DictConfig, build: Callable[[DictConfig], nn.Module]) -> None:
    """Reject a model whose weights and gradients would fill this machine, or that would be built for hours."""
    plain: Any = OmegaConf.to_container(node, resolve=True)
    large = list(large_numbers(plain))
    try:
        with (
            torch.random.fork_rng([]),
            torch.device("meta"),
            _Uninitialised(),
            warnings.catch_warnings(action="ignore"),
        ):
            needed, tensors = size(plain, large, build)
    except Exception:  # of a model that can't be built so, or with other numbers: building it tells more
        return
    cause = ", ".join(f"model.{'.'.join(map(str, path))}={number}" for path, number in large) or "model"
    memory.check_room(cause, "its weights and gradients", needed)
    if tensors > MOST_TENSORS:
        raise UserError(
            f"{cause}: a network of {tensors:,} weight and bias tensors; expected {MOST_TENSORS:,} or fewer"
        )


class _Uninitialised(TorchFunctionMode):
    """Skip the initialisation of weights: it has no effect on the device meta, and takes 1 ms a tensor there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "orthogonal_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def size(plain: Any, large: Sequence[tuple[Path, int]], build: Callable[[DictConfig], nn.Module]) -> Any:
    """Return the bytes of a model's weights and gradients, and how many tensors it has. For a large number they follow
    from three smaller ones: exactly where they are polynomials of the second degree, as in a depth and in a width."""
    if not large:
        each = [2 * p.nbytes for p in build(OmegaConf.create(plain)).parameters()]
        return np.array([sum(each), len(each)], dtype=object)  # whole numbers without an end
    (path, number), *rest = large
    periods, first = number // PERIOD - 1, PERIOD + number % PERIOD
    a, b, c = (size(_with_number(plain, path, first + k * PERIOD), rest, build) for k in range(3))
    return a + periods * (b - a) + periods * (periods - 1) // 2 * (c - 2 * b + a)  # Newton's differences


def large_numbers(plain: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if isinstance(plain, (dict, list)):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from large_numbers(value, (*path, key))
    elif type(plain) is int and plain > LARGE:
        yield path, plain


def _with_number(plain: Any, path: Path, number: int) -> Any:
    changed = node = copy.deepcopy(plain)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = number
    return changed
