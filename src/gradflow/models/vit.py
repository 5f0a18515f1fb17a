"""A vision transformer: an image as a sequence of patches (Dosovitskiy et al. 2021), read from their mean."""

from __future__ import annotations

from functools import partial
from typing import Any, final

from torch import Tensor, nn

from gradflow.models.attention import Transformer
from gradflow.models.checks import positive
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


class Patches(nn.Module):
    """Each square of `patch` × `patch` pixels becomes a vector, row by row."""

    def __init__(self, spec: Spec, width: int, patch: int) -> None:
        super().__init__()
        positive(patch=patch)
        channels, *sides = spec.shape
        if any(side % patch for side in sides):
            raise UserError(f"model.patch={patch}: expected a divisor of the images' {sides[0]}×{sides[1]} pixels")
        self.length = (sides[0] // patch) * (sides[1] // patch)
        self.conv = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


@final
class ViT(Transformer):
    """Of the patches all see all; there is no class token."""

    kinds = ("image",)
    answers = ("sample",)

    def __init__(self, spec: Spec, patch: int = 4, **shared: Any) -> None:
        super().__init__(spec, partial(Patches, patch=patch), **shared)
