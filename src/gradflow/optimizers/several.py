"""Several optimizers as one `torch.optim.Optimizer`, and what is read off any optimizer's groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer


@final
class Several(Optimizer):
    """Steps its optimizers one after the other. Their groups and their state are its own: what a schedule, a scaler of
    gradients, clipping or a checkpoint does to it reaches each of them."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(list(chain.from_iterable(one.param_groups for one in optimizers)), {})
        self.optimizers = list(optimizers)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "optimizers" in vars(self):
            raise TypeError("a group that comes later belongs to one of several optimizers: say so in `groups`")
        super().add_param_group(param_group)

    def _share(self) -> None:
        """Hold the very group dictionaries and the very state that the optimizers hold."""
        self.param_groups = list(chain.from_iterable(one.param_groups for one in self.optimizers))
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        for one in self.optimizers:
            self.state.update(one.state)
            one.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for one in self.optimizers:
            one.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each optimizer its part. It makes new dictionaries of it, which have to be shared again."""
        groups = iter(state_dict["param_groups"])
        for one in self.optimizers:
            own = [next(groups) for _ in one.param_groups]
            numbers = set(chain.from_iterable(group["params"] for group in own))
            state = {number: entry for number, entry in state_dict["state"].items() if number in numbers}
            one.load_state_dict({"state": state, "param_groups": own})
        self._share()


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return each group's learning rate by the key under which it is logged: `lr`, or `lr/<group>` of several."""
    groups = optimizer.param_groups
    if len(groups) == 1:
        return {"lr": groups[0]["lr"]}
    return {f"lr/{group.get('name', place)}": group["lr"] for place, group in enumerate(groups)}


def difference(saved: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> str | None:
    """Return one line on what sets the groups in a checkpoint apart from those of an optimizer; None if nothing does.
    The learning rate that counts is the one before the schedule's factor; whether the step is fused does not."""
    new = optimizer.param_groups
    if [_keys(group) for group in saved] != [_keys(group) for group in new]:
        return "optimizer: the run to resume was trained by another optimizer; choose the same optimizer=… as that run"
    if (before := _sizes(saved)) != (now := _sizes(new)):
        return f"optimizer: the run to resume has {before}, and not {now}; choose the same groups"
    for old, group in zip(saved, new, strict=True):
        name = group.get("name", "rest")
        path = "optimizer." if name == "rest" else f"optimizer.{name}."
        old = {**old, "lr": old.get("initial_lr", old["lr"])}
        for key in [key for key in group if key not in ("params", "fused") and old[key] != group[key]]:
            return f"{path}{key}={group[key]}: the run to resume has {old[key]}; a resumed run goes on with it"
    return None


def _keys(group: Mapping[str, Any]) -> set[str]:
    return set(group) - {"initial_lr"}


def _sizes(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the names of groups and how many parameters each has."""
    return ", ".join(f"{group.get('name', 'one group')} ({len(group['params'])} parameters)" for group in groups)
