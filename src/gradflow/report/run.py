"""One run folder as plain data. What it holds is checked here, so that nothing later trips over it.

Only `summary.json` is read at once; tables and probe snapshots are read of the runs that are drawn.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradflow import runs
from gradflow.report.plain_data import flattened, mapping, normalised, number, numbers, select, text
from gradflow.runs.errors import UserError
from gradflow.runs.files import check_files, read_yaml

if TYPE_CHECKING:
    from gradflow.runs.sweep_jobs import Job

DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
LOST = ("failed", "interrupted")  # jobs that may have left nothing but a line in their sweep's table


class Ignored(Exception):
    """Why a folder is ignored."""


@dataclass
class Run:
    """Hold what a run folder says of its run."""

    folder: Path
    name: str
    summary: dict[str, Any]
    status: str
    reason: str  # why it ended before its time
    seed: str
    command: str
    overrides: dict[str, str]
    choices: dict[str, str]  # option by config group
    scores: dict[str, float]  # by metric; nan where it was not finite
    verdicts: dict[str, dict[str, Any]]  # by stage: start and end
    alarms: dict[str, str]
    dataset: str

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def score(self, metric: str) -> float:
        """Return a metric of a run that finished; nan where there is none."""
        return self.scores.get(metric, math.nan) if self.finished else math.nan

    def trivial(self, metric: str) -> float:
        """Return the score of the best prediction that ignores the input; nan where that was not recorded."""
        return number(mapping(mapping(self.summary.get("data")).get("trivial")).get(metric.removesuffix(" best")))

    def log_ratio(self, stage: str) -> float:
        """Return the log10 gradient ratio, first over last block, at the start or the end."""
        return number(self.verdicts.get(stage, {}).get("decades"))

    def value(self, key: str) -> str:
        """Return the value of a key in this run, whether it was overridden or is a default."""
        if key in self.overrides:
            return self.overrides[key] if self.overrides[key] != "null" else ""
        if key in self.choices:
            return self.choices[key]
        value = select(self.config, key)
        return "" if isinstance(value, dict) else normalised(text(value))

    @cached_property
    def config(self) -> Any:
        """Return the configuration as it was composed, interpolations as text; None where it can't be read."""
        try:
            return read_yaml(self.folder / ".hydra" / "config.yaml")
        except UserError:
            return None

    def settings(self) -> dict[str, str]:
        """Return every key of the configuration with its value, groups first."""
        groups = {group: choice for group, choice in self.choices.items() if choice}
        return groups | (dict(flattened(self.config)) if isinstance(self.config, dict) else self.overrides)

    def curves(self, metrics: Iterable[str]) -> dict[str, tuple[list[float], list[float]]]:
        """Return the steps and the finite values of those metrics that the run logged."""
        names, rows = _read_table(self.folder / runs.METRICS)
        places = {name: names.index(name) for name in metrics if name in names and names[0] == "step"}
        points = {
            name: [(row[0], row[place]) for row in rows if place < len(row) and math.isfinite(row[0] + row[place])]
            for name, place in places.items()
        }
        return {name: ([x for x, _ in own], [y for _, y in own]) for name, own in points.items() if own}

    def gradient_norms(self) -> tuple[list[str], list[float], list[list[float]]]:
        """Return the layers, the steps, and a row of gradient norms a step."""
        names, rows = _read_table(self.folder / runs.GRADIENTS)
        rows = [row for row in rows if len(row) == len(names) and math.isfinite(row[0])]
        return names[1:], [row[0] for row in rows], [row[1:] for row in rows]

    def snapshots(self) -> list[dict[str, Any]]:
        """Return the first and the last snapshot of the probe, profiles as lists of numbers."""
        try:
            lines = (self.folder / runs.FLOW).read_text().splitlines()
            ends = [json.loads(line) for line in (lines[:1] + lines[-1:] if len(lines) > 1 else lines)]
        except DAMAGE:
            return []
        return [_snapshot(end) for end in ends if isinstance(end, dict)]


def read_run(folder: Path, name: str, job: Job | None = None) -> Run:
    """Return a run as its folder describes it, completed by its row in the sweep's table of jobs."""
    if job is not None and "run again" in job.state:
        raise Ignored(job.state)
    try:
        check_files(folder)
    except UserError as error:
        raise Ignored(str(error).replace(f"{folder}/", "").replace(str(folder), name)) from None
    if not (folder / runs.SUMMARY).is_file():
        return _run(folder, name, _summary_of_unstarted(folder, job))
    try:
        summary = json.loads((folder / runs.SUMMARY).read_text())
    except ValueError as error:
        raise Ignored(f"{runs.SUMMARY} is not JSON ({error})") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        raise Ignored(f"{runs.SUMMARY} has no status")
    if job is not None and job.state in LOST:
        summary = {"error": job.error} | summary | ({"status": job.state} if summary["status"] == "running" else {})
    return _run(folder, name, summary)


