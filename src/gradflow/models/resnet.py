"""The CIFAR ResNets of He et al. 2015 (section 4.2), their plain twins, and the pre-activation form of 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, blocks_in, positive
from gradflow.models.init import Init, initialize
from gradflow.models.residual import PLAIN, BranchScale, Residual
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
) -> Residual:
    """conv, norm, act, conv, norm; the sum; act. With `preact` norm, act, conv, norm, act, conv; the sum alone."""
    parts = {
        "conv1": _conv3x3(inputs, outputs, stride),
        "norm1": nn.BatchNorm2d(inputs if preact else outputs),
        "act1": act.make(activation),
        "conv2": _conv3x3(outputs, outputs),
        "norm2": nn.BatchNorm2d(outputs),
        "act2": act.make(activation),
    }
    order = ("norm", "act", "conv") if preact else ("conv", "norm", "act")
    ordered = [(f"{kind}{place}", parts[f"{kind}{place}"]) for place in (1, 2) for kind in order]
    return Residual(ordered, skip, scale, after=() if preact else ("act2",))


@final
class ResNet(Module):
    """`depth` = 6n + 2 weighted layers: a stem, three stages of n blocks (width, 2 and 4 times as wide), a head.

    Each block adds its branch times 1, or times a scale that is learnt from `branch_scale` on.
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
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        in_stage = blocks_in(depth, 6, 2, "ResNet", "20, 32, 44, 56, 110")
        positive(width=width)
        scale = BranchScale.of(branch_scale, 3 * in_stage, missing="" if skip else "leave out model.skip=false")
        net: dict[str, nn.Module] = {"stem": _conv3x3(self.spec.shape[0], width)}
        if not preact:
            net |= {"stem_norm": nn.BatchNorm2d(width), "stem_act": act.make(activation)}
        self.trunk = [*net][-1:]
        inputs = width
        for index in range(3 * in_stage):
            stage, place = divmod(index, in_stage)
            stride, outputs = 2 if stage and not place else 1, width * 2**stage
            net[f"block{index + 1}"] = block(inputs, outputs, stride, activation, skip, preact, scale)
            self.trunk.append(f"block{index + 1}")
            inputs = outputs
        if preact:
            net |= {"last_norm": nn.BatchNorm2d(inputs), "last_act": act.make(activation)}
        net |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(inputs, self.spec.outputs)}
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
