"""Decide whether one configuration is better than the others: Welch's t-test over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.report.configurations import Configuration, Statistic, direction, ranked

LEVEL = 0.05
RULE = f"Welch's t-test on one value a seed: p < {LEVEL} against each other configuration"


def p_value(one: Statistic, other: Statistic) -> float:
    """Return the two-sided p of Welch's t-test: how often means would differ as much as these if only the seeds made
    them differ, where spreads are unequal. nan where either has one value, which has no spread.

    With t = √ν tan θ the density of Student's t is that of cos^(ν − 1) θ.
    """
    if min(one.n, other.n) < 2 or not math.isfinite(one.sd + other.sd):
        return math.nan
    a, b = one.sd * one.sd / one.n, other.sd * other.sd / other.n
    if a + b == 0:
        return float(one.mean == other.mean)
    share = a / (a + b)
    freedom = 1 / (share**2 / (one.n - 1) + (1 - share) ** 2 / (other.n - 1))
    start = math.atan(abs(one.mean - other.mean) / math.sqrt((a + b) * freedom))
    angles = [np.linspace(low, math.pi / 2, 4001) for low in (start, 0.0)]
    tail, total = (np.trapezoid(np.cos(theta).clip(0) ** (freedom - 1), theta) for theta in angles)
    return float(tail / total)


@dataclass(frozen=True)
class Standing:
    """Hold the best mean on a data set, and the configurations that can't be told from it. It wins where there is none.

    `leader` is the best mean of the configurations whose every run finished, where there are any. A configuration is
    separable from it by RULE, and where its own mean is not better; one seed alone is separable from nothing. That the
    leader must be separable from each of the others keeps the chance to name a winner where there is none below LEVEL,
    however many they are.
    """

    leader: Configuration
    rivals: list[Configuration]
    others: int

    @property
    def won(self) -> bool:
        return bool(self.others) and not self.rivals


def standings(groups: Sequence[Configuration], metric: str) -> list[Standing]:
    """Return one for each data set on which a configuration has a number."""
    if not direction((run for group in groups for run in group.runs), metric):
        return []
    ranking = [group for group in ranked(groups, metric) if math.isfinite(group.score(metric).mean)]
    datasets = dict.fromkeys(group.dataset for group in groups)
    by_dataset = [[group for group in ranking if group.dataset == name] for name in datasets]
    return [_standing(own, metric) for own in by_dataset if own]


def _standing(ranking: Sequence[Configuration], metric: str) -> Standing:
    complete = [group for group in ranking if group.score(metric).n == len(group.runs)]
    leader = (complete or ranking)[0]
    place, seeds = ranking.index(leader), leader.score_over_seeds(metric)
    worse = [group for group in ranking[place + 1 :] if not p_value(seeds, group.score_over_seeds(metric)) < LEVEL]
    return Standing(leader, [*ranking[:place], *worse], len(ranking) - 1)
