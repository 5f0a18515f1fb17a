"""The tables of a page: results by configuration, all runs, the metrics of one run, two runs against each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from gradflow.report.configurations import Configuration, direction, ranking_metric, shown_metrics, trivial_score
from gradflow.report.run import Run
from gradflow.report.significance import p_value, standings
from gradflow.report.tables import Cell, Table, four_digits, mean_and_sd, signed

STAGES = ("start", "end")  # of training, at which there is a verdict
TRIVIAL = "trivial answer"
TRIVIAL_HINT = "the best prediction that ignores the input: the class frequencies, or the mean target, of training data"
RATIO = "log10 gradient ratio"
_RATIO_HINT = f"verdict and {RATIO}, first over last block or time step; below 0: the gradient vanishes"
_STATES = ("failed", "diverged", "pruned", "interrupted", "running")  # columns only where there is one
_FEW = 4  # choices that stand before the metrics; more would push them off the screen
_WORST_FIRST = ("FAIL", "CAUTION", "OK")
_SPLITS = {"train": "at the last logged step", "val": "at the end", "val best": "the best of the run", "test": ""}


def results(groups: Sequence[Configuration]) -> Table:
    """Return a row a configuration, in the order given, and the trivial answer on each data set where it is known."""
    runs = [run for group in groups for run in group.runs]
    ranking = ranking_metric(runs)
    metrics = shown_metrics(runs, ranking)
    seen = {run.status for run in runs}
    states = ["finished", *(state for state in _STATES if state in seen), *sorted(seen - {"finished", *_STATES})]
    table = Table([], _hints({metric: direction(runs, metric) for metric in metrics}, states))
    leaders = {best.leader.dataset: best for best in standings(groups, ranking)}
    for place, group in enumerate(groups, 1):
        best, p = leaders.get(group.dataset), math.nan
        if best and best.leader is not group:
            p = p_value(best.leader.score_over_seeds(ranking), group.score_over_seeds(ranking))
        won = bool(best and best.won and best.leader is group)
        counts = Counter(run.status for run in group.runs)
        choices = {key: Cell(value, value or "–") for key, value in group.values.items()}
        measured = {"n" if state == "finished" else state: Cell(counts[state]) for state in states}
        measured |= _metrics_and_ratios(group, metrics, won, p)
        table.rows.append({"#": Cell(place)} | (choices | measured if len(choices) <= _FEW else measured | choices))
    if not any(math.isfinite(float(row["p"].value)) for row in table.rows):
        for row in table.rows:
            del row["p"]
    datasets = list(dict.fromkeys(group.dataset for group in groups if group.dataset))
    for dataset in datasets:
        known = {metric: trivial_score([run for run in runs if run.dataset == dataset], metric) for metric in metrics}
        if any(map(math.isfinite, known.values())):
            name = Cell(f"{TRIVIAL}, {dataset}" if len(datasets) > 1 else TRIVIAL)
            table.rows.append({column: Cell(known.get(column, "")) for column in table.rows[0]} | {"#": name})
    return table


def _hints(directions: Mapping[str, str | None], states: Sequence[str]) -> dict[str, str]:
    hints = dict.fromkeys(("n", *states), "finished runs alone are in the mean of a metric")
    hints |= dict.fromkeys((f"{RATIO} {stage}" for stage in STAGES), _RATIO_HINT)
    for metric, way in directions.items():
        better = {"min": "less is better", "max": "more is better", None: ""}[way]
        hints[metric] = f"{better}; the best of the run, by validation" if metric.endswith(" best") else better
    p = f"of Welch's t-test over seeds, against the best mean of {next(iter(directions))}" if directions else ""
    return hints | {"#": "rank", "p": p}


def _metrics_and_ratios(group: Configuration, metrics: Sequence[str], won: bool, p: float) -> dict[str, Cell]:
    """Return metrics over seeds, the first of which ranks; p stands after it, gradient ratios after the second."""
    scores: list[tuple[str, Cell]] = []
    for metric in metrics:
        value = group.score(metric)
        scores.append((metric, Cell(value.mean, mean_and_sd(value), won and not scores, {f"{metric} sd": value.sd})))
    ratios = []
    for stage in STAGES:
        name, value, verdicts = f"{RATIO} {stage}", group.log_ratio(stage), group.verdicts(stage)
        text = signed(value.mean) + (f" ± {value.sd:.1f}" if math.isfinite(value.sd) else "")
        worst = ", ".join(f"{word} {verdicts[word]}" for word in _WORST_FIRST if verdicts[word])
        more: dict[str, float | str] = {f"{name} sd": value.sd, f"verdict {stage}": worst}
        ratios.append((name, Cell(value.mean, text, more=more, badges=badges(verdicts))))
    tested = ("p", Cell(p, four_digits(round(p, 4))))
    return dict([*scores[:1], tested, *scores[1:2], *ratios, *scores[2:]])


def badges(verdicts: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Return each verdict with how often it was given, the worst first."""
    words = [word for word in _WORST_FIRST if verdicts.get(word)]
    return [(w, f"{w} ×{verdicts[w]}" if sum(verdicts.values()) > 1 else w, "") for w in words]


