"""The tables of a page: results by configuration, all runs, the metrics of one run, two runs against each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from gradflow.report.configurations import Configuration, ranking_metric, shown_metrics, trivial_score
from gradflow.report.run import Run
from gradflow.report.significance import p_value, standings
from gradflow.report.tables import Cell, Column, Table, four_digits, mean_and_sd, signed
from gradflow.runs.metric_direction import direction

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
    metrics = shown_metrics(runs, ranking_metric(runs))
    places = {id(group): place for place, group in enumerate(groups, 1)}
    choices = [Column(key, partial(_choice, key)) for key in groups[0].values]
    measured = _metric_columns(groups, metrics)
    order = [*choices, *_status_columns(groups), *measured]
    if len(choices) > _FEW:
        order = [*_status_columns(groups), *measured, *choices]
    table = Table.of(groups, [Column("#", lambda group: Cell(places[id(group)]), "rank", True), *order])
    datasets = list(dict.fromkeys(group.dataset for group in groups if group.dataset))
    for dataset in datasets:
        own = [run for group in groups if group.dataset == dataset for run in group.runs]
        known = {metric: trivial_score(own, metric) for metric in metrics}
        if any(map(math.isfinite, known.values())):
            cells = [Cell(known.get(c.name, math.nan), more=("",) * len(c.more)) for c in table.columns[1:]]
            table.rows.append([Cell(f"{TRIVIAL}, {dataset}" if len(datasets) > 1 else TRIVIAL), *cells])
    return table


def _choice(key: str, group: Configuration) -> Cell:
    return Cell(group.values[key], group.values[key] or "–")


def _status_columns(groups: Sequence[Configuration]) -> list[Column]:
    """Return how many runs finished, and a column for each other status that there was."""
    states = sorted({run.status for group in groups for run in group.runs} - {"finished"})
    names = {"finished": "n"} | {state: state for state in (*_STATES, *states) if state in states}
    hint = "finished runs alone are in the mean of a metric"
    return [Column(name, partial(_state_count, state), hint, True) for state, name in names.items()]


def _metric_columns(groups: Sequence[Configuration], metrics: Sequence[str]) -> list[Column]:
    """Return metrics over seeds, the winner marked in the first, which ranks; after it the p of Welch's t-test against
    the best mean, and after the second the gradient ratios."""
    best = standings(groups, metrics[0]) if metrics else []
    winners = {id(standing.leader) for standing in best if standing.won}
    leaders = {standing.leader.dataset: standing.leader for standing in best}

    def score(metric: str, group: Configuration) -> Cell:
        value = group.score(metric)
        return Cell(value.mean, mean_and_sd(value), metric == metrics[0] and id(group) in winners, (value.sd,))

    def p(group: Configuration) -> float:
        leader = leaders.get(group.dataset, group)
        seeds = leader.score_over_seeds(metrics[0]), group.score_over_seeds(metrics[0])
        return math.nan if group is leader else p_value(*seeds)

    def ratio(stage: str, group: Configuration) -> Cell:
        value, verdicts = group.log_ratio(stage), group.verdicts(stage)
        worst = ", ".join(f"{word} {verdicts[word]}" for word in _WORST_FIRST if verdicts.get(word))
        text = signed(value.mean) + (f" ± {value.sd:.1f}" if math.isfinite(value.sd) else "")
        return Cell(value.mean, text, more=(value.sd, worst), badges=badges(verdicts))

    columns = [Column(m, partial(score, m), _metric_hint(m), True, (f"{m} sd",)) for m in metrics]
    ratios = [
        Column(f"{RATIO} {stage}", partial(ratio, stage), _RATIO_HINT, True,
               (f"{RATIO} {stage} sd", f"verdict {stage}"))
        for stage in STAGES
    ]  # fmt: skip
    hint = f"of Welch's t-test over seeds, against the best mean of {metrics[0] if metrics else ''}"
    known = bool(metrics) and any(math.isfinite(p(group)) for group in groups)
    tested = [Column("p", lambda g: Cell(p(g), four_digits(round(p(g), 4))), hint, True)] if known else []
    return [*columns[:1], *tested, *columns[1:2], *ratios, *columns[2:]]


def _state_count(state: str, group: Configuration) -> Cell:
    return Cell(sum(run.status == state for run in group.runs))


def badges(verdicts: Mapping[str, int]) -> tuple[tuple[str, str, str], ...]:
    """Return each verdict with how often it was given, the worst first."""
    words = [word for word in _WORST_FIRST if verdicts.get(word)]
    return tuple((w, f"{w} ×{verdicts[w]}" if sum(verdicts.values()) > 1 else w, "") for w in words)


def _metric_hint(metric: str) -> str:
    better = {"min": "less is better", "max": "more is better", None: ""}[direction(metric)]
    return f"{better}; the best of the run, by validation" if metric.endswith(" best") else better


def all_runs(runs: Sequence[Run]) -> Table:
    """Return a row a run: how it ended, what the gradient did, the command that started it."""
    metric = ranking_metric(runs)
    scores = [
        Column(metric, lambda run: Cell(run.scores.get(metric, math.nan)), numeric=True),
        Column(TRIVIAL, lambda run: Cell(run.trivial(metric)), f"its {metric}", True),
    ]
    columns = [
        Column("run", lambda run: Cell(run.name)),
        Column("seed", lambda run: Cell(run.seed), numeric=True),
        Column("status", lambda run: Cell(run.status, details=(run.reason,) if run.reason else ())),
        *(scores if metric else []),
        *(Column(f"verdict {stage}", partial(verdict, stage)) for stage in STAGES),
        Column("alarms", lambda run: Cell(", ".join(run.alarms), details=tuple(run.alarms.values()))),
        Column("steps", lambda run: count(run, "steps"), numeric=True),
        Column("seconds", lambda run: count(run, "wall_seconds"), "wall time", True),
        Column("command", lambda run: Cell(run.command, "show", details=(run.command,))),
    ]
    return Table.of(runs, columns)


def verdict(stage: str, run: Run, reason: bool = False) -> Cell:
    """Return a verdict with the gradient ratio, and its reason as a hint; or with its reason."""
    record = run.verdicts.get(stage, {})
    word, why = str(record.get("word", "")), str(record.get("reason", ""))
    text = why if reason else signed(run.log_ratio(stage))
    return Cell(word, text, badges=((word if word in _WORST_FIRST else "", word, why),)) if word else Cell("")


def count(run: Run, name: str) -> Cell:
    """Return a number of the summary, such as its steps."""
    value = run.summary.get(name)
    if not isinstance(value, (int, float)):
        return Cell("")
    return Cell(value, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")


def metrics_of(run: Run) -> Table:
    """Return a row a metric and a column a split, and the trivial answer's scores where they are known."""
    splits = [split for split in _SPLITS if any(key.endswith(f"/{split}") for key in run.scores)]
    known = {key.partition("/")[2] for key in run.scores if math.isfinite(run.trivial(key))} - {"val best"}

    def score(split: str, name: str) -> Cell:
        value = run.scores.get(f"{name}/{split}")
        return Cell("") if value is None else Cell(value, four_digits(value) or "not finite")

    def trivial(split: str, name: str) -> Cell:
        return Cell(run.trivial(f"{name}/{split}"))

    hints = _SPLITS | {"test": str(run.summary.get("tested", ""))}
    columns = [Column("metric", Cell)]
    columns += [Column(split, partial(score, split), hints[split], True) for split in splits]
    columns += [
        Column(f"{TRIVIAL}, {split}", partial(trivial, split), TRIVIAL_HINT, True) for split in splits if split in known
    ]
    return Table.of(dict.fromkeys(key.partition("/")[0] for key in run.scores), columns)


