"""The devices and cores of this machine, and which job of a sweep has them. Without torch, which would start CUDA."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradflow.runs.errors import UserError

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time, and in how many


def cores() -> int:
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if QUOTA.is_file():
        quota, period = QUOTA.read_text().split()
        if quota != "max":
            count = min(count, math.ceil(int(quota) / int(period)))
    return count


def gpus() -> tuple[list[str], int]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, else those on which nobody computes; and how many others there are."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")], 0
    found, busy = ask("--query-gpu=uuid"), set(ask("--query-compute-apps=gpu_uuid"))
    free = [gpu for gpu in found if gpu not in busy]
    return free, len(found) - len(free)


def ask(question: str) -> list[str]:
    """GPUs by their UUID: CUDA's own numbers may follow another order than those of nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return []
    told = subprocess.run(
        ["nvidia-smi", question, "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return told.stdout.split() if told.returncode == 0 else []


@dataclass(frozen=True)
class Need:
    """What a job runs on."""

    gpu: bool
    devices: int  # of each node
    nodes: int = 1


def count(name: str, value: Any, optional: bool = False) -> Any:
    """`value`, when it is a number of something."""
    if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise UserError(f"{name}={value}: expected a whole number, 1 or more")


def threads() -> int:
    """Of each process, as the user wants it; 0 where that is not said."""
    return int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0)


class Pool:
    """Hands devices and threads to jobs. `jobs` at once; None for as many as there is room for."""

    requeues = False  # nobody but a later command starts a job again
    underway = "running"

    def __init__(self, jobs: Any, jobs_per_device: Any) -> None:
        self.jobs = count("hydra.launcher.jobs", jobs, optional=True)
        self.jobs_per_device = count("hydra.launcher.jobs_per_device", jobs_per_device)
        self.gpus, self.busy = gpus()
        self.threads = threads()
        self.held: dict[int, tuple[Need, list[str]]] = {}

    def need(self, trainer: Mapping[str, Any]) -> Need:
        wanted, accelerator = trainer.get("devices", 1), trainer.get("accelerator", "auto")
        gpu = accelerator in ("auto", "gpu", "cuda") and bool(self.gpus or self.busy)
        if wanted in ("auto", -1, "-1"):
            return Need(gpu, max(1, len(self.gpus)) if gpu else 1)
        if not str(wanted).isdigit() or not int(wanted):
            raise UserError(
                f"trainer.devices={wanted}: in a sweep give a number; CUDA_VISIBLE_DEVICES chooses the GPUs"
            )
        if gpu and int(wanted) > len(self.gpus):
            raise UserError(f"trainer.devices={wanted}: {len(self.gpus)} GPUs are free, {self.busy} in use by others")
        return Need(gpu, int(wanted))

    def at_once(self, need: Need) -> int:
        """How many such jobs fit on the machine."""
        if self.jobs:
            return self.jobs
        if need.gpu:
            return len(self.gpus) * self.jobs_per_device // need.devices
        return max(1, cores() // (need.devices * (self.threads or 1)))

    def room(self, need: Need) -> bool:
        if self.jobs or not self.held:
            return len(self.held) < (self.jobs or 1)
        if need.gpu:
            used = self.used()
            return sum(used[gpu] < self.jobs_per_device for gpu in self.gpus) >= need.devices
        processes = sum(other.devices for other, _ in self.held.values() if not other.gpu)
        return processes + need.devices <= self.at_once(need) * need.devices

    def take(self, job: int, need: Need, left: int) -> tuple[list[str], int]:
        """The job's GPUs, and the threads of each of its processes when up to `left` others come beside it."""
        used = self.used()
        chosen = sorted(self.gpus, key=lambda gpu: used[gpu])[: need.devices] if need.gpu else []
        beside = min(self.at_once(need), len(self.held) + left + 1)
        self.held[job] = need, chosen
        return chosen, self.threads or max(1, cores() // (beside * need.devices))

    def used(self) -> Counter[str]:
        return Counter(gpu for _, chosen in self.held.values() for gpu in chosen)

    def give_back(self, job: int) -> None:
        del self.held[job]

    def alive(self, folder: Path) -> bool:
        """Jobs of this machine end with the command that started them."""
        return False
