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
from gradflow.config import resume
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.runs.folder import RENAMED_KEYS

WORDS = {"model.branch_scale": "depth", "model.forget_bias": "chrono", "trainer.devices": "auto"}  # beside a number
CHOICES = {"summary": ("full", "json", "short")}
PATHS = ("run", "resume", "continue_sweep")
LARGEST = 3.4028234e38  # in single precision
INSTANTIATED = {"callbacks": 2, "logger": 1}  # nodes of that depth are read where they have a _target_, else by nobody


def check_types(cfg: DictConfig, config: str) -> None:
    """Refuse an override whose value is of another type than the default that it replaces, or that nothing reads."""
    words = list(HydraConfig.get().overrides.task)
    parsed = OverridesParser.create().parse_overrides(words)
    if left_out := next((str(o.input_line) for o in parsed if o.is_delete() and "." not in o.key_or_group), None):
        raise UserError(f"{left_out}: no run can do without this key; leave the word out")
    values, default = compared(parsed, config)
    for override in values:
        key = override.key_or_group
        try:
            was, now = (OmegaConf.select(node, key, default=None) for node in (default, cfg))
        except InterpolationResolutionError as error:
            raise UserError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
        check_added(override, default, words, cfg)
        check_type(key, was, now)
    if not runs.in_sweep():
        tell_passed_over(words)


def check_sweep(jobs: Sequence[Sequence[str]], config: str) -> None:
    """Each word of a sweep once, with the first job that has it, before any job is started."""
    seen = set[str]()
    for words in jobs:
        if not (new := set(words) - seen):
            continue
        seen |= new
        values, default = compared(OverridesParser.create().parse_overrides(list(words)), config, new)
        for override in values:
            was, value = OmegaConf.select(default, override.key_or_group, default=None), override.value()
            check_added(override, default, words)
            if "${" not in str(value):
                check_type(override.key_or_group, was, OmegaConf.create([value])[0])


def tell_passed_over(words: Iterable[str]) -> None:
    """Name the words whose key is given another value later: Hydra takes the last without a word on it."""
    given = [word for word in words if "=" in word and not word.startswith("~")]
    last = {resume.key(word): word for word in given}
    for word in given if runs.first_rank() else []:
        if word.lstrip("+") != (counts := last[resume.key(word)]).lstrip("+"):
            print(f"note: {word} is not used: {counts} comes after it")


def compared(
    parsed: Sequence[Override], config: str, chosen: Container[str] | None = None
) -> tuple[list[Override], DictConfig]:
    """The words that give a value, of the `chosen` ones, and the defaults that they replace or are added to."""
    loader = GlobalHydra.instance().config_loader()
    given = [word for word in parsed if not word.is_delete()]
    groups = [str(word.input_line) for word in given if loader.get_group_options(word.get_key_element().lstrip("+"))]
    values = [word for word in given if word.input_line not in groups and "@" not in word.get_key_element()]
    values = [word for word in values if chosen is None or word.input_line in chosen]
    return values, loader.load_configuration(config, groups, RunMode.RUN) if values else OmegaConf.create()


def check_added(override: Override, default: DictConfig, words: Sequence[str], cfg: DictConfig | None = None) -> None:
    """A key of its own is read by whatever names it in an interpolation; one of a callback or a logger by that."""
    key, word = override.key_or_group, str(override.input_line)
    top = key.partition(".")[0]
    if not word.startswith("+") or top == "hydra":
        return
    given: Any = HydraConfig.get().overrides if HydraConfig.initialized() else OmegaConf.create()
    named_in = str([*words, *(OmegaConf.to_container(node, resolve=False) for node in (default, given))])
    if top not in default and not re.search(rf"\$\{{(?:[^${{}}]*[:,\s])?\.*{re.escape(top)}\b", named_in):
        raise UserError(no_such_key(key if top == key else top, default))
    node = ".".join(key.split(".")[: INSTANTIATED.get(top, 0)])
    found = OmegaConf.select(cfg, node, default=None) if cfg is not None and node else None
    if isinstance(found, DictConfig) and "_target_" not in found:
        raise UserError(f"{word}: {node} has no _target_, so nothing reads it")


def no_such_key(key: str, node: Any) -> str:
    """What to say of a key that is in no configuration; `node` is the one in which it was looked for."""
    known = [str(name) for name in node if name not in ("hydra", "_target_", "_partial_")] if node else []
    if key in RENAMED_KEYS:
        return f"{key}: no such key; did you mean {RENAMED_KEYS[key]}?"
    parent, dot, last = key.rpartition(".")
    if deeper := [f"{group}.{last}" for group in groups_with(last, node)] if not dot else []:
        return f"{key}: no such key; did you mean {' or '.join(deeper)}?"
    return f"{key}: no such key; {did_you_mean(last, known, parent + dot)}"


def groups_with(key: str, node: Any) -> list[str]:
    """Where a key that was given without its group might belong."""
    plain: Any = OmegaConf.to_container(node) if OmegaConf.is_dict(node) else {}
    return [str(group) for group, held in plain.items() if group != "hydra" and isinstance(held, dict) and key in held]


def check_type(key: str, was: Any, now: Any) -> None:
    if key == "run_dir":
        raise UserError(f"run_dir={now}: follows from the run's folder; write hydra.run.dir={now}")
    if key in PATHS and now is not None and not (isinstance(now, str) and now):
        raise UserError(f"{key}={now}: expected a path, like runs/2026-01-31/12-00-00-mlp-shapes")
    if now not in CHOICES.get(key, (now,)):
        raise UserError(f"{key}={now}: expected one of {', '.join(CHOICES[key])}")
    word = WORDS.get(key)
    if wanted := None if word and now == word else mismatch(was, now):
        wanted += f" or {word}" if word else ""
        raise UserError(f"{key}={now}: expected {wanted}, like the default {was}")
    if not finite(now) and finite(was):
        raise UserError(f"{key}={now}: expected a finite number, {LARGEST:.1e} at most")


def finite(value: Any) -> bool:
    """Whether a value holds no nan, and nothing that single precision has no number for."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=False)
    if isinstance(value, (dict, list)):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or abs(value) <= LARGEST  # as a nan is not


def mismatch(was: Any, now: Any) -> str | None:
    """What `now` should have been, going by the default `was`; None when it fits or nothing can be said."""
    if was is None or now is None or isinstance(was, str):
        return None
    if isinstance(was, bool):
        return None if isinstance(now, bool) else "true or false"
    if isinstance(was, int):
        whole = isinstance(now, int) and not isinstance(now, bool)
        return None if whole else "a whole number"
    if isinstance(was, float):
        number = isinstance(now, (int, float)) and not isinstance(now, bool)
        finite = number and (math.isfinite(now) or not math.isfinite(was))
        return None if finite else "a number"
    if OmegaConf.is_dict(was):
        return None if OmegaConf.is_dict(now) else "a group of keys"
    if not OmegaConf.is_list(now):
        return "a list"
    wrong = (mismatch(was[0], entry) for entry in now) if len(was) else ()
    return next((f"a list, each entry {wanted}" for wanted in wrong if wanted), None)
