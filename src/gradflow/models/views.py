"""Several views of each test image, whose outputs are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gradflow.runs.errors import UserError
from gradflow.tasks.task import Task

VIEWS = ("one", "flip", "flip_shift")


def check(views: str, task: Task) -> None:
    """Reject what is no choice, or changes more than the image."""
    if views not in VIEWS:
        raise UserError(f"model.test_views={views}: expected one of {', '.join(VIEWS)}")
    if views != "one" and (task.spec.kind != "image" or task.moves is not False):
        why = f"{task.asks_for} of a mirrored {task.spec.kind} may be others"
        raise UserError(f"model.test_views={views}: {why}; expected one")


def averaged(forward: Callable[[Tensor], Tensor], images: Tensor, views: str) -> Tensor:
    """Return the mean output of an image and its mirror image; with `flip_shift` the mean of that and of both moved by
    a pixel up and left, and down and right, with their border repeated."""
    if views == "one":
        return forward(images)
    output = _mean(forward, (images, images.flip(-1)))
    if views == "flip":
        return output
    moved = _mean(forward, (view for shifted in _shifts(images) for view in (shifted, shifted.flip(-1))))
    return (output + moved) / 2


def _mean(forward: Callable[[Tensor], Tensor], views: Iterable[Tensor]) -> Tensor:
    return torch.stack([forward(view) for view in views]).mean(0)


def _shifts(images: Tensor) -> Iterator[Tensor]:
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    for place in (0, 2):
        yield padded[..., place : place + height, place : place + width]
