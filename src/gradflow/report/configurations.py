"""Group runs into configurations: what differs between them, what came of each over its seeds, which is best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gradflow.report.run import DATASET, Run

_WITHOUT_EFFECT = ("seed", "run_dir", "resume", "continue_sweep", "on_alarm", "probe", "test", "hydra", "logger")
_WATCHING = ("callbacks.gradient_flow.", "callbacks.progress", "metrics")
_SPLITS = ("test", "val best", "val", "train")  # in the order of columns


class Statistic(NamedTuple):
    """Hold the mean and the sample standard deviation of n finite values; nan where there are too few."""

    mean: float
    sd: float
    n: int


def statistic(values: Iterable[float]) -> Statistic:
    """Return the statistic of those values that are finite."""
    finite = np.array([value for value in values if math.isfinite(value)], float)
    if not finite.size:
        return Statistic(math.nan, math.nan, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        sd = float(finite.std(ddof=1)) if finite.size > 1 else math.nan
        return Statistic(float(finite.mean()), sd, finite.size)


@dataclass(eq=False)
class Configuration:
    """Hold runs that differ in nothing but their seed."""

    values: dict[str, str]  # of the keys that differ between configurations
    runs: list[Run]

    @property
    def label(self) -> str:
        """Return the options of groups by themselves, then numbers with the last part of their key."""
        options = [value for key, value in self.values.items() if value and "." not in key]
        numbers = [f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items() if value and "." in key]
        return " ".join(options + numbers)

    @property
    def dataset(self) -> str:
        """Return the data set; runs that failed before their data were loaded have none."""
        return next((run.dataset for run in self.runs if run.dataset), "")

    def score(self, metric: str) -> Statistic:
        """Return a metric over the finished runs."""
        return statistic(run.score(metric) for run in self.runs)

    def score_over_seeds(self, metric: str) -> Statistic:
        """Return a metric over seeds: several runs of one seed are one value, their mean."""
        by_seed: dict[str, list[float]] = {}
        for run in self.runs:
            by_seed.setdefault(run.seed, []).append(run.score(metric))
        return statistic(statistic(values).mean for values in by_seed.values())

    def log_ratio(self, stage: str) -> Statistic:
        """Return the log10 gradient ratio at the start or the end over runs."""
        return statistic(run.log_ratio(stage) for run in self.runs)

    def verdicts(self, stage: str) -> Counter[str]:
        """Return how often each verdict was given."""
        return Counter(str(run.verdicts[stage].get("word", "")) for run in self.runs if stage in run.verdicts)


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Group runs by the keys that differ between them."""
    keys = _varied_keys(runs)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(map(run.value, keys)), []).append(run)
    return [Configuration(dict(zip(keys, values, strict=True)), own) for values, own in groups.items()]


def _varied_keys(runs: Sequence[Run]) -> list[str]:
    """Return the overridden keys whose values differ, in the order of the command lines."""
    overridden = dict.fromkeys(key for run in runs for key in run.overrides if not key.startswith(_WATCHING))
    keys = [key for key in overridden if key.partition(".")[0] not in _WITHOUT_EFFECT]
    differ = [key for key in keys if len({run.value(key) for run in runs}) > 1]
    datasets: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        datasets.setdefault(tuple(map(run.value, differ)), set()).update({run.dataset} - {""})
    return [*differ, DATASET] if any(len(names) > 1 for names in datasets.values()) else differ


def direction(runs: Iterable[Run], metric: str) -> str | None:
    """Return `min` or `max`, whichever is better of a metric like `accuracy/val`; None where no run knows it, or runs
    contradict each other."""
    ways = {run.directions.get(metric.partition("/")[0]) for run in runs if metric in run.scores}
    return ways.pop() if len(ways) == 1 else None


def metrics_in_order(runs: Sequence[Run]) -> list[str]:
    """Return what the runs have scores of, split by split, and the loss of each after the others."""
    names = dict.fromkeys(name for run in runs for name, value in run.scores.items() if math.isfinite(value))
    places = {split: place for place, split in enumerate(_SPLITS)}
    return sorted(names, key=lambda name: (places.get(name.partition("/")[2], len(places)), name.startswith("loss/")))


def shown_metrics(runs: Sequence[Run], ranking: str) -> list[str]:
    """Return the metrics that are worth a column: what ranks, beside it those of the test split, which never rank, or
    else what was validated."""
    names = metrics_in_order(runs)
    tested = [name for name in names if name.endswith("/test")]
    others = [name for name in names if name.endswith("/val") and name.partition("/")[0] != ranking.partition("/")[0]]
    return [*([ranking] if ranking else []), *(tested or others or ([] if ranking else names))]


def ranking_metric(runs: Sequence[Run]) -> str:
    """Return the metric by which configurations are ranked: the best value of the metric that the runs monitored, which
    a search follows, too, and by which each chose the weights that were tested; else a validation score at the end. At
    least half of the finished runs have it, and a loss is none where runs differ in their loss. Test scores choose
    nothing."""
    done = [run for run in runs if run.finished]
    finite = Counter(name for run in done for name, value in run.scores.items() if math.isfinite(value))
    counts = {name: finite[name] for name in metrics_in_order(done) if direction(done, name)}
    comparable = [name for name in counts if not (name.startswith("loss/") and "model.loss" in _varied_keys(runs))]
    monitored = sorted((name for name in comparable if name.endswith(" best")), key=lambda name: -counts[name])
    validated = [name for name in comparable if name.endswith("/val")]
    return next((name for name in [*monitored, *validated] if 2 * counts[name] >= len(done)), "")


def ranked(groups: Sequence[Configuration], metric: str) -> list[Configuration]:
    """Return the best first, and last those without a number, in their order."""
    sign = {"min": 1, "max": -1, None: 0}[direction((run for group in groups for run in group.runs), metric)]
    means = [(group, sign * group.score(metric).mean) for group in groups]
    return [group for group, mean in sorted(means, key=lambda one: (not math.isfinite(one[1]), one[1]))]


def trivial_score(runs: Iterable[Run], metric: str) -> float:
    """Return the trivial answer's score, as the mean over runs: what is held out for validation follows the seed."""
    return statistic(run.trivial(metric) for run in runs).mean


def keys_without_effect(groups: Sequence[Configuration]) -> list[str]:
    """Return the keys that changed no number: runs that differ in nothing else have identical scores."""
    return [key for key in (groups[0].values if groups else {}) if key != DATASET and _changes_nothing(groups, key)]


def _changes_nothing(groups: Sequence[Configuration], key: str) -> bool:
    alike: dict[str, dict[str, str]] = {}  # scores by value of the key, by everything else
    for group in groups:
        for run in group.runs:
            if run.finished and run.scores:
                others = repr((group.values | {key: ""}, run.seed))
                alike.setdefault(others, {})[group.values[key]] = repr(sorted(run.scores.items()))
    pairs = [list(scores.values()) for scores in alike.values() if len(scores) > 1]
    return bool(pairs) and all(len(set(scores)) == 1 for scores in pairs)
