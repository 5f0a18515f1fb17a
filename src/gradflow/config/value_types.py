"""Values on the command line are of the type of the defaults that they replace. Nothing heavy is imported."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from gradflow import runs
from gradflow.config.hydra_internals import OF_ROLE, has_options, last_defaults, locate
from gradflow.config.no_effect import refers
from gradflow.config.trust import nodes
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.runs.folder import RENAMED_KEYS
from gradflow.runs.overrides import key as key_of
from gradflow.runs.overrides import of_command

OR_TEXT = {  # a value of the default's type, or this
    "model.forget_bias": "chrono",
    "trainer.devices": "auto",
    "trainer.compile": "auto",
}
_PATHS = ("run", "resume", "continue_sweep")
_LARGEST = 3.4028234e38  # in single precision
# Nodes of that depth are read where they have a _target_, else by nobody.
_INSTANTIATED = {"callbacks": 2, "diagnostics": 2, "metrics": 2, "logger": 1}
_CHOICES = {"summary": ("full", "json", "medium", "short")}


def check_types(cfg: DictConfig) -> None:
    """Reject an override whose value is of another type than the default that it replaces, or that nothing reads."""
    overrides, defaults = of_command(), last_defaults()
    parsed = OverridesParser.create().parse_overrides(overrides)
    if deleted := next((str(o.input_line) for o in parsed if o.is_delete() and "." not in o.key_or_group), None):
        raise UserError(f"{deleted}: no run can do without this key; leave the override out")
    for override in _split(parsed)[1] if defaults else ():  # none where another process has composed
        try:
            value = OmegaConf.select(cfg, override.key_or_group, default=None)
            _check_override(override, value, defaults, overrides, cfg)
        except InterpolationResolutionError as error:
            raise UserError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
    if not runs.in_sweep():
        note_replaced(overrides)


def check_sweep(jobs: Sequence[Sequence[str]], config: str) -> None:
    """Check each override of a sweep once, with the first job that has it, before any job is started. One configuration
    is composed for each set of options."""
    compose = functools.cache(
        lambda *options: GlobalHydra.instance().config_loader().load_configuration(config, list(options), RunMode.RUN)
    )
    seen = set[str]()
    for overrides in jobs:
        options, values = _split(OverridesParser.create().parse_overrides(list(overrides)))
        for override in [one for one in values if one.input_line not in seen]:
            _check_override(override, override.value(), compose(*options), overrides)
        seen |= set(overrides)


def note_replaced(overrides: Iterable[str]) -> None:
    """Name the overrides whose key is given another value later: Hydra takes the last and says nothing."""
    values = [one for one in overrides if "=" in one and not one.startswith("~")]
    last = {key_of(override): override for override in values}
    for override in values if runs.first_rank() else []:
        if override.lstrip("+") != (used := last[key_of(override)]).lstrip("+"):
            print(f"note: {override} is not used: {used} comes after it")


def _split(parsed: Sequence[Override]) -> tuple[list[str], list[Override]]:
    """Return the overrides that choose options of groups, and those that give a value."""
    setting = [one for one in parsed if not one.is_delete()]
    options = [str(one.input_line) for one in setting if has_options(one.get_key_element().lstrip("+"))]
    return options, [one for one in setting if one.input_line not in options and "@" not in one.get_key_element()]


def _check_override(
    override: Override, value: Any, defaults: DictConfig, overrides: Sequence[str], cfg: DictConfig | None = None
) -> None:
    """Check what an override sets. In a role of parameters that has no such value it replaces the optimizer's."""
    key = override.key_or_group
    if str(override.input_line).startswith("+") and key.partition(".")[0] != "hydra":
        _check_added(override, defaults, overrides, cfg)
    if cfg is None:  # of a sweep, in which each job knows what an interpolation comes to
        if "${" in str(value):
            return
        value = OmegaConf.create([value])[0]
    default = OmegaConf.select(defaults, key, default=None)
    if default is None:
        default = OmegaConf.select(defaults, OF_ROLE.sub("optimizer.", key), default=None)
    _check_type(key, default, value, defaults)


