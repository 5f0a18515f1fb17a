"""A user's mistake ends in one line that says what is wrong and what would be right, and in exit status 2.

Nothing heavy is imported here: what the configuration alone shows is told before torch is loaded.
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from gradflow import runs

CONF = Path(__file__).parents[2] / "conf"


class Mistake(Exception):
    """Something that the user can put right; its text is the one line that they read."""


MISTAKES = (Mistake, HydraException, OmegaConfBaseException)


def command(config: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config a command line: `hydra.main`, with our one-line errors."""

    def decorate(flow: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(flow)
        def job(cfg: DictConfig) -> Any:
            try:
                check_types(cfg, config)
                return flow(cfg)
            except MISTAKES as mistake:
                hydra_config = HydraConfig.get()
                runs.discard_unstarted(hydra_config.runtime.output_dir)
                if hydra_config.mode == RunMode.MULTIRUN:
                    raise  # the other jobs go on
                report(mistake)

        def main() -> None:
            # Hydra hands errors through, instead of formatting them, only when this variable is set;
            # what the user had set is kept for us and for the ranks that inherit the environment.
            os.environ.setdefault("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(job)()
            except MISTAKES as error:
                report(error)

        return main

    return decorate


def report(error: Exception) -> NoReturn:
    if os.environ["GRADFLOW_TRACEBACK"] not in ("", "0"):
        raise error
    print(f"error: {explain(error)}", file=sys.stderr)
    sys.exit(2)


def nearest(word: str, known: Iterable[str]) -> str:
    """'did you mean …?', or all that is known when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def explain(error: Exception) -> str:
    """One line for an exception of Hydra's, OmegaConf's or ours."""
    if isinstance(error, Mistake):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {nearest(option, error.options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=… must be given"
    cause = error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        node = cause.parent_node if OmegaConf.is_dict(cause.parent_node) else {}
        parent = cause.full_key.rpartition(".")[0]
        known = [f"{parent}.{key}".lstrip(".") for key in node if key != "hydra"]
        return f"{cause.full_key}: no such key; {nearest(cause.full_key, known)}"
    return " ".join(str(error).split())


def check_types(cfg: DictConfig, config: str) -> None:
    """Refuse an override whose value is of another type than the default that it replaces."""
    words = [word for word in HydraConfig.get().overrides.task]
    given = [o for o in OverridesParser.create().parse_overrides(words) if not o.is_delete()]
    loader = GlobalHydra.instance().config_loader()
    groups = [str(o.input_line) for o in given if loader.get_group_options(o.get_key_element().lstrip("+"))]
    default = loader.load_configuration(config, overrides=groups, run_mode=RunMode.RUN)
    for override in given:
        key = override.key_or_group
        if override.input_line in groups or override.is_add():
            continue
        was, now = (OmegaConf.select(node, key, default=None) for node in (default, cfg))
        if wanted := mismatch(was, now):
            shown = "null" if now is None else now
            raise Mistake(f"{key}={shown}: expected {wanted}, like the default {was}")


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
        return None if number else "a number"
    kind = "a group of keys" if OmegaConf.is_dict(was) else "a list"
    same = OmegaConf.is_dict(now) == OmegaConf.is_dict(was) and OmegaConf.is_config(now)
    return None if same else kind
