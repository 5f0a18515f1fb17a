"""What a search may vary, from words of Hydra's grammar, and its options.

Optuna is imported where it is used: it is an extra, and most sweeps do without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from gradflow.config.arguments import CONF
from gradflow.config.no_effect import is_unused, only_referred_to
from gradflow.config.value_types import OR_TEXT, mismatch
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.runs.metric_direction import mode

if TYPE_CHECKING:
    import optuna

SAMPLERS, PRUNERS, DIRECTIONS = ("tpe", "random", "grid"), ("none", "median", "hyperband"), ("minimize", "maximize")
OF_THE_SWEEP = ("search", "continue_sweep")  # keys that no job gets
MONITOR = "callbacks.best.monitor"
FORMS = "write interval(low, high), tag(log, interval(low, high)), range(start, stop, step) or choice(a, b)"


@dataclass
class Options:
    """The keys of conf/hydra/sweeper/optuna.yaml."""

    sampler: str
    seed: int | None
    n_trials: int | None
    n_jobs: int | None
    direction: str | None
    pruner: str
    study_name: str | None
    storage: str | None
    params: Mapping[str, Any] | None

    def check(self, space: Space) -> None:
        for key, known in {"sampler": SAMPLERS, "pruner": PRUNERS, "direction": DIRECTIONS}.items():
            if (word := getattr(self, key)) not in known and not (key == "direction" and word is None):
                raise UserError(f"hydra.sweeper.{key}={word}: no such {key}; {did_you_mean(str(word), known)}")
        for key, least in {"seed": 0, "n_trials": 1, "n_jobs": 1}.items():
            number = getattr(self, key)
            if number is not None and not (type(number) is int and number >= least):
                raise UserError(f"hydra.sweeper.{key}={number}: expected a whole number, {least} or more")
        if self.sampler == "grid":
            space.steps()

    def point(self, metric: str | None) -> None:
        """The direction follows from the metric whose best value the jobs return; a probe's return |R|."""
        if metric is not None:
            self.direction = mode("hydra.sweeper.direction", self.direction, metric, DIRECTIONS)
        self.direction = self.direction or "minimize"


class Space:
    """What a search may vary, from words of Hydra's grammar; `fixed` are the words that every job gets."""

    def __init__(self, words: Sequence[str], params: Mapping[str, Any] | None, loader: ConfigLoader) -> None:
        self.loader, self.fixed = loader, list[str]()
        self.given: dict[str, str] = {}
        self.axes: dict[str, optuna.distributions.BaseDistribution] = {}
        given = [f"{key}={value}" for key, value in flat(params or {})]
        for word in {parsed.get_key_element(): parsed for parsed in parse([*given, *words], loader)}.values():
            key, (_, _, value) = word.get_key_element(), str(word.input_line).partition("=")
            if word.is_sweep_override():
                self.axes[key], self.given[key] = distribution(word, value), value
            elif key not in OF_THE_SWEEP:
                self.fixed.append(str(word.input_line))
        if not self.axes:
            known = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))
            raise UserError(f"hydra/sweeper=optuna: nothing to search; add search={'|'.join(known)}, or a space: "
                          "'optimizer.lr=tag(log, interval(1e-4, 1e-1))'")  # fmt: skip

    def words(self, point: Mapping[str, Any]) -> tuple[str, ...]:
        return (*self.fixed, *(f"{key}={text(point[key])}" for key in self.axes))

    def steps(self) -> dict[str, list[Any]]:
        return {key: steps(f"{key}={self.given[key]}", axis) for key, axis in self.axes.items()}

    def points(self) -> Iterator[dict[str, Any]]:
        """Those of the grid, the last key varying fastest."""
        for point in itertools.product(*self.steps().values()):
            yield dict(zip(self.axes, point, strict=True))

    def check(self, config: DictConfig) -> str | None:
        """Jobs at the ends of the space can be composed, and their values are of the right kind. What they return is
        the best of one metric: that."""
        first = {key: ends(axis)[0] for key, axis in self.axes.items()}
        groups = [key for key in self.axes if self.loader.get_group_options(key.lstrip("+"))]
        jobs = [self.loader.load_sweep_config(config, list(self.words(first)))]
        metric = monitor(jobs[0])
        for key in groups:
            for option in ends(self.axes[key]):
                jobs.append(self.loader.load_sweep_config(config, [*self.fixed, f"{key}={text(option)}"]))
                self.check_metric(key, metric, jobs[-1])
        for key in self.axes:
            if only_referred_to(group := key.partition(".")[0]) and all(is_unused(job, group) for job in jobs):
                raise UserError(f"{key}={self.given[key]}: has no effect: nothing in the jobs refers to {group}")
        chosen = [f"{key}={text(first[key])}" for key in groups]
        default = self.loader.load_sweep_config(config, [*self.fixed, *chosen])
        if not groups:
            self.check_search(config, default)
        for key in self.axes:
            if key not in groups and not key.startswith("+"):
                self.check_kind(key, OmegaConf.select(default, key, default=None))
        if MONITOR in self.axes:
            raise UserError(
                f"{MONITOR}={self.given[MONITOR]}: is what the jobs return; values of two metrics don't compare"
            )
        return metric

    def check_metric(self, key: str, metric: str | None, job: DictConfig) -> None:
        if (other := monitor(job)) != metric:
            raise UserError(f"{key}={self.given[key]}: jobs would return {metric} and {other}, which don't compare; "
                          f"add {MONITOR}={metric or other}")  # fmt: skip

    def check_search(self, config: DictConfig, job: DictConfig) -> None:
        """A space that also sets a key of the jobs' would do so in silence for none of them."""
        asked, got = (OmegaConf.to_container(node, resolve=False) for node in (config, job))
        assert isinstance(asked, dict)
        assert isinstance(got, dict)
        for key in map(str, asked):
            if key not in ("hydra", *OF_THE_SWEEP) and asked[key] != got.get(key):
                raise UserError(f"search={config.hydra.runtime.choices.search}: sets {key}, which its jobs don't get; "
                              "give that on the command line, or in an experiment")  # fmt: skip

    def check_kind(self, key: str, default: Any) -> None:
        for value in ends(self.axes[key]):
            (word,) = parse([f"{key}={text(value)}"], self.loader)
            wanted = mismatch(default, word.value())
            if wanted and OR_TEXT.get(key) != word.value():
                raise UserError(f"{key}={self.given[key]}: expected {wanted}, like the default {default}")


