"""The CIFAR ResNets of He et al. 2015 (section 4.2), their plain twins, and the pre-activation form of 2016."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, final

import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, branch_scale, branch_start, positive, scaled
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def shortcut(x: Tensor, like: Tensor) -> Tensor:
    """The identity; where the map shrinks, every second pixel and zeros for the new channels (option A, no weights)."""
    if x.shape == like.shape:
        return x
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))


class Block(nn.Module):
    """conv, norm, act, conv, norm; the sum; act."""

    after: ClassVar[tuple[str, ...]] = ("act2",)  # children applied after the sum

    def __init__(
        self, inputs: int, outputs: int, stride: int, skip: bool, activation: act.Activation, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.skip, self.scale = skip, branch_scale(scale)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act1 = act.make(activation)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = act.make(activation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(scaled(y, self.scale) + shortcut(x, y) if self.skip else y)


class PreactBlock(nn.Module):
    """norm, act, conv, norm, act, conv; the sum, which nothing stands in the way of."""

    after: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, inputs: int, outputs: int, stride: int, skip: bool, activation: act.Activation, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.skip, self.scale = skip, branch_scale(scale)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.act1 = act.make(activation)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = act.make(activation)
        self.conv2 = conv3x3(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act2(self.norm2(self.conv1(self.act1(self.norm1(x))))))
        return scaled(y, self.scale) + shortcut(x, y) if self.skip else y


@final
class ResNet(Module):
    """`depth` = 6n + 2 weighted layers: a stem, three stages of n blocks (width, 2 and 4 times as wide), a head.

    Each block adds its branch times 1, or times a scale that is learnt from `branch_scale` on.
    """

    kinds = ("image",)

    def __init__(
        self,
        spec: Spec,
        depth: int = 20,
        width: int = 16,
        skip: bool = True,
        preact: bool = False,
        branch_scale: float | str = 1.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        if depth < 8 or depth % 6 != 2:
            near = max(8, 6 * round((depth - 2) / 6) + 2)
            raise UserError(f"model.depth={depth}: a ResNet has 6n + 2 layers (20, 32, 44, 56, 110); {near} is near")
        positive(width=width)
        blocks = depth // 2 - 1
        scale = branch_start(branch_scale, blocks)
        if branch_scale != 1 and not skip:
            raise UserError(
                f"model.branch_scale={branch_scale}: no branch is there to scale; leave out model.skip=false"
            )
        block = PreactBlock if preact else Block
        net: OrderedDict[str, nn.Module] = OrderedDict(stem=conv3x3(self.spec.shape[0], width))
        if not preact:
            net |= {"stem_norm": nn.BatchNorm2d(width), "stem_act": act.make(activation)}
        inputs = width
        for index in range(blocks):
            stage, first = divmod(index, depth // 6)
            stride = 2 if stage and not first else 1
            outputs = width * 2**stage
            net[f"block{index + 1}"] = block(inputs, outputs, stride, skip, activation, scale)
            inputs = outputs
        if preact:
            net |= {"last_norm": nn.BatchNorm2d(inputs), "last_act": act.make(activation)}
        net |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(inputs, self.spec.outputs)}
        self.net = nn.Sequential(net)
        self.trunk = ["stem" if preact else "stem_act", *(f"block{index + 1}" for index in range(blocks))]
        initialize(self.net, init, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
