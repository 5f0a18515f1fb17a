"""Groups of parameters: a role's name in an optimizer's node gives it values of its own, or an optimizer of its own.

    _target_: torch.optim.AdamW
    _partial_: true
    lr: 1.0e-3
    vectors: {weight_decay: 0}                                          # AdamW's other values as above
    hidden: {_target_: torch.optim.Muon, _partial_: true, lr: 0.02}     # all values are its own

What no role names is the group `rest`. Without roles there is one group, without a name, in the model's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradflow.optimizers.fused import prepared, resolve
from gradflow.optimizers.roles import REST, ROLES, roles
from gradflow.optimizers.several import Several
from gradflow.runs.errors import UserError, did_you_mean

Trial = tuple[str, Mapping[Any, Any], Callable[[], Any]]  # a key, its values, what is called


@dataclass(frozen=True)
class Group:
    """Some of a model's parameters, and the optimizer that trains them with all of its values."""

    key: str  # of the configuration, for error messages
    name: str
    make: Callable[..., Optimizer]
    parameters: list[nn.Parameter]
    given: tuple[str, ...] = ()  # the values that differ from those of the first
    own: bool = False  # an optimizer of its own

    @property
    def values(self) -> dict[str, Any]:
        return dict(self.make.keywords) if isinstance(self.make, partial) else {}

    def build(self) -> Optimizer:
        """Return an optimizer of this group alone."""
        if not self.name:
            return self.make(self.parameters)
        optimizer = self.make([{"params": self.parameters, "name": self.name}])
        if unread := [key for key in self.given if key not in optimizer.param_groups[0]]:
            raise ValueError(f"{unread[0]} is no value of a group of {type(optimizer).__name__}, but of all of it")
        closure = signature(optimizer.step).parameters.get("closure")
        if closure and closure.default is Parameter.empty:
            raise ValueError(
                f"{type(optimizer).__name__} computes the loss again in its step, so it can't be one of several"
            )
        return optimizer


def build_optimizer(make: Callable[..., Optimizer], model: nn.Module, scaled: bool = False) -> Optimizer:
    """Return the optimizer of a model's parameters: of one class where all groups share it, else several as one. Under
    16-mixed precision gradients are `scaled`."""
    groups = groups_of(make, model, scaled)
    if not groups[0].name:
        return prepared(groups[0].build(), scaled)
    optimizers = [prepared(group.build(), scaled) for group in groups if group.own]
    if parts := [group.build().param_groups[0] for group in groups if not group.own]:
        optimizers.insert(0, prepared(resolve(_by_role(make)[0], model, scaled)(parts), scaled))
    return optimizers[0] if len(optimizers) == 1 else Several(optimizers)


def trials(make: Callable[..., Optimizer], model: nn.Module) -> Iterator[Trial]:
    """Yield what a wrong value shows in, each with its key and its values: each group alone, then all together."""
    for group in (groups := groups_of(make, model)):
        yield group.key, group.values, group.build
    if len(groups) > 1:
        yield "optimizer", groups[0].values, lambda: build_optimizer(make, model)


def groups_of(make: Callable[..., Optimizer], model: nn.Module, scaled: bool = False) -> list[Group]:
    """Return the groups that have parameters, `rest` first and then as the configuration names them."""
    base, chosen = _by_role(make)
    base = resolve(base, model, scaled)
    if not chosen:
        return [Group("optimizer", "", base, list(model.parameters()))]
    _check_chosen(chosen, base, model)
    role_of, parameters = roles(model), dict(model.named_parameters())
    groups = [Group("optimizer", REST, base, [p for name, p in parameters.items() if role_of[name] not in chosen])]
    for role, values in chosen.items():
        own, given = callable(values), {} if callable(values) else values
        members = [p for name, p in parameters.items() if role_of[name] == role]
        part = resolve(values if own else partial(base, **given), model, scaled)
        groups.append(Group(f"optimizer.{role}", role, part, members, tuple(given), own))
    if (own_ones := [group for group in groups if group.own]) and not any(group.parameters for group in own_ones):
        _check_has([group.name for group in own_ones], model)  # the choice of this optimizer would change nothing
    return [group for group in groups if group.parameters]


def check_named(overrides: Iterable[str], model: nn.Module) -> None:
    """Reject overrides that give values to a role of which this model has no parameters; an option's YAML may."""
    for override in overrides:
        if (named := re.match(r"\+*optimizer\.(\w+)", override)) and named[1] in ROLES:
            _check_has([named[1]], model)


def _check_has(wanted: Sequence[str], model: nn.Module) -> None:
    there = list(dict.fromkeys(roles(model).values()))
    if not set(wanted) & set(there):
        raise UserError(f"optimizer.{wanted[0]}: this model has no such parameters; its roles are {', '.join(there)}")


def _check_chosen(chosen: Mapping[str, Any], base: Callable[..., Optimizer], model: nn.Module) -> None:
    known = {*ROLES, *roles(model).values()}
    for role, values in chosen.items():
        if role not in known:
            raise UserError(f"optimizer.{role}: no such role; {did_you_mean(role, known)}")
        if not (isinstance(values, Mapping) or callable(values)):
            raise UserError(f"optimizer.{role}={values}: expected values of the optimizer, like {{lr: 0.1}}")
        given = values if isinstance(values, Mapping) else getattr(values, "keywords", {})
        arguments = _arguments(values if callable(values) else base)
        unknown = [key for key in given if key not in arguments]
        if unknown and Parameter.VAR_KEYWORD not in arguments.values():
            guess = did_you_mean(str(unknown[0]), list(arguments)[1:])
            raise UserError(f"optimizer.{role}.{unknown[0]}: no such key; {guess}")


def _by_role(make: Callable[..., Optimizer]) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """Return an optimizer without its roles, and what it has of these: each role's name, and any node that is no
    argument of the constructor; null takes away the values that a YAML gives a role."""
    if not isinstance(make, partial):
        return make, {}
    arguments = _arguments(make)
    roles = {key for key, value in make.keywords.items() if isinstance(value, Mapping) or callable(value)} | {*ROLES}
    chosen = {key: value for key, value in make.keywords.items() if key in roles - arguments.keys()}
    rest = {key: value for key, value in make.keywords.items() if key not in chosen}
    return partial(make.func, *make.args, **rest), {key: value for key, value in chosen.items() if value is not None}


def _arguments(make: Callable[..., Optimizer]) -> dict[str, Any]:
    """Return the kind of each argument of an optimizer's constructor."""
    make = make.func if isinstance(make, partial) else make
    return {name: parameter.kind for name, parameter in signature(make).parameters.items()}
