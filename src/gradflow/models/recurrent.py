"""RNN, LSTM and GRU: a stack of recurrent layers and a linear head on the last state, or on every state."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.base import Module, as_sequence, sequence_shape
from gradflow.models.cells import PlainRNN
from gradflow.models.checks import positive, probability
from gradflow.models.init import Init, initialize
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

Bias = float | str | None  # a number, `chrono`, or None for what the init sets


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
    ) -> None:
        super().__init__()
        positive(layers=layers, hidden=hidden)
        probability(dropout=dropout)
        self.hidden, self.per_step = hidden, spec.per_step
        features, states = sequence_shape(spec)[1], hidden * (1 + bidirectional)
        for index in range(layers):
            layer = cell(features, hidden, bidirectional=bidirectional)
            self.add_module(f"layer{index + 1}", layer)
            features = states
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(states, spec.outputs)

    @property
    def cells(self) -> list[nn.RNNBase]:
        return [module for module in self.children() if isinstance(module, nn.RNNBase)]

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.cells):
            x, _ = layer(self.dropout(x) if index else x)
        return self.head(x if self.per_step else self._last_states(x))

    def _last_states(self, x: Tensor) -> Tensor:
        """Where each direction has read the whole sequence: forwards at the end, backwards at the start."""
        return torch.cat([x[:, -1, : self.hidden], x[:, 0, self.hidden :]], 1)


class _Recurrent(Module, ABC):
    """A stack of cells, read out by a linear head."""

    kinds = ("sequence", "image")
    live = (*Module.live, "cell")
    net: Stack

    def __init__(
        self,
        spec: Spec,
        cell: Callable[..., nn.RNNBase],
        layers: int = 1,
        hidden: int = 128,
        bidirectional: bool = False,
        dropout: float = 0.0,
        init: Init = "auto",
        **training: Any,
    ) -> None:
        super().__init__(spec, **training)
        self.net = Stack(cell, self.spec, layers, hidden, bidirectional, dropout)
        self.trunk = [f"layer{index + 1}" for index in range(layers)]
        initialize(self.net, init, getattr(self.net.cells[0], "nonlinearity", "tanh"))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(as_sequence(x, self.spec))


@final
class RNN(_Recurrent):
    """h_t = φ(W x_t + U h_{t-1} + b); `identity` starts U at the identity (IRNN). Tanh and relu have a fused kernel."""

    def __init__(self, spec: Spec, identity: bool = False, activation: act.Activation = "tanh", **shared: Any) -> None:
        name, _ = act.parse(activation)
        fused = name in ("tanh", "relu")
        cell: Callable[..., nn.RNNBase] = partial(PlainRNN, nonlinearity=activation)
        if fused:
            cell = partial(nn.RNN, batch_first=True, nonlinearity=name)
        super().__init__(spec, cell, **shared)
        self.slow = "" if fused else name
        if identity:
            _set_identity(self.net)

    def on_fit_start(self) -> None:
        if self.slow and self.trainer.is_global_zero:
            why = "recurrent layers have a fused kernel for tanh and relu only"
            print(f"note: activation={self.slow} runs one time step after the other, slower: {why}")
        super().on_fit_start()


@final
class LSTM(_Recurrent):
    """Gates i, f, g, o; the cell state passes through f at each step, whose bias sets how long a gradient lives.

    `chrono` samples that bias, and the opposite of i, for memories of up to `memory` steps: those of the data if None.
    """

    def __init__(self, spec: Spec, forget_bias: Bias = 1.0, memory: float | None = None, **shared: Any) -> None:
        super().__init__(spec, partial(nn.LSTM, batch_first=True), **shared)
        set_gate_bias(self.net.cells, "forget_bias", forget_bias, memory, self.spec)


@final
class GRU(_Recurrent):
    """Gates r, z, n: h_t = (1 - z) n + z h_{t-1}. `update_bias` is that of z, and like the LSTM's `forget_bias`."""

    def __init__(self, spec: Spec, update_bias: Bias = None, memory: float | None = None, **shared: Any) -> None:
        super().__init__(spec, partial(nn.GRU, batch_first=True), **shared)
        set_gate_bias(self.net.cells, "update_bias", update_bias, memory, self.spec)


@torch.no_grad()
def _set_identity(net: nn.Module) -> None:
    """Recurrent weights at the identity and biases at 0 (Le et al. 2015)."""
    for name, parameter in net.named_parameters():
        if ".weight_hh" in name:
            nn.init.eye_(parameter)
        elif ".bias_" in name:
            parameter.zero_()


def set_gate_bias(layers: Sequence[nn.RNNBase], name: str, bias: Bias, memory: float | None, spec: Spec) -> None:
    """Of the gate by which the old state is multiplied: f of an LSTM, z of a GRU, f of a minGRU."""
    if not (bias is None or bias == "chrono" or isinstance(bias, (int, float))):
        raise UserError(f"model.{name}={bias}: expected a number, chrono, or null for what the init sets")
    if memory is not None and bias != "chrono":
        raise UserError(f"model.memory={memory}: nothing reads it; add model.{name}=chrono")
    steps = sequence_shape(spec)[0] if memory is None else memory
    if bias == "chrono" and not (isinstance(steps, (int, float)) and 2 <= steps < math.inf):
        raise UserError(f"model.memory={steps}: chrono is for 2 time steps or more")
    if bias is not None:
        for layer in layers:
            for suffix in ("", "_reverse")[: 1 + layer.bidirectional]:
                _set_gate(layer, suffix, bias, steps)


@torch.no_grad()
def _set_gate(layer: nn.RNNBase, suffix: str, bias: float | str, steps: float) -> None:
    """Of two biases, which PyTorch adds, the first is set and the second cleared. Gates lie in the order i, f, g, o and
    r, z, n; of a minGRU f is the second, too.

    Tallec & Ollivier 2018: with a bias of log u the old state is multiplied by u / (1 + u), and so lives 1 + u steps.
    """
    names = [name for part in ("ih", "hh") if hasattr(layer, name := f"bias_{part}_l0{suffix}")]
    first, *second = (getattr(layer, name).split(layer.hidden_size) for name in names)
    for gates in second:
        gates[1].zero_()
    if bias != "chrono":
        first[1].fill_(bias)
        return
    first[1].uniform_(1, steps - 1).log_()
    if isinstance(layer, nn.LSTM):  # a GRU reads with 1 - z
        first[0].copy_(-first[1])
        second[0][0].zero_()
