"""Plain deep MLPs, and the two classic cures: normalisation and residual connections."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, as_vector, by_step, vector_sizes
from gradflow.models.checks import one_of, positive, probability
from gradflow.models.checks import widths as check_widths
from gradflow.models.init import Init, initialize
from gradflow.models.residual import BranchScale, Residual
from gradflow.models.skips import Skips, with_skips
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_NORMS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def _layer(inputs: int, width: int, norm: str, dropout: float, activation: act.Activation) -> dict[str, nn.Module]:
    """linear, norm, activation, dropout. Batch norm would cancel the bias before it."""
    parts: dict[str, nn.Module] = {"linear": nn.Linear(inputs, width, bias=norm != "batch")}
    if make_norm := _NORMS[norm]:
        parts["norm"] = make_norm(width)
    parts["act"] = act.make(activation)
    if dropout:
        parts["drop"] = nn.Dropout(dropout)
    return parts


def _widths(width: int | Sequence[int], depth: int, residual: bool) -> list[int]:
    """Return that of each hidden layer."""
    if depth < 0:
        raise UserError(f"model.depth={depth}: expected 0 or more hidden layers")
    if isinstance(width, int):
        positive(width=width)
        return [width] * depth
    check_widths("width", width, "hidden layer")
    if len(width) != depth:
        few = f"{len(width)} widths for {depth} hidden layers"
        raise UserError(f"model.width={list(width)}: {few}; add model.depth={len(width)}")
    if residual and len(set(width)) > 1:
        raise UserError(f"model.width={list(width)}: the sums of model.residual=true need equal widths")
    return list(width)


@final
class MLP(Module):
    """`depth` hidden layers h_l = φ(norm(W h_{l-1})), of one width or each of its own; `skips` adds earlier ones.

    With `residual`, h_1 = W x and h_l = h_{l-1} + s W φ(norm(h_{l-1})), and the head reads φ(norm(h_depth)). With
    `norm_place=post` each sum is normed instead: h_1 = norm(W x) and h_l = norm(α h_{l-1} + s W φ(h_{l-1})).
    `branch_scale` chooses α and s (models/residual.py).
    """

    kinds = ("image", "sequence", "vector")
    causal = False

    def __init__(
        self,
        spec: Spec,
        depth: int = 3,
        width: int | Sequence[int] = 256,
        norm: str = "none",
        skips: Skips = "none",
        residual: bool = False,
        branch_scale: float | str = "none",
        norm_place: str = "pre",
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        widths = _widths(width, depth, residual)
        probability(dropout=dropout)
        one_of("norm", norm, tuple(_NORMS))
        missing = "" if residual and depth > 1 else f"add model.{'depth=2' if residual else 'residual=true'}"
        scale = BranchScale.of(branch_scale, depth - 1, norm_place, norm != "none", missing)
        after = ("norm",) if norm_place == "post" else ()
        if residual and skips != "none":
            raise UserError(f"model.skips={skips}: model.residual=true has sums of its own; leave one of the two out")
        inputs, outputs = vector_sizes(self.spec)
        net: dict[str, nn.Module] = {}
        rest: list[tuple[str, nn.Module]] = []  # what follows a sum stands at the start of the next branch
        for number, width in enumerate(widths, 1):
            layer = [*_layer(inputs, width, norm, dropout, activation).items()]
            end = 1 + len(after) if residual else len(layer)
            parts, rest, inputs = [*rest, *layer[:end]], layer[end:], width
            is_sum = residual and number > 1
            block = Residual(parts, True, scale, after, (width,)) if is_sum else nn.Sequential(OrderedDict(parts))
            net[f"block{number}"] = block
        net, self.trunk = with_skips([{name: block} for name, block in net.items()], widths, skips)
        if rest:
            net["last"] = nn.Sequential(OrderedDict(rest))
        net["head"] = nn.Linear(inputs, outputs)
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return by_step(self.net(as_vector(x, self.spec)), self.spec)
