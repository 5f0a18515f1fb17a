"""What a probe needs of a model: the loss of a batch, and a trunk. Any `nn.Module` will do.

A model of this package says both itself. Of any other, the loss is given, or is that of a LightningModule's
`training_step`, and the trunk is given or found; it is probed through a copy that shares its weights, so that nothing
that its own code writes to it stays behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from gradflow.diagnostics.batches import map_tensors
from gradflow.diagnostics.first_gradient import probe_first_gradient
from gradflow.diagnostics.isolation import Loss, Objective, precision, stand_in
from gradflow.diagnostics.probe import Profile, bare_name, probe, trunk_of
from gradflow.diagnostics.trunk import check_trunk, find_trunk
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.theory.prediction import lines

_NO_CHAIN = "its blocks are not called one after the other by an nn.Sequential, which is what theory reads"
_GIVE_LOSS = "give loss=…, a function of a model and a batch"
_UNKNOWN: dict[str, Any] = {"gradient": None, "time": None}


class Subject:
    """A model with the loss and the trunk by which it is probed."""

    def __init__(self, model: nn.Module, loss: Loss | None = None, trunk: Sequence[str] = ()) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(f"{model!r}: expected a network, an instance of nn.Module")
        self.model, self.ours = model, isinstance(getattr(model, "spec", None), Spec)
        self.named = check_trunk(model, trunk)
        if self.ours:
            self.loss, self.trunk = loss or own_loss, self.named or trunk_of(model)
        else:
            self.loss, self.trunk = loss or _training_loss(model), self.named or find_trunk(model)

    def profile(self, batch: Any, dtype: torch.dtype | None = None, virtual: bool = True) -> Profile:
        """Probe the model; `virtual` allows for steps of weights that start at zero (first_gradient.py)."""
        _check_weights(self.model)
        model = self.model if self.ours else _quiet_copy(self.model)
        device, dtype = next(model.parameters()).device, dtype or precision(model)
        measure = probe_first_gradient if virtual else probe
        batch, loss = map_tensors(lambda x: x.to(device), batch), self._checked_loss
        try:
            profile = measure(model, batch, loss, self.trunk, dtype)
        except RuntimeError:
            if self.ours or dtype != torch.float64:
                raise
            profile = measure(model, batch, loss, self.trunk, torch.float32)  # of code that asks for that type
        if missing := [name for name in self.named if bare_name(name) not in profile.trunk]:
            raise UserError(f"trunk: {missing[0]} is not called in a pass through the model, or returns no tensor")
        if self.trunk and not self.named and not self.ours and len(profile.trunk) < 2:
            self.trunk = []  # blocks whose forward is not called: the leaf layers serve
            return self.profile(batch, dtype, virtual)
        return profile

    def _checked_loss(self, model: Any, batch: Any) -> Tensor:
        value: Any = self.loss(model, batch)
        if not isinstance(value, Tensor) or value.ndim:
            found = f"a tensor of shape {[*value.shape]}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(f"loss: expected a tensor that holds one number, not {found}")
        if not value.requires_grad:
            raise UserError("loss: has no gradient; it was computed without the model's weights, or under no_grad")
        return value

    def how(self) -> str:
        """Say where the trunk comes from."""
        if self.named or self.ours:
            return "trunk: as named"
        if not self.trunk:
            return (
                "trunk: found none, so layers with weights in order of use, the last one left out; name one by trunk="
            )
        kind = type(self.model.get_submodule(self.trunk[0])).__name__
        return f"trunk: found {len(self.trunk)} × {kind}; name another by trunk="

    def theory(self, batch: Any, trunk: Sequence[str]) -> dict[str, Any]:
        """Return the lines of theory for the trunk as it was measured, or why there are none."""
        if self.ours:
            net: Any = self.model.net
            return lines(self.model, net, getattr(self.model, "trunk", []), batch[0])
        raw = {bare_name(name): name for name, _ in self.model.named_modules()}
        names = [raw[name] for name in trunk]
        if (chain := _chain_of(self.model, names)) is None:
            return _UNKNOWN | {"no_prediction": _NO_CHAIN}
        prefix = f"{chain}." if chain else ""
        inside = [name.removeprefix(prefix) for name in names]
        model = _quiet_copy(self.model)
        try:
            return lines(Objective(model, self.loss), model.get_submodule(chain), inside, batch)
        except Exception as error:  # whatever a foreign module raises for numbers in float64, one sample, no target
            return _UNKNOWN | {"no_prediction": f"a pass through {chain or 'the model'} alone fails: {_line(error)}"}


def reason_against(subject: Subject, batch: Any) -> str | None:
    """Return why the model can't be probed by the loss that it has, in one line; None where it can."""
    try:
        subject.profile(batch, torch.float32, virtual=False)
    except UserError as error:
        return str(error)
    except Exception as error:  # of the person's own code, which must not end their training
        return f"{type(subject.model).__name__} can't be run apart from its training: {_line(error)}; {_GIVE_LOSS}"
    return None


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _check_weights(model: nn.Module) -> None:
    """Reject what has no gradient of real numbers."""
    weights = list(model.parameters())
    if not weights or any(isinstance(weight, UninitializedParameter) for weight in weights):
        lacking = "weights without a shape yet; call it on a batch first" if weights else "no weights to probe"
        raise UserError(f"{type(model).__name__} has {lacking}")
    if any(weight.is_complex() for weight in weights):
        raise UserError(f"{type(model).__name__} has complex weights; the probe measures real ones only")


def own_loss(model: Any, batch: Any) -> Tensor:
    """Return the loss of a model of ours, of the part of its output that the task's question is about."""
    x, target = batch[:2]
    judged: Tensor = model.loss(*model.task.question(model(x), target))
    return judged


def _training_loss(model: nn.Module) -> Loss:
    """Return the loss that a LightningModule's `training_step` returns."""
    name = type(model).__name__
    if not hasattr(model, "training_step"):
        raise UserError(f"{name} has no loss of its own: {_GIVE_LOSS}")
    if getattr(model, "automatic_optimization", True) is False:
        raise UserError(f"{name}.training_step optimizes by itself: {_GIVE_LOSS}")

    def loss(model: Any, batch: Any) -> Tensor:
        asked = len(signature(model.training_step).parameters)
        result = model.training_step(*(batch, 0)[:asked])
        result = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(result, Tensor):
            raise UserError(f"{name}.training_step returns no loss: {_GIVE_LOSS}")
        return result

    return loss


def _quiet_copy(model: nn.Module) -> Any:
    """Return a stand-in for a model; a LightningModule logs nothing there, and knows the step but no Trainer."""
    try:
        copy = stand_in(model)
    except Exception as error:
        raise UserError(f"{type(model).__name__} can't be copied, which a probe needs: {_line(error)}") from error
    if hasattr(copy, "training_step"):
        now = {name: getattr(model, name, 0) for name in ("global_step", "current_epoch")}
        clock = SimpleNamespace(**now, logger=None, loggers=[], barebones=False)
        vars(copy).update(log=_ignore, log_dict=_ignore, _trainer=clock)
    return copy


def _ignore(*values: Any, **options: Any) -> None:
    """Take what `self.log` takes."""


def _chain_of(model: nn.Module, trunk: Sequence[str]) -> str | None:
    """Return the name of the outermost nn.Sequential that holds the whole trunk."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Sequential) and trunk and all(one.startswith(prefix) for one in trunk):
            return str(name)
    return None
