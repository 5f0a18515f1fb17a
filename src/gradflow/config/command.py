"""The command line: Hydra's, with one-line errors. Nothing heavy is imported: wrong arguments are answered at once."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from gradflow import runs
from gradflow.config import resume, standard_streams
from gradflow.config.arguments import check_arguments
from gradflow.config.options import CONF
from gradflow.config.value_types import check_types, no_such_key
from gradflow.runs import claims, ranks, sweep_jobs
from gradflow.runs.errors import DISK, GONE, UserError, did_you_mean, disk_error, printable, wrapped
from gradflow.runs.overrides import MULTIRUN, record, value

_USER_ERRORS = (UserError, HydraException, OmegaConfBaseException)
warnings.filterwarnings("error", "provider=hydra.searchpath")  # of a folder that is not there
warnings.filterwarnings("error", r"Callback \w+\.\w+ raised ")


def command(
    config: str, register_plugins: Callable[[], None]
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a function of a config a command line: `hydra.main` with our plugins and with our one-line errors."""

    def decorate(flow: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(flow)  # Hydra asks where it stands
        def job(cfg: DictConfig) -> Any:
            return _run_job(flow, cfg, config)

        return functools.partial(_run, job, config, register_plugins)

    return decorate


def _run(job: Callable[[DictConfig], Any], config: str, register_plugins: Callable[[], None]) -> None:
    """Run the whole command: its arguments are checked, then Hydra calls the job, or a sweep's launcher."""
    # Hydra hands errors through, instead of formatting them, only when this variable is set;
    # what the user had set is kept for us and for the ranks that inherit the environment.
    standard_streams.outlast_reader()
    os.environ.setdefault("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        check_arguments(sys.argv[1:])
        if config == "train":
            sys.argv[1:] = resume.arguments_of_resumed_run(sys.argv[1:])
        sys.argv[1:] = sweep_jobs.arguments_of_continued_sweep(sys.argv[1:], config)
        register_plugins()
        with sweep_jobs.failures_reported():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(job)()
    except KeyboardInterrupt:
        claims.discard_unstarted()
        sys.exit(130)
    except Exception as caught:
        # Hydra makes a warning of what a callback has raised, and the filter above makes an exception of that.
        error = caught.__context__ if isinstance(caught, UserWarning) and caught.__context__ else caught
        if isinstance(error, OSError):
            report_disk(error, config)
        if not isinstance(error, _USER_ERRORS) and not _is_raised_by_hydra(error):
            raise error from None
        claims.discard_unstarted()
        report_error(error)
    finally:
        claims.release()


def _is_raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra rejects something with an exception of Python's; a defect of ours keeps its traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, OSError):  # a sweep's folder that its own launcher can't make
        return frames[-1].f_code.co_name == "mkdir" and _run_job.__code__ not in [frame.f_code for frame in frames]
    of_hydra = str(frames[-1].f_globals.get("__name__")).startswith("hydra.")
    return of_hydra and isinstance(error, (ValueError, RuntimeError, UserWarning))


def _run_job(flow: Callable[[DictConfig], Any], cfg: DictConfig, config: str) -> Any:
    try:
        if OmegaConf.select(cfg, "continue_sweep") is not None:
            raise UserError(f"continue_sweep={cfg.continue_sweep}: goes with -m, a sweep")
        folder = Path(HydraConfig.get().runtime.output_dir)
        if "run_dir" in cfg and runs.first_rank() and ranks.apart() == 1:  # Hydra's basic launcher has made the folder
            claims.claim(folder, "hydra.run.dir", prepared=runs.in_sweep())
        check_types(cfg)
        if claims.claimed(folder) and not claims.goes_on(folder):
            record(folder, cfg)
        value = flow(cfg)
        if runs.in_sweep() and runs.first_rank():
            runs.write_objective(folder, value)
        return value
    except _USER_ERRORS as error:
        claims.discard_unstarted()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the other jobs go on
        report_error(error)
    except runs.Diverged as diverged:  # here, since Hydra would say that it failed
        report_error(diverged, 1)
    except OSError as error:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            report_disk(error, config)
        raise


def report_error(error: BaseException, status: int = 2) -> NoReturn:
    if os.environ.get("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "")) not in ("", "0"):
        raise error
    print(wrapped(f"error: {printable(explain(error))}", stream=sys.stderr), file=sys.stderr)
    for what, command_line in getattr(error, "commands", {}).items():
        print(f"  {what}: {command_line}", file=sys.stderr)
    sys.exit(status)


def report_disk(error: OSError, config: str) -> None:
    """Report a disk that is full or can't be written: the command is right, so the status is 1."""
    if line := disk_error(error):
        if config == "train" and error.errno not in GONE and not runs.in_sweep():  # which says how it goes on
            sweep = f"continue_sweep={value('hydra.sweep.dir', sys.argv) or 'newest'}"
            line += f"; then {sweep if {*MULTIRUN} & set(sys.argv) else 'resume=auto'} goes on"
        report_error(UserError(line), DISK if runs.in_sweep() else 1)


def explain(error: BaseException) -> str:
    """Return one line for an exception of Hydra's, OmegaConf's or ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if resolving := re.match(r"UserError raised while resolving interpolation: (.*)", str(error)):
        return resolving[1]
    if isinstance(error, MissingConfigException):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if options := error.options or [path.stem for path in (CONF / group).glob("*.yaml") if group]:  # none of a list
            return f"{group}={option}: no such option; {did_you_mean(option, options)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}=… must be given"
    if ambiguous := re.match("Ambiguous value for argument '(.*)'", str(error)):
        return f"{ambiguous[1]}: several values; add -m to run one job for each"
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        if not value.isascii() and not re.search("[\"'[{]", value):
            return f"{error.override}: Hydra takes letters beyond ASCII in quotes; write '{key}=\"{value}\"'"
        return f"{error.override}: not of the form key=value, or a bracket or quote is left open"
    if "INTERVAL_SWEEP" in str(error):
        return "interval(…): not one value after the other; add hydra/sweeper=optuna, or write range(…) or choice(…)"
    cause = error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        return no_such_key(cause.full_key, cause.parent_node if OmegaConf.is_dict(cause.parent_node) else {})
    if merging := re.match("Error merging override (.*)", str(error)):
        return f"{merging[1]}: {str(cause).splitlines()[0]}"
    return " ".join(str(error).split())
