"""Ten plain shapes, generated on the fly: a small set of colour images that needs no download.

Each image shows one shape (a disc, a ring, a heart, ...) at a random place, size and tilt on a
striped, shaded background, with a few crumbs and one thin bar to distract, and noise over all.
The colours are random and the shape may be lighter or darker than its background, so that no
pixel by itself gives the class away: it takes a model that finds an outline wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import cos, pi, sin
from typing import Any

import torch
from torch import Generator, Tensor

from gradflow.data.sources.source import Source, Split
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

TRAIN, TEST = 10_000, 2_000  # images
_CHUNK = 1000  # images at a time: bounds the memory
_RADIUS = (0.44, 0.66)  # of the shape; lengths are in halves of the image's side
_TILT = 0.5  # radians either way
_LIGHTER = 0.9  # how often the shape is lighter than the background
_CONTRAST = (0.3, 0.45)  # between the mean brightnesses of shape and background
_TINT = 0.2  # how far a colour may stray from grey
_CRUMBS = 2
_NOISE = 0.03


# Signed distances to outlines of about unit radius, negative inside; y points down. For each pixel
# they use only arithmetic and square roots, which round alike whatever the number of threads.


def _disc(x: Tensor, y: Tensor, radius: float | Tensor = 0.85) -> Tensor:
    return (x * x + y * y).sqrt() - radius


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _sides(x: Tensor, y: Tensor, count: int, inner: float) -> tuple[Tensor, Tensor]:
    """Return the largest and the second largest of the distances to the lines along the sides of a regular polygon that
    stands on one."""
    largest = second = torch.full_like(x, -torch.inf)
    for a in (2 * pi * k / count + pi / 2 for k in range(count)):
        distance = x * cos(a) + y * sin(a) - inner
        second = torch.maximum(second, torch.minimum(largest, distance))
        largest = torch.maximum(largest, distance)
    return largest, second


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.9, 0.28), _box(x, y, 0.28, 0.9))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_disc(x, y, 0.9), -_disc(x - 0.4, y, 0.72))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y - 0.06
    return torch.minimum(_disc(x - 0.36, y + 0.36, 0.51), (x + y.abs() - 0.72) * 0.5**0.5)


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    head = torch.maximum((x + y.abs() - 0.95) * 0.5**0.5, -x)
    return torch.minimum(head, _box(x + 0.45, y, 0.5, 0.25))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": lambda x, y: _disc(x, y, 0.66).abs() - 0.2,
    "square": lambda x, y: _box(x, y, 0.74, 0.74),
    "triangle": lambda x, y: _sides(x, y - 0.15, 3, 0.5)[0],
    "pentagon": lambda x, y: _sides(x, y, 5, 0.76)[0],
    "star": lambda x, y: _sides(x, y, 5, 0.36)[1],  # inside all sides but one
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
}
CLASSES = tuple(SHAPES)
Uniform = Callable[..., Tensor]  # (low, high, channels) -> random numbers, a row an image


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _paint(picture: Tensor, colour: Tensor, distance: Tensor) -> Tensor:
    """Paint in place, which takes half as long as to ask for new memory."""
    cover = (0.5 - distance * picture.shape[-1] / 2).clamp_(0, 1)  # the edge is one pixel wide
    return picture.add_((colour - picture).mul_(cover))


def _colours(uniform: Uniform) -> tuple[Tensor, ...]:
    """Return those of the shape, of the background and of the bar.

    Tints sum to zero over the channels, so that the contrast is still there in grey. Backgrounds are all of middling
    brightness: where that varies much, batch norm's averages lag behind.
    """
    tints = uniform(-_TINT, _TINT, 9).view(-1, 3, 3, 1, 1)
    ink, paper, third = (tints - tints.mean(2, keepdim=True) + uniform(0.45, 0.55)[:, None]).unbind(1)
    contrast = uniform(*_CONTRAST) * (uniform(0, 1) < _LIGHTER).float().mul(2).sub(1)
    return ink + contrast, paper, third


def _background(uniform: Uniform, x: Tensor, y: Tensor, paper: Tensor, ink: Tensor) -> Tensor:
    """Return stripes and shade, and crumbs in the colour of the shape."""
    along, across = _turned(x, y, uniform(0, pi))
    wave = across * uniform(1, 3) + uniform(0, 1)
    stripes = (wave - wave.floor() - 0.5).abs() - 0.25
    picture = (along * uniform(-0.06, 0.06, 3)).add_(paper).add_(stripes * uniform(0, 0.2))
    for _ in range(_CRUMBS):
        crumb = _disc(x - uniform(-1, 1), y - uniform(-1, 1), uniform(0.06, 0.16))
        picture = _paint(picture, ink, crumb)
    return picture


def _distance_to_shape(uniform: Uniform, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """Return that of each pixel to the outline of its image's shape, at a random place, size and tilt."""
    radius = uniform(*_RADIUS)
    room = 1 - 0.9 * radius  # keeps the shape inside the image
    u, v = x - room * uniform(-1, 1), y - room * uniform(-1, 1)
    u, v = _turned(u / radius, v / radius, uniform(-_TILT, _TILT))
    distance = torch.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(u[chosen], v[chosen])
    return distance * radius


def _images(labels: Tensor, generator: Generator, size: int, channels: int) -> tuple[Tensor, Tensor]:
    """Return images, and for each pixel whether it lies in the shape; the bar may hide a part of it."""

    def uniform(low: float, high: float, width: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), width, 1, 1, generator=generator)

    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    x, y = axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)
    ink, paper, third = _colours(uniform)
    picture = _background(uniform, x, y, paper, ink)
    distance = _distance_to_shape(uniform, x, y, labels)
    picture = _paint(picture, ink, distance)
    _, off = _turned(x - uniform(-0.8, 0.8), y - uniform(-0.8, 0.8), uniform(0, pi))
    picture = _paint(picture, third, off.abs() - uniform(0.02, 0.06))
    picture.add_(torch.randn(picture.shape, generator=generator).mul_(_NOISE))
    if channels == 1:
        picture = picture.mean(1, keepdim=True)
    return picture.mul_(255).round_().clamp_(0, 255).to(torch.uint8), distance[:, 0] < 0


def spec_of(size: int, channels: int, task: str, outputs: int, **more: Any) -> Spec:
    if not 16 <= size <= 64 or channels not in (1, 3):
        raise UserError(f"data.size={size}, data.channels={channels}: expected 16 to 64, and 1 or 3")
    return Spec("image", (channels, size, size), task, outputs, **more)


@lru_cache(maxsize=2)  # jobs of a sweep in one process generate them once
def render(n: int, seed: int, size: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `n` images, uint8 [n, channels, size, size], their labels (equal shares, shuffled) and which pixels are
    of the shape, [n, size, size]."""
    generator = Generator().manual_seed(seed)
    labels = (torch.arange(n) % len(CLASSES))[torch.randperm(n, generator=generator)]
    parts = [_images(part, generator, size, channels) for part in labels.split(_CHUNK)]
    images, inside = map(torch.cat, zip(*parts, strict=True))
    return images, labels, inside


def shapes(size: int, channels: int) -> Source:
    """Offer the same images in every run, whatever its seed."""
    spec = spec_of(size, channels, "classification", len(CLASSES))

    def load() -> dict[str, Split]:
        return {"train": render(TRAIN, 1, size, channels)[:2], "test": render(TEST, 2, size, channels)[:2]}

    return Source("shapes", spec, load=load)
