"""A probe of a network: a forward and a backward pass on a batch that leave no trace.

Measured are the norms of dL/dh, where h is the output of each block of the trunk (DESIGN: hidden layers, sums after
residual branches, logits left out), because gradients of weights can hide a vanishing gradient: a signal that shrinks
on its way forward cancels one that shrinks on its way back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from gradflow.diagnostics.batches import in_precision, tensors_in
from gradflow.diagnostics.isolation import Loss, copied, isolated, loss_with, precision, wide
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.units import ELEMENTWISE, dead_and_saturated

PROBE_SAMPLES = 64  # of held-out data, in a probe during training


@dataclass
class Profile:
    """What a probe measured. Norms are over batch and elements; the loss is a mean over the batch."""

    loss: float
    trunk: list[str]
    gradient: list[float]  # ‖dL/dh_l‖ by depth
    rms: list[float]  # of h_l
    weights: dict[str, float]  # ‖dL/dW‖ by layer, without biases and norms
    time: list[float] = field(default_factory=list)  # ‖dL/dx_t‖ at the input of the first recurrent layer
    dead: dict[str, float] = field(default_factory=dict)  # share of units whose derivative is 0 for every sample
    saturated: dict[str, float] = field(default_factory=dict)  # share of entries with |φ'| below 5 % of its largest
    alike: float = 0.0  # mean cosine between samples, of the last h
    waking: float = 0.0  # weight tensors that are all zero and get a gradient: they move with the next step
    moved: list[str] = field(default_factory=list)  # those that a virtual step has moved (first_gradient.py)

    def plain(self) -> dict[str, Any]:
        """Return it as data that JSON holds, with `moved` only where there is something to say."""
        return {name: value for name, value in asdict(self).items() if name != "moved" or value}


def probe(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    trunk: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Profile:
    """Measure the gradient of the loss of a batch in the modules that `trunk` names; some `weights` may be others.

    Without a trunk the leaf layers serve in order of first use. The type is float64 unless another is asked for or it
    is too slow (`precision`). In float32 the loss is scaled up.
    """
    dtype = dtype or precision(model)
    if dtype == torch.float32:  # ends at 1e-38, where gradients of deep nets do not; those that explode need no scale
        profile = _measure(model, batch, loss, trunk, dtype, weights or {}, 2.0**60)
        if all(map(math.isfinite, [profile.loss, *profile.gradient, *profile.time])):
            return profile
    return _measure(model, batch, loss, trunk, dtype, weights or {}, 1.0)


def _measure(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    trunk: Sequence[str],
    dtype: torch.dtype,
    weights: Mapping[str, Tensor],
    scale: float,
) -> Profile:
    hooks, copies = _Hooks(model, trunk), copied(model, dtype) | dict(weights)
    copy_of = {id(parameter): copies[name] for name, parameter in model.named_parameters()}
    matrices = {name: [copy_of[id(p)] for p in own if p.ndim > 1] for name, own in layers(model, frozen=True).items()}
    wanted = [copy for copy in copy_of.values() if copy.ndim > 1]
    gains = [copies[name] for name in gains_of(model)]
    with isolated(model, dtype), hooks:
        value = loss_with(copies, model, loss, in_precision(batch, dtype))
        asked = list({id(one): one for one in (*wanted, *gains, *hooks.sequence)}.values())
        gradients = torch.autograd.grad(value * scale, asked, allow_unused=True)
    by_copy = dict(zip(map(id, asked), gradients, strict=True))
    for name, own in matrices.items():
        if own:
            hooks.weights[name] = torch.stack([_norm(by_copy[id(copy)], value) for copy in own]).norm()
    pairs = [(gain, by_copy[id(gain)]) for gain in gains]
    hooks.waking = [((gain == 0).all() & (grad != 0).any()).to(value.dtype) for gain, grad in pairs if grad is not None]
    return hooks.profile(value.detach(), scale)


def gains_of(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters that hold a gradient up where they are zero: matrices, a norm's γ, a
    branch's scale, but no bias."""
    named = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return [name for name in named if not name.rpartition(".")[2].startswith("bias")]


