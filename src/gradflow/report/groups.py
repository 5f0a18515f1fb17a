"""Runs → configurations: which choices differ, what came of each over its seeds, whether one wins, what mattered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.report.read import Run
from gradflow.runs.metric_direction import direction

IGNORED = (
    "seed",
    "run_dir",
    "resume",
    "continue_sweep",
    "on_alarm",
    "probe",
    "test",
    "hydra",
    "logger",
    "summary",
)  # of no effect
WATCHING = ("callbacks.gradient_flow.", "callbacks.progress")
MEASURES = (
    "accuracy/test", "mse/test", "loss/test", "accuracy/val", "mse/val", "loss/val best", "loss/val", "loss/train",
)  # fmt: skip
DATASET = "data set"
LEVELS = 5  # groups of a number that has a value of its own in nearly every run
FACTORS, ENOUGH = 3, 12  # from which on importance is told


@dataclass(frozen=True)
class Statistic:
    mean: float
    sd: float  # of the sample; nan for one run
    n: int


def statistic(values: Iterable[float]) -> Statistic:
    seen = np.array([value for value in values if math.isfinite(value)], float)
    if not seen.size:
        return Statistic(math.nan, math.nan, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        sd = float(seen.std(ddof=1)) if seen.size > 1 else math.nan
        return Statistic(float(seen.mean()), sd, seen.size)


@dataclass
class Configuration:
    """Runs that differ in nothing but their seed."""

    values: dict[str, str]  # of the keys that differ between configurations
    runs: list[Run]

    @property
    def label(self) -> str:
        """Options of groups by themselves, then numbers with the last part of their key."""
        given = {key: value for key, value in self.values.items() if value}
        options = [value for key, value in given.items() if "." not in key]
        return " ".join(options + [f"{key.rpartition('.')[2]}={value}" for key, value in given.items() if "." in key])

    @property
    def states(self) -> Counter[str]:
        return Counter(run.status for run in self.runs)

    @property
    def dataset(self) -> str:
        """Runs that failed before their data were there have none."""
        return next((run.dataset for run in self.runs if run.dataset), "")

    def of(self, measure: str) -> Statistic:
        return statistic(run.scores.get(measure, math.nan) for run in self.runs if run.scored)

    def seeds(self, measure: str) -> Statistic:
        """Over seeds: several runs of one seed are one value, their mean."""
        own: dict[str, list[float]] = {}
        for run in self.runs:
            if run.scored and math.isfinite(value := run.scores.get(measure, math.nan)):
                own.setdefault(run.seed, []).append(value)
        return statistic(sum(values) / len(values) for values in own.values())

    def gap(self, moment: str) -> Statistic:
        return statistic(run.gap(moment) for run in self.runs)

    def verdicts(self, moment: str) -> Counter[str]:
        return Counter(str(run.verdicts[moment].get("word", "")) for run in self.runs if moment in run.verdicts)

    def one(self) -> Run:
        """The run that stands for all in a picture of single runs: the first that came to its end."""
        return next((run for run in self.runs if run.scored), self.runs[0])


def clipped(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def varied(found: Sequence[Run]) -> list[str]:
    """The keys given on some command line whose values differ, in the order of the command lines."""
    keys = dict.fromkeys(key for run in found for key in run.words)
    keys = {key: None for key in keys if key.partition(".")[0] not in IGNORED and not key.startswith(WATCHING)}
    differ = [key for key in keys if len({run.value(key) for run in found}) > 1]
    known = [run for run in found if run.dataset]
    apart = {tuple(run.value(key) for key in differ): run.dataset for run in known}
    mixed = any(apart[tuple(run.value(key) for key in differ)] != run.dataset for run in known)
    return [*differ, DATASET] if mixed else differ


def configurations(found: Sequence[Run]) -> list[Configuration]:
    keys = varied(found)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in found:
        place = tuple(run.dataset if key == DATASET else run.value(key) for key in keys)
        groups.setdefault(place, []).append(run)
    return [Configuration(dict(zip(keys, place, strict=True)), own) for place, own in groups.items()]


def measures(found: Sequence[Run], main: str) -> list[str]:
    """Those worth a column: what ranks, beside it the test split, which never does, and else what was validated."""
    known = dict.fromkeys([*MEASURES, *(name for run in found for name in run.scores)])
    have = [name for name in known if any(math.isfinite(run.scores.get(name, math.nan)) for run in found)]
    mse, loss = ([run.scores.get(f"{name}/test", math.nan) for run in found] for name in ("mse", "loss"))
    same = np.allclose(mse, loss, rtol=1e-6, equal_nan=True)
    tested = [name for name in have if name.endswith("/test") and not (name == "loss/test" and same)]
    others = [name for name in have if name.endswith("/val") and name.partition("/")[0] != main.partition("/")[0]]
    return [*([main] if main else []), *(tested or others or ([] if main else have))]


def primary(found: Sequence[Run]) -> str:
    """The measure by which configurations are ranked: the best value of the metric that the runs monitored, which a
    search follows, too, and by which each chose the weights that were tested; else a score of validation at the end.
    At least half of the finished runs have it, and a loss is none where runs differ in their loss. Test scores choose
    nothing."""
    done = [run for run in found if run.scored]
    counts = Counter(k for run in done for k, value in run.scores.items() if math.isfinite(value) and direction(k))
    comparable = [name for name in counts if not (name.startswith("loss/") and "model.loss" in varied(found))]
    monitored = sorted((name for name in comparable if name.endswith(" best")), key=lambda name: -counts[name])
    validated = [name for name in (*MEASURES, *comparable) if name.endswith("/val") and name in comparable]
    return next((name for name in [*monitored, *validated] if 2 * counts[name] >= len(done)), "")


def ranked(groups: Sequence[Configuration], measure: str) -> list[Configuration]:
    """Best first; those without a number last, in their order."""
    sign = {"min": 1, "max": -1, None: 0}[direction(measure)]

    def place(group: Configuration) -> tuple[bool, float]:
        mean = group.of(measure).mean
        return not math.isfinite(mean), sign * mean

    return sorted(groups, key=place) if measure else list(groups)


LEVEL = 0.05
RULE = f"Welch's t-test on one value a seed: p < {LEVEL} against each other configuration"


def p_value(one: Statistic, other: Statistic) -> float:
    """Of Welch's t-test, two-sided: how often means would differ as much as these if only the seeds made them differ,
    where spreads are unequal. nan where either has one value, which has no spread.

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
    tail, whole = (np.trapezoid(np.cos(theta).clip(0) ** (freedom - 1), theta) for theta in angles)
    return float(tail / whole)


