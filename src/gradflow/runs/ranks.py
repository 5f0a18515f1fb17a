"""Ranks that torchrun or srun started, each on its own: what the first decides, such as the run's folder, all do.

They can't ask torch.distributed yet, but meet where it will: at the address that all of them were told.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from gradflow.runs.errors import UserError

PATIENCE = 300.0  # seconds; nodes don't start at the same moment
OTHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # of launchers that leave no address
asked = itertools.count()


def apart(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes share this run, each started with the words of the user; 1 for those that Lightning starts."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["WORLD_SIZE"])
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))  # of srun; SLURM_NTASKS stands in a job's script, too
    return tasks if "SLURM_NTASKS" in environment else 1


def agreed(decide: Callable[[], str]) -> str:
    """What `decide` gives on the first rank, or raises there; asked by all ranks, in the same order."""
    if apart() == 1:
        refuse_strangers()
        return decide()
    store, rank = meet()
    name, told = f"gradflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(asked)}", {}
    if rank == 0:
        told = outcome(decide)
        store.set(name, json.dumps(told))
    told = told or json.loads(waiting(lambda: store.get(name)))
    store.set(f"{name}/{rank}", "heard")
    if rank == 0:  # which keeps the store, and may be about to end
        waiting(lambda: store.wait([f"{name}/{other}" for other in range(apart())]))
    if "mistake" in told:
        raise UserError(told["mistake"])
    if "status" in told:
        raise SystemExit(told["status"])
    return told["value"]


def outcome(decide: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"value": decide()}
    except (UserError, OSError) as error:
        return {"mistake": str(error)}
    except SystemExit as end:
        return {"status": end.code}


@functools.cache  # kept as long as this process: the first rank's store serves the others
def meet() -> tuple[Any, int]:
    """The store through which torch.distributed will start, where Lightning will look for it."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from torch.distributed import rendezvous

    where = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
    os.environ |= {"MASTER_ADDR": where.main_address, "MASTER_PORT": str(where.main_port)}
    rank, size = where.global_rank(), where.world_size()
    store, _, _ = waiting(lambda: next(rendezvous("env://", rank, size, timeout=timedelta(seconds=PATIENCE))))
    return store, rank


def waiting(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"hydra.run.dir: the {apart()} ranks did not come together ({reason}); were all started within "
            f"{PATIENCE:.0f} s, and can they reach the first?"
        ) from error


def refuse_strangers() -> None:
    """Ranks that nobody told of each other would make a folder each."""
    several = any(int(os.environ.get(name, 1)) > 1 for name in OTHERS)
    if several or os.environ.get("NODE_RANK", "0") != "0":
        raise UserError("hydra.run.dir: give all ranks the same folder, or start them with torchrun or srun")
