"""One look at a network: a forward and a backward pass on a batch that leave no trace.

Measured are the norms of dL/dh, where h is the output of each block of the trunk (DESIGN: hidden layers, sums after
residual branches, logits left out), because gradients of weights can hide a vanishing gradient: a signal that shrinks
on its way forward cancels one that shrinks on its way back.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.linalg import vector_norm
from torch.nn.modules.conv import _ConvNd

from gradflow.diagnostics.layers import layers

BOUNDED = {nn.Sigmoid: 0.25, nn.Tanh: 1.0, nn.Hardsigmoid: 1 / 6, nn.Hardtanh: 1.0, nn.Softsign: 1.0}  # largest |φ'|
ELEMENTWISE = (
    *BOUNDED,
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Hardswish, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.LogSigmoid, nn.Threshold),
)
SATURATED = 0.05  # of the largest |φ'|


@dataclass
class Profile:
    """What was seen. Norms are over batch and elements; the loss is a mean over the batch."""

    loss: float
    trunk: list[str]
    gradient: list[float]  # ‖dL/dh_l‖ by depth
    rms: list[float]  # of h_l
    weights: dict[str, float]  # ‖dL/dW‖ by layer, without biases and norms
    time: list[float] = field(default_factory=list)  # ‖dL/dx_t‖ at the input of the first recurrent layer
    dead: dict[str, float] = field(default_factory=dict)  # share of units whose derivative is 0 for every sample
    saturated: dict[str, float] = field(default_factory=dict)  # share of entries with |φ'| below 5 % of its largest
    alike: float = 0.0  # mean cosine between samples, of the last h
    waking: float = 0.0  # weights that are all zero and get a gradient: they move with the next step

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def probe(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    trunk: Sequence[str] = (),
    dtype: torch.dtype | None = None,
) -> Profile:
    """`loss_of` the model's output; `trunk` names modules, without it the leaf layers serve in order of first use.

    The type is float64 unless it is said or too slow (`precision`). In float32 the loss is scaled up.
    """
    dtype = dtype or precision(model)
    if dtype == torch.float32:  # ends at 1e-38, where gradients of deep nets do not; those that explode need no scale
        seen = look(model, x, loss_of, trunk, dtype, 2.0**60)
        if all(map(math.isfinite, [seen.loss, *seen.gradient, *seen.time])):
            return seen
    return look(model, x, loss_of, trunk, dtype, 1.0)


def look(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    trunk: Sequence[str],
    dtype: torch.dtype,
    scale: float,
) -> Profile:
    watch, copies = Watch(model, trunk), copied(model, dtype)
    copy_of = {id(parameter): copies[name] for name, parameter in model.named_parameters()}
    matrices = {name: [copy_of[id(p)] for p in own if p.ndim > 1] for name, own in layers(model, frozen=True).items()}
    wanted = [copy for copy in copy_of.values() if copy.ndim > 1]
    # a norm's γ or a branch's scale at zero holds a gradient up as a zero matrix does; a bias at zero does not
    moving = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    gains = [copies[name] for name in moving if not name.rpartition(".")[2].startswith("bias")]
    with ExitStack() as stack:
        for untouched in (random_numbers(model), precisely(x.device, dtype), eager(), watch):
            stack.enter_context(untouched)
        loss = loss_of(functional_call(model, copies, (x.to(dtype) if x.is_floating_point() else x,)))
        asked = list({id(one): one for one in (*wanted, *gains, *watch.sequence)}.values())
        gradients = torch.autograd.grad(loss * scale, asked, allow_unused=True)
    by_copy = dict(zip(map(id, asked), gradients, strict=True))
    for name, own in matrices.items():
        if own:
            watch.weights[name] = torch.stack([norm(by_copy[id(copy)], loss) for copy in own]).norm()
    got = [(gain, by_copy[id(gain)]) for gain in gains]
    watch.waking = [((gain == 0).all() & (grad != 0).any()).to(loss.dtype) for gain, grad in got if grad is not None]
    return watch.profile(loss.detach(), scale)


class Watch:
    """Hooks that note what passes through a network, while the context lasts."""

    def __init__(self, model: nn.Module, trunk: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        leaves = [name for name, module in modules.items() if name and holds_matrix(module)]
        self.foreign = not trunk
        self.watched = {modules[name]: name for name in trunk or leaves}
        self.recurrent = next((module for module in modules.values() if isinstance(module, nn.RNNBase)), None)
        self.activations = {module: name for name, module in modules.items() if isinstance(module, ELEMENTWISE)}
        self.gradient: dict[str, Tensor] = {}
        self.rms: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.sequence: list[Tensor] = []  # the input of the first recurrent layer, and its gradient by time
        self.time: Tensor | None = None
        self.dead: dict[str, Tensor] = {}
        self.saturated: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.waking: list[Tensor] = []

    def __enter__(self) -> Watch:
        self.handles = [module.register_forward_hook(self.saw_output) for module in self.watched]
        self.handles += [module.register_forward_pre_hook(self.saw_input) for module in self.activations]
        if self.recurrent is not None:
            self.handles.append(self.recurrent.register_forward_pre_hook(self.saw_sequence))
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def saw_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        h: Tensor = output[0] if isinstance(output, tuple) else output
        name = self.watched[module]
        if name not in self.rms:  # of a module that is used more than once, the first use gives the size
            self.rms[name] = h.detach().square().mean().sqrt()
            self.gradient[name] = norm(None, self.rms[name])
            self.before = self.last
            self.last = h.detach().clone().flatten(1)

        def keep(gradient: Tensor) -> None:
            self.gradient[name] = torch.hypot(self.gradient[name], norm(gradient, gradient))

        if h.requires_grad:
            h.register_hook(keep)  # holds also where the next module changes h in place

    def saw_sequence(self, module: nn.Module, inputs: Any) -> Any:
        x = inputs[0]
        if not isinstance(x, Tensor) or x.ndim != 3:
            return None
        x = x if x.requires_grad else x.detach().requires_grad_()
        self.sequence = [x]
        axes = (0, 2) if module.batch_first else (1, 2)

        def keep(gradient: Tensor) -> None:
            self.time = vector_norm(gradient, dim=axes, dtype=wide(gradient))

        x.register_hook(keep)
        return (x, *inputs[1:])

    def saw_input(self, module: nn.Module, inputs: Any) -> None:
        name = unused(self.activations[module], self.dead)
        with torch.enable_grad():
            z = inputs[0].detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(type(module).forward(module, z * 1).sum(), z)  # z * 1 may change in place
        slope = slope.reshape(-1, 1) if slope.ndim < 2 else slope
        unit = -1 if slope.ndim == 3 else 1  # [B, T, F], but [B, F] and [B, C, H, W]
        self.dead[name] = (slope.transpose(0, unit).flatten(1) == 0).all(1).to(slope.dtype).mean()
        if largest := BOUNDED.get(type(module)):
            self.saturated[name] = (slope.abs() < SATURATED * largest).to(slope.dtype).mean()

    def profile(self, loss: Tensor, scale: float) -> Profile:
        names = list(self.rms)
        if self.foreign and len(names) > 1:
            names.pop()  # the logits
            self.last = self.before
        alike = loss.new_zeros(()) if self.last is None else likeness(self.last)
        waking = torch.stack([loss.new_zeros(()), *self.waking]).sum()
        seen = [loss, alike, waking, *(table[name] for table in (self.gradient, self.rms) for name in names)]
        seen += [*self.weights.values(), *self.dead.values(), *self.saturated.values()]
        seen += [] if self.time is None else list(self.time)
        told = iter(torch.stack([number.to(wide(loss)) for number in seen]).tolist())  # the only wait for the device

        def take(keys: Iterable[str], scale: float = 1.0) -> dict[str, float]:
            return {key.replace("_orig_mod.", "").removeprefix("net."): next(told) / scale for key in keys}

        value, likeness_of_last, zeros = next(told), next(told), next(told)
        gradient, rms = take(names, scale), take(names)
        return Profile(
            loss=value,
            trunk=list(gradient),
            gradient=list(gradient.values()),
            rms=list(rms.values()),
            weights=take(self.weights, scale),
            dead=take(self.dead),
            saturated=take(self.saturated),
            time=[number / scale for number in told],
            alike=likeness_of_last,
            waking=zeros,
        )


def holds_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def unused(name: str, taken: dict[str, Any]) -> str:
    """A module that is used again is told apart: relu, relu#2."""
    number = 2
    while name in taken:
        name, number = f"{name.partition('#')[0]}#{number}", number + 1
    return name


