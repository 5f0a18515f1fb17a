"""What mean-field theory predicts for the gradient by depth in a given model on a real batch, from its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from gradflow.theory import attention, mean_field
from gradflow.theory.layers import Shapes, Signal, elementwise
from gradflow.theory.modules import (
    DROPOUTS,
    RESHAPES,
    Link,
    links_inside,
    links_of,
    passed_through,
    scale_squared,
)


class Prediction(NamedTuple):
    """Factors of the gradient norm, and the reasons where there are none."""

    factors: list[float | None]  # ‖dL/dh_i‖ / ‖dL/dh_{i+1}‖ = √χ for each two neighbours of the trunk
    no_prediction: str  # why some are None; "" when none is


def predict(net: nn.Module, trunk: Sequence[str], x: Tensor) -> Prediction:
    """Return the factors between the outputs h_1 … h_L of the modules `trunk` names, for the batch x that `net` gets.

    `net` is read as a chain: `nn.Sequential`, and modules that say by an attribute `skip` (a bool) what they are. With
    skip they compute skip_scale · x + scale · branch(x), the branch being their children in order, less those named in
    `after`, which follow the sum; both scales are 1 where the module has none. Without skip they are just their
    children. Nothing of `net` is changed.
    """
    known = dict(net.named_modules())
    if missing := [name for name in trunk if name not in known]:
        raise ValueError(f"trunk: no module is called {missing[0]}")
    if any(map(attention.is_attention, net.modules())):
        return Prediction(*attention.factors(net, trunk, x))
    reached = _segments(mean_field.bare(net), trunk, x)
    if (order := [name for name in trunk if name in reached]) != [name for name in reached if name]:
        raise ValueError(f"trunk: {order} is not the order of the model")
    chis = [reached[h][0] if g in reached and h in reached else math.nan for g, h in pairwise(trunk)]
    after = set(trunk[1:]) | ({""} if trunk[-1] not in reached else set())
    reasons = dict.fromkeys(why for name in reached if name in after for why in reached[name][1])
    factors = [None if math.isnan(chi) else math.sqrt(chi) for chi in chis]
    return Prediction(factors, "; ".join(reasons) if None in factors else "")


Segments = dict[str, tuple[float, list[str]]]  # {point of the trunk: (χ since the point before, why there is none)}


def _segments(net: nn.Module, trunk: Sequence[str], x: Tensor) -> Segments:
    """Return the segments between points of the trunk; under "" what follows the last point.

    A point inside a module that theory takes as a whole is not reached.
    """
    shapes, links = _shapes(net, x), list(links_of(net, ""))
    signal = _entering_signal(links, x)
    if not any(isinstance(module, _BatchNorm) for module in net.modules()):
        signal = replace(signal, variance=math.nan)  # which takes 3 ms an activation to follow
    return _along(links, signal, trunk, shapes)


def _along(links: Sequence[Link], signal: Signal, trunk: Sequence[str], shapes: Shapes) -> Segments:
    reached: Segments = {}
    chi, reasons = 1.0, list[str]()
    modules = [module for _, module in links if module is not None]
    for name, module in links:
        if module is not None:
            modules.pop(0)
            passed = passed_through(name, module, signal, shapes)
            if _is_before_max_pooling(modules) and _ends_in_activation(module):
                passed = passed._replace(chi=math.nan, why="no theory for an activation below max pooling")
            if inside := _inside(name, module, signal, trunk, shapes, passed.chi):
                entry = next(iter(inside))
                inside[entry] = chi * inside[entry][0], reasons + inside[entry][1]
                chi, reasons = inside.pop("")
                reached |= inside
            else:
                chi *= passed.chi
                reasons += [passed.why] if math.isnan(passed.chi) else []
            signal = passed.signal
        if name in trunk:
            reached[name] = chi, reasons
            chi, reasons = 1.0, []
    return {**reached, "": (chi, reasons)}


def _inside(
    name: str, block: nn.Module, signal: Signal, trunk: Sequence[str], shapes: Shapes, whole: float
) -> Segments:
    """Return the segments of a residual block with points inside its branch, where there are any.

    What arrives at such a point came through the rest of the branch alone: s² times the χ of that rest, of what is
    behind the sum. Before the block it is `whole` = 1 + s² χ_branch times as much.
    """
    if getattr(block, "skip", None) is not True or not any(point.startswith(f"{name}.") for point in trunk):
        return {}
    branch = _along(links_inside(name, block), signal, trunk, shapes)
    (entry, *_), (last, reasons) = branch, branch[""]
    last *= scale_squared(block)
    rest = last * math.prod(chi for point, (chi, _) in branch.items() if point not in (entry, ""))
    first = whole / rest if rest != 0 else math.nan
    whys = ["the gradient of a branch is 0"] if rest == 0 else [why for _, whys in branch.values() for why in whys]
    return branch | {entry: (first, whys), "": (last, reasons)}


def _ends_in_activation(module: nn.Module) -> bool:
    """Tell whether the module is an activation, or a residual block whose branch ends in one."""
    if getattr(module, "skip", None) is True:
        parts = [part for part in module.modules() if not isinstance(part, RESHAPES + DROPOUTS)]
        return elementwise(parts[-1])
    return not isinstance(module, RESHAPES) and elementwise(module)


def _is_before_max_pooling(modules: Sequence[nn.Module]) -> bool:
    """Tell whether max pooling comes next: it sends the gradient to the largest φ, where φ' is not its average."""
    behind = next((module for module in modules if not isinstance(module, RESHAPES + DROPOUTS)), None)
    return isinstance(behind, (_MaxPoolNd, _AdaptiveMaxPoolNd))


def _shapes(net: nn.Module, x: Tensor) -> Shapes:
    """Return those of every module, from one pass of one sample; `net` is a copy, so nothing needs to be put back."""
    shapes: Shapes = {}
    for name, module in net.named_modules():

        def note(module: nn.Module, inputs: tuple[object, ...], output: object, name: str = name) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                shapes[name] = inputs[0].shape, output.shape

        module.register_forward_hook(note)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        net.eval()(x[:1].detach().cpu().double())
    for module in net.modules():
        module._forward_hooks.clear()
    net.train()  # `elementwise` has to see that an AlphaDropout is not elementwise
    return shapes


def _entering_signal(links: Sequence[Link], x: Tensor) -> Signal:
    """Describe the batch as the first weights or norm see it; channels stand in dimension 1."""
    x = x.detach().cpu().double()
    modules = (module for _, module in links if module is not None)
    for module in takewhile(lambda module: isinstance(module, RESHAPES), modules):
        x = module(x)
    variance = x.movedim(1, 0).flatten(1).var(1, correction=0).mean().item()
    return Signal(x.square().mean().item(), variance, gaussian=False)
