"""A pass through a network that leaves no trace in it, in numbers of the precision that its gradient needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from gradflow.data.streams import generators_restored

WITHOUT_FLOAT64 = ("mps",)  # kinds of devices: Apple's
Loss = Callable[[Any, Any], Tensor]  # of a model and a batch


def wide(tensor: Tensor) -> torch.dtype:
    """Return the widest floating-point type that the tensor's device has."""
    return torch.float32 if tensor.device.type in WITHOUT_FLOAT64 else torch.float64


def precision(model: nn.Module) -> torch.dtype:
    """Return the type to probe in: the widest, but for convolutions on a CPU, which are twenty times slower in it."""
    parameter = next(model.parameters())
    slow = parameter.device.type == "cpu" and any(isinstance(module, _ConvNd) for module in model.modules())
    return torch.float32 if slow else wide(parameter)


def copied(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copy parameters and buffers, all parameters trainable.

    Nothing of the model's own is touched: to give a parameter another type for a while would detach DDP's hooks.
    """
    parameters = {name: parameter.detach().to(dtype, copy=True) for name, parameter in model.named_parameters()}
    buffers = {
        name: buffer.detach().to(dtype if buffer.is_floating_point() else buffer.dtype, copy=True)
        for name, buffer in model.named_buffers()
    }
    return {name: parameter.requires_grad_() for name, parameter in parameters.items()} | buffers


@contextmanager
def precisely(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Give that type to what the model creates by itself, too."""
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with warnings.catch_warnings(), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")  # cuDNN's layout
            yield
    finally:
        torch.set_default_dtype(default)


@contextmanager
def random_numbers(model: nn.Module) -> Iterator[None]:
    """Give dropout the same masks in each probe and on each device, and put the generators back to where they were."""
    devices = {parameter.device for parameter in model.parameters()}
    mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None  # not in fork_rng
    try:
        with generators_restored(), torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed asks every kind of device, in 0.6 ms
            for kind in {device.type for device in devices} - {"cpu"}:
                module = torch.get_device_module(kind)
                getattr(module, "manual_seed_all", module.manual_seed)(0)
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)


def eager() -> AbstractContextManager[None]:
    """Run a compiled model as it was written: compiled, it ignores hooks that come later."""
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


@contextmanager
def isolated(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a pass forward and back leave no trace in generators, defaults and compiled code."""
    device = next(model.parameters()).device
    with random_numbers(model), precisely(device, dtype), eager():
        yield


class Objective(nn.Module):
    """The loss of a batch as a module, which can be computed with other weights than the model's own."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.__dict__["loss"] = loss  # no part of it, even where it is a module

    def forward(self, batch: Any) -> Tensor:
        value: Tensor = self.__dict__["loss"](self.model, batch)
        return value


def loss_with(weights: Mapping[str, Tensor], model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Return the loss of a batch with those parameters and buffers in the place of the model's own."""
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    value: Tensor = functional_call(Objective(model, loss), named, (batch,))
    return value


def stand_in(model: nn.Module) -> Any:
    """Return a copy that shares the model's parameters and buffers and nothing else: what a foreign `forward` or
    `training_step` writes to its attributes stays there, and so do hooks."""
    shared: Sequence[Tensor] = (*model.parameters(), *model.buffers())
    return deepcopy(model, {id(tensor): tensor for tensor in shared})