def monitor(config: DictConfig) -> str | None:
    """The metric whose best value a run returns; None where it keeps no best checkpoint."""
    found = OmegaConf.select(config, MONITOR)
    return None if found is None else str(found)


def flat(params: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Keys with dots, whether a file has them so or as nested nodes."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def parse(words: Sequence[str], loader: ConfigLoader) -> list[Override]:
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    except OverrideParseException as error:
        raise UserError(f"{error.override}: not a space; {FORMS}") from None


def distribution(word: Override, given: str) -> optuna.distributions.BaseDistribution:
    """Optuna's word for Hydra's."""
    distributions = imported().distributions
    value: Any = word.value()
    tags = set(getattr(value, "tags", ()))
    log = "log" in tags
    try:
        if tags - {"log"}:
            raise ValueError(f"no such tag: {', '.join(sorted(tags - {'log'}))}; known: log")
        if isinstance(value, IntervalSweep):
            whole = type(value.start) is int and type(value.end) is int
            made: Any = distributions.IntDistribution if whole else distributions.FloatDistribution
            return made(value.start, value.end, log=log)
        choices = list(word.sweep_string_iterator())
        if not choices:
            raise ValueError("it is empty")
        if not isinstance(value, RangeSweep):
            return distributions.CategoricalDistribution(choices)
        if isinstance(value.range(), range):
            numbers = sorted(map(int, choices))
            return distributions.IntDistribution(numbers[0], numbers[-1], log=log, step=abs(value.step))
        reals = sorted(round(float(choice), 12) for choice in choices)
        return distributions.FloatDistribution(reals[0], reals[-1], log=log, step=abs(float(value.step)))
    except ValueError as error:
        raise UserError(f"{word.get_key_element()}={given}: {error}") from None


def steps(given: str, axis: Any) -> list[Any]:
    """Every value of an axis that has finitely many."""
    if hasattr(axis, "choices"):
        return list(axis.choices)
    if axis.step is None:
        raise UserError(f"{given}: a grid has finitely many values; give choice(…) or range(…), or another sampler")
    return [axis.low + number * axis.step for number in range(round((axis.high - axis.low) / axis.step) + 1)]


def ends(axis: Any) -> list[Any]:
    return list(axis.choices) if hasattr(axis, "choices") else [axis.low, axis.high]


def text(value: Any) -> str:
    """As a word of a command: six digits are more than a search can tell apart."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    return short if {".", "e"} & set(short) else f"{short}.0"


def imported() -> Any:
    """Optuna, silent about what we tell ourselves."""
    try:
        import optuna
    except ImportError:
        raise UserError("hydra/sweeper=optuna: Optuna is not here; run  pip install 'optuna>=4.9'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