class _Hooks:
    """Record what passes through a network, while the context lasts."""

    def __init__(self, model: nn.Module, trunk: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        leaves = [name for name, module in modules.items() if name and holds_matrix(module)]
        self.foreign = not trunk
        self.watched = {modules[name]: name for name in trunk or leaves or [""]}  # "": the whole model
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

    def __enter__(self) -> _Hooks:
        self.handles = [module.register_forward_hook(self._record_output) for module in self.watched]
        self.handles += [module.register_forward_pre_hook(self._record_input) for module in self.activations]
        if self.recurrent is not None:
            self.handles.append(self.recurrent.register_forward_pre_hook(self._record_sequence))
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def _record_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        h = next((tensor for tensor in tensors_in(output) if tensor.is_floating_point()), None)
        name = self.watched[module]
        if h is None:
            return
        if name not in self.rms:  # of a module that is used more than once, the first use gives the size
            self.rms[name] = h.detach().square().mean().sqrt()
            self.gradient[name] = _norm(None, self.rms[name])
            self.before = self.last
            self.last = h.detach().clone().reshape(h.shape[0] if h.ndim else 1, -1)

        def record(gradient: Tensor) -> None:
            self.gradient[name] = torch.hypot(self.gradient[name], _norm(gradient, gradient))

        if h.requires_grad:
            h.register_hook(record)  # holds also where the next module changes h in place

    def _record_sequence(self, module: nn.Module, inputs: Any) -> Any:
        x = inputs[0]
        if not isinstance(x, Tensor) or x.ndim != 3:
            return None
        x = x if x.requires_grad else x.detach().requires_grad_()
        self.sequence = [x]
        axes = (0, 2) if module.batch_first else (1, 2)

        def record(gradient: Tensor) -> None:
            self.time = vector_norm(gradient, dim=axes, dtype=wide(gradient))

        x.register_hook(record)
        return (x, *inputs[1:])

    def _record_input(self, module: nn.Module, inputs: Any) -> None:
        name = _unused(self.activations[module], self.dead)
        self.dead[name], saturated = dead_and_saturated(module, inputs[0])
        if saturated is not None:
            self.saturated[name] = saturated

    def profile(self, loss: Tensor, scale: float) -> Profile:
        """Return what was measured; `scale` is what the loss was multiplied with."""
        names = list(self.rms)
        if self.foreign and len(names) > 1:
            names.pop()  # the logits
            self.last = self.before
        zero = loss.new_zeros(())
        alike = zero if self.last is None else likeness(self.last)
        single = {"loss": loss, "alike": alike, "waking": torch.stack([zero, *self.waking]).sum()}
        norms = {name: {key: getattr(self, name)[key] for key in names} for name in ("gradient", "rms")}
        norms["time"] = {str(step): norm for step, norm in enumerate(() if self.time is None else self.time)}
        tables = norms | {"weights": self.weights, "dead": self.dead, "saturated": self.saturated}
        measured = [number.to(wide(loss)) for table in (single, *tables.values()) for number in table.values()]
        numbers = iter(torch.stack(measured).tolist())  # the only wait for the device
        values: dict[str, Any] = {name: next(numbers) for name in single}
        for name, table in tables.items():
            unit = scale if name in ("gradient", "time", "weights") else 1.0
            values[name] = {bare_name(key): next(numbers) / unit for key in table}
        lists = {name: list(values[name].values()) for name in norms}
        return Profile(trunk=list(values["gradient"]), **values | lists)


def bare_name(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("net.")


def holds_matrix(module: nn.Module) -> bool:
    """Tell whether a module has weights of its own."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _unused(name: str, taken: dict[str, Any]) -> str:
    """Return a name of its own for a module that is used again: relu, relu#2."""
    number = 2
    while name in taken:
        name, number = f"{name.partition('#')[0]}#{number}", number + 1
    return name


def _norm(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return the norm in float64: the squares of what float32 can hold are more than it can."""
    return like.new_zeros((), dtype=wide(like)) if gradient is None else vector_norm(gradient, dtype=wide(gradient))


def likeness(h: Tensor) -> Tensor:
    """Return the mean cosine of pairs of different samples; 1 when the network no longer tells them apart."""
    unit, count = F.normalize(h, eps=1e-30), len(h)
    return (unit.sum(0).square().sum() - unit.square().sum()) / max(count * (count - 1), 1)


def trunk_of(model: Any) -> list[str]:
    """Return the names of the blocks; none for a model that does not name them, whose leaf layers serve."""
    return [f"net.{name}" for name in getattr(model, "trunk", ())]
