"""The command line: Hydra's, with one-line errors. Nothing heavy is imported, so wrong words are answered at once."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from gradflow import runs, sweep
from gradflow.mistakes import Mistake, nearest

CONF = Path(__file__).parents[2] / "conf"
WORDS = {"model.branch_scale": "depth", "model.forget_bias": "chrono"}  # that a key takes beside its number
MISTAKES = (Mistake, HydraException, OmegaConfBaseException)


def command(config: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config a command line: `hydra.main`, with our one-line errors."""
    started: list[DictConfig] = []

    def decorate(flow: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(flow)
        def job(cfg: DictConfig) -> Any:
            started.append(cfg)
            try:
                if OmegaConf.select(cfg, "continue_sweep") is not None:
                    raise Mistake(f"continue_sweep={cfg.continue_sweep}: goes with -m and hydra/launcher=local")
                check_types(cfg, config)
                value = flow(cfg)
                if runs.in_sweep() and HydraConfig.get().output_subdir is not None:
                    runs.write_objective(Path(HydraConfig.get().runtime.output_dir), value)
                return value
            except MISTAKES as mistake:
                hydra_config = HydraConfig.get()
                if hydra_config.output_subdir is not None:  # else the folder is not the job's own
                    runs.discard_unstarted(hydra_config.runtime.output_dir)
                if hydra_config.mode == RunMode.MULTIRUN:
                    raise  # the other jobs go on
                report(mistake)

        def main() -> None:
            # Hydra hands errors through, instead of formatting them, only when this variable is set;
            # what the user had set is kept for us and for the ranks that inherit the environment.
            started.clear()
            os.environ.setdefault("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                refuse(sys.argv[1:])
                with sweep.concluded():
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(job)()
            except MISTAKES as error:
                report(error)
            except OSError as error:
                if started:
                    raise
                report(
                    Mistake(f"{error.filename}: can't be made the run's folder ({error.strerror}); see hydra.run.dir")
                )

        return main

    return decorate


def report(error: Exception) -> NoReturn:
    if os.environ["GRADFLOW_TRACEBACK"] not in ("", "0"):
        raise error
    print(f"error: {explain(error)}", file=sys.stderr)
    sys.exit(2)


def refuse(words: Iterable[str]) -> None:
    """Words on which Hydra would stumble: `--model=mlp`, which other programs take, and a group without an option."""
    flags = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    for word in words:
        name, _, value = word.partition("=")
        if word.startswith("--") and name not in flags and "=" in word:
            raise Mistake(f"{word}: write {word.lstrip('-')}")
        if value == "null" and (CONF / name).is_dir() and name not in ("experiment", "debug", "search"):
            raise Mistake(
                f"{word}: choose an option; known: {', '.join(sorted(p.stem for p in (CONF / name).iterdir()))}"
            )


def explain(error: Exception) -> str:
    """One line for an exception of Hydra's, OmegaConf's or ours."""
    if isinstance(error, Mistake):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {nearest(option, error.options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=… must be given"
    if ambiguous := re.match("Ambiguous value for argument '(.*)'", str(error)):
        return f"{ambiguous[1]}: several values; add -m to run one job for each"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value, or a bracket or quote is left open"
    cause = error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        node = cause.parent_node if OmegaConf.is_dict(cause.parent_node) else {}
        known = [str(key) for key in node if key not in ("hydra", "_target_", "_partial_")]
        parent, dot, key = cause.full_key.rpartition(".")
        return f"{cause.full_key}: no such key; {nearest(key, known, parent + dot)}"
    return " ".join(str(error).split())


def check_types(cfg: DictConfig, config: str) -> None:
    """Refuse an override whose value is of another type than the default that it replaces."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    given = [override for override in parsed if not override.is_delete()]
    loader = GlobalHydra.instance().config_loader()
    groups = [str(o.input_line) for o in given if loader.get_group_options(o.get_key_element().lstrip("+"))]
    default = loader.load_configuration(config, overrides=groups, run_mode=RunMode.RUN)
    for override in given:
        key = override.key_or_group
        if override.input_line in groups or override.is_add():
            continue
        was, now = (OmegaConf.select(node, key, default=None) for node in (default, cfg))
        word = WORDS.get(key)
        if wanted := None if word and now == word else mismatch(was, now):
            wanted += f" or {word}" if word else ""
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
    if OmegaConf.is_dict(was):
        return None if OmegaConf.is_dict(now) else "a group of keys"
    if not OmegaConf.is_list(now):
        return "a list"
    wrong = (mismatch(was[0], entry) for entry in now) if len(was) else ()
    return next((f"a list, each entry {wanted}" for wanted in wrong if wanted), None)
