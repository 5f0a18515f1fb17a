"""`hydra/launcher=ray`: each job is a task of Ray, on a node that Ray finds for it, and a process of its own there."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any, final

from gradflow.runs.errors import UserError
from gradflow.sweeps import job_process
from gradflow.sweeps.backend import Cluster, JobLost, Need
from gradflow.sweeps.job_process import JobProcess


@final
class RayCluster(Cluster):
    """A task that is lost with its node is started again by Ray, as often as it does that for any task."""

    name = "ray"
    inherited = ("WANDB_", "GRADFLOW_")

    def __init__(self, address: str | None, jobs: Any, **options: Any) -> None:
        super().__init__(jobs, options)
        for name in ("cpus", "gpus"):
            number = self.options.get(name, 0)
            if not isinstance(number, (int, float)) or number < 0:
                raise UserError(f"hydra.launcher.{name}={number}: expected a number, 0 or more")
        self.ray = _connected(address, self.options.get("init", {}))

    def need(self, trainer: Mapping[str, Any]) -> Need:
        need = super().need(trainer)
        if need.nodes > 1:
            raise UserError(f"trainer.num_nodes={need.nodes}: a job of hydra/launcher=ray has one node")
        there = self.ray.cluster_resources().get("GPU", 0)
        if trainer.get("accelerator", "auto") == "auto" and not there:
            need = Need(False, need.devices)
        if need.gpu and "gpus" not in self.options and need.devices > there:
            raise UserError(f"trainer.devices={need.devices}: the cluster has {there:.0f} GPUs")
        return need

    def start(self, job: int, need: Need, process: JobProcess, left: int) -> None:
        super().start(job, need, process, left)
        cpus = self.options.get("cpus", 1 if need.gpu else need.devices)
        gpus = self.options.get("gpus", need.devices if need.gpu else 0)
        submitted = self.running[job]
        submitted.handle = self.ray.remote(num_cpus=cpus, num_gpus=gpus)(job_process.run).remote(submitted.process)
        submitted.since = time.monotonic()

    def over(self, seconds: float) -> list[int]:
        jobs = {submitted.handle: job for job, submitted in self.running.items()}
        done, _ = self.ray.wait(list(jobs), num_returns=1, timeout=seconds)
        return [jobs[handle] for handle in done]

    def result(self, handle: Any) -> tuple[int, float]:
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayError as error:
            raise JobLost(f"Ray says {type(error).__name__}") from error

    def cancel(self, handle: Any) -> None:
        self.ray.cancel(handle)

    def end(self, now: bool) -> None:
        super().end(now)
        if now:
            self.ray.shutdown()


def _connected(address: str | None, init: Mapping[str, Any]) -> Any:
    """Return Ray, connected to the cluster at that address, or to one that is started on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("hydra/launcher=ray: needs ray; pip install -e .[ray]") from None
    try:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        ray.init(address, **(quiet | dict(init)))
    except (ConnectionError, RuntimeError, ValueError, TypeError) as error:
        key = f"hydra.launcher.address={address}" if address else "hydra.launcher.init"
        raise UserError(f"{key}: {str(error).strip().splitlines()[0]}") from error
    ray.cloudpickle.register_pickle_by_value(job_process)  # nodes need not find this package to read a job
    return ray