def metrics_of_two(pair: Sequence[Run]) -> Table:
    """Return a row a metric of either run; the better is marked where the direction is known and the data are the
    same."""

    def cell(place: int, metric: str) -> Cell:
        value, other = (run.scores.get(metric, math.nan) for run in (pair[place], pair[1 - place]))
        sign = {"min": -1, "max": 1, None: 0}[direction(metric)]
        return Cell(value, four_digits(value) or "–", sign * (value - other) > 0 and pair[0].dataset == pair[1].dataset)

    def difference(metric: str) -> Cell:
        value = pair[1].scores.get(metric, math.nan) - pair[0].scores.get(metric, math.nan)
        return Cell(value, f"{value:+.4g}" if math.isfinite(value) else "")

    columns = [Column(run.name, partial(cell, place), numeric=True) for place, run in enumerate(pair)]
    columns = [Column("metric", Cell), *columns, Column("difference", difference, "second − first", True)]
    return Table.of(dict.fromkeys(metric for run in pair for metric in run.scores), columns)


def differing_settings(pair: Sequence[Run]) -> Table:
    """Return a row a configuration key whose value differs; folders of the runs themselves are no choice."""
    settings = [run.settings() for run in pair]
    keys = [key for key in dict.fromkeys(key for own in settings for key in own) if key not in ("run_dir", "resume")]

    def cell(own: Mapping[str, str], key: str) -> Cell:
        return Cell(own.get(key, ""), own.get(key, "–"))

    columns = [Column(run.name, partial(cell, own)) for run, own in zip(pair, settings, strict=True)]
    differ = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
    return Table.of(differ, [Column("key", Cell), *columns])
