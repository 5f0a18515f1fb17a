"""Residual blocks, α x + s · branch(x), and what `model.branch_scale` and `model.norm_place` make of them.

branch_scale   s, learnt        at the start                                        source
none, 1        –                x + branch(x)
a number       one a branch     s is that number; 0 leaves x as it is               ReZero, Bachlechner et al. 2020
depth          one a branch     s = 1/√branches                                     Hayou et al. 2021
layerscale     one a channel    s = 10⁻⁴                                            Touvron et al. 2021
zero           –                the branch's last weights are 0                     Goyal et al. 2017
deepnorm       –                α = branches^¼, its weights times (4 branches)^-¼   Wang et al. 2022

`norm_place` is `pre` where norms stand within the branch, and `post` where one follows the sum; DeepNorm is made for
that. Its α and β are those of a net of one stack, as of an encoder with branches/2 layers of two branches each.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models.checks import one_of
from gradflow.models.init import mark_initialized
from gradflow.runs.errors import UserError

_LAYERSCALE = 1e-4  # as in DeiT III; CaiT takes 0.1 to 10⁻⁶, less the deeper it is


class BranchScale(NamedTuple):
    """The numbers that a choice of `branch_scale` stands for; those by default are the plain sum."""

    start: float = 1.0  # s at first; 1 is no parameter, unless there is one a channel
    by_channel: bool = False
    skip: float = 1.0  # α
    weights: float = 1.0  # β, by which the branch's initial weights are multiplied
    last: float = 1.0  # the same for the last weights alone

    @classmethod
    def of(
        cls, branch_scale: float | str, branches: int, norm_place: str = "pre", norm: bool = True, missing: str = ""
    ) -> Self:
        """Return the numbers for a net of so many branches, with or without a norm.

        `missing` is the override that a net without any branch lacks.
        """
        one_of("norm_place", norm_place, ("pre", "post"))
        n = max(branches, 1)
        words = {
            "none": cls(),
            "depth": cls(n**-0.5),
            "layerscale": cls(_LAYERSCALE, by_channel=True),
            "zero": cls(last=0.0),
            "deepnorm": cls(skip=n**0.25, weights=(4 * n) ** -0.25),
        }
        is_number = isinstance(branch_scale, (int, float)) and not isinstance(branch_scale, bool)
        if is_number and 0 <= float(branch_scale) < math.inf:
            scale = cls(float(branch_scale))
        elif isinstance(branch_scale, str) and branch_scale in words:
            scale = words[branch_scale]
        else:
            known = ", ".join(words)
            raise UserError(f"model.branch_scale={branch_scale}: expected a number, 0 or more, or one of {known}")
        if missing and scale != cls():
            raise UserError(f"model.branch_scale={branch_scale}: no branch is there to scale; {missing}")
        if norm_place == "post" and (missing or not norm):
            lacking = f"no sum is there to follow; {missing}" if missing else "no norm is there to place; choose a norm"
            raise UserError(f"model.norm_place=post: {lacking}")
        if branch_scale == "deepnorm" and norm_place != "post":
            raise UserError("model.branch_scale=deepnorm: needs a norm after each sum; add model.norm_place=post")
        return scale


PLAIN = BranchScale()


@final
class Residual(nn.Sequential):
    """α x + s · branch(x): the branch is the children in order, less those named in `after`, which follow the sum.

    Without `skip` the block is just its children in order. `channels` is the shape in which a scale with an entry for
    each channel meets the branch: (width,) where they stand on the last axis, (width, 1, 1) for maps.
    """

    def __init__(
        self,
        parts: Iterable[tuple[str, nn.Module]],
        skip: bool = True,
        scale: BranchScale = PLAIN,
        after: tuple[str, ...] = (),
        channels: tuple[int, ...] = (1,),
    ) -> None:
        super().__init__(OrderedDict(parts))
        self.skip, self.after, self.skip_scale, self._initial = skip, after, scale.skip, scale
        self._shape = channels if scale.by_channel else (1,)
        self.scale: float | nn.Parameter = 1.0  # the plain sum costs no multiplication
        if scale.start != 1:  # at 0 nothing else in the branch has a gradient
            self.scale = nn.Parameter(torch.full((math.prod(self._shape),), scale.start))  # FSDP takes no 0-d one
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
            y = self.scale.view(self._shape).to(y.dtype) * y  # a float32 scale leaves 16-bit branches at 16 bits
        x = shortcut(x, y)
        y = (x if self.skip_scale == 1 else self.skip_scale * x) + y
        for part in parts[end:]:
            y = part(y)
        return y

    @torch.no_grad()
    def adjust_initial_weights(self) -> None:
        """Multiply the branch's weights by what its scale asks for. `initialize` calls it once, at its end.

        A part may say by a method `branch_weights` which tensors these are, as attention does: DeepNorm leaves those of
        queries and keys alone.
        """
        branch = nn.Sequential(*[part for name, part in self.named_children() if name not in self.after])
        for part in branch if self._initial.weights != 1 else ():
            own = getattr(part, "branch_weights", None)
            for weight in own() if own else [p for p in part.parameters() if p.ndim > 1]:
                weight.mul_(self._initial.weights)
        if self._initial.last != 1:
            *_, last = (m for m in branch.modules() if isinstance(getattr(m, "weight", None), nn.Parameter))
            for parameter in last.parameters():
                parameter.mul_(self._initial.last)


def shortcut(x: Tensor, like: Tensor) -> Tensor:
    """The identity; where the map shrinks, every second pixel and zeros for the new channels (option A, no weights)."""
    if x.shape == like.shape:
        return x
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))
