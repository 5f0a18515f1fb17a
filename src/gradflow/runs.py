"""The run folder: the only file that knows the names of what is in it. No torch here."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

METRICS = "metrics.csv"
GRADIENTS = "gradients.csv"
SUMMARY = "summary.json"
SCORES = "scores.json"
DATASET = "dataset.json"
CHECKPOINTS = "checkpoints"
BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
FLOW = "flow.jsonl"
HEATMAP = "gradients.png"
DEPTH = "depth.png"
TIME = "time.png"
PHASE = "phase.png"
PROBE = "probe.json"
UPDATES = "updates.png"
TRAP = "trap.png"
OBJECTIVE = "objective.json"  # what a job of a sweep gives back
LOG = "job.log"
JOBS = "jobs.csv"  # in a sweep's folder
STUDY = "study.journal"  # of a search, in its sweep's folder
RESULTS = "optimization_results.yaml"
SEARCH = "search.png"


def claim(folder: str) -> str:
    """Make `folder`, or the first of `folder-2`, `folder-3`, … that is not there yet: runs never share one."""
    path, number = Path(folder), 1
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            path.mkdir()
            return str(path)
        except FileExistsError:
            number += 1
            path = Path(f"{folder}-{number}")


# Hydra resolves it once a process (use_cache), and hands the result to the ranks that Lightning starts.
OmegaConf.register_new_resolver("unused", claim, use_cache=True, replace=True)


def discard_unstarted(folder: str) -> None:
    """Remove a run folder in which nothing has happened but the record of its configuration."""
    path = Path(folder)
    if path.is_dir() and [entry.name for entry in path.iterdir()] == [".hydra"]:
        shutil.rmtree(path)


def find(run: str) -> Path:
    """The run folder that a user named, by itself or by a file inside it."""
    path = Path(run).absolute()
    for folder in (path, *path.parents):
        if (folder / ".hydra" / "overrides.yaml").is_file():
            return folder
    raise FileNotFoundError(f"{run}: not a run folder (there is no .hydra/overrides.yaml in it)")


def overrides(run: Path) -> list[str]:
    words = OmegaConf.to_container(OmegaConf.load(run / ".hydra" / "overrides.yaml"), resolve=False)
    return [str(word) for word in words] if isinstance(words, list) else []


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def finite(content: Any) -> Any:
    """JSON knows no nan and no infinity: they become null."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """All or nothing: a reader never sees half a file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(finite(content), allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    """Column names and rows of a table; an empty cell is nan."""
    with path.open(newline="") as file:
        names, *rows = list(csv.reader(file))
    return names, [[float(cell or "nan") for cell in row] for row in rows]


class Table:
    """A CSV file that grows by a row a step, at once. Values of one step share a row; a new column widens the file."""

    def __init__(self, path: Path, columns: Sequence[str] = ("step",)) -> None:
        self.path, self.columns = path, list(columns)
        self.row: dict[str, float] = {}
        self.start_of_row = 0
        self._rewrite([])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        same = bool(self.row) and self.row["step"] == step
        self.row = (self.row if same else {}) | {"step": step, **values}
        if new := [name for name in self.row if name not in self.columns]:
            self._widen(new)
        with self.path.open("r+", newline="") as file:
            self.start_of_row = file.seek(self.start_of_row) if same else file.seek(0, os.SEEK_END)
            csv.writer(file).writerow([self.row.get(name, "") for name in self.columns])
            file.truncate()

    def _widen(self, new: Sequence[str]) -> None:
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self.columns += new
        self._rewrite([row + [""] * len(new) for row in rows])

    def _rewrite(self, rows: Sequence[Sequence[str]]) -> None:
        """All rows; the start of the last one moves when columns are added."""
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            for row in rows:
                self.start_of_row = file.tell()
                writer.writerow(row)


def write_objective(run: Path, value: Any) -> None:
    """As Python writes JSON: nan and infinities are told too."""
    (run / OBJECTIVE).write_text(json.dumps({"objective": value}, default=float) + "\n")


def read_objective(run: Path) -> Any:
    return read_json(run / OBJECTIVE).get("objective")


def in_sweep() -> bool:
    """A job of a sweep has a number, whether it has a process of its own or not."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def shared_folder(run: Path) -> Path:
    """The sweep's folder for a job of a sweep, which Hydra marks with a multirun.yaml; else the run's own."""
    return run.parent if (run.parent / "multirun.yaml").is_file() else run


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, on one machine or a shared disk; the lock ends with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Pruned(Exception):
    """Ends a run that is not worth going on with; its reason."""


class Run:
    """Keeps `summary.json` true while a run goes on: its status is running, finished, pruned, failed or interrupted."""

    def __init__(self, folder: str, facts: Mapping[str, Any], writes: bool) -> None:
        self.path, self.writes = Path(folder) / SUMMARY, writes
        self.facts: dict[str, Any] = {"status": "running", **facts}

    def note(self, **facts: Any) -> None:
        self.facts |= facts
        self.facts["wall_seconds"] = round(time.monotonic() - self.start, 3)
        if self.writes:
            write_json(self.path, self.facts)

    def __enter__(self) -> Run:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.start = time.monotonic()
        self.note()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            self.note(status="finished")
        elif isinstance(error, Pruned):
            self.note(status="pruned", reason=str(error))
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.note(status="interrupted")
        else:
            self.note(status="failed", error=f"{type(error).__name__}: {error}")
        return isinstance(error, Pruned)
