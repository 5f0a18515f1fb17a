"""Residual blocks: x + scale · branch(x), where the scale is 1, or learnt from `branch_scale` on."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models.init import mark_initialized
from gradflow.runs.errors import UserError


@final
class Residual(nn.Sequential):
    """x + scale · branch(x): the branch is the children in order, less those named in `after`, which follow the sum.

    Without `skip` the block is just its children in order.
    """

    def __init__(
        self, parts: Iterable[tuple[str, nn.Module]], skip: bool = True, scale: float = 1.0, after: tuple[str, ...] = ()
    ) -> None:
        super().__init__(OrderedDict(parts))
        self.skip, self.after = skip, after
        self.scale: float | nn.Parameter = 1.0  # the plain sum costs no multiplication
        if scale != 1:  # at 0 nothing else in the branch has a gradient (ReZero, Bachlechner et al. 2020)
            self.scale = nn.Parameter(torch.full((1,), float(scale)))  # FSDP takes no 0-d parameter
            mark_initialized([self.scale])

    def forward(self, x: Tensor) -> Tensor:
        if not self.skip:
            return super().forward(x)
        parts = list(self)
        end = len(parts) - len(self.after)
        y = x
        for part in parts[:end]:
            y = part(y)
        if isinstance(self.scale, Tensor):
            y = self.scale.to(y.dtype) * y  # a float32 scale leaves 16-bit branches at 16 bits
        y = shortcut(x, y) + y
        for part in parts[end:]:
            y = part(y)
        return y


def shortcut(x: Tensor, like: Tensor) -> Tensor:
    """The identity; where the map shrinks, every second pixel and zeros for the new channels (option A, no weights)."""
    if x.shape == like.shape:
        return x
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))


def initial_scale(branch_scale: float | str, branches: int, missing: str = "") -> float:
    """Return what each branch is multiplied by at first; `missing` is the override that a net without branches lacks.

    `depth` is 1/√branches: branches that add as much as they read then make the gradient √e times as large at most,
    however many they are (Hayou et al. 2021).
    """
    if branch_scale == "depth":
        scale = max(branches, 1) ** -0.5
    elif isinstance(branch_scale, (int, float)) and 0 <= branch_scale < math.inf:
        scale = branch_scale
    else:
        raise UserError(f"model.branch_scale={branch_scale}: expected a number, 0 or more, or depth")
    if missing and branch_scale != 1:
        raise UserError(f"model.branch_scale={branch_scale}: no branch is there to scale; {missing}")
    return scale
