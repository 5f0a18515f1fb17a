"""RNN, LSTM and GRU: a stack of recurrent layers and a linear head on the last state, or on every state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from gradflow.mistakes import Mistake
from gradflow.models import activation as act
from gradflow.models.init import Init, initialize
from gradflow.models.module import Module, as_sequence, positive, probability
from gradflow.spec import Spec


class Stack(nn.Module):
    """[B, T, F] -> [B, outputs], or [B, T, outputs] with `per_step`. Each layer is a module with a norm of its own."""

    def __init__(
        self,
        cell: Callable[..., nn.RNNBase],
        spec: Spec,
        layers: int,
        hidden: int,
        bidirectional: bool,
        dropout: float,
        **keywords: Any,
    ) -> None:
        super().__init__()
        positive(layers=layers, hidden=hidden)
        probability(dropout=dropout)
        self.hidden, self.per_step = hidden, spec.per_step
        features, states = features_of(spec), hidden * (1 + bidirectional)
        for index in range(layers):
            layer = cell(features, hidden, batch_first=True, bidirectional=bidirectional, **keywords)
            self.add_module(f"layer{index + 1}", layer)
            features = states
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(states, spec.outputs)

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(m for m in self.children() if isinstance(m, nn.RNNBase)):
            x, _ = layer(self.dropout(x) if index else x)
        return self.head(x if self.per_step else self.last_states(x))

    def last_states(self, x: Tensor) -> Tensor:
        """Where each direction has read the whole sequence: forwards at the end, backwards at the start."""
        return torch.cat([x[:, -1, : self.hidden], x[:, 0, self.hidden :]], 1)


def features_of(spec: Spec) -> int:
    """Numbers at each time step, as `as_sequence` lays them out."""
    if spec.tokens:
        return spec.tokens
    return spec.shape[0] * spec.shape[2] if spec.kind == "image" else spec.shape[1]


@final
class RNN(Module):
    """h_t = φ(W x_t + U h_{t-1} + b) with φ = tanh or relu; `identity` starts U at the identity (IRNN)."""

    kinds = ("sequence", "image")

    def __init__(
        self,
        spec: Spec,
        layers: int = 1,
        hidden: int = 128,
        bidirectional: bool = False,
        dropout: float = 0.0,
        identity: bool = False,
        activation: act.Activation = "tanh",
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        name, _ = act.named(activation)
        if name not in ("tanh", "relu"):
            raise Mistake(f"activation={name}: model=rnn has a fused kernel for tanh and relu only; choose one of them")
        self.net = Stack(nn.RNN, self.spec, layers, hidden, bidirectional, dropout, nonlinearity=name)
        initialize(self.net, init, activation)
        if identity:
            set_identity(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(as_sequence(x, self.spec))


@final
class LSTM(Module):
    """Gates i, f, g, o; the cell state passes through f at each step, whose bias sets how long a gradient lives."""

    kinds = ("sequence", "image")

    def __init__(
        self,
        spec: Spec,
        layers: int = 1,
        hidden: int = 128,
        bidirectional: bool = False,
        dropout: float = 0.0,
        forget_bias: float | None = 1.0,
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        self.net = Stack(nn.LSTM, self.spec, layers, hidden, bidirectional, dropout)
        initialize(self.net, init, "tanh")
        if forget_bias is not None:
            set_forget_bias(self.net, forget_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(as_sequence(x, self.spec))


@final
class GRU(Module):
    """Gates r, z, n: h_t = (1 - z) n + z h_{t-1}."""

    kinds = ("sequence", "image")

    def __init__(
        self,
        spec: Spec,
        layers: int = 1,
        hidden: int = 128,
        bidirectional: bool = False,
        dropout: float = 0.0,
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        self.net = Stack(nn.GRU, self.spec, layers, hidden, bidirectional, dropout)
        initialize(self.net, init, "tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(as_sequence(x, self.spec))


@torch.no_grad()
def set_identity(net: nn.Module) -> None:
    """Recurrent weights at the identity and biases at 0 (Le et al. 2015)."""
    for name, parameter in net.named_parameters():
        if ".weight_hh" in name:
            nn.init.eye_(parameter)
        elif ".bias_" in name:
            parameter.zero_()


@torch.no_grad()
def set_forget_bias(net: nn.Module, value: float) -> None:
    """PyTorch adds two biases; the first is set and the second cleared. Gates lie in the order i, f, g, o."""
    for name, parameter in net.named_parameters():
        if ".bias_ih" in name:
            parameter.chunk(4)[1].fill_(value)
        elif ".bias_hh" in name:
            parameter.chunk(4)[1].zero_()
