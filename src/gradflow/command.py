"""The command line: Hydra's, with one-line errors. Nothing heavy is imported, so wrong words are answered at once."""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gradflow import ranks, resuming, runs
from gradflow.mistakes import Mistake, nearest
from gradflow.sweeps import sweep
from gradflow.words import CONF, refuse

WORDS = {"model.branch_scale": "depth", "model.forget_bias": "chrono", "trainer.devices": "auto"}  # beside a number
PATHS = ("run", "resume", "continue_sweep")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}  # not of our making
MISTAKES = (Mistake, HydraException, OmegaConfBaseException)
UNMADE = re.compile(r"\w+ raised while resolving interpolation: \[Errno \d+\] (.*): '(.*)'\s+full_key: (hydra\.\S+)")
warnings.filterwarnings("error", "provider=hydra.searchpath")  # of a folder that is not there


def command(config: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config a command line: `hydra.main`, with our one-line errors."""
    started: list[DictConfig] = []

    def decorate(flow: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(flow)
        def job(cfg: DictConfig) -> Any:
            started.append(cfg)
            try:
                if OmegaConf.select(cfg, "continue_sweep") is not None:
                    raise Mistake(f"continue_sweep={cfg.continue_sweep}: goes with -m, a sweep")
                check_types(cfg, config)
                value = flow(cfg)
                if runs.in_sweep() and runs.first_rank():
                    runs.write_objective(Path(HydraConfig.get().runtime.output_dir), value)
                return value
            except MISTAKES as mistake:
                hydra_config = HydraConfig.get()
                if runs.first_rank() or ranks.apart() > 1:  # there the others have written the same record
                    runs.discard_unstarted(hydra_config.runtime.output_dir)
                if hydra_config.mode == RunMode.MULTIRUN:
                    raise  # the other jobs go on
                report(mistake)
            except runs.Diverged as diverged:  # here, since Hydra would say that it failed
                report(diverged, 1)
            except OSError as error:
                if HydraConfig.get().mode != RunMode.MULTIRUN:
                    report_disk(error, config)
                raise

        def main() -> None:
            # Hydra hands errors through, instead of formatting them, only when this variable is set;
            # what the user had set is kept for us and for the ranks that inherit the environment.
            started.clear()
            os.environ.setdefault("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
            os.environ["HYDRA_FULL_ERROR"] = "1"
            try:
                refuse(sys.argv[1:])
                if config == "train":
                    sys.argv[1:] = resuming.words(sys.argv[1:])
                with sweep.concluded():
                    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(job)()
            except MISTAKES as error:
                report(error)
            except KeyboardInterrupt:
                sys.exit(130)
            except OSError as error:
                if started:
                    raise
                key = "hydra.sweep.dir" if {*resuming.SWEEPING} & set(sys.argv) else "hydra.run.dir"
                report(Mistake(f"{error.filename}: can't be made the run's folder ({error.strerror}); see {key}"))
            except (ValueError, RuntimeError, UserWarning) as error:
                if not raised_by_hydra(error):
                    raise
                report(error)

        return main

    return decorate


def report(error: Exception, status: int = 2) -> NoReturn:
    if os.environ["GRADFLOW_TRACEBACK"] not in ("", "0"):
        raise error
    print(f"error: {explain(error)}", file=sys.stderr)
    for what, words in getattr(error, "commands", {}).items():
        print(f"  {what}: {words}", file=sys.stderr)
    sys.exit(status)


def raised_by_hydra(error: BaseException) -> bool:
    """Of words that it could not take; a defect of ours keeps its traceback."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith("hydra.")


def report_disk(error: OSError, config: str) -> None:
    """A disk that is full or can't be written: no mistake of the command's, so status 1. The first file is the one to
    name: what failed after it, like the last word in summary.json, followed from it."""
    found, one = error, error.__cause__ or error.__context__
    while one:
        if isinstance(one, OSError) and one.filename:
            found = one
        one = one.__cause__ or one.__context__
    if found.errno in FULL:
        where = f"{found.filename}: " if found.filename else ""
        hint = "; then resume=auto goes on from the last checkpoint" if config == "train" else ""
        report(Mistake(f"{where}{found.strerror}: make room or give leave there{hint}"), 1)


def explain(error: Exception) -> str:
    """One line for an exception of Hydra's, OmegaConf's or ours."""
    if isinstance(error, Mistake):
        return " ".join(str(error).split())
    if told := re.match(r"Mistake raised while resolving interpolation: (.*)", str(error)):
        return told[1]
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {nearest(option, error.options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=… must be given"
    if ambiguous := re.match("Ambiguous value for argument '(.*)'", str(error)):
        return f"{ambiguous[1]}: several values; add -m to run one job for each"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value, or a bracket or quote is left open"
    if "INTERVAL_SWEEP" in str(error):
        return "interval(…): not one value after the other; add hydra/sweeper=optuna, or write range(…) or choice(…)"
    cause = error.__cause__
    if unmade := UNMADE.match(str(error)):
        return f"{unmade[2]}: can't be made the run's folder ({unmade[1]}); see {unmade[3]}"
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        node = cause.parent_node if OmegaConf.is_dict(cause.parent_node) else {}
        known = [str(key) for key in node if key not in ("hydra", "_target_", "_partial_")]
        parent, dot, key = cause.full_key.rpartition(".")
        if deeper := [f"{group}.{key}" for group in groups_with(key, node)] if not dot else []:
            return f"{key}: no such key; did you mean {' or '.join(deeper)}?"
        return f"{cause.full_key}: no such key; {nearest(key, known, parent + dot)}"
    if merging := re.match("Error merging override (.*)", str(error)):
        return f"{merging[1]}: {str(cause).splitlines()[0]}"
    return " ".join(str(error).split())


def groups_with(key: str, node: Any) -> list[str]:
    """Where a key that was given without its group might belong."""
    plain: Any = OmegaConf.to_container(node) if OmegaConf.is_dict(node) else {}
    return [str(group) for group, held in plain.items() if group != "hydra" and isinstance(held, dict) and key in held]


def check_types(cfg: DictConfig, config: str) -> None:
    """Refuse an override whose value is of another type than the default that it replaces."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    given = [override for override in parsed if not override.is_delete()]
    if left_out := next((str(o.input_line) for o in parsed if o.is_delete() and "." not in o.key_or_group), None):
        raise Mistake(f"{left_out}: no run can do without this key; leave the word out")
    loader = GlobalHydra.instance().config_loader()
    groups = [str(o.input_line) for o in given if loader.get_group_options(o.get_key_element().lstrip("+"))]
    values = [override for override in given if override.input_line not in groups and not override.is_add()]
    default = loader.load_configuration(config, groups, RunMode.RUN) if values else OmegaConf.create()
    for override in values:
        key = override.key_or_group
        try:
            was, now = (OmegaConf.select(node, key, default=None) for node in (default, cfg))
        except InterpolationResolutionError as error:
            raise Mistake(f"{override.input_line}: {str(error).splitlines()[0]}") from error
        check_type(key, was, now)


def check_type(key: str, was: Any, now: Any) -> None:
    if key == "run_dir":
        raise Mistake(f"run_dir={now}: follows from the run's folder; write hydra.run.dir={now}")
    if key in PATHS and now is not None and not (isinstance(now, str) and now):
        raise Mistake(f"{key}={now}: expected a path, like runs/2026-01-31/12-00-00-mlp-shapes")
    word = WORDS.get(key)
    if wanted := None if word and now == word else mismatch(was, now):
        wanted += f" or {word}" if word else ""
        raise Mistake(f"{key}={now}: expected {wanted}, like the default {was}")


def check_sweep(jobs: Sequence[Sequence[str]], config: str) -> None:
    """Each word of a sweep once, with the first job that has it, before any job is started."""
    loader, seen = GlobalHydra.instance().config_loader(), set[str]()
    for words in jobs:
        if new := set(words) - seen:
            seen |= new
            parsed = OverridesParser.create().parse_overrides(list(words))
            groups = [str(o.input_line) for o in parsed if loader.get_group_options(o.get_key_element().lstrip("+"))]
            values = [o for o in parsed if o.input_line in new - {*groups} and not o.is_add() and not o.is_delete()]
            default = loader.load_configuration(config, groups, RunMode.RUN) if values else OmegaConf.create()
            for override in values:
                was, value = OmegaConf.select(default, override.key_or_group, default=None), override.value()
                if "${" not in str(value):
                    check_type(override.key_or_group, was, OmegaConf.create([value])[0])


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