def _summary_of_unstarted(folder: Path, job: Job | None) -> dict[str, Any]:
    """Return what is known of a run without a summary: it ended before its first step."""
    try:
        hydra = mapping(mapping(read_yaml(folder / ".hydra" / "hydra.yaml")).get("hydra"))
    except (UserError, *DAMAGE):
        hydra = {}
    if (folder / runs.PROBE).is_file() or mapping(hydra.get("job")).get("name") == "probe":
        raise Ignored("a probe: nothing was trained in it")
    if job is not None and job.state in runs.OVER:
        raise Ignored(f"no {runs.SUMMARY}, though its sweep has it as {job.state}")
    if job is None and not (folder / runs.OVERRIDES).is_file():
        raise Ignored(f"no {runs.SUMMARY} and no {runs.OVERRIDES}: it never started")
    try:
        overrides = list(job.overrides) if job else runs.recorded_overrides(folder)
    except UserError as error:
        raise Ignored(str(error)) from None
    waiting = job is not None and job.state == "running"
    in_sweep = (folder.parent / "multirun.yaml").is_file()
    choices = mapping(mapping(hydra.get("runtime")).get("choices"))
    return {
        "status": job.state if job else "failed" if in_sweep else "never started",
        "error": (job.error if job else "") or f"no {runs.SUMMARY}: it {'has not' if waiting else 'never'} started",
        "command": shlex.join(["python", "src/train.py", *overrides]),
        "choices": {group: choice for group, choice in choices.items() if "/" not in str(group)},
        "overrides": overrides,
        "seed": _overrides(overrides).get("seed", ""),
    }


def _run(folder: Path, name: str, summary: dict[str, Any]) -> Run:
    final = {key: value for key, value in mapping(summary.get("final")).items() if key.endswith(("/train", "/val"))}
    best = {f"{key} best": value for key, value in mapping(summary.get("best")).items()}
    scores = {text(k): number(v) for k, v in (final | best | mapping(summary.get("test"))).items()}
    return Run(
        folder=folder,
        name=name,
        summary=summary,
        status=_status(summary["status"], scores, (folder / runs.NONFINITE).is_file()),
        reason=str(summary.get("reason") or summary.get("error") or ""),
        seed=text(summary.get("seed")),
        command=text(summary.get("command")),
        overrides=_overrides(summary.get("overrides")),
        choices={text(group): text(choice) for group, choice in mapping(summary.get("choices")).items()},
        scores=scores,
        verdicts={stage: mapping(verdict) for stage, verdict in mapping(summary.get("verdict")).items()},
        alarms={text(kind): text(message) for kind, message in mapping(summary.get("alarms")).items()},
        dataset=text(mapping(summary.get("data")).get("name", "")),
    )


def _status(status: str, scores: dict[str, float], nonfinite: bool) -> str:
    """Return `diverged` for a run that was ended by non-finite numbers, which are recorded beside it then, and for one
    that finished with a loss that is not finite."""
    if nonfinite and status in ("failed", "pruned"):
        return "diverged"
    bad = any(name.startswith(("loss/", "mse/")) and not math.isfinite(value) for name, value in scores.items())
    return "diverged" if status == "finished" and bad else status


def _overrides(overrides: Any) -> dict[str, str]:
    pairs = (text(one).lstrip("+").partition("=") for one in (overrides if isinstance(overrides, list) else []))
    return {key: normalised(value) for key, _, value in pairs if key}


def _read_table(path: Path) -> tuple[list[str], list[list[float]]]:
    """Return the columns' names and the rows of a table, up to where it is damaged; an empty cell is nan."""
    names: list[str] = []
    rows: list[list[float]] = []
    try:
        with path.open(newline="") as file:
            reader = csv.reader(file)
            names = next(reader, [])
            rows.extend([float(cell or "nan") for cell in row] for row in reader if row)
    except DAMAGE:
        pass  # what was read before is true
    return names, rows


def _snapshot(content: dict[str, Any]) -> dict[str, Any]:
    theory = mapping(content.get("theory"))
    return {
        "step": number(content.get("step")),
        **{key: numbers(content.get(key)) for key in ("gradient", "time")},
        "theory": {key: numbers(theory.get(key)) for key in ("gradient", "time")},
    }
