"""`hydra/launcher=ray`: each job is a task of Ray, on a node that Ray finds for it, and a process of its own there."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradflow.runs.errors import UserError
from gradflow.sweeps import remote
from gradflow.sweeps.cluster import Cluster, Submitted, lost, plain
from gradflow.sweeps.forkserver import GRACE, Ended
from gradflow.sweeps.machine import Need

OURS = ("WANDB_", "GRADFLOW_")  # what a job needs of the sweep's environment; the rest is the node's own


class RayCluster(Cluster):
    """A task that is lost with its node is started again by Ray, as often as it does that for any task."""

    name = "ray"

    def __init__(self, address: str | None, jobs: Any, **options: Any) -> None:
        super().__init__(jobs)
        self.options = plain(options)
        self.init = self.options.pop("init", {})
        for name in ("cpus", "gpus"):
            wish = self.options.get(name, 0)
            if not isinstance(wish, (int, float)) or wish < 0:
                raise UserError(f"hydra.launcher.{name}={wish}: expected a number, 0 or more")
        self.ray = connected(address, self.init)
        self.submitted: dict[int, Submitted] = {}

    def at(self, sweep: Path) -> RayCluster:
        return self

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

    def start(self, job: int, arguments: Sequence[str], env: Mapping[str, str], log: Path, threads: int) -> None:
        need = self.held[job]
        cpus = self.options.get("cpus", 1 if need.gpu else need.devices)
        gpus = self.options.get("gpus", need.devices if need.gpu else 0)
        own = {name: value for name, value in os.environ.items() if name.startswith(OURS)}
        task = remote.Task(list(arguments), own | dict(env), os.getcwd(), str(log))
        run = self.ray.remote(num_cpus=cpus, num_gpus=gpus)(remote.call)
        self.submitted[job] = Submitted(run.remote(task), log, time.monotonic())

    def ended(self, timeout: float | None) -> list[Ended]:
        jobs = {submitted.handle: job for job, submitted in self.submitted.items()}
        done, _ = self.ray.wait(list(jobs), num_returns=1, timeout=timeout)
        return [Ended(jobs[handle], *self.outcome(self.submitted.pop(jobs[handle]))) for handle in done]

    def outcome(self, submitted: Submitted) -> tuple[int, float]:
        try:
            return self.ray.get(submitted.handle)
        except self.ray.exceptions.RayError as error:
            lost(submitted.log, f"Ray says {type(error).__name__}")
            return 1, time.monotonic() - submitted.since

    def stop(self) -> Iterator[Ended]:
        for submitted in self.submitted.values():
            self.ray.cancel(submitted.handle)
        deadline = time.monotonic() + GRACE
        try:
            while self.submitted and time.monotonic() < deadline:
                yield from self.ended(1.0)
        except KeyboardInterrupt:  # once more: now
            pass
        yield from (Ended(job, -signal.SIGTERM, 0.0) for job in self.submitted)
        self.ray.shutdown()


def connected(address: str | None, init: Mapping[str, Any]) -> Any:
    """To the cluster at that address, or to one that is started on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("hydra/launcher=ray: needs ray; pip install -e .[ray]") from None
    try:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        ray.init(address, **(quiet | dict(init)))
    except (ConnectionError, RuntimeError, ValueError, TypeError) as error:
        wish = f"hydra.launcher.address={address}" if address else "hydra.launcher.init"
        raise UserError(f"{wish}: {str(error).strip().splitlines()[0]}") from error
    ray.cloudpickle.register_pickle_by_value(remote)  # nodes need not find this package to read a task
    return ray