def all_runs(runs: Sequence[Run]) -> Table:
    """Return a row a run: how it ended, what the gradient did, the command that started it."""
    metric, rows = ranking_metric(runs), []
    for run in runs:
        row = {"run": Cell(run.name), "seed": Cell(run.seed)}
        row["status"] = Cell(run.status, run.state, details=(run.reason,) if run.reason else ())
        if metric:
            row |= {metric: Cell(run.scores.get(metric, math.nan)), TRIVIAL: Cell(run.trivial(metric))}
        row |= {f"verdict {stage}": verdict(stage, run) for stage in STAGES}
        row["alarms"] = Cell(", ".join(run.alarms), details=tuple(run.alarms.values()))
        row |= {"steps": count(run, "steps"), "seconds": count(run, "wall_seconds")}
        rows.append(row | {"command": Cell(run.command, "show", details=(run.command,))})
    return Table(rows, {TRIVIAL: f"its {metric}", "seconds": "wall time"})


def verdict(stage: str, run: Run, reason: bool = False) -> Cell:
    """Return a verdict with the gradient ratio, and its reason as a hint; or with its reason."""
    record = run.verdicts.get(stage, {})
    word, why = str(record.get("word", "")), str(record.get("reason", ""))
    text = why if reason else signed(run.log_ratio(stage))
    return Cell(word, text, badges=[(word if word in _WORST_FIRST else "", word, why)]) if word else Cell("")


def count(run: Run, name: str) -> Cell:
    """Return a number of the summary, such as its steps."""
    value = run.summary.get(name)
    if not isinstance(value, (int, float)):
        return Cell(math.nan)
    return Cell(value, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")


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


def metrics_of_two(one: Run, other: Run) -> Table:
    """Return a row a metric of either run; the better is marked where the direction is known and the data are the
    same."""
    rows = []
    for metric in dict.fromkeys((*one.scores, *other.scores)):
        first, second = (run.scores.get(metric, math.nan) for run in (one, other))
        sign = {"min": -1, "max": 1, None: 0}[direction((one, other), metric)] * (one.dataset == other.dataset)
        row = {"metric": Cell(metric), one.name: Cell(first, four_digits(first) or "–", sign * (first - second) > 0)}
        row[other.name] = Cell(second, four_digits(second) or "–", sign * (second - first) > 0)
        gap = second - first
        rows.append(row | {"difference": Cell(gap, f"{gap:+.4g}" if math.isfinite(gap) else "")})
    return Table(rows, {"difference": "second − first"})


def differing_settings(one: Run, other: Run) -> Table:
    """Return a row a configuration key whose value differs; folders of the runs themselves are no choice."""
    settings = {run.name: run.settings for run in (one, other)}
    keys = [key for key in dict.fromkeys(key for own in settings.values() for key in own)]
    rows = [
        {"key": Cell(key)} | {name: Cell(own.get(key, ""), own.get(key, "–")) for name, own in settings.items()}
        for key in keys
        if key not in ("run_dir", "resume") and len({own.get(key) for own in settings.values()}) > 1
    ]
    return Table(rows)