@dataclass(frozen=True)
class Standing:
    """The best mean on a data set, and the configurations that can't be told from it. It wins where there is none.

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


def standings(groups: Sequence[Configuration], measure: str) -> list[Standing]:
    """One for each data set on which a configuration has a number."""
    found = []
    for dataset in dict.fromkeys(group.dataset for group in groups):
        own = [group for group in ranked(groups, measure) if group.dataset == dataset]
        own = [group for group in own if math.isfinite(group.of(measure).mean)]
        whole = [group for group in own if group.of(measure).n == len(group.runs)] or own
        if direction(measure) and own:
            leader, others = whole[0], [group for group in own if group is not whole[0]]
            better = own[: own.index(leader)]
            told = {id(group): p_value(leader.seeds(measure), group.seeds(measure)) for group in others}
            rivals = [group for group in others if group in better or not told[id(group)] < LEVEL]
            found.append(Standing(leader, rivals, len(others)))
    return found


def without_effect(groups: Sequence[Configuration]) -> list[str]:
    """The keys that changed no number: runs that differ in nothing else have the same scores, to the last digit."""
    keys = [key for key in (groups[0].values if groups else {}) if key != DATASET]
    return [key for key in keys if changes_nothing(groups, key)]


def changes_nothing(groups: Sequence[Configuration], key: str) -> bool:
    alike: dict[str, dict[str, str]] = {}
    for group in groups:
        for run in group.runs:
            if run.scored and run.scores:
                place = repr(([v for k, v in group.values.items() if k != key], run.seed))
                alike.setdefault(place, {})[group.values[key]] = repr(sorted(run.scores.items()))
    pairs = [told for told in alike.values() if len(told) > 1]
    return bool(pairs) and all(len(set(told.values())) == 1 for told in pairs)


def trivial(found: Sequence[Run], measure: str) -> float:
    """The trivial answer's score, as the mean over runs: what is held out for validation follows the seed."""
    return statistic(run.trivial(measure) for run in found).mean


def levels(values: Iterable[str]) -> list[str]:
    """Each value once: numbers by size, words in the order in which they came; last what had none."""
    seen = list(dict.fromkeys(values))
    try:
        return sorted(seen, key=lambda value: float(value or "inf"))
    except ValueError:
        return seen