def norm(gradient: Tensor | None, like: Tensor) -> Tensor:
    """In float64: the squares of what float32 can hold are more than it can."""
    return like.new_zeros((), dtype=wide(like)) if gradient is None else vector_norm(gradient, dtype=wide(gradient))


def wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's devices have no float64


def likeness(h: Tensor) -> Tensor:
    """Mean cosine of pairs of different samples; 1 when the network no longer tells them apart."""
    unit, count = F.normalize(h, eps=1e-30), len(h)
    return (unit.sum(0).square().sum() - unit.square().sum()) / max(count * (count - 1), 1)


def precision(model: nn.Module) -> torch.dtype:
    """float64; Apple's devices have none, and a CPU's convolutions are twenty times slower in it."""
    device = next(model.parameters()).device.type
    slow = device == "cpu" and any(isinstance(module, _ConvNd) for module in model.modules())
    return torch.float32 if device == "mps" or slow else torch.float64


def copied(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and buffers, all parameters trainable. Nothing of the model's own is touched: to give a parameter
    another type for a while would detach DDP's hooks from it."""
    parameters = {name: parameter.detach().to(dtype, copy=True) for name, parameter in model.named_parameters()}
    buffers = {
        name: buffer.detach().to(dtype if buffer.is_floating_point() else buffer.dtype, copy=True)
        for name, buffer in model.named_buffers()
    }
    return {name: parameter.requires_grad_() for name, parameter in parameters.items()} | buffers


@contextmanager
def precisely(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """What the model makes by itself has that type, too."""
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
    """Dropout draws the same masks at each look and on each device, and the generators go back to where they were."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (a model may draw from it)
    try:
        with torch.random.fork_rng(list(devices)):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def eager() -> Iterator[None]:
    """A compiled model ignores hooks that come later."""
    with torch.compiler.set_stance("force_eager"):
        yield
