"""Choices that nothing refers to: `activation=tanh` where no model asks for one. No torch here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from gradflow import runs
from gradflow.config.options import is_group, of_group
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import key, of_command, top_key

# Groups that act without being referred to are built themselves, or set other keys.
_ACTS_BY_ITSELF = re.compile(r"_target_|@package|^defaults:", re.MULTILINE)


def notes(cfg: DictConfig) -> list[str]:
    """Return a line for each choice on the command line that does nothing in this run."""
    choices = HydraConfig.get().runtime.choices
    lines = ["search is not used: add -m to search"] if choices.get("search") and not runs.in_sweep() else []
    overrides = of_command()
    reasons = dict.fromkeys(
        unused(cfg, overrides), f"nothing in the configuration of model={choices['model']} refers to it"
    )
    targets = [node._target_ for node in (cfg.callbacks or {}).values() if "_target_" in (node or {})]
    if not any("diagnostics" in signature(get_class(target)).parameters for target in targets):
        chosen = [override for override in overrides if top_key(override) == "diagnostics"]
        reasons |= dict.fromkeys(chosen, "none of the callbacks measures; add callbacks=default")
    return [*lines, *(f"{override} has no effect: {reason}" for override, reason in reasons.items())]


def unused(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return those of a run's overrides that have no effect on it."""
    groups = dict.fromkeys(top_key(override) for override in overrides)
    idle = {group for group in groups if only_referred_to(group) and is_unused(config, group)}
    return [override for override in overrides if top_key(override) in idle]


def check_sweep(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> None:
    """Reject jobs that differ in nothing but a choice that none of them uses: they would be the same run, and its
    repetitions pass for a result. One configuration is composed for each set of the other groups' options."""
    swept = {name for name in _values_by_key(jobs) if only_referred_to(top_key(name))}
    by_options: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for overrides in jobs if swept else ():
        options = tuple(sorted(one for one in overrides if is_group(key(one)) and key(one) not in swept))
        by_options.setdefault(options, []).append(overrides)
    for options, alike in by_options.items():
        config = compose(alike[0])
        for name, values in _values_by_key(alike).items():
            if name in swept and is_unused(config, top_key(name)):
                model = next((option for option in options if key(option) == "model"), "this run")
                raise UserError(
                    f"{name}={','.join(values)}: has no effect: nothing in the configuration of {model} refers to "
                    f"{top_key(name)}, so these jobs would be the same; leave it out there"
                )


def only_referred_to(group: str) -> bool:
    """Return whether a choice in this group only counts where another key refers to it, as `activation` and `init`."""
    options = of_group(group).values() if group else ()
    return bool(options) and not any(_ACTS_BY_ITSELF.search(path.read_text(encoding="utf-8")) for path in options)


def is_unused(config: DictConfig, group: str) -> bool:
    """Return whether no other key of a configuration refers to a group."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    others = {name: node for name, node in plain.items() if name not in ("hydra", group)}
    return isinstance(plain.get(group), Mapping) and not refers(others, group)


def refers(content: Any, key: str) -> bool:
    """Return whether an interpolation somewhere in a configuration leads to a top-level key."""
    return bool(re.search(rf"\$\{{(?:[^${{}}]*[:,\s])?\.*{re.escape(key)}\b", str(content)))


def _values_by_key(jobs: Iterable[Iterable[str]]) -> dict[str, list[str]]:
    """Return the keys of which the jobs have several values, each with those."""
    values: dict[str, dict[str, None]] = {}
    for override in itertools.chain(*jobs):
        values.setdefault(key(override), {})[override.partition("=")[2]] = None
    return {name: list(several) for name, several in values.items() if len(several) > 1}
