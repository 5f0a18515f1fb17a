"""Recurrent layers without a fused kernel: an RNN of any activation, and minGRU.

They are built like `nn.RNN`, with parameters of the same names, so that initialisation, roles, probe and theory treat
them as PyTorch's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradflow.models import activation as act
from gradflow.models.scan import linear_recurrence


class _Cell(nn.RNNBase, ABC):
    """[B, T, F] -> the states [B, T, H], or [B, T, 2H] of both directions, and the last state of each."""

    def __init__(self, mode: str, input_size: int, hidden_size: int, bidirectional: bool, **rows: int) -> None:
        nn.Module.__init__(self)  # that of RNNBase knows only the modes that have a kernel
        self.mode, self.input_size, self.hidden_size, self.bidirectional = mode, input_size, hidden_size, bidirectional
        self.num_layers, self.bias, self.batch_first, self.dropout, self.proj_size = 1, True, True, 0.0, 0
        columns = {"weight_ih": (input_size,), "weight_hh": (hidden_size,)}
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            for name, number in rows.items():
                value = torch.empty(number * hidden_size, *columns.get(name, ()))
                self.register_parameter(f"{name}_l0{suffix}", nn.Parameter(value))
        names = self._flat_weights_names = list(self._parameters)
        self._all_weights = [names[: len(rows)], names[len(rows) :]][: 1 + bidirectional]
        self._init_flat_weights()
        self.reset_parameters()

    def flatten_parameters(self) -> None:
        """There is no kernel to lay the weights out for."""

    def forward(self, x: Tensor, _: None = None) -> tuple[Tensor, Tensor]:
        states = [self._read(x, "")]
        if self.bidirectional:
            states.append(self._read(x.flip(1), "_reverse"))
        last = torch.stack([h[:, -1] for h in states])
        return torch.cat([states[0], *(h.flip(1) for h in states[1:])], 2), last

    @abstractmethod
    def _read(self, x: Tensor, suffix: str) -> Tensor:
        """Return the states [B, T, H] of one direction, in the order of reading."""

    def _parameter(self, name: str, suffix: str) -> Tensor:
        value: Tensor = getattr(self, f"{name}_l0{suffix}")
        return value


@final
class PlainRNN(_Cell):
    """h_t = φ(W x_t + U h_{t−1} + b) for any φ, by a loop over time."""

    def __init__(
        self, input_size: int, hidden_size: int, nonlinearity: act.Activation, bidirectional: bool = False
    ) -> None:
        rows = {"weight_ih": 1, "weight_hh": 1, "bias_ih": 1, "bias_hh": 1}
        super().__init__("RNN", input_size, hidden_size, bidirectional, **rows)
        self.nonlinearity = nonlinearity
        self.activation = act.make(nonlinearity)  # of both directions

    def _read(self, x: Tensor, suffix: str) -> Tensor:
        recurrent = self._parameter("weight_hh", suffix).mT
        bias = self._parameter("bias_ih", suffix) + self._parameter("bias_hh", suffix)
        phi = self.activation.forward  # without hooks: a probe would take each time step for a layer
        states: list[Tensor] = []
        for step in F.linear(x, self._parameter("weight_ih", suffix), bias).unbind(1):
            states.append(phi(torch.addmm(step, states[-1], recurrent) if states else step))
        return torch.stack(states, 1)


@final
class MinGRU(_Cell):
    """h_t = f_t h_{t−1} + (1 − f_t) h̃_t with h̃ = W x + b and f = σ(V x + c), which do not see the state.

    Feng et al. 2024 write z for 1 − f. The rows of the parameters are those of h̃, then those of f. Gates and states are
    kept in float32 at least: bfloat16 has no number between 0.996 and 1.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__("MIN_GRU", input_size, hidden_size, False, weight_ih=2, bias_ih=2)

    def _read(self, x: Tensor, suffix: str) -> Tensor:
        both = F.linear(x, self._parameter("weight_ih", suffix), self._parameter("bias_ih", suffix))
        candidate, gate = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2, -1)
        return linear_recurrence(gate.sigmoid(), (-gate).sigmoid() * candidate).to(both.dtype)
