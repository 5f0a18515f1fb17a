"""The tables of a page: results by configuration, all runs, the metrics of one run; and which runs did not finish."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from gradflow.report.configurations import Configuration, direction, ranking_metric, shown_metrics, trivial_score
from gradflow.report.plain_data import mapping, number
from gradflow.report.run import Run
from gradflow.report.significance import LEVEL, Standing, p_value, standings
from gradflow.report.tables import Cell, Table, four_digits, signed

Row = dict[str, Cell]

STAGES = ("start", "end")  # of training, at which there is a verdict
TRIVIAL = "trivial answer"
TRIVIAL_HINT = "the best prediction that ignores the input: the class frequencies, or the mean target, of training data"
RATIO = "log10 gradient ratio"
_RATIO_HINT = f"verdict and {RATIO}, first over last block or time step; below 0: the gradient vanishes"
_STATES = ("failed", "diverged", "pruned", "interrupted", "running")  # in the order of their columns
_WORST_FIRST = ("FAIL", "CAUTION", "OK")
_SPLITS = {"train": "at the last logged step", "val": "at the end", "val best": "the best of the run", "test": ""}


def results(groups: Sequence[Configuration]) -> Table:
    """Return a row a configuration, in the order given, and the trivial answer on each data set where it is known."""
    own = [run for group in groups for run in group.runs]
    ranking = ranking_metric(own)
    metrics, keys = shown_metrics(own, ranking), [*groups[0].values]
    states = sorted({run.status for run in own} - {"finished"}, key=lambda state: [*_STATES, state].index(state))
    leaders = {best.leader.dataset: best for best in standings(groups, ranking)}
    rows = [_row(place, group, leaders.get(group.dataset), metrics, states) for place, group in enumerate(groups, 1)]
    if not any(math.isfinite(float(row["p"].value)) for row in rows):
        for row in rows:
            del row["p"]
    datasets = list(dict.fromkeys(group.dataset for group in groups if group.dataset))
    for dataset in datasets:
        known = {metric: trivial_score([run for run in own if run.dataset == dataset], metric) for metric in metrics}
        if any(map(math.isfinite, known.values())):
            name = Cell(f"{TRIVIAL}, {dataset}" if len(datasets) > 1 else TRIVIAL)
            rows.append({column: Cell(known.get(column, "")) for column in rows[0]} | {"#": name})
    hints = _hints({metric: direction(own, metric) for metric in metrics}, states) | {key: key for key in keys}
    heads = short_names(keys) | {f"{RATIO} {stage}": f"log₁₀ gradient ratio, {stage}" for stage in STAGES}
    return Table(rows, hints, heads, [[run.name for run in group.runs] for group in groups])


def _row(place: int, group: Configuration, best: Standing | None, metrics: Sequence[str], states: Sequence[str]) -> Row:
    """Return the metric that ranks, the choices, p, how many runs ended how, the other metrics, the gradient ratios."""
    p, won, counts = math.nan, False, Counter(run.status for run in group.runs)
    if best and best.leader is not group:
        p = p_value(best.leader.score_over_seeds(metrics[0]), group.score_over_seeds(metrics[0]))
    elif best:
        won = best.won
    scores = {metric: Cell((score := group.score(metric)).mean, sd=score.sd) for metric in metrics}
    first = dict([*scores.items()][:1])
    for cell in first.values():
        cell.best = won
    row = {"#": Cell(place)} | first | {key: Cell(value, value or "–") for key, value in group.values.items()}
    row |= {"p": Cell(p, "< 0.0001" if p < 1e-4 else None), "n": Cell(counts["finished"])}
    row |= {state: Cell(counts[state]) for state in states} | scores
    return row | {f"{RATIO} {stage}": _ratio(group, stage) for stage in STAGES}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of dotted keys, where no other key has the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name for key, name in last.items() if [*last.values()].count(name) == 1}


def _hints(directions: Mapping[str, str | None], states: Sequence[str]) -> dict[str, str]:
    hints = dict.fromkeys(("n", *states), "runs; those that finished are in the mean of a metric")
    hints |= dict.fromkeys((f"{RATIO} {stage}" for stage in STAGES), _RATIO_HINT)
    for metric, way in directions.items():
        better = {"min": "less is better", "max": "more is better", None: ""}[way]
        hints[metric] = f"{better}; the best of the run, by validation" if metric.endswith(" best") else better
    best = f"the best mean of {next(iter(directions), '')}"
    p = f"of Welch's t-test over seeds, against {best}; {LEVEL} or more: not separable"
    return hints | {"#": "rank", "p": p}


def _ratio(group: Configuration, stage: str) -> Cell:
    """Return the mean gradient ratio of a configuration's runs and their verdicts; infinite ones are counted."""
    name, value, verdicts = f"{RATIO} {stage}", group.log_ratio(stage), group.verdicts(stage)
    infinite = [ratio for run in group.runs if math.isinf(ratio := run.log_ratio(stage))]
    text = signed(value.mean) + (f" ± {value.sd:.1f}" if math.isfinite(value.sd) else "")
    if infinite:
        count = f" ×{len(infinite)}" if len(group.runs) > 1 else ""
        text = ", ".join(filter(None, (f"{signed(infinite[0])}{count}", text)))
    worst = ", ".join(f"{word} {verdicts[word]}" for word in _WORST_FIRST if verdicts[word])
    more: dict[str, float | str] = {f"{name} sd": value.sd, f"verdict {stage}": worst}
    return Cell(infinite[0] if infinite else value.mean, text, more=more, badges=badges(verdicts))


