"""minGRU (Feng et al. 2024, "Were RNNs all we needed?"): a gated recurrence that is linear in its state."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.attention import Readout
from gradflow.models.base import Module, as_sequence, sequence_shape
from gradflow.models.cells import MinGRU as Cell
from gradflow.models.checks import positive, probability
from gradflow.models.init import Init, initialize
from gradflow.models.recurrent import Bias, set_gate_bias
from gradflow.spec import Spec


class Block(nn.Module):
    """x + cell(norm(x)), and then x + linear(φ(linear(norm(x)))), without which copy memory is learnt half as fast."""

    def __init__(self, width: int, dropout: float, activation: act.Activation) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.cell = Cell(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 2 * width)
        self.act = act.make(activation)
        self.linear2 = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(self.norm1(x))
        x = x + self.dropout(states)
        return x + self.dropout(self.linear2(self.act(self.linear1(self.norm2(x)))))


@final
class MinGRU(Module):
    """A linear layer, `layers` blocks of `hidden` units, a norm, and a head that reads the last step, or every step.

    `forget_bias` is that of the gate f = 1 − z by which the old state is multiplied, as the LSTM's is.
    """

    kinds = ("sequence", "image")

    def __init__(
        self,
        spec: Spec,
        layers: int = 1,
        hidden: int = 128,
        forget_bias: Bias = "chrono",
        memory: float | None = None,
        dropout: float = 0.0,
        activation: act.Activation = "relu",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        positive(layers=layers, hidden=hidden)
        probability(dropout=dropout)
        net: dict[str, nn.Module] = {"input": nn.Linear(sequence_shape(self.spec)[1], hidden)}
        self.trunk = [f"block{index + 1}" for index in range(layers)]
        net |= {name: Block(hidden, dropout, activation) for name in self.trunk}
        net["norm"] = nn.LayerNorm(hidden)
        if not self.spec.per_step:
            net["last"] = Readout(last=True)
        net["head"] = nn.Linear(hidden, self.spec.outputs)
        self.net = nn.Sequential(OrderedDict(net))
        initialize(self.net, init, activation)
        cells = [module for module in self.net.modules() if isinstance(module, Cell)]
        set_gate_bias(cells, "forget_bias", forget_bias, memory, self.spec)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(as_sequence(x, self.spec))
