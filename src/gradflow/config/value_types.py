"""Values on the command line are of the type of the defaults that they replace. Nothing heavy is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from gradflow import runs
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.runs.folder import RENAMED_KEYS
from gradflow.runs.overrides import key as key_of

OR_TEXT = {
    "model.branch_scale": "depth",
    "model.forget_bias": "chrono",
    "trainer.devices": "auto",
}  # a number, or this
_PATHS = ("run", "resume", "continue_sweep")
_LARGEST = 3.4028234e38  # in single precision
_INSTANTIATED = {"callbacks": 2, "logger": 1}  # nodes of that depth are read where they have a _target_, else by nobody
_CHOICES = {"summary": ("full", "json", "short")}


def check_types(cfg: DictConfig, config: str) -> None:
    """Reject an override whose value is of another type than the default that it replaces, or that nothing reads."""
    overrides = list(HydraConfig.get().overrides.task)
    parsed = OverridesParser.create().parse_overrides(overrides)
    if deleted := next((str(o.input_line) for o in parsed if o.is_delete() and "." not in o.key_or_group), None):
        raise UserError(f"{deleted}: no run can do without this key; leave the override out")
    values, defaults = _values_and_defaults(parsed, config)
    for override in values:
        key = override.key_or_group
        try:
            default, value = (OmegaConf.select(node, key, default=None) for node in (defaults, cfg))
        except InterpolationResolutionError as error:
            raise UserError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
        _check_added(override, defaults, overrides, cfg)
        _check_type(key, default, value)
    if not runs.in_sweep():
        note_replaced(overrides)


def check_sweep(jobs: Sequence[Sequence[str]], config: str) -> None:
    """Check each override of a sweep once, with the first job that has it, before any job is started."""
    seen = set[str]()
    for overrides in jobs:
        if not (new := set(overrides) - seen):
            continue
        seen |= new
        values, defaults = _values_and_defaults(OverridesParser.create().parse_overrides(list(overrides)), config, new)
        for override in values:
            default, value = OmegaConf.select(defaults, override.key_or_group, default=None), override.value()
            _check_added(override, defaults, overrides)
            if "${" not in str(value):
                _check_type(override.key_or_group, default, OmegaConf.create([value])[0])


def note_replaced(overrides: Iterable[str]) -> None:
    """Name the overrides whose key is given another value later: Hydra takes the last and says nothing."""
    values = [one for one in overrides if "=" in one and not one.startswith("~")]
    last = {key_of(override): override for override in values}
    for override in values if runs.first_rank() else []:
        if override.lstrip("+") != (used := last[key_of(override)]).lstrip("+"):
            print(f"note: {override} is not used: {used} comes after it")


def _values_and_defaults(
    parsed: Sequence[Override], config: str, chosen: Container[str] | None = None
) -> tuple[list[Override], DictConfig]:
    """Return the overrides that give a value, of the `chosen` ones, and the defaults that they replace or add to."""
    loader = GlobalHydra.instance().config_loader()
    setting = [one for one in parsed if not one.is_delete()]
    groups = [str(one.input_line) for one in setting if loader.get_group_options(one.get_key_element().lstrip("+"))]
    values = [one for one in setting if one.input_line not in groups and "@" not in one.get_key_element()]
    values = [one for one in values if chosen is None or one.input_line in chosen]
    return values, loader.load_configuration(config, groups, RunMode.RUN) if values else OmegaConf.create()


def _check_added(
    override: Override, defaults: DictConfig, overrides: Sequence[str], cfg: DictConfig | None = None
) -> None:
    """A key of its own is read by whatever names it in an interpolation; one of a callback or a logger by that."""
    key, text = override.key_or_group, str(override.input_line)
    top = key.partition(".")[0]
    if not text.startswith("+") or top == "hydra":
        return
    task: Any = HydraConfig.get().overrides if HydraConfig.initialized() else OmegaConf.create()
    everything = str([*overrides, *(OmegaConf.to_container(node, resolve=False) for node in (defaults, task))])
    if top not in defaults and not re.search(rf"\$\{{(?:[^${{}}]*[:,\s])?\.*{re.escape(top)}\b", everything):
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
    if deeper := [f"{group}.{last}" for group in _groups_with(last, node)] if not dot else []:
        return f"{key}: no such key; did you mean {' or '.join(deeper)}?"
    return f"{key}: no such key; {did_you_mean(last, known, parent + dot)}"


def _groups_with(key: str, node: Any) -> list[str]:
    """Return the groups to which a key that was given without one might belong."""
    plain: Any = OmegaConf.to_container(node) if OmegaConf.is_dict(node) else {}
    return [str(name) for name, group in plain.items() if name != "hydra" and isinstance(group, dict) and key in group]


def _check_type(key: str, default: Any, value: Any) -> None:
    if key == "run_dir":
        raise UserError(f"run_dir={value}: follows from the run's folder; write hydra.run.dir={value}")
    if key in _PATHS and value is not None and not (isinstance(value, str) and value):
        raise UserError(f"{key}={value}: expected a path, like runs/2026-01-31/12-00-00-mlp-shapes")
    if value not in _CHOICES.get(key, (value,)):
        raise UserError(f"{key}={value}: expected one of {', '.join(_CHOICES[key])}")
    text = OR_TEXT.get(key)
    if expected := None if text and value == text else mismatch(default, value):
        expected += f" or {text}" if text else ""
        raise UserError(f"{key}={value}: expected {expected}, like the default {default}")
    if not _finite(value) and _finite(default):
        raise UserError(f"{key}={value}: expected a finite number, {_LARGEST:.1e} at most")


def _finite(value: Any) -> bool:
    """Return whether a value holds no nan, and nothing that single precision has no number for."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=False)
    if isinstance(value, (dict, list)):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or abs(value) <= _LARGEST  # as a nan is not


def mismatch(default: Any, value: Any) -> str | None:
    """Return what `value` should have been, going by the default; None when it fits or nothing can be said."""
    if default is None or value is None or isinstance(default, str):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, int):
        return None if is_number and isinstance(value, int) else "a whole number"
    if isinstance(default, float):
        return None if is_number and (math.isfinite(value) or not math.isfinite(default)) else "a number"
    if OmegaConf.is_dict(default):
        return None if OmegaConf.is_dict(value) else "a group of keys"
    if not OmegaConf.is_list(value):
        return "a list"
    wrong = (mismatch(default[0], entry) for entry in value) if len(default) else ()
    return next((f"a list, each entry {expected}" for expected in wrong if expected), None)
