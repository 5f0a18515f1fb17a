"""`hydra/launcher=local`: the devices, cores and processes of this machine. Without torch, which would start CUDA."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from gradflow.runs.errors import UserError
from gradflow.sweeps.backend import Backend, Ended, Need, threads_by_user, whole_number
from gradflow.sweeps.forkserver import ForkServer
from gradflow.sweeps.job_process import JobProcess
from gradflow.sweeps.processes import Processes

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time, and in how many


@final
class Local(Backend):
    """Give each job GPUs, or cores, that no other job has; small jobs may share a GPU (`jobs_per_device`)."""

    name = "local"
    processes: ForkServer | Processes  # since the sweep was opened

    def __init__(self, jobs: Any, jobs_per_device: Any) -> None:
        super().__init__(jobs)
        self.jobs_per_device = whole_number("hydra.launcher.jobs_per_device", jobs_per_device)
        self.gpus, self.busy = gpus()
        self.threads = threads_by_user()
        self.running: dict[int, tuple[Need, list[str]]] = {}  # of each job, the GPUs

    def prepare(self) -> None:
        """Windows has no fork, and on macOS forks that loaded its frameworks may crash: they start plain processes."""
        if not hasattr(self, "processes"):
            self.processes = ForkServer() if sys.platform == "linux" else Processes()

    def open(self, sweep: Path) -> None:
        super().open(sweep)
        self.prepare()

    def need(self, trainer: Mapping[str, Any]) -> Need:
        devices, accelerator = trainer.get("devices", 1), trainer.get("accelerator", "auto")
        gpu = accelerator in ("auto", "gpu", "cuda") and bool(self.gpus or self.busy)
        if devices in ("auto", -1, "-1"):
            return Need(gpu, max(1, len(self.gpus)) if gpu else 1)
        if not str(devices).isdigit() or not int(devices):
            raise UserError(f"trainer.devices={devices}: in a sweep give a number; CUDA_VISIBLE_DEVICES chooses GPUs")
        if gpu and int(devices) > len(self.gpus):
            raise UserError(f"trainer.devices={devices}: {len(self.gpus)} GPUs are free, {self.busy} in use by others")
        return Need(gpu, int(devices))

    def jobs_at_once(self, need: Need) -> int:
        if self.jobs:
            return self.jobs
        if need.gpu:
            return len(self.gpus) * self.jobs_per_device // need.devices
        return max(1, cores() // (need.devices * (self.threads or 1)))

    def has_room(self, need: Need) -> bool:
        if self.jobs or not self.running:
            return len(self.running) < (self.jobs or 1)
        if need.gpu:
            used = self._jobs_by_gpu()
            return sum(used[gpu] < self.jobs_per_device for gpu in self.gpus) >= need.devices
        processes = sum(other.devices for other, _ in self.running.values() if not other.gpu)
        return processes + need.devices <= self.jobs_at_once(need) * need.devices

    def assign(self, job: int, need: Need, left: int) -> tuple[list[str], int]:
        """Return the job's GPUs, and the threads of each of its processes when up to `left` others come beside it."""
        used = self._jobs_by_gpu()
        chosen = sorted(self.gpus, key=lambda gpu: used[gpu])[: need.devices] if need.gpu else []
        beside = min(self.jobs_at_once(need), len(self.running) + left + 1)
        self.running[job] = need, chosen
        return chosen, self.threads or max(1, cores() // (beside * need.devices))

    def _jobs_by_gpu(self) -> Counter[str]:
        return Counter(gpu for _, chosen in self.running.values() for gpu in chosen)

    def start(self, job: int, need: Need, process: JobProcess, left: int) -> None:
        chosen, threads = self.assign(job, need, left)
        own = {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": ",".join(chosen)} if chosen else {})
        self.processes.start(job, replace(process, environment={**process.environment, **own}), threads)

    def poll(self, seconds: float) -> list[Ended]:
        ended = self.processes.poll(seconds)
        for one in ended:
            del self.running[one.job]
        return ended

    def end(self, now: bool) -> None:
        self.processes.end(now)


def cores() -> int:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if _QUOTA.is_file():
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        if quota != "max":
            count = min(count, math.ceil(int(quota) / int(period)))
    return count


def gpus() -> tuple[list[str], int]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, else those on which nobody computes; and how many others there
    are."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")], 0
    present, busy = _nvidia_smi("--query-gpu=uuid"), set(_nvidia_smi("--query-compute-apps=gpu_uuid"))
    free = [gpu for gpu in present if gpu not in busy]
    return free, len(present) - len(free)


def _nvidia_smi(query: str) -> list[str]:
    """Return GPUs by their UUID: CUDA's own numbers may follow another order than those of nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return []
    answer = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []
