"""What each choice does: a matrix over two of them, and the importance of several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from gradflow.report.configurations import DATASET, Configuration, statistic
from gradflow.report.run import Run
from gradflow.runs.metric_direction import direction

_BINS = 5  # of a number that has a value of its own in nearly every run
_LEAST_FACTORS, _LEAST_RUNS = 3, 12  # from which on importance is shown


@dataclass(frozen=True)
class Grid:
    """Hold mean, sd and n of a value for each pair of two factors' levels, and how runs ended that did not finish."""

    rows: list[str]
    columns: list[str]
    values: np.ndarray  # rows × columns × (mean, sd, n)
    unfinished: dict[tuple[int, int], str]  # the most common status


def grid(runs: Sequence[Run], down: str, across: str, value: Callable[[Run], float]) -> Grid:
    """Sort a value of each run into the matrix of two factors."""
    rows, columns = levels(run.value(down) for run in runs), levels(run.value(across) for run in runs)
    cells: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        cells.setdefault((rows.index(run.value(down)), columns.index(run.value(across))), []).append(run)
    values = np.full((len(rows), len(columns), 3), np.nan)
    for place, own in cells.items():
        values[place] = astuple(statistic(map(value, own)))
    states = {place: Counter(run.status for run in own if not run.finished) for place, own in cells.items()}
    unfinished = {place: counts.most_common(1)[0][0] for place, counts in states.items() if counts}
    return Grid(rows, columns, values, unfinished)


def levels(values: Iterable[str]) -> list[str]:
    """Return each value once: numbers by size, text in the order of its appearance; an empty one after numbers."""
    unique = list(dict.fromkeys(values))
    try:
        return sorted(unique, key=lambda value: float(value or "inf"))
    except ValueError:
        return unique


@dataclass(frozen=True)
class Importance:
    """Hold the share of the variance between runs that the group means of each factor explain (η², the main effects of
    a functional ANOVA); `chance` is the share that a factor without any effect would show, (levels − 1) / (runs − 1).
    What is left belongs to seeds (variance within configurations) and to interactions; in unbalanced designs the shares
    of factors overlap, and they need not add up to 1."""

    metric: str
    runs: int
    shares: dict[str, float]
    chance: dict[str, float]
    seeds: float
    interactions: float


def importance(runs: Sequence[Run], groups: Sequence[Configuration], metric: str) -> Importance | None:
    """Return None below 3 factors or 12 finished runs. Losses are compared by their logarithm."""
    keys = list(groups[0].values) if groups else []
    own = [run for run in runs if math.isfinite(run.score(metric))]
    values = np.array([run.scores[metric] for run in own], float)
    if len(keys) < _LEAST_FACTORS or len(own) < _LEAST_RUNS:
        return None
    if direction(metric) == "min" and (values > 0).all():
        values = np.log10(values)
    total = float(((values - values.mean()) ** 2).sum())
    if not total > 1e-24 * max(1.0, float((values**2).sum())):
        return None  # every run came out the same
    labels = {key: binned([run.dataset if key == DATASET else run.value(key) for run in own]) for key in keys}
    shares = {key: variance_between(values, names) / total for key, names in labels.items()}
    chance = {key: (len(set(names)) - 1) / (len(own) - 1) for key, names in labels.items()}
    configuration = {id(run): str(index) for index, group in enumerate(groups) for run in group.runs}
    seeds = 1 - variance_between(values, [configuration[id(run)] for run in own]) / total
    order = sorted(keys, key=lambda key: -shares[key])
    rest = max(0.0, 1 - sum(shares.values()) - seeds)
    return Importance(metric, len(own), {k: shares[k] for k in order}, chance, max(0.0, seeds), rest)


def variance_between(values: np.ndarray, labels: Sequence[str]) -> float:
    """Return Σ n_g (mean_g − mean)² over the groups g of equal labels."""
    names, places = np.unique(np.array(labels), return_inverse=True)
    counts = np.bincount(places, minlength=len(names))
    means = np.bincount(places, weights=values, minlength=len(names)) / counts
    return float((counts * (means - values.mean()) ** 2).sum())


def binned(values: Sequence[str]) -> list[str]:
    """Return fifths of the range by rank of a number that differs in most runs of a random search: unbinned, it would
    explain everything."""
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return list(values)
    if len(set(values)) <= max(_BINS, len(values) // 4) or not np.isfinite(numbers).all():
        return list(values)
    edges = np.quantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1])
    return [str(level) for level in np.searchsorted(edges, numbers)]
