"""`hydra/launcher=slurm`: submitit hands jobs to SLURM, requeues them at their time limit, and reports their end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, final

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.runs.sweep_jobs import ERROR
from gradflow.sweeps import job_process
from gradflow.sweeps.backend import Cluster, JobLost, Need, Submitted, whole_number

_FILES = ".submitit"  # in the sweep's folder
_NOTE = ".slurm.json"  # in a job's: SLURM's number for it
_ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "PREEMPTED", "REQUEUED")
_COUNTS = ("nodes", "tasks_per_node", "cpus_per_task", "timeout_min", "signal_delay_s", "array_parallelism")
_OF_SUBMITIT = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")


@final
class Slurm(Cluster):
    """Jobs that are started together, and need the same, become one array."""

    name = "slurm"

    def __init__(self, cluster: str, max_num_timeout: int, jobs: Any, **options: Any) -> None:
        super().__init__(jobs, options)
        self.cluster, self.ending = cluster, False
        self.requeues_left = whole_number("hydra.launcher.max_num_timeout", max_num_timeout)
        self.submitit = _imported()
        for name in _COUNTS:
            whole_number(f"hydra.launcher.{name}", self.options.get(name), optional=True)
        if cluster not in ("slurm", "local"):
            raise UserError(f"hydra.launcher.cluster={cluster}: expected slurm, or local to try it on this machine")
        if cluster == "slurm" and self.submitit.SlurmExecutor.affinity() < 0:
            raise UserError(
                "hydra/launcher=slurm: there is no srun here; start the sweep where SLURM is, "
                "or try it out with hydra.launcher.cluster=local"
            )

    def over(self, seconds: float) -> list[int]:
        self._submit()
        if self.ending and self.cluster == "slurm":
            next(iter(self.running.values())).handle.watcher.update()  # now, and not when submitit would ask
        over = [job for job, submitted in self.running.items() if submitted.handle.done()]
        if not over:
            time.sleep(seconds)
        return over

    def _submit(self) -> None:
        new = [submitted for submitted in self.running.values() if submitted.handle is None]
        for need in dict.fromkeys(submitted.need for submitted in new if submitted.need):
            self._submit_array(need, [submitted for submitted in new if submitted.need == need])

    def _submit_array(self, need: Need, jobs: list[Submitted]) -> None:
        options = {f"{self.cluster}_max_num_timeout": self.requeues_left}
        files = self.sweep / _FILES
        executor = self.submitit.AutoExecutor(files, cluster=self.cluster, **options)
        try:
            executor.update_parameters(**self.parameters(need))
            with executor.batch():
                handles = [executor.submit(job.process) for job in jobs]
        except (RuntimeError, ValueError, AssertionError) as error:  # of sbatch, or of submitit
            raise UserError(f"hydra/launcher=slurm: {str(error).strip().splitlines()[-1]}") from error
        for job, handle in zip(jobs, handles, strict=True):
            job.handle, job.since = handle, time.monotonic()
            note = {"id": handle.job_id, "tasks": handle.num_tasks, "files": str(files)}
            runs.write_json(job.log.parent / _NOTE, note)

    def parameters(self, need: Need) -> dict[str, Any]:
        """Return what submitit asks SLURM for: a process a device, as Lightning wants it there; on this machine
        Lightning starts them itself."""
        ranks = {"nodes": need.nodes, "tasks_per_node": need.devices} if self.cluster == "slurm" else {}
        options = {**ranks, "gpus_per_node": need.devices if need.gpu else 0} | self.options
        options["gpus_per_node"] = options["gpus_per_node"] or None
        flags = {"requeue": True, **options.pop("additional_parameters", {})}
        srun = ["--kill-on-bad-exit=1"]
        if cores := options.get("cpus_per_task"):  # which srun does not take over from sbatch since SLURM 22.05
            srun.append(f"--cpus-per-task={cores}")
        options |= {"additional_parameters": flags, "srun_args": srun, "stderr_to_stdout": True}
        return {name if name in _OF_SUBMITIT else f"slurm_{name}": value for name, value in options.items()}

    def result(self, handle: Any) -> tuple[int, float]:
        tasks = [handle.task(number) for number in range(handle.num_tasks)]
        try:
            if handle.state != "COMPLETED" and not all(task.paths.result_pickle.exists() for task in tasks):
                raise JobLost(f"SLURM says {handle.state}")
            results = handle.results()
        except self.submitit.core.utils.UncompletedJobError as error:
            reasons = [line for line in str(error).splitlines() if ERROR.match(line)] or [str(error)]
            raise JobLost(reasons[-1]) from error
        return next((status for status, _ in results if status), 0), max(seconds for _, seconds in results)

    def alive(self, folder: Path) -> bool:
        handle = self._submitted_earlier(folder)
        return handle is not None and handle.watcher.get_state(handle.job_id, mode="force").split()[0] in _ALIVE

    def adopt(self, job: int, folder: Path) -> None:
        handle = self._submitted_earlier(folder)
        self.running[job] = Submitted(folder / runs.LOG, handle=handle, since=time.monotonic())

    def _submitted_earlier(self, folder: Path) -> Any:
        """Return SLURM's job that an earlier command has made of a job of the sweep."""
        note = runs.read_json(folder / _NOTE)
        if not note or self.cluster != "slurm":
            return None
        return self.submitit.SlurmJob(note["files"], note["id"], tasks=range(note["tasks"]))

    def end(self, now: bool) -> None:
        self.ending = True
        super().end(now)

    def cancel(self, handle: Any) -> None:
        """SLURM tells the job to end, which saves then, or takes one that still waits out of its queue."""
        if self.cluster == "slurm":
            handle.cancel(check=False)
        else:
            os.kill(int(handle.job_id), signal.SIGTERM)  # submitit would leave a job a second to save


def _imported() -> Any:
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise UserError("hydra/launcher=slurm: needs submitit; pip install -e .[slurm]") from None
    cloudpickle.register_pickle_by_value(job_process)  # nodes need not find this package to read a job
    return submitit
