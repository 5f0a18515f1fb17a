"""The run folder: the only file that knows the names of what is in it. No torch here."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from gradflow.mistakes import Mistake, disk_error, naming
from gradflow.plain import read_yaml

METRICS = "metrics.csv"
GRADIENTS = "gradients.csv"
SUMMARY = "summary.json"
SCORES = "scores.json"
NONFINITE = "nonfinite.json"  # where numbers went bad
BATCH = "batch.pt"
BATCH_IMAGE = "batch.png"
DATASET = "dataset.json"
CHECKPOINTS = "checkpoints"
BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
PREVIOUS = "checkpoints/previous.ckpt"  # the last one before it
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
OVERRIDES = ".hydra/overrides.yaml"
OVER = ("finished", "pruned")  # the statuses of a run that has come to its end
WANDB_ID = "wandb/id"
GROWING = (METRICS, GRADIENTS, FLOW)  # what a run appends to, and a resumed one cuts back to its checkpoint


def find(run: str) -> Path:
    """The run folder that a user named, by itself or by a file inside it."""
    path = Path(run).absolute()
    for folder in (path, *path.parents):
        if (folder / OVERRIDES).is_file():
            return folder
    raise FileNotFoundError(f"{run}: not a run folder (there is no {OVERRIDES} in it)")


def overrides(run: Path) -> list[str]:
    file = run / OVERRIDES
    words = read_yaml(file)
    if not isinstance(words, list):
        raise Mistake(f"{file}: is not a list of overrides")
    return [str(word) for word in words]


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise Mistake(f"{path}: is damaged ({error})") from error
    if not isinstance(content, dict):
        raise Mistake(f"{path}: is damaged (it holds no names and values)")
    return content


def finite(content: Any) -> Any:
    """JSON knows no nan and no infinity: they become null."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@contextmanager
