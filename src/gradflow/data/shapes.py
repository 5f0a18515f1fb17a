"""Ten plain shapes, drawn on the fly: a small colour image set that needs no download.

Every image shows one shape (a disc, a ring, a heart, ...) at a random place, size and tilt on a
striped, shaded background, with a few crumbs and one thin bar as distractors, and some noise. The
shape is lighter or darker than its background by chance and all colours are random, so that
neither colour nor the brightness of any one pixel gives the class away: it takes a model that
finds an outline wherever it lies.
"""

from collections.abc import Callable
from math import cos, pi, sin

import torch
from torch import Tensor

CLASSES = (
    "disc", "ring", "square", "triangle", "pentagon", "star", "cross", "crescent", "heart", "arrow",
)  # fmt: skip
CHUNK = 1000  # images drawn at a time, to bound the memory
NOISE = 0.04
CRUMBS = 3
STRIPES = 0.08
BAR = 1
MIDDLE, HALF, TINT, SHADE = (0.4, 0.6), (0.14, 0.3), 0.3, 0.12


# Signed distances to an outline of about unit radius: negative inside. Per pixel they use only
# arithmetic and square roots, which round alike on every machine and with any number of threads.


def _disc(x: Tensor, y: Tensor, radius: float = 0.85) -> Tensor:
    return (x * x + y * y).sqrt() - radius


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


def _sides(x: Tensor, y: Tensor, count: int, inner: float) -> Tensor:
    """The distances to the `count` sides of a regular polygon, sorted."""
    angles = [2 * pi * k / count + pi / 2 for k in range(count)]
    return torch.stack([x * cos(a) + y * sin(a) - inner for a in angles]).sort(dim=0).values


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return _disc(x, y, 0.66).abs() - 0.2


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.9, 0.28), _box(x, y, 0.28, 0.9))


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(_disc(x, y, 0.9), -_disc(x - 0.4, y, 0.72))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y + 0.05
    lobe = _disc(x - 0.4, y + 0.3, 0.48)
    tip = torch.maximum((x + y - 0.78) * 0.5**0.5, -(y + 0.3) + 0.0 * x)
    return torch.minimum(lobe, torch.maximum(tip, x - 0.9))


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    head = torch.maximum((y.abs() + x - 0.95) * 0.5**0.5, -x)
    return torch.minimum(head, _box(x + 0.45, y, 0.5, 0.25))


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "square": lambda x, y: _box(x, y, 0.74, 0.74),
    "triangle": lambda x, y: _sides(x, y - 0.15, 3, 0.5)[-1],
    "pentagon": lambda x, y: _sides(x, y, 5, 0.76)[-1],
    "star": lambda x, y: _sides(x, y, 5, 0.36)[-2],  # inside all sides but one: a pentagram
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _arrow,
}


def _draw(labels: Tensor, generator: torch.Generator, size: int, channels: int) -> Tensor:
    n = len(labels)

    def uniform(low: float, high: float, width: int = 1) -> Tensor:
        return torch.rand(n, width, 1, 1, generator=generator) * (high - low) + low

    def cover(distance: Tensor) -> Tensor:  # one pixel of soft edge
        return (0.5 - distance * size / 2).clamp(0, 1)

    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    x, y = axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)

    def turned(dx: Tensor, dy: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        c, s = angle.cos(), angle.sin()
        return dx * c + dy * s, dy * c - dx * s

    # Colours: shape and background differ in mean brightness, with either sign.
    middle, half = uniform(*MIDDLE), uniform(*HALF)
    half = half * torch.where(uniform(0, 1) < BRIGHT, 1.0, -1.0)
    tints = [t - t.mean(1, keepdim=True) for t in (uniform(-TINT, TINT, 3) for _ in range(3))]
    ink, paper = middle + half + tints[0], middle - half + tints[1]

    # Background
    across, along = turned(x, y, uniform(0, pi))
    wave = across * uniform(1, 3) + uniform(0, 1)
    stripes = ((wave - wave.floor()) - 0.5).abs() * 4 - 1
    picture = paper + along * uniform(-SHADE, SHADE, 3) + stripes * uniform(0, STRIPES)

    radius = uniform(*RADIUS)
    room = JITTER * (1 - 0.9 * radius)
    u, v = turned(x - room * uniform(-1, 1), y - room * uniform(-1, 1), uniform(-TILT, TILT))
    u, v = u / radius, v / radius
    distance = torch.empty(n, 1, size, size)
    for k, name in enumerate(CLASSES):
        chosen = labels == k
        distance[chosen] = DISTANCES[name](u[chosen], v[chosen])
    for _ in range(CRUMBS):
        crumb = cover(_disc(x - uniform(-1, 1), y - uniform(-1, 1), uniform(0.06, 0.16)))
        picture = torch.lerp(picture, ink, crumb)
    picture = torch.lerp(picture, ink, cover(distance * radius))
    across, _ = turned(x - uniform(-0.8, 0.8), y - uniform(-0.8, 0.8), uniform(0, pi))
    bar = cover(across.abs() - uniform(0.02, 0.06)) * BAR
    picture = torch.lerp(picture, middle + tints[2], bar)
    picture = picture + NOISE * torch.randn(picture.shape, generator=generator)
    if channels == 1:
        picture = picture.mean(1, keepdim=True)
    return (picture * 255).round().clamp(0, 255).to(torch.uint8)


BRIGHT, RADIUS, JITTER, TILT = 0.5, (0.4, 0.62), 1.0, 0.5


def render(n: int, generator: torch.Generator, size: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    labels = (torch.arange(n) % len(CLASSES))[torch.randperm(n, generator=generator)]
    parts = [_draw(part, generator, size, channels) for part in labels.split(CHUNK)]
    return torch.cat(parts), labels


def shapes(size: int = 32, channels: int = 3):
    from gradflow.data.source import Source
    from gradflow.spec import Spec

    def load():
        def split(n, seed):
            return render(n, torch.Generator().manual_seed(seed), size, channels)

        return {"train": split(10_000, 1), "test": split(2_000, 2)}

    return Source("shapes", Spec("image", (channels, size, size), "classification", 10), load=load)
