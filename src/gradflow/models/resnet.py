"""The CIFAR ResNets of He et al. 2015 (section 4.2), their plain twins, and the pre-activation form of 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module
from gradflow.models.checks import blocks_in, positive, probability
from gradflow.models.init import Init, initialize
from gradflow.models.residual import PLAIN, BranchScale, Residual
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def block(
    inputs: int,
    outputs: int,
    stride: int,
    activation: act.Activation,
    skip: bool,
    preact: bool,
    scale: BranchScale = PLAIN,
    norm_place: str = "pre",
    dropout: float = 0.0,
) -> Residual:
    """conv, norm, act, conv, norm; the sum; act. With `preact` norm, act, conv, norm, act, conv; the sum alone.

    With `norm_place=post` the second norm follows the sum. Dropout stands before the second convolution.
    """
    parts = {
        "conv1": _conv3x3(inputs, outputs, stride),
        "norm1": nn.BatchNorm2d(inputs if preact else outputs),
        "act1": act.make(activation),
        "conv2": _conv3x3(outputs, outputs),
        "norm2": nn.BatchNorm2d(outputs),
        "act2": act.make(activation),
        "drop": nn.Dropout(dropout),
    }
    order = "norm1 act1 conv1 norm2 act2 drop conv2" if preact else "conv1 norm1 act1 drop conv2 norm2 act2"
    ordered = [(name, parts[name]) for name in order.split() if dropout or name != "drop"]
    after = () if preact else ("norm2", "act2") if norm_place == "post" else ("act2",)
    return Residual(ordered, skip, scale, after, channels=(outputs, 1, 1))


@final
class ResNet(Module):
    """`depth` = 6n + 2 weighted layers: a stem, three stages of n blocks (width, 2 and 4 times as wide), a head.

    `branch_scale` chooses what each block multiplies its branch or its input by (models/residual.py), and `norm_place`
    whether a block's second norm ends the branch or follows the sum. Dropout is that of Wide ResNets (Zagoruyko &
    Komodakis 2016).
    """

    kinds = ("image",)
    answers = ("sample",)

    def __init__(
        self,
        spec: Spec,
        depth: int = 20,
        width: int = 16,
        skip: bool = True,
        preact: bool = False,
        branch_scale: float | str = "none",
        norm_place: str = "pre",
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        in_stage = blocks_in(depth, 6, 2, "ResNet", "20, 32, 44, 56, 110")
        positive(width=width)
        probability(dropout=dropout)
        missing = "" if skip else "leave out model.skip=false"
        scale = BranchScale.of(branch_scale, 3 * in_stage, norm_place, missing=missing)
        if preact and norm_place == "post":
            raise UserError("model.norm_place=post: no norm ends a branch with model.preact=true; leave one out")
        net: dict[str, nn.Module] = {"stem": _conv3x3(self.spec.shape[0], width)}
        if not preact:
            net |= {"stem_norm": nn.BatchNorm2d(width), "stem_act": act.make(activation)}
        self.trunk = [*net][-1:]
        inputs, shared = width, (activation, skip, preact, scale, norm_place, dropout)
        for index in range(3 * in_stage):
            stage, place = divmod(index, in_stage)
            stride, outputs = 2 if stage and not place else 1, width * 2**stage
            net[f"block{index + 1}"] = block(inputs, outputs, stride, *shared)
            self.trunk.append(f"block{index + 1}")
            inputs = outputs
        if preact:
            net |= {"last_norm": nn.BatchNorm2d(inputs), "last_act": act.make(activation)}
        net |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(inputs, self.spec.outputs)}
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
