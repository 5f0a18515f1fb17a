"""What our launchers do with a sweep: plan its jobs and have each started in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, setup_globals
from omegaconf import DictConfig, OmegaConf

from gradflow import runs
from gradflow.config import no_effect
from gradflow.config.hydra_internals import get_args_parser
from gradflow.config.value_types import check_sweep, note_replaced
from gradflow.runs import ranks
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import key, quoted
from gradflow.runs.sweep_folder import Job, Sweep, constants, to_continue
from gradflow.sweeps.cluster import Cluster
from gradflow.sweeps.forkserver import Lost
from gradflow.sweeps.launch import Launch, Plan, Server, set_hydra
from gradflow.sweeps.machine import Pool

_OF_THE_SWEEP = ("mode", "sweep", "sweeper", "launcher", "run.dir")  # Hydra's keys that are not for its jobs
_CONTINUE = "continue_sweep"  # the key that is the sweep's, and never a job's
_CONFIG_FLAGS = ("config_path", "config_name", "config_dir")


class Jobs:
    """What our launchers do: they differ in the pool, which hands out devices, and in the server, which runs a job."""

    def __init__(
        self,
        loader: ConfigLoader,
        config: DictConfig,
        pool: Pool | Cluster,
        server: Callable[[Path], Server],
        fail_fast: Any,
    ) -> None:
        if ranks.apart() > 1:
            raise UserError(
                "--multirun: each rank of torchrun or srun would run all of it; start a sweep as one process"
            )
        if not isinstance(fail_fast, bool):
            raise UserError(f"hydra.launcher.fail_fast={fail_fast}: expected true or false")
        self.loader, self.config, self.fail_fast = loader, config, fail_fast
        overrides, continued = _unresolved(config.hydra.overrides.task), OmegaConf.select(config, _CONTINUE)
        note_replaced(overrides)
        self.constant = {f"{key}={value}" for key, value in constants(overrides).items() if value is not None}
        self.script = _script(config)
        program = config.hydra.job.name
        folder = to_continue(str(continued), program, overrides) if continued else Path(config.hydra.sweep.dir)
        self.sweep = Sweep(folder, going_on=bool(continued), alive=pool.alive)
        self.pool, self.make_server = pool, server
        self.server: Server | None = None
        set_hydra(config, "sweep.dir", str(folder))  # for the sweeper, too
        self.record = self.sweep.folder / "multirun.yaml"
        self.earlier_record = self.record.read_text() if self.record.is_file() else None
        # Hydra writes it once more, but neither whole nor with a name in the error of a full disk. The record of a
        # sweep that is continued stays as it was until the overrides have been checked.
        if not continued or self.earlier_record is None:
            runs.write_text(self.record, OmegaConf.to_yaml(config))

    def launch(self, overrides: list[list[str]]) -> list[JobReturn]:
        setup_globals()
        try:
            self._check(overrides)
        except UserError:
            if self.earlier_record is not None:  # which Hydra has written over
                runs.write_text(self.record, self.earlier_record)
            raise
        self.server = self.server or self.make_server(self.sweep.folder)
        launch = Launch(self, self.server, [[one for one in own if key(one) != _CONTINUE] for own in overrides])
        with raised("SIGTERM", *([] if self.pool.requeues else ["SIGHUP"])):  # a cluster's jobs outlive the terminal
            try:
                return launch.run()
            except BaseException as error:
                launch.stop()
                if not isinstance(error, (KeyboardInterrupt, SystemExit, Lost)):
                    raise
                if isinstance(error, Lost):
                    print(f"error: {error}", file=sys.stderr)
                folder = os.path.relpath(self.sweep.folder)
                print(f"stopped; to go on, repeat the command with {_CONTINUE}={folder}", file=sys.stderr)
                sys.exit(error.code if isinstance(error, SystemExit) else 1 if isinstance(error, Lost) else 130)

    def _check(self, overrides: list[list[str]]) -> None:
        check_sweep(overrides, self.config.hydra.job.config_name)
        if self.config.hydra.runtime.choices.get("hydra/sweeper") == "basic":  # a search does not see its jobs as equal
            no_effect.check_sweep(overrides, lambda own: self.loader.load_sweep_config(self.config, list(own)))

    def plan(self, overrides: Sequence[str], position: int) -> Plan:
        """Compose the job's configuration, as Hydra's own launcher would."""
        config = self.loader.load_sweep_config(self.config, list(overrides))
        old = self.sweep.unfinished(overrides)
        number = old.number if old else self.sweep.next_number()
        for name, value in {"job.num": number, "job.id": str(number), "sweep.dir": str(self.sweep.folder)}.items():
            set_hydra(config, name, value)
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)  # for interpolations of hydra:…
            folder = self.sweep.folder / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before
        if self.pool.requeues and config.get("resume"):
            raise UserError(
                f"resume={config.resume}: not with a cluster, where each job goes on with what itself has saved"
            )
        need = self.pool.need(OmegaConf.select(config, "trainer") or {})
        job = old or Job(number, tuple(overrides), "new", None, 0.0, folder)
        return Plan(job, config, need, ["resume=auto"] if old or self.pool.requeues else [], position)

    def arguments(self, plan: Plan) -> list[str]:
        """Return the job as a single run; the ranks that Lightning starts by repeating it get the same arguments."""
        task = [one for one in plan.job.overrides if not (plan.extra and key(one) == "resume")]
        hydra = [one for one in _unresolved(self.config.hydra.overrides.hydra) if not _of_the_sweep(one)]
        own = [f"hydra.run.dir={quoted(plan.job.folder)}", f"hydra.sweep.dir={quoted(self.sweep.folder)}"]
        own += [f"hydra.job.num={plan.job.number}", f"hydra.job.id='{plan.job.number}'"]
        flags = vars(get_args_parser().parse_args())  # where Hydra was told to look for configurations
        config = [f"--{name.replace('_', '-')}={flags[name]}" for name in _CONFIG_FLAGS if flags[name]]
        return [str(self.script), *config, *task, *plan.extra, *hydra, *own]

    def environment(self, job: Job, gpus: Sequence[str], threads: int) -> dict[str, str]:
        """Return what a job's environment has beside that of its machine: threads, GPUs, and W&B's name and tags."""
        differing = [one for one in job.overrides if one not in self.constant]
        own = _wandb_environment(self.sweep.folder, differing)
        own |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
        return own | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})


def _unresolved(overrides: Any) -> list[str]:
    """Return a list of overrides as it was given: their interpolations are for the job that gets them."""
    plain = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(plain, list)
    return plain


def _of_the_sweep(override: str) -> bool:
    name = key(override).removeprefix("hydra").lstrip("./")
    return any(name == own or name.startswith(f"{own}.") for own in _OF_THE_SWEEP)


def _script(config: DictConfig) -> Path:
    path = Path(config.hydra.runtime.cwd, sys.argv[0])
    if not path.is_file():
        raise UserError(f"{sys.argv[0]}: not a script that a job could run; add hydra/launcher=basic")
    return path


def _wandb_environment(folder: Path, differing: Sequence[str]) -> dict[str, str]:
    """Return one group for a sweep, and each job's own overrides as its name and tags; what the user has set stays."""
    own = {"WANDB_RUN_GROUP": "-".join(folder.parts[-2:]) if "multirun" in folder.parts[-3:-2] else folder.name}
    if differing:
        own["WANDB_NAME"] = " ".join(differing)[:128]  # W&B's own limits; commas part tags
        own["WANDB_TAGS"] = ",".join(one.replace(",", " ")[:64] for one in differing)
    return {name: value for name, value in own.items() if name not in os.environ}


@contextmanager
def raised(*names: str) -> Iterator[None]:
    """Make SystemExit of these signals, where the system has them: first the jobs end, and the table is true."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in names if main and hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