@dataclass(frozen=True)
class Grid:
    """A matrix over two factors: what came of each pair."""

    across: str
    down: str
    columns: list[str]
    rows: list[str]
    cells: dict[tuple[int, int], list[Run]]  # row, column

    def means(self, measure: str) -> np.ndarray:
        return self._filled(lambda own: statistic(run.scores.get(measure, math.nan) for run in own if run.scored))

    def gaps(self, moment: str) -> np.ndarray:
        return self._filled(lambda own: statistic(run.gap(moment) for run in own))

    def troubles(self) -> dict[tuple[int, int], str]:
        """How the runs of a cell ended of which none finished."""
        told = {place: Counter(run.status for run in own if not run.scored) for place, own in self.cells.items()}
        return {place: states.most_common(1)[0][0] for place, states in told.items() if states}

    def _filled(self, reduce: Callable[[Sequence[Run]], Statistic]) -> np.ndarray:
        """Rows × columns × (mean, sd, n)."""
        values = np.full((len(self.rows), len(self.columns), 3), np.nan)
        for place, own in self.cells.items():
            told = reduce(own)
            values[place] = told.mean, told.sd, told.n
        return values


def grid(found: Sequence[Run], down: str, across: str) -> Grid:
    rows, columns = levels(run.value(down) for run in found), levels(run.value(across) for run in found)
    cells: dict[tuple[int, int], list[Run]] = {}
    for run in found:
        cells.setdefault((rows.index(run.value(down)), columns.index(run.value(across))), []).append(run)
    return Grid(across, down, columns, rows, cells)


@dataclass(frozen=True)
class Importance:
    """The share of the variance between runs that the group means of each factor explain (η², functional ANOVA's main
    effects); `chance` is the share that a factor without any effect would show, (levels − 1) / (runs − 1). What is
    left belongs to seeds (variance within configurations) and to interactions; in unbalanced designs the shares of
    factors overlap, and they need not add up to 1."""

    measure: str
    runs: int
    shares: dict[str, float]
    chance: dict[str, float]
    seeds: float
    interactions: float


def importance(found: Sequence[Run], groups: Sequence[Configuration], measure: str) -> Importance | None:
    """None below 3 factors or 12 finished runs. Losses are compared by their logarithm."""
    keys = list(groups[0].values) if groups else []
    own = [run for run in found if run.scored and math.isfinite(run.scores.get(measure, math.nan))]
    values = np.array([run.scores[measure] for run in own], float)
    if len(keys) < FACTORS or len(own) < ENOUGH:
        return None
    if direction(measure) == "min" and (values > 0).all():
        values = np.log10(values)
    whole = float(((values - values.mean()) ** 2).sum())
    if not whole > 1e-24 * max(1.0, float((values**2).sum())):
        return None  # every run came out the same
    names = {key: binned([run.dataset if key == DATASET else run.value(key) for run in own]) for key in keys}
    shares = {key: between(values, labels) / whole for key, labels in names.items()}
    chance = {key: (len(set(labels)) - 1) / (len(own) - 1) for key, labels in names.items()}
    place = {id(run): str(index) for index, group in enumerate(groups) for run in group.runs}
    seeds = 1 - between(values, [place[id(run)] for run in own]) / whole
    order = sorted(keys, key=lambda key: -shares[key])
    rest = max(0.0, 1 - sum(shares.values()) - seeds)
    return Importance(measure, len(own), {k: shares[k] for k in order}, chance, max(0.0, seeds), rest)


def between(values: np.ndarray, labels: Sequence[str]) -> float:
    """Σ n_g (mean_g − mean)² over the groups g."""
    names, places = np.unique(np.array(labels), return_inverse=True)
    counts = np.bincount(places, minlength=len(names))
    means = np.bincount(places, weights=values, minlength=len(names)) / counts
    return float((counts * (means - values.mean()) ** 2).sum())


def binned(values: Sequence[str]) -> list[str]:
    """A number that random search drew anew for most runs would explain everything: fifths of its range by rank."""
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return list(values)
    if len(set(values)) <= max(LEVELS, len(values) // 4) or not np.isfinite(numbers).all():
        return list(values)
    edges = np.quantile(numbers, np.linspace(0, 1, LEVELS + 1)[1:-1])
    return [str(level) for level in np.searchsorted(edges, numbers)]


def chosen(groups: Sequence[Configuration], most: int) -> list[Configuration]:
    """At most so many for a picture, of groups that are ranked: the best half and the worst half."""
    if len(groups) <= most:
        return list(groups)
    return [*groups[: most - most // 2], *groups[-(most // 2) :]]