def whole(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file that gets its name when all of it is on the disk: a reader never sees half of it. Of a write that
    fails the earlier file stays and nothing else; the error names the file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before what was written
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        found = error.__context__ if isinstance(error, RuntimeError) else error  # torch's writer tells it so
        if isinstance(found, OSError) and found.filename in (None, str(draft)):
            raise OSError(found.errno, found.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    with whole(path, encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(finite(content), indent=2, allow_nan=False) + "\n")


def append_json(path: Path, content: Mapping[str, Any]) -> None:
    with naming(path), path.open("a") as file:
        file.write(json.dumps(finite(content), allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    """Column names and rows of a table; an empty cell is nan."""
    with path.open(newline="") as file:
        names, *rows = list(csv.reader(file))
    return names, [[float(cell or "nan") for cell in row] for row in rows]


class Table:
    """A CSV file that grows by a row a step, at once. Values of one step share a row; a new column widens the file.
    One that is there already is gone on with."""

    def __init__(self, path: Path, columns: Sequence[str] = ("step",)) -> None:
        self.path, self.columns = path, list(columns)
        self.row: dict[str, Any] = {}
        self.start_of_row = 0
        self.latest: dict[str, float] = {}
        if path.is_file():
            self._go_on()
        else:
            self._rewrite([])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        same = bool(self.row) and int(self.row["step"]) == step
        self.row = (self.row if same else {}) | {"step": step, **values}
        self.latest |= values
        if new := [name for name in self.row if name not in self.columns]:
            self._widen(new)
        with naming(self.path), self.path.open("r+", newline="") as file:
            self.start_of_row = file.seek(self.start_of_row) if same else file.seek(0, os.SEEK_END)
            csv.writer(file).writerow([self.row.get(name, "") for name in self.columns])
            file.truncate()

    def _go_on(self) -> None:
        with self.path.open(newline="") as file:
            self.columns, *rows = list(csv.reader(file))
        for row in rows:
            self.row = {name: cell for name, cell in zip(self.columns, row, strict=True) if cell}
            self.latest |= {name: float(cell) for name, cell in self.row.items() if name != "step"}
        if rows:
            content = self.path.read_bytes()
            self.start_of_row = content.rstrip().rfind(b"\n") + 1

    def _widen(self, new: Sequence[str]) -> None:
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        self.columns += new
        self._rewrite([row + [""] * len(new) for row in rows])

    def _rewrite(self, rows: Sequence[Sequence[str]]) -> None:
        """All rows, or as it was; the start of the last one moves when columns are added."""
        with whole(self.path, newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            for row in rows:
                self.start_of_row = file.tell()
                writer.writerow(row)


def lengths(run: Path) -> dict[str, int]:
    """How many lines the growing files have."""
    return {name: (run / name).read_bytes().count(b"\n") for name in GROWING if (run / name).is_file()}


def to_disk(run: Path) -> None:
    """What the growing files have: a checkpoint that counts their lines must not outlast them when the power fails."""
    for name in GROWING:
        if (run / name).is_file():
            with naming(run / name), (run / name).open("r+b") as file:
                os.fsync(file.fileno())


def check_intact(run: Path, kept: Mapping[str, int]) -> None:
    """Refuse a damaged file before anything is cut: each line that a checkpoint counts is there, and can be read. What
    follows them, like the torn last line of a process that was killed, does not count."""
    for name, count in kept.items():
        path, number = run / name, 0
        lines = path.read_bytes().splitlines()[:count] if path.is_file() else []
        try:
            for number, line in enumerate(lines, 1):
                check_line(line.decode(), lines[0].decode() if name != FLOW else None, number == 1)
            if len(lines) < count:
                raise ValueError(f"the file ends here, and had {count} lines")
        except (ValueError, csv.Error) as error:
            advice = f"put back a copy, or begin a new run with resume={run / LAST}"
            raise Mistake(f"{path}: damaged at line {number} ({error}); {advice}") from error


def check_line(line: str, header: str | None, first: bool) -> None:
    """Of a table with that header, or of a file of JSON objects."""
    if header is None:
        if not isinstance(content := json.loads(line), dict) or not {"step", "verdict"} <= set(content):
            raise ValueError("it has no step, or no verdict")
        return
    names, cells = next(csv.reader([header]), []), next(csv.reader([line]), [])
    if first and names[:1] != ["step"]:
        raise ValueError("a header begins with step")
    if len(cells) != len(names):
        raise ValueError(f"it has {'fewer' if len(cells) < len(names) else 'more'} cells than the header")
    [float(cell or "nan") for cell in cells if not first]


def cut(run: Path, kept: Mapping[str, int]) -> None:
    """Leave the first lines of the growing files, as many as `kept` says: what follows will be written again. What a
    process that was killed has not written to its end goes, too."""
    for path in (run / name for name in (*GROWING, SUMMARY, LAST, BEST)):
        for draft in path.parent.glob(f".{path.name}.[0-9]*"):
            draft.unlink()
    for name in GROWING:
        if not (run / name).is_file():
            continue
        lines = (run / name).read_bytes().splitlines(keepends=True)[: kept.get(name, 0)]
        if lines:
            os.truncate(run / name, sum(map(len, lines)))
        else:
            (run / name).unlink()


def write_objective(run: Path, value: Any) -> None:
    """As Python writes JSON: nan and infinities are told too."""
    write_text(run / OBJECTIVE, json.dumps({"objective": value}, default=float) + "\n")


def read_objective(run: Path) -> Any:
    return read_json(run / OBJECTIVE).get("objective")


def in_sweep() -> bool:
    """A job of a sweep has a number, whether it has a process of its own or not."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")


def shared_folder(run: Path) -> Path:
    """The sweep's folder for a job of a sweep, which Hydra marks with a multirun.yaml; else the run's own."""
    return run.parent if (run.parent / "multirun.yaml").is_file() else run


def first_rank() -> bool:
    """Whether this process is the first, or the only one, of its run; asked before torch is there to tell."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)


class Pruned(Exception):
    """Ends a run that is not worth going on with; its reason."""


class Diverged(Exception):
    """Ends a run whose numbers are not finite; where that began, and commands that look into it."""

    def __init__(self, reason: str, commands: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.commands = dict(commands or {})


def unnoted(run: Path) -> float:
    """Seconds that a process which was killed has spent between its last word in the summary and its checkpoint."""
    last = run / LAST
    return max(0.0, last.stat().st_mtime - (run / SUMMARY).stat().st_mtime) if last.is_file() else 0.0


class Run:
    """Keeps `summary.json` true while a run goes on: its status is running, finished, pruned, failed or interrupted."""

    def __init__(self, folder: str, facts: Mapping[str, Any], writes: bool) -> None:
        self.path, self.writes = Path(folder) / SUMMARY, writes
        self.facts: dict[str, Any] = {"status": "running", **facts}
        self.before = 0.0  # seconds that earlier processes spent on a run that is resumed

    def note(self, **facts: Any) -> None:
        self.facts |= facts
        self.facts["wall_seconds"] = round(self.before + time.monotonic() - self.start, 3)
        if self.writes:
            write_json(self.path, self.facts)

    def __enter__(self) -> Run:
        self.start = time.monotonic()
        if self.writes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if was := read_json(self.path):
                self.before = was.get("wall_seconds", 0.0) + unnoted(self.path.parent)
                self.facts["resumed"] = was.get("resumed", 0) + 1
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
            status = "interrupted" if isinstance(error, OSError) and disk_error(error) else "failed"
            self.note(status=status, error=f"{type(error).__name__}: {error}")
        return isinstance(error, Pruned)
