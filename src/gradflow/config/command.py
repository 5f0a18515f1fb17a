"""The command line: Hydra's, with one-line errors. Nothing heavy is imported, so wrong words are answered at once."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
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

from gradflow import runs
from gradflow.config import resume, standard_streams
from gradflow.config.arguments import CONF, refuse
from gradflow.config.value_types import check_types, no_such_key
from gradflow.runs import claims, sweep_folder
from gradflow.runs.errors import DISK, GONE, UserError, did_you_mean, disk_error

MISTAKES = (UserError, HydraException, OmegaConfBaseException)
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
    standard_streams.keep()
    os.environ.setdefault("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        refuse(sys.argv[1:])
        if config == "train":
            sys.argv[1:] = resume.words(sys.argv[1:])
        with sweep_folder.concluded():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(job)()
    except MISTAKES as error:
        claims.discard_unstarted()
        report(error)
    except KeyboardInterrupt:
        claims.discard_unstarted()
        sys.exit(130)
    except OSError as error:
        if not started and last_frame(error).f_code.co_name == "mkdir":
            key = "hydra.sweep.dir" if {*resume.SWEEPING} & set(sys.argv) else "hydra.run.dir"
            report(UserError(f"{error.filename}: can't be made the run's folder ({error.strerror}); see {key}"))
        report_disk(error, config)
        raise
    except (ValueError, RuntimeError, UserWarning) as error:
        if not raised_by_hydra(error):
            raise
        claims.discard_unstarted()
        report(error)
    finally:
        claims.release()


def run_job(flow: Callable[[DictConfig], Any], cfg: DictConfig, config: str) -> Any:
    """One run, in a sweep or by itself."""
    try:
        if OmegaConf.select(cfg, "continue_sweep") is not None:
            raise UserError(f"continue_sweep={cfg.continue_sweep}: goes with -m, a sweep")
        folder = Path(HydraConfig.get().runtime.output_dir)
        if "run_dir" in cfg:  # of a command whose runs have a folder each
            claims.confirm(folder)
        check_types(cfg, config)
        if claims.claimed(folder) and not claims.goes_on(folder):
            resume.record(folder, cfg)
        value = flow(cfg)
        if runs.in_sweep() and runs.first_rank():
            runs.write_objective(folder, value)
        return value
    except MISTAKES as mistake:
        claims.discard_unstarted()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
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
    return str(last_frame(error).f_globals.get("__name__")).startswith("hydra.")


def last_frame(error: BaseException) -> FrameType:
    """Return the frame in which an exception was raised."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]


def report_disk(error: OSError, config: str) -> None:
    """A disk that is full or can't be written: no mistake of the command's, so status 1."""
    if line := disk_error(error):
        hint = ""
        if config == "train" and error.errno not in GONE:
            swept = {*resume.SWEEPING} & set(sys.argv)
            again = "continue_sweep=newest goes on" if swept else "resume=auto goes on from the last checkpoint"
            hint = f"; then {again}"
        report(UserError(line + hint), DISK if runs.in_sweep() else 1)


def explain(error: Exception) -> str:
    """One line for an exception of Hydra's, OmegaConf's or ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if told := re.match(r"UserError raised while resolving interpolation: (.*)", str(error)):
        return told[1]
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: no such option; {did_you_mean(option, error.options)}"
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
