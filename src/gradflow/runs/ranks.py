"""Ranks that torchrun or srun started, each on its own: what the first decides, such as the run's folder, all do.

They can't ask torch.distributed yet, but meet where it will: at the address that all of them have.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from gradflow.runs.errors import UserError

_PATIENCE = 300.0  # seconds; nodes don't start at the same moment
_OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # of launchers that leave no address
_asked = itertools.count()
T = TypeVar("T")


def apart(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes share this run, each started by the user's launcher; 1 where Lightning starts them."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["WORLD_SIZE"])
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))  # of srun; SLURM_NTASKS stands in a job's script, too
    return tasks if "SLURM_NTASKS" in environment else 1


def agreed(decide: Callable[[], T]) -> T:
    """Return what `decide` returns on the first rank, which JSON has to know, or raise what it raises there. All ranks
    call it in one order."""
    if apart() == 1:
        _reject_unconnected()
        return decide()
    store, rank = _rendezvous()
    name, answer = f"gradflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_asked)}", {}
    if rank == 0:
        answer = _outcome(decide)
        store.set(name, json.dumps(answer))
    answer = answer or json.loads(_wait(lambda: store.get(name)))
    store.set(f"{name}/{rank}", "heard")
    if rank == 0:  # which keeps the store, and may be about to end
        _wait(lambda: store.wait([f"{name}/{other}" for other in range(apart())]))
    if "error" in answer:
        raise UserError(answer["error"])
    if "status" in answer:
        raise SystemExit(answer["status"])
    return answer["value"]


def _outcome(decide: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": decide()}
    except (UserError, OSError) as error:
        return {"error": str(error)}
    except SystemExit as end:
        return {"status": end.code}


@functools.cache  # kept as long as this process: the first rank's store serves the others
def _rendezvous() -> tuple[Any, int]:
    """Return the store through which torch.distributed will start, where Lightning will look for it."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from torch.distributed import rendezvous

    where = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
    os.environ |= {"MASTER_ADDR": where.main_address, "MASTER_PORT": str(where.main_port)}
    rank, size = where.global_rank(), where.world_size()
    store, _, _ = _wait(lambda: next(rendezvous("env://", rank, size, timeout=timedelta(seconds=_PATIENCE))))
    return store, rank


def _wait(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"hydra.run.dir: the {apart()} ranks did not come together ({reason}); were all started within "
            f"{_PATIENCE:.0f} s, and can they reach the first?"
        ) from error


def _reject_unconnected() -> None:
    """Reject ranks that do not know of each other: they would make a folder each."""
    several = any(int(os.environ.get(name, 1)) > 1 for name in _OTHERS)
    if several or os.environ.get("NODE_RANK", "0") != "0":
        raise UserError("hydra.run.dir: give all ranks the same folder, or start them with torchrun or srun")
