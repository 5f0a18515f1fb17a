"""One run folder as plain data. What it holds is checked here, so that nothing later trips over it.

Only `summary.json` is read at once; tables and probe snapshots are read of the runs that are drawn.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradflow import runs
from gradflow.report.plain_data import flattened, mapping, normalised, number, text
from gradflow.report.recorded import Recorded
from gradflow.runs import locks
from gradflow.runs.errors import UserError
from gradflow.runs.files import check_files, read_yaml
from gradflow.runs.sweep_jobs import Job

DATASET = "data set"  # a key beside those of the configuration
LOST = ("failed", "interrupted")  # jobs that may have left nothing but a line in their sweep's table


@dataclass(eq=False)
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

    @cached_property
    def recorded(self) -> Recorded:
        """Return what was written while it trained."""
        return Recorded(self.folder)

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def state(self) -> str:
        """Return the status, and while the run goes on how far it is."""
        return f"{self.status}, {self.progress}" if self.progress else self.status

    @cached_property
    def progress(self) -> str:
        """Return how far a run is that goes on, like step 410/700; nothing of one that has ended."""
        if self.status != "running":
            return ""
        last, of = self.recorded.last_step(), number(self.summary.get("planned_steps"))
        steps = int(last) + 1 if math.isfinite(last) else 0
        return f"step {min(steps, of):,.0f}/{of:,.0f}" if of > 0 else f"step {steps:,}"  # the test's row is one more

    def score(self, metric: str) -> float:
        """Return a metric of a run that finished; nan where there is none."""
        return self.scores.get(metric, math.nan) if self.finished else math.nan

    @cached_property
    def directions(self) -> dict[str, str]:
        """Return `min` or `max`, whichever is better, by metric, where the run says so."""
        recorded = mapping(self.summary.get("directions"))
        return {"loss": "min"} | {name: way for name, way in recorded.items() if way in ("min", "max")}

    def trivial(self, metric: str) -> float:
        """Return the score of the best prediction that ignores the input; nan where that was not recorded."""
        return number(mapping(mapping(self.summary.get("data")).get("trivial")).get(metric.removesuffix(" best")))

    def log_ratio(self, stage: str) -> float:
        """Return the log10 gradient ratio, first over last block or time step, at the start or the end. JSON has no
        infinity: of one that was recorded as null the probe's snapshot says which norm was zero."""
        verdict = self.verdicts.get(stage, {})
        value = number(verdict.get("decades"))
        if verdict and math.isnan(value) and (ends := self.recorded.snapshots()):
            norms = ends[-1 if stage == "end" else 0]["time" if verdict.get("axis") == "time" else "gradient"]
            if len(norms) > 1 and 0.0 in (norms[0], norms[-1]) and not any(map(math.isnan, norms)):
                return -math.inf if norms[0] == 0 else math.inf
        return value

    def value(self, key: str) -> str:
        """Return the value of a key in this run, whether it was overridden or is a default."""
        if key == DATASET:
            return self.dataset
        value = self.overrides.get(key) or self.choices.get(key) or self.settings.get(key, "")
        if reference := re.fullmatch(r"\$\{([\w.]+)\}", value):
            value = self.settings.get(reference[1], "")
        return "" if value == "null" else value

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return every key of the configuration as it was composed, groups first; a resolver is never called."""
        groups = {group: choice for group, choice in self.choices.items() if choice}
        try:
            config = read_yaml(self.folder / ".hydra" / "config.yaml")
        except UserError:
            config = None
        return groups | (dict(flattened(config)) if isinstance(config, dict) else self.overrides)


def read_run(folder: Path, name: str, job: Job | None = None) -> Run:
    """Return a run as its folder describes it, completed by its row in the sweep's table of jobs. A UserError says why
    the folder is ignored."""
    if job is not None and "run again" in job.state:
        raise UserError(job.state)
    check_files(folder)
    if not (folder / runs.SUMMARY).is_file():
        return _run(folder, name, _summary_of_unstarted(folder, job))
    try:
        summary = json.loads((folder / runs.SUMMARY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{runs.SUMMARY} is not JSON ({error})") from None
    if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
        raise UserError(f"{runs.SUMMARY} has no status")
    if summary["status"] == "running" and locks.held(folder) is False:
        summary |= {"status": "interrupted", "reason": "its process ended without a word, as one that is killed"}
    if job is not None and job.state in LOST:
        summary = {"error": job.error} | summary | ({"status": job.state} if summary["status"] == "running" else {})
    return _run(folder, name, summary)


def _summary_of_unstarted(folder: Path, job: Job | None) -> dict[str, Any]:
    """Return what is known of a run without a summary: it ended before its first step."""
    try:
        hydra = mapping(mapping(read_yaml(folder / ".hydra" / "hydra.yaml")).get("hydra"))
    except UserError:
        hydra = {}
    if (folder / runs.PROBE).is_file() or mapping(hydra.get("job")).get("name") == "probe":
        raise UserError("a probe: nothing was trained in it")
    if job is not None and job.state in runs.OVER:
        raise UserError(f"no {runs.SUMMARY}, though its sweep has it as {job.state}")
    if job is None and not (folder / runs.OVERRIDES).is_file():
        raise UserError(f"no {runs.SUMMARY} and no {runs.OVERRIDES}: it never started")
    overrides = list(job.overrides) if job else runs.recorded_overrides(folder)
    in_sweep = (folder.parent / "multirun.yaml").is_file()
    status = "running" if locks.held(folder) else job.state if job else "failed" if in_sweep else "never started"
    when = "has not" if status == "running" else "never"
    choices = mapping(mapping(hydra.get("runtime")).get("choices"))
    return {
        "status": status,
        "error": (job and job.error) or f"no {runs.SUMMARY}: it {when} started",
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
    bad = any(name.startswith("loss/") and not math.isfinite(value) for name, value in scores.items())
    ended = (nonfinite and status in ("failed", "pruned")) or (bad and status == "finished")
    return "diverged" if ended else status


def _overrides(overrides: Any) -> dict[str, str]:
    pairs = (text(one).lstrip("+").partition("=") for one in (overrides if isinstance(overrides, list) else []))
    return {key: normalised(value) for key, _, value in pairs if key}
