"""Runs → configurations: which choices differ, what came of each over its seeds, which is best, what mattered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gradflow.report.read import Run

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


def downward(measure: str) -> bool:
    """Whether less is better."""
    return not measure.startswith("accuracy/")


def measures(found: Sequence[Run]) -> list[str]:
    """Those worth a column: of the test split and the best validation loss, else of validation."""
    have = [name for name in MEASURES if any(math.isfinite(run.scores.get(name, math.nan)) for run in found)]
    mse, loss = ([run.scores.get(f"{name}/test", math.nan) for run in found] for name in ("mse", "loss"))
    same = np.allclose(mse, loss, rtol=1e-6, equal_nan=True)
    tested = [name for name in have if name.endswith("/test") and not (name == "loss/test" and same)]
    if tested:
        return tested + [name for name in have if name == "loss/val best"]
    return [name for name in have if name != "loss/val" or "loss/val best" not in have]


def primary(found: Sequence[Run]) -> str:
    """The measure by which configurations are ranked: the first that at least half of the finished runs have."""
    done = [run for run in found if run.scored]
    counts = {name: sum(math.isfinite(run.scores.get(name, math.nan)) for run in done) for name in MEASURES}
    half = [name for name, count in counts.items() if count and 2 * count >= len(done)]
    return half[0] if half else max(counts, key=lambda name: counts[name]) if any(counts.values()) else ""


def ranked(groups: Sequence[Configuration], measure: str) -> list[Configuration]:
    """Best first; those without a number last, in their order."""

    def place(group: Configuration) -> tuple[bool, float]:
        mean = group.of(measure).mean
        return not math.isfinite(mean), mean if downward(measure) else -mean

    return sorted(groups, key=place) if measure else list(groups)


def best(groups: Sequence[Configuration], measure: str) -> list[Configuration]:
    """The best of each data set, of configurations whose every run was finished where there are any, and of several."""
    chosen = []
    for dataset in dict.fromkeys(group.dataset for group in groups):
        own = [group for group in groups if group.dataset == dataset and math.isfinite(group.of(measure).mean)]
        whole = [group for group in own if group.of(measure).n == len(group.runs)] or own
        if len(own) > 1:
            top = ranked(whole, measure)[0].of(measure).mean
            chosen += [group for group in whole if group.of(measure).mean == top]
    return chosen


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
    if downward(measure) and (values > 0).all():
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
