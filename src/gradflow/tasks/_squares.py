"""The squared error as a loss, whole or halved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FACTORS = {"mse": 1.0, "half_mse": 0.5}  # of the mean square; ½: its gradient is the error itself


def squared_error(output: Tensor, target: Tensor, name: str) -> Tensor:
    """Return the mean over all outputs, in single precision at least."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    mean = F.mse_loss(output.to(dtype), target.to(dtype))
    return mean if name == "mse" else FACTORS[name] * mean
