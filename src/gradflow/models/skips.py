"""Sums over several layers: the output of a layer is added to that of a later one, h_j = layer_j(h_{j-1}) + h_i."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from string import ascii_letters

from torch import nn

from gradflow.models.residual import Residual
from gradflow.runs.errors import UserError

Skips = int | str  # none, or over so many layers each; unet: the first to the last, the second to the last but one, …


def with_skips(
    layers: Sequence[Mapping[str, nn.Module]], widths: Sequence[int], skips: Skips
) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the modules of the layers in order, those between the ends of a sum inside a `Residual`, and the trunk,
    which is the names of h_1 … h_L, each after its sum.

    A layer is its modules by name, and `widths` are those of the layers' outputs. Sums never cross: they stand side by
    side, or one inside the other.
    """
    target = _pairs(widths, skips)

    def nested(first: int, last: int) -> tuple[dict[str, nn.Module], list[str]]:
        net: dict[str, nn.Module] = {}
        names: list[str] = []
        index = first
        while index <= last:
            net |= layers[index]
            names.append([*layers[index]][-1])
            while (end := target.get(index, math.inf)) <= last:
                branch, inner = nested(index + 1, int(end))
                key = "sum" + [*layers[int(end)]][-1].lstrip(ascii_letters)  # sum3 behind block3
                net[key] = Residual(branch.items())
                names += [*(f"{key}.{name}" for name in inner[:-1]), key]
                index = int(end)
            index += 1
        return net, names

    return nested(0, len(layers) - 1)


def _pairs(widths: Sequence[int], skips: Skips) -> dict[int, int]:
    """Return {layer: the later layer to which it is added}, both counted from 0."""
    depth = len(widths)
    if skips == "none":
        return {}
    if skips == "unet":
        pairs = {index: depth - 1 - index for index in range(depth // 2)}
    elif type(skips) is int and skips >= 1:
        pairs = {index: index + skips for index in range(0, depth - skips, skips)}
    else:
        raise UserError(f"model.skips={skips}: expected a number of layers, 1 or more, unet, or none")
    if not pairs:
        least = 2 if skips == "unet" else int(skips) + 1
        raise UserError(f"model.skips={skips}: takes {least} layers in a row or more; here are {depth}")
    for one, other in pairs.items():
        if widths[one] != widths[other]:
            ends = f"layer {one + 1} has width {widths[one]}, layer {other + 1} has {widths[other]}"
            raise UserError(f"model.skips={skips}: {ends}; a sum needs equal widths")
    return pairs
