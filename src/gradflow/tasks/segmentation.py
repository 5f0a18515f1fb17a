"""Which class is each pixel of?"""

from __future__ import annotations

from typing import final

from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.tasks._labels import Labels


@final
class Segmentation(Labels):
    """Outputs are [B, classes, H, W] and targets are masks [B, H, W], which move with their images.

    The trivial answer is one for all pixels: the frequencies of the classes.
    """

    asks_for = "masks"
    moves = True
    class_axis = 1

    @property
    def answers(self) -> str:
        return "pixel"

    def check_targets(self, target: Tensor, split: str) -> None:
        if target.shape[1:] != (size := self.spec.shape[1:]):
            raise UserError(f"{split}: masks of shape {tuple(target.shape[1:])}, but the images are {size}")
        super().check_targets(target, split)