def _check_added(override: Override, defaults: DictConfig, overrides: Sequence[str], cfg: DictConfig | None) -> None:
    """A key of its own is read by whatever names it in an interpolation; one of a callback or a logger by that."""
    key, text = override.key_or_group, str(override.input_line)
    top = key.partition(".")[0]
    task: Any = HydraConfig.get().overrides if HydraConfig.initialized() else OmegaConf.create()
    everything = [*overrides, *(OmegaConf.to_container(node, resolve=False) for node in (defaults, task))]
    if top not in defaults and not refers(everything, top):
        raise UserError(no_such_key(key if top == key else top, defaults))
    path = ".".join(key.split(".")[: _INSTANTIATED.get(top, 0)])
    node = OmegaConf.select(cfg, path, default=None) if cfg is not None and path else None
    if isinstance(node, DictConfig) and "_target_" not in node:
        raise UserError(f"{text}: {path} has no _target_, so nothing reads it")


def no_such_key(key: str, node: Any) -> str:
    """Return what to say of a key that is in no configuration; `node` is the one in which it was looked for."""
    known = [str(name) for name in node if name not in ("hydra", "_target_", "_partial_")] if node else []
    if key in RENAMED_KEYS:
        return f"{key}: no such key; did you mean {RENAMED_KEYS[key]}?"
    parent, dot, last = key.rpartition(".")
    plain: Any = OmegaConf.to_container(node) if not dot and OmegaConf.is_dict(node) else {}
    groups = {str(name): group for name, group in plain.items() if name != "hydra" and isinstance(group, dict)}
    if deeper := [f"{name}.{key}" for name, group in groups.items() if key in group]:
        return f"{key}: no such key; did you mean {' or '.join(deeper)}?"
    return f"{key}: no such key; {did_you_mean(last, known, parent + dot)}"


def _check_type(key: str, default: Any, value: Any, defaults: DictConfig) -> None:
    if key == "run_dir":
        raise UserError(f"run_dir={value}: follows from the run's folder; write hydra.run.dir={value}")
    if key in _PATHS and value is not None and not (isinstance(value, str) and value):
        raise UserError(f"{key}={value}: expected a path, like runs/2026-01-31/12-00-00-mlp-shapes")
    if value not in _CHOICES.get(key, (value,)):
        raise UserError(f"{key}={value}: expected one of {', '.join(_CHOICES[key])}")
    text = OR_TEXT.get(key)
    expected = None if text and value == text else mismatch(default, value)
    if expected and OmegaConf.is_list(value) and _takes_lists(key, defaults):
        expected = mismatch([default], value)
    if expected:
        expected += f" or {text}" if text else ""
        like = "" if OmegaConf.is_dict(default) else f", like the default {default}"
        raise UserError(f"{key}={value}: expected {expected}{like}")
    if not _finite(value) and _finite(default):
        raise UserError(f"{key}={value}: expected a finite number, {_LARGEST:.1e} at most")


def _takes_lists(key: str, defaults: DictConfig) -> bool:
    """Return whether what a node builds takes a list for a key as well, as the type of its parameter says."""
    above, _, name = key.rpartition(".")
    target = OmegaConf.select(defaults, f"{above}._target_", default=None) if above else None
    parameter = signature(locate(target)).parameters.get(name) if target else None
    return parameter is not None and bool(re.search(r"(Sequence|list|tuple)\[", str(parameter.annotation)))


def _finite(value: Any) -> bool:
    """Return whether a value holds no nan, and nothing that single precision has no number for."""
    plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
    return all(abs(one) <= _LARGEST for _, one in nodes([plain]) if isinstance(one, float))  # as a nan is not


def mismatch(default: Any, value: Any) -> str | None:
    """Return what `value` should have been, going by the default; None when it fits or nothing can be said."""
    if default is None or value is None or isinstance(default, str):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return None if type(value) is int else "a whole number"
    if isinstance(default, float):
        return None if type(value) in (int, float) else "a number"
    if OmegaConf.is_dict(default):
        keys = ", ".join(str(key) for key in default if key != "_target_")
        return None if OmegaConf.is_dict(value) else f"null, or values of its keys ({keys})"
    if not OmegaConf.is_list(value):
        return "a list"
    wrong = (mismatch(default[0], entry) for entry in value) if len(default) else ()
    return next((f"a list, each entry {expected}" for expected in wrong if expected), None)
