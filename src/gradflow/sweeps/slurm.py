"""`hydra/launcher=slurm`: submitit hands jobs to SLURM, starts them again at their time limit, tells of their end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.runs.sweep_folder import ERROR
from gradflow.sweeps import remote
from gradflow.sweeps.cluster import Cluster, Submitted, lost, plain
from gradflow.sweeps.forkserver import GRACE, Ended
from gradflow.sweeps.machine import Need, count

FILES = ".submitit"  # in the sweep's folder
NOTE = ".slurm.json"  # in a job's: SLURM's number for it
POLL = 1.0  # seconds between two looks; at SLURM itself submitit looks less and less often, down to every ten minutes
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "PREEMPTED", "REQUEUED")
COUNTS = ("nodes", "tasks_per_node", "cpus_per_task", "timeout_min", "signal_delay_s", "array_parallelism")
SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")  # submitit's


class Order(NamedTuple):
    job: int
    need: Need
    task: remote.Task


class Slurm(Cluster):
    """Jobs that are ordered together, and need the same, become one array."""

    name = "slurm"

    def __init__(self, cluster: str, max_num_timeout: int, jobs: Any, **options: Any) -> None:
        super().__init__(jobs)
        self.submitit, self.cluster, self.options = imported(), cluster, plain(options)
        self.requeues_left = count("hydra.launcher.max_num_timeout", max_num_timeout)
        for name in COUNTS:
            count(f"hydra.launcher.{name}", self.options.get(name), optional=True)
        if cluster not in ("slurm", "local"):
            raise UserError(f"hydra.launcher.cluster={cluster}: expected slurm, or local to try it on this machine")
        if cluster == "slurm" and self.submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                "hydra/launcher=slurm: there is no srun here; start the sweep where SLURM is, "
                "or try it out with hydra.launcher.cluster=local"
            )
        self.ordered: list[Order] = []
        self.submitted: dict[int, Submitted] = {}

    def at(self, sweep: Path) -> Slurm:
        self.files = sweep / FILES
        return self

    def start(self, job: int, arguments: Sequence[str], env: Mapping[str, str], log: Path, threads: int) -> None:
        self.ordered.append(Order(job, self.held[job], remote.Task(arguments, env, os.getcwd(), str(log))))

    def submit(self) -> None:
        for need in dict.fromkeys(order.need for order in self.ordered):
            self.submit_array(need, [order for order in self.ordered if order.need == need])
        self.ordered = []

    def submit_array(self, need: Need, orders: list[Order]) -> None:
        made = {f"{self.cluster}_max_num_timeout": self.requeues_left}
        executor = self.submitit.AutoExecutor(self.files, cluster=self.cluster, **made)
        try:
            executor.update_parameters(**self.parameters(need))
            with executor.batch():
                handles = [executor.submit(order.task) for order in orders]
        except (RuntimeError, ValueError, AssertionError) as error:  # of sbatch, or of submitit
            raise UserError(f"hydra/launcher=slurm: {str(error).strip().splitlines()[-1]}") from error
        for order, handle in zip(orders, handles, strict=True):
            log = Path(order.task.log)
            noted = {"id": handle.job_id, "tasks": handle.num_tasks, "files": str(self.files)}
            runs.write_json(log.parent / NOTE, noted)
            self.submitted[order.job] = Submitted(handle, log, time.monotonic())

    def parameters(self, need: Need) -> dict[str, Any]:
        """A process a device, as Lightning wants it under SLURM; on this machine Lightning starts them itself."""
        ranks = {"nodes": need.nodes, "tasks_per_node": need.devices} if self.cluster == "slurm" else {}
        asked = {**ranks, "gpus_per_node": need.devices if need.gpu else 0} | self.options
        asked["gpus_per_node"] = asked["gpus_per_node"] or None
        forced = {"requeue": True, **asked.pop("additional_parameters", {})}
        asked |= {"additional_parameters": forced, "srun_args": ["--kill-on-bad-exit=1"], "stderr_to_stdout": True}
        return {name if name in SHARED else f"slurm_{name}": value for name, value in asked.items()}

    def ended(self, timeout: float | None) -> list[Ended]:
        self.submit()
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while not (told := self.over()) and time.monotonic() < deadline:
            time.sleep(POLL)
        return told

    def over(self) -> list[Ended]:
        done = [job for job, submitted in self.submitted.items() if submitted.handle.done()]
        return [Ended(job, *self.outcome(self.submitted.pop(job))) for job in done]

    def outcome(self, submitted: Submitted) -> tuple[int, float]:
        handle, since = submitted.handle, time.monotonic() - submitted.since
        tasks = [handle.task(number) for number in range(handle.num_tasks)]
        try:
            if handle.state != "COMPLETED" and not all(task.paths.result_pickle.exists() for task in tasks):
                raise self.submitit.core.utils.UncompletedJobError(f"SLURM says {handle.state}")
            results = handle.results()
        except self.submitit.core.utils.UncompletedJobError as error:
            reasons = [line for line in str(error).splitlines() if ERROR.match(line)] or [str(error)]
            lost(submitted.log, reasons[-1])
            return 1, since
        return next((status for status, _ in results if status), 0), max(seconds for _, seconds in results)

    def alive(self, folder: Path) -> bool:
        handle = self.noted(folder)
        return handle is not None and handle.watcher.get_state(handle.job_id, mode="force").split()[0] in ALIVE

    def adopt(self, job: int, folder: Path) -> None:
        self.submitted[job] = Submitted(self.noted(folder), folder / runs.LOG, time.monotonic())

    def noted(self, folder: Path) -> Any:
        """The job of SLURM that an earlier command has made of a job of the sweep."""
        noted = runs.read_json(folder / NOTE)
        if not noted or self.cluster != "slurm":
            return None
        return self.submitit.SlurmJob(noted["files"], noted["id"], tasks=range(noted["tasks"]))

    def stop(self) -> Iterator[Ended]:
        """Cancel: SLURM tells the jobs to end, which save then; those that still wait are taken out of its queue."""
        yield from (Ended(order.job, -signal.SIGTERM, 0.0) for order in self.ordered)
        for handle, _, _ in self.submitted.values():
            self.cancel(handle)
        deadline = time.monotonic() + 2 * GRACE
        try:
            while self.submitted and time.monotonic() < deadline:
                self.look()
                yield from self.over()
                time.sleep(POLL / 4)
        except KeyboardInterrupt:  # once more: now
            pass
        yield from (Ended(job, -signal.SIGTERM, 0.0) for job in self.submitted)

    def look(self) -> None:
        if self.cluster == "slurm":
            next(iter(self.submitted.values())).handle.watcher.update()

    def cancel(self, handle: Any) -> None:
        if self.cluster == "slurm":
            handle.cancel(check=False)
        else:
            os.kill(int(handle.job_id), signal.SIGTERM)  # submitit would leave a job a second to save


def imported() -> Any:
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise UserError("hydra/launcher=slurm: needs submitit; pip install -e .[slurm]") from None
    cloudpickle.register_pickle_by_value(remote)  # nodes need not find this package to read a task
    return submitit
