"""From the overrides of a sweep's job to its folder, its command line and its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradflow import runs
from gradflow.config import no_effect
from gradflow.config.hydra_internals import get_args_parser
from gradflow.config.value_types import check_sweep, note_replaced
from gradflow.runs import ranks
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import key, quoted
from gradflow.runs.sweep_jobs import Job, Sweep, constant_overrides, constants
from gradflow.sweeps.backend import Backend, Need
from gradflow.sweeps.job_process import JobProcess

CONTINUE = "continue_sweep"  # the key that is the sweep's, and never a job's
_OF_THE_SWEEP = ("mode", "sweep", "sweeper", "launcher", "run.dir")  # Hydra's keys that are not for its jobs
_CONFIG_FLAGS = ("config_path", "config_name", "config_dir")


@dataclass
class Plan:
    """A job, what it needs, and whether it resumes."""

    job: Job
    need: Need
    position: int  # among the jobs of the call
    resumes: bool  # goes on where it stopped, or will after its cluster has started it again
    since: float = 0.0
    logged: int = 0  # bytes that its log had then, of an earlier process


class Planner:
    """A sweep's folder, and the plan of each of its jobs."""

    def __init__(self, loader: ConfigLoader, config: DictConfig, backend: Backend, fail_fast: Any) -> None:
        if ranks.apart() > 1:
            raise UserError(
                "--multirun: each rank of torchrun or srun would run all of it; start a sweep as one process"
            )
        if not isinstance(fail_fast, bool):
            raise UserError(f"hydra.launcher.fail_fast={fail_fast}: expected true or false")
        self.loader, self.config, self.backend, self.fail_fast = loader, config, backend, fail_fast
        overrides, continued = _unresolved(config.hydra.overrides.task), OmegaConf.select(config, CONTINUE)
        note_replaced(overrides)
        constant_overrides.update(f"{key}={value}" for key, value in constants(overrides).items() if value is not None)
        self.script = _script(config)
        self.sweep = Sweep(Path(config.hydra.sweep.dir), going_on=bool(continued), alive=backend.alive)
        self.trials: tuple[int, int] | None = None  # of a search: how many have ended before a call, and of how many
        self.durations: list[float] = []  # seconds of each job that has ended, over all calls
        self.record = self.sweep.folder / "multirun.yaml"
        self.earlier_record = self.record.read_text(encoding="utf-8") if self.record.is_file() else None
        # Hydra writes it once more, but neither whole nor with a name in the error of a full disk, so it is written
        # here first. The record of a sweep that is continued stays as it was until the overrides have been checked.
        if continued and self.earlier_record is not None:
            before = self.record.stat()
            runs.write_text(self.record, self.earlier_record)
            os.utime(self.record, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            runs.write_text(self.record, OmegaConf.to_yaml(config))

    def check(self, overrides: list[list[str]]) -> None:
        try:
            check_sweep(overrides, self.config.hydra.job.config_name)
            if self.config.hydra.runtime.choices.get("hydra/sweeper") == "basic":  # a search sees no two jobs as equal
                no_effect.check_sweep(overrides, lambda own: self.loader.load_sweep_config(self.config, list(own)))
        except UserError:
            if self.earlier_record is not None:  # which Hydra has written over
                runs.write_text(self.record, self.earlier_record)
            raise

    def plan(self, overrides: Sequence[str], position: int, earlier: Job | None) -> Plan:
        """Compose the job's configuration, as Hydra's own launcher would; an `earlier` one of them goes on."""
        config = self.loader.load_sweep_config(self.config, list(overrides))
        number = earlier.number if earlier else self.sweep.next_number()
        with read_write(config.hydra), open_dict(config.hydra):
            for name, value in {"job.num": number, "job.id": str(number), "sweep.dir": str(self.sweep.folder)}.items():
                OmegaConf.update(config.hydra, name, value)
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # for interpolations of hydra:…
            folder = self.sweep.folder / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before
        if self.backend.requeues and config.get("resume"):
            raise UserError(f"resume={config.resume}: not with a cluster, where each job resumes what it has saved")
        need = self.backend.need(OmegaConf.select(config, "trainer") or {})
        job = earlier or Job(number, tuple(overrides), "new", None, 0.0, folder)
        return Plan(job, need, position, resumes=bool(earlier) or self.backend.requeues)

    def process(self, plan: Plan) -> JobProcess:
        """Return the job as a single run; the ranks that Lightning starts by repeating it get the same arguments."""
        job = plan.job
        task = [one for one in job.overrides if not (plan.resumes and key(one) == "resume")]
        task += ["resume=auto"] if plan.resumes else []
        hydra = [one for one in _unresolved(self.config.hydra.overrides.hydra) if not is_of_the_sweep(one)]
        hydra += [f"hydra.run.dir={quoted(job.folder)}", f"hydra.sweep.dir={quoted(self.sweep.folder)}"]
        hydra += [f"hydra.job.num={job.number}", f"hydra.job.id='{job.number}'"]
        flags = vars(get_args_parser().parse_args())  # where Hydra was told to look for configurations
        config = [f"--{name.replace('_', '-')}={flags[name]}" for name in _CONFIG_FLAGS if flags[name]]
        environment = wandb_environment(
            self.sweep.folder, [one for one in job.overrides if one not in constant_overrides]
        )
        return JobProcess([str(self.script), *config, *task, *hydra], environment, job.folder / runs.LOG)


def _unresolved(overrides: Any) -> list[str]:
    """Return a list of overrides as it was given: their interpolations are for the job that gets them."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return plain


def is_of_the_sweep(override: str) -> bool:
    name = key(override).removeprefix("hydra").lstrip("./")
    return any(name == own or name.startswith(f"{own}.") for own in _OF_THE_SWEEP)


def _script(config: DictConfig) -> Path:
    path = Path(config.hydra.runtime.cwd, sys.argv[0])
    if not path.is_file():
        raise UserError(f"{sys.argv[0]}: not a script that a job could run; add hydra/launcher=basic")
    return path


def wandb_environment(folder: Path, differing: Sequence[str]) -> dict[str, str]:
    """Return one group for a sweep, and each job's own overrides as its name and tags; what the user has set stays."""
    own = {"WANDB_RUN_GROUP": "-".join(folder.parts[-2:]) if "multirun" in folder.parts[-3:-2] else folder.name}
    if differing:
        own["WANDB_NAME"] = " ".join(differing)[:128]  # W&B's own limits; commas part tags
        own["WANDB_TAGS"] = ",".join(one.replace(",", " ")[:64] for one in differing)
    return {name: value for name, value in own.items() if name not in os.environ}
