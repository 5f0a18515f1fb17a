"""Values on the command line are of the type of the defaults that they replace. Nothing heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from gradflow.mistakes import Mistake

WORDS = {"model.branch_scale": "depth", "model.forget_bias": "chrono", "trainer.devices": "auto"}  # beside a number
PATHS = ("run", "resume", "continue_sweep")


def check_types(cfg: DictConfig, config: str) -> None:
    """Refuse an override whose value is of another type than the default that it replaces."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    if left_out := next((str(o.input_line) for o in parsed if o.is_delete() and "." not in o.key_or_group), None):
        raise Mistake(f"{left_out}: no run can do without this key; leave the word out")
    values, default = replacing(parsed, config)
    for override in values:
        key = override.key_or_group
        try:
            was, now = (OmegaConf.select(node, key, default=None) for node in (default, cfg))
        except InterpolationResolutionError as error:
            raise Mistake(f"{override.input_line}: {str(error).splitlines()[0]}") from error
        check_type(key, was, now)


def check_sweep(jobs: Sequence[Sequence[str]], config: str) -> None:
    """Each word of a sweep once, with the first job that has it, before any job is started."""
    seen = set[str]()
    for words in jobs:
        if not (new := set(words) - seen):
            continue
        seen |= new
        values, default = replacing(OverridesParser.create().parse_overrides(list(words)), config, new)
        for override in values:
            was, value = OmegaConf.select(default, override.key_or_group, default=None), override.value()
            if "${" not in str(value):
                check_type(override.key_or_group, was, OmegaConf.create([value])[0])


def replacing(
    parsed: Sequence[Override], config: str, chosen: Container[str] | None = None
) -> tuple[list[Override], DictConfig]:
    """The words that put a value in the place of another, of the `chosen` ones, and the defaults that they replace."""
    loader = GlobalHydra.instance().config_loader()
    given = [word for word in parsed if not word.is_delete()]
    groups = [str(word.input_line) for word in given if loader.get_group_options(word.get_key_element().lstrip("+"))]
    values = [word for word in given if word.input_line not in groups and not word.is_add()]
    values = [word for word in values if chosen is None or word.input_line in chosen]
    return values, loader.load_configuration(config, groups, RunMode.RUN) if values else OmegaConf.create()


def check_type(key: str, was: Any, now: Any) -> None:
    if key == "run_dir":
        raise Mistake(f"run_dir={now}: follows from the run's folder; write hydra.run.dir={now}")
    if key in PATHS and now is not None and not (isinstance(now, str) and now):
        raise Mistake(f"{key}={now}: expected a path, like runs/2026-01-31/12-00-00-mlp-shapes")
    word = WORDS.get(key)
    if wanted := None if word and now == word else mismatch(was, now):
        wanted += f" or {word}" if word else ""
        raise Mistake(f"{key}={now}: expected {wanted}, like the default {was}")


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
