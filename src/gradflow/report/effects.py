"""The importance of each choice: its share of the variance between runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.report.configurations import Configuration, direction

_LEAST_FACTORS, _LEAST_RUNS = 3, 12  # from which on importance is shown


@dataclass(frozen=True)
class Importance:
    """Hold the share of the variance between runs that the group means of each factor explain (η², the main effects of
    a functional ANOVA); `chance` is the share that a factor without any effect would show, (levels − 1) / (runs − 1).
    What is left belongs to seeds (variance within configurations) and to interactions; in unbalanced designs the shares
    of factors overlap, and they need not add up to 1."""

    runs: int
    shares: dict[str, float]  # the largest first
    chance: dict[str, float]
    seeds: float
    interactions: float


def importance(groups: Sequence[Configuration], metric: str) -> Importance | None:
    """Return None below 3 factors or 12 finished runs, and of a random search, in which a number that has a value of
    its own in most runs would explain everything. Losses are compared by their logarithm."""
    own = [(run, str(place)) for place, group in enumerate(groups) for run in group.runs]
    own = [(run, place) for run, place in own if math.isfinite(run.score(metric))]
    values = np.array([run.score(metric) for run, _ in own], float)
    if not groups or len(groups[0].values) < _LEAST_FACTORS or len(own) < _LEAST_RUNS:
        return None
    if direction((run for run, _ in own), metric) == "min" and (values > 0).all():
        values = np.log10(values)
    total = float(((values - values.mean()) ** 2).sum())
    if not total > 1e-24 * max(1.0, float((values**2).sum())):
        return None  # every run came out the same
    labels = {key: [run.value(key) for run, _ in own] for key in groups[0].values}
    if max(len(set(names)) for names in labels.values()) > len(own) / 2:
        return None
    shares = {key: variance_between(values, names) / total for key, names in labels.items()}
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    chance = {key: (len(set(names)) - 1) / (len(own) - 1) for key, names in labels.items()}
    seeds = 1 - variance_between(values, [place for _, place in own]) / total
    return Importance(len(own), shares, chance, max(0.0, seeds), max(0.0, 1 - sum(shares.values()) - seeds))


def variance_between(values: np.ndarray, labels: Sequence[str]) -> float:
    """Return Σ n_g (mean_g − mean)² over the groups g of equal labels."""
    names, places = np.unique(np.array(labels), return_inverse=True)
    counts = np.bincount(places, minlength=len(names))
    means = np.bincount(places, weights=values, minlength=len(names)) / counts
    return float((counts * (means - values.mean()) ** 2).sum())
