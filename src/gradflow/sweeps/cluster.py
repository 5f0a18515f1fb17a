"""What the clusters that run a sweep's jobs have in common: how much room there is, and what a job asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from gradflow.runs.errors import UserError
from gradflow.sweeps.forkserver import Ended
from gradflow.sweeps.machine import Need, count, threads


class Submitted(NamedTuple):
    handle: Any  # of the job, as the cluster's library has it
    log: Path
    since: float


class Cluster(ABC):
    """Pool and server in one, since a cluster finds the devices for what it is given. `jobs` at once; None for all."""

    requeues = True  # a job may be started again, and has to go on in its folder
    underway = "submitted"
    name: str

    def __init__(self, jobs: Any) -> None:
        self.jobs = count("hydra.launcher.jobs", jobs, optional=True)
        self.held: dict[int, Need] = {}

    def need(self, trainer: Mapping[str, Any]) -> Need:
        devices, nodes = (trainer.get(key, 1) for key in ("devices", "num_nodes"))
        if not str(devices).isdigit():
            raise UserError(f"trainer.devices={devices}: with hydra/launcher={self.name} give a number")
        return Need(trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda"), int(devices), int(nodes))

    def at_once(self, need: Need) -> int:
        """How many trials a search tries before it learns from them, which no cluster can say."""
        if self.jobs is None:
            raise UserError(
                f"hydra.sweeper.n_jobs=null: with hydra/launcher={self.name} say how many trials run at once"
            )
        return self.jobs

    def room(self, need: Need) -> bool:
        return self.jobs is None or len(self.held) < self.jobs

    def take(self, job: int, need: Need, left: int) -> tuple[list[str], int]:
        """Devices are the cluster's to choose."""
        self.held[job] = need
        return [], threads()

    def give_back(self, job: int) -> None:
        del self.held[job]

    def alive(self, folder: Path) -> bool:
        """Whether the job that an earlier command has started in that folder waits or runs."""
        return False

    def adopt(self, job: int, folder: Path) -> None:
        """Watch a job that is alive: of a cluster whose `alive` may say so."""
        raise NotImplementedError

    @abstractmethod
    def start(self, job: int, arguments: Sequence[str], env: Mapping[str, str], log: Path, threads: int) -> None: ...

    @abstractmethod
    def ended(self, timeout: float | None) -> list[Ended]:
        """Jobs that have ended; waits for one."""

    @abstractmethod
    def stop(self) -> Iterator[Ended]:
        """End all jobs."""


def lost(log: Path, reason: str) -> None:
    """Note in a job's log why the cluster has ended it, where the job could not."""
    with log.open("a") as file:
        print(f"error: {reason}", file=file)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """A launcher's options as Python's own types; null is left to the cluster."""
    made = OmegaConf.to_container(OmegaConf.create(dict(options)), resolve=True)
    assert isinstance(made, dict)
    return {str(name): value for name, value in made.items() if value is not None}
