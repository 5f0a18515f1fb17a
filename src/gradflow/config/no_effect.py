"""Choices that nothing in a run refers to: `activation=tanh` where the model has no use for one. No torch here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradflow.config.arguments import CONF
from gradflow.config.resume import key, part
from gradflow.runs.errors import UserError

OTHERWISE = re.compile(r"_target_|@package|^defaults:", re.MULTILINE)  # of groups that act without being referred to


def passive(group: str) -> bool:
    """Whether a choice in this group only counts where another key refers to it: it is neither built itself nor sets
    other keys. That is so of the groups `activation` and `init`."""
    options = list((CONF / group).glob("*.yaml")) if group else []
    return bool(options) and not any(OTHERWISE.search(path.read_text()) for path in options)


def is_unused(config: DictConfig, group: str) -> bool:
    """Whether all other keys resolve to the same values when every value of `group` is another."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain = {name: node for name, node in plain.items() if name != "hydra"} | {"run_dir": "run"}
    if not isinstance(plain.get(group), Mapping):
        return False
    try:
        return rest(plain, group) == rest(plain | {group: changed(plain[group])}, group)
    except OmegaConfBaseException:  # what can't be resolved now, or not with other values, may well refer to it
        return False


def rest(plain: Mapping[str, Any], group: str) -> str:
    resolved: Any = OmegaConf.to_container(OmegaConf.create(dict(plain)), resolve=True)
    return str({name: node for name, node in resolved.items() if name != group})


def changed(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: changed(value) for name, value in node.items()}
    return f"not {node}"


def unused(config: DictConfig, words: Iterable[str]) -> list[str]:
    """Those of a run's overrides that have no effect on it."""
    groups = dict.fromkeys(part(word) for word in words)
    idle = {group for group in groups if passive(group) and is_unused(config, group)}
    return [word for word in words if part(word) in idle]


def check_sweep(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> None:
    """Refuse jobs that differ in nothing but a choice that none of them uses: they would be the same run, and its
    repetitions pass for a result. One configuration is composed for each set of the other groups' options."""
    swept = {name for name in values_of(jobs) if passive(part(name))}
    composed: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for words in jobs if swept else ():
        options = tuple(sorted(word for word in words if (CONF / key(word)).is_dir() and key(word) not in swept))
        composed.setdefault(options, []).append(words)
    for options, alike in composed.items():
        config = compose(alike[0])
        for name, values in values_of(alike).items():
            if name in swept and is_unused(config, part(name)):
                model = next((option for option in options if key(option) == "model"), "this run")
                raise UserError(
                    f"{name}={','.join(values)}: has no effect: nothing in the configuration of {model} refers to "
                    f"{part(name)}, so these jobs would be the same; leave it out there"
                )


def values_of(jobs: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The keys of which the jobs have several values, each with those."""
    found: dict[str, dict[str, None]] = {}
    for word in itertools.chain(*jobs):
        found.setdefault(key(word), {})[word.partition("=")[2]] = None
    return {name: list(values) for name, values in found.items() if len(values) > 1}
