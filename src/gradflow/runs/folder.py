"""The run folder: how it is found, and the overrides that it has recorded. No torch here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from gradflow.runs.errors import UserError
from gradflow.runs.file_names import OVERRIDES
from gradflow.runs.files import read_yaml

RENAMED_KEYS = {
    "callbacks.exact": "callbacks.per_batch_seed",
    "callbacks.finite": "callbacks.nonfinite",
    "callbacks.last": "callbacks.resume_checkpoint",
}
_FORMER_NAMES: tuple[str, ...] = ()  # of this package; see scripts/fork.py


def find(run: str) -> Path:
    """Return the run folder that a user named, by itself or by a file inside it."""
    path = Path(run).absolute()
    for folder in (path, *path.parents):
        if (folder / OVERRIDES).is_file():
            return folder
    raise UserError(f"run={run}: not a run folder (there is no {OVERRIDES} in it)")


def recorded_overrides(run: Path) -> list[str]:
    """Return the overrides that a run has recorded."""
    file = run / OVERRIDES
    recorded = read_yaml(file)
    if not isinstance(recorded, list):
        raise UserError(f"{file}: is not a list of overrides")
    return [_with_current_names(str(word)) for word in recorded]


def _with_current_names(override: str) -> str:
    """Return an override that an older version recorded, under the names that its key and its target have today."""
    for name in _FORMER_NAMES:
        override = re.sub(rf"(_target_\W+){name}\.", rf"\1{__name__.partition('.')[0]}.", override)
    override = re.sub(r"^([+~]*optimizer)\.groups\.", r"\1.", override)
    return re.sub(r"^([+~]*)(callbacks\.\w+)", lambda m: m[1] + RENAMED_KEYS.get(m[2], m[2]), override)


def in_sweep() -> bool:
    """Return whether this is a job of a sweep: those have a number, with a process of their own or without."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def shared_folder(run: Path) -> Path:
    """Return the sweep's folder for a job of a sweep, which Hydra marks with a multirun.yaml; else the run's own."""
    return run.parent if (run.parent / "multirun.yaml").is_file() else run


def first_rank() -> bool:
    """Return whether this process is the first, or the only one, of its run; asked before torch is there to tell."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