def badges(verdicts: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Return each verdict with how often it was given, the worst first."""
    words = [word for word in _WORST_FIRST if verdicts.get(word)]
    return [(w, f"{w} ×{verdicts[w]}" if sum(verdicts.values()) > 1 else w, "") for w in words]


def all_runs(own: Sequence[Run], keys: Sequence[str], out: Path) -> Table:
    """Return a row a run: what was chosen, how it ended, what the gradient did, its files, and its command."""
    metric, rows = ranking_metric(own), []
    for run in own:
        row = {"run": Cell(run.name, links=[(run.name, _address(run.folder, out))] if run.folder.is_dir() else ())}
        row |= {metric: Cell(run.scores.get(metric, math.nan))} if metric else {}
        row |= {key: Cell(run.value(key), run.value(key) or "–") for key in keys} | {"seed": Cell(run.seed)}
        row["status"] = Cell(run.status, run.state, details=(run.reason,) if run.reason else ())
        row |= {f"verdict {stage}": verdict(stage, run) for stage in STAGES}
        row["alarms"] = Cell(", ".join(run.alarms), details=tuple(run.alarms.values()))
        steps, seconds = (Cell(number(run.summary.get(key))) for key in ("steps", "wall_seconds"))
        row |= {"steps": steps, "seconds": seconds, "files": files(run, out)}
        rows.append(row | {"command": Cell(run.command, "show", details=(run.command,) if run.command else ())})
    hints = {"seconds": "wall time"} | {key: key for key in keys}
    hints |= dict.fromkeys((f"verdict {stage}" for stage in STAGES), _RATIO_HINT)
    return Table(rows, hints, short_names(keys), [[run.name] for run in own])


def files(run: Run, out: Path) -> Cell:
    """Return links to a run's log, its pictures, and its W&B run or the folder of an offline one."""
    paths = [run.folder / "job.log", *sorted(run.folder.glob("*.png"))]
    links = [
        (path.name, _address(path, out)) for path in paths if path.is_file() and not path.name.startswith("report-")
    ]
    url = mapping(run.summary.get("wandb")).get("url")
    if isinstance(url, str) and url.startswith("https://"):
        links.append(("W&B", url))
    elif (run.folder / "wandb").is_dir():
        links.append(("W&B files", _address(run.folder / "wandb", out)))
    return Cell(", ".join(name for name, _ in links), f"{len(links)} files", links=links) if links else Cell("")


def _address(path: Path, out: Path) -> str:
    """Return where a file is, seen from the page: a folder of runs and its page can be moved together."""
    return quote(os.fsencode(Path(os.path.relpath(path, out.resolve())).as_posix()))  # a name may be no UTF-8


def unfinished(own: Sequence[Run]) -> list[tuple[str, str, list[str]]]:
    """Return each way to end early with its reason, and the names of its runs; the most frequent first. Reasons that
    differ in numbers alone are one, of which the first is told."""
    reasons: dict[tuple[str, str], dict[str, str]] = {}
    for run in own:
        if not run.finished:
            reason = (run.reason.splitlines() or [""])[0]
            reasons.setdefault((run.status, re.sub(r"\d[\d.e+-]*", "#", reason)), {})[run.name] = reason
    ways = [
        (status, next(iter(own.values())) + (", and alike" if len(set(own.values())) > 1 else ""), list(own))
        for (status, _), own in reasons.items()
    ]
    return sorted(ways, key=lambda way: -len(way[2]))


def verdict(stage: str, run: Run, reason: bool = False) -> Cell:
    """Return a verdict with the gradient ratio, and its reason as a hint; or with its reason."""
    record = run.verdicts.get(stage, {})
    word, why = str(record.get("word", "")), str(record.get("reason", ""))
    text = why if reason else signed(run.log_ratio(stage))
    return Cell(word, text, badges=[(word if word in _WORST_FIRST else "", word, why)]) if word else Cell("")


def metrics_of(run: Run) -> Table:
    """Return a row a metric and a column a split, and the trivial answer's scores where they are known."""
    splits = [split for split in _SPLITS if any(key.endswith(f"/{split}") for key in run.scores)]
    known = {key.partition("/")[2] for key in run.scores if math.isfinite(run.trivial(key))} - {"val best"}
    trivial = {split: f"{TRIVIAL}, {split}" for split in splits if split in known}
    rows = []
    for name in dict.fromkeys(key.partition("/")[0] for key in run.scores):
        row = {"metric": Cell(name)}
        for split in splits:
            value = run.scores.get(f"{name}/{split}")
            row[split] = Cell(math.nan) if value is None else Cell(value, four_digits(value) or "not finite")
        rows.append(row | {column: Cell(run.trivial(f"{name}/{split}")) for split, column in trivial.items()})
    hints = _SPLITS | {"test": str(run.summary.get("tested", ""))} | dict.fromkeys(trivial.values(), TRIVIAL_HINT)
    return Table(rows, hints)
