"""Random crops and flips of whole batches; the numbers are drawn before, a row a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def offsets(samples: int, crop: int, flip: bool, generator: Generator) -> Tensor:
    """[samples, 3]: top and left of the crop in the padded image (0 … 2 crop), and whether to flip."""
    table = torch.randint(2 * crop + 1, (samples, 3), generator=generator)
    table[:, 2] = torch.randint(2, (samples,), generator=generator) if flip else 0
    return table


def crop_and_flip(images: Tensor, table: Tensor, crop: int) -> Tensor:
    """[B, C, H, W] and its rows of `offsets` -> [B, C, H, W]: pad with zeros, cut at the offset, mirror."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (crop,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2 crop + 1, 2 crop + 1, H, W], a view
    top, left, flip = table.to(images.device).unbind(1)
    cut = windows[torch.arange(len(images), device=images.device), :, top, left]
    return torch.where(flip.bool().view(-1, 1, 1, 1), cut.flip(-1), cut)
