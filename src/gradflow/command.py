"""The command line: Hydra's, with one-line errors. Nothing heavy is imported, so wrong words are answered at once."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from gradflow import ranks, resuming, runs
from gradflow.given import check_types, no_such_key
from gradflow.mistakes import Mistake, nearest
from gradflow.sweeps import sweep
from gradflow.words import CONF, refuse

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}  # not of our making
MISTAKES = (Mistake, HydraException, OmegaConfBaseException)
UNMADE = re.compile(r"\w+ raised while resolving interpolation: \[Errno \d+\] (.*): '(.*)'\s+full_key: (hydra\.\S+)")
warnings.filterwarnings("error", "provider=hydra.searchpath")  # of a folder that is not there


def command(config: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config a command line: `hydra.main`, with our one-line errors."""

    def decorate(flow: Callable[[DictConfig], Any]) -> Callable[[], None]:
        started: list[DictConfig] = []

        @functools.wraps(flow)  # Hydra asks where it stands
        def job(cfg: DictConfig) -> Any:
            started.append(cfg)
            return run_job(flow, cfg, config)

        return functools.partial(run, job, config, started)

    return decorate


def run(job: Callable[[DictConfig], Any], config: str, started: list[DictConfig]) -> None:
    """The whole command: words, then Hydra, which calls the job, or a sweep's launcher."""
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


def run_job(flow: Callable[[DictConfig], Any], cfg: DictConfig, config: str) -> Any:
    """One run, in a sweep or by itself."""
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
        return no_such_key(cause.full_key, cause.parent_node if OmegaConf.is_dict(cause.parent_node) else {})
    if merging := re.match("Error merging override (.*)", str(error)):
        return f"{merging[1]}: {str(cause).splitlines()[0]}"
    return " ".join(str(error).split())
