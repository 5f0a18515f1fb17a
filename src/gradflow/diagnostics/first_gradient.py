"""Probe a network at the first step at which a gradient can arrive.

A head that starts at zero (torchvision's ViT), or a branch whose scale does (ReZero, SkipInit), lets no gradient pass
before it has moved itself. So it is moved, in a copy; a network that is dead stays dead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.diagnostics.batches import in_precision
from gradflow.diagnostics.isolation import Loss, copied, isolated, loss_with, precision
from gradflow.diagnostics.probe import Profile, gains_of, probe
from gradflow.diagnostics.verdict import asleep

STEP = 1e-3  # of the largest entry: what Adam's first step at its default rate moves each by


def probe_first_gradient(
    model: nn.Module, batch: Any, loss: Loss, trunk: Sequence[str] = (), dtype: torch.dtype | None = None
) -> Profile:
    """Probe as `probe` does; where weights that start at zero hold the gradient up, after virtual steps of these
    alone, named in `moved`.

    Ratios of norms don't depend on the size of a step that only a head takes, since all of them are proportional to it.
    """
    dtype = dtype or precision(model)
    weights: dict[str, Tensor] = {}
    profile = probe(model, batch, loss, trunk, dtype)
    while asleep(profile) and (moved := _step(model, batch, loss, dtype, weights)):
        weights |= moved
        profile = replace(probe(model, batch, loss, trunk, dtype, weights), moved=list(weights))
    return profile


def _step(
    model: nn.Module, batch: Any, loss: Loss, dtype: torch.dtype, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights that are all zero and get a gradient, moved against it."""
    copies = copied(model, dtype) | dict(weights)
    zeros = [name for name in gains_of(model) if not copies[name].any()]
    with isolated(model, dtype):
        value = loss_with(copies, model, loss, in_precision(batch, dtype))
        scale = 1.0 if dtype == torch.float64 else 2.0**60
        gradients = torch.autograd.grad(value * scale, [copies[name] for name in zeros], allow_unused=True)
    pairs = [(name, g) for name, g in zip(zeros, gradients, strict=True) if g is not None and g.any()]
    return {name: (-STEP * g / g.abs().max()).requires_grad_() for name, g in pairs}
