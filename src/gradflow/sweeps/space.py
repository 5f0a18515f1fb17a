"""The space of a search, from overrides of Hydra's grammar, and its options.

Optuna is imported where it is used: it is an extra, and most sweeps do without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from gradflow.config import options
from gradflow.config.hydra_internals import locate
from gradflow.config.no_effect import is_unused, only_referred_to
from gradflow.config.trust import check_target, nodes
from gradflow.config.value_types import OR_TEXT, mismatch
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.runs.metric_direction import mode
from gradflow.sweeps.backend import whole_number

if TYPE_CHECKING:
    import optuna

_SAMPLERS, _PRUNERS, _DIRECTIONS = ("tpe", "random", "grid"), ("none", "median", "hyperband"), ("minimize", "maximize")
_OF_THE_SWEEP = ("search", "continue_sweep")  # keys that no job gets
_MONITOR = "callbacks.best.monitor"
_FORMS = "write interval(low, high), tag(log, interval(low, high)), range(start, stop, step) or choice(a, b)"


@dataclass
class Options:
    """The keys of conf/hydra/sweeper/optuna.yaml."""

    sampler: str
    seed: int | None
    n_trials: int | None
    n_jobs: int | None
    direction: str | None
    pruner: str
    params: Mapping[str, Any] | None

    def check(self, space: Space) -> None:
        for key, known in {"sampler": _SAMPLERS, "pruner": _PRUNERS, "direction": _DIRECTIONS}.items():
            if (name := getattr(self, key)) not in known and not (key == "direction" and name is None):
                raise UserError(f"hydra.sweeper.{key}={name}: no such {key}; {did_you_mean(str(name), known)}")
        for key, least in {"seed": 0, "n_trials": 1, "n_jobs": 1}.items():
            whole_number(f"hydra.sweeper.{key}", getattr(self, key), optional=True, least=least)
        if self.sampler == "grid":
            space.values()

    def set_direction(self, job: DictConfig) -> None:
        """Let the direction follow from the metric whose best value the jobs return; a probe's return |R|."""
        if (metric := monitor(job)) is not None:
            self.direction = mode(
                "hydra.sweeper.direction", self.direction, metric, _direction(job, metric), _DIRECTIONS
            )
        self.direction = self.direction or "minimize"


class Space:
    """What a search varies, a distribution of Optuna's a key; `fixed` are the overrides that every job gets."""

    def __init__(self, overrides: Sequence[str], params: Mapping[str, Any] | None, loader: ConfigLoader) -> None:
        self.loader, self.fixed = loader, list[str]()
        self.text: dict[str, str] = {}
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        of_file = [f"{key}={value}" for key, value in nodes(params) if not isinstance(value, Mapping)]
        parsed = {one.get_key_element(): one for one in _parse([*of_file, *overrides], loader)}
        for override in parsed.values():
            key, (_, _, value) = override.get_key_element(), str(override.input_line).partition("=")
            if override.is_sweep_override():
                self.distributions[key], self.text[key] = _distribution(override, value), value
            elif key not in _OF_THE_SWEEP:
                self.fixed.append(str(override.input_line))
        if not self.distributions:
            known = "|".join(options.of_group("search"))
            raise UserError(f"hydra/sweeper=optuna: nothing to search; add search={known}, or a space: "
                          "'optimizer.lr=tag(log, interval(1e-4, 1e-1))'")  # fmt: skip

    def overrides(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        return (*self.fixed, *(f"{key}={text(params[key])}" for key in self.distributions))

    def values(self) -> dict[str, list[Any]]:
        return {
            key: _values(f"{key}={self.text[key]}", distribution) for key, distribution in self.distributions.items()
        }

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters of every trial of a grid, the last key varying fastest."""
        for values in itertools.product(*self.values().values()):
            yield dict(zip(self.distributions, values, strict=True))

    def check(self, config: DictConfig) -> DictConfig:
        """Check that jobs at the ends of the space can be composed, of values of the right kind, and that one metric's
        best value is what they return. Return one of them."""
        first = {key: ends(distribution)[0] for key, distribution in self.distributions.items()}
        groups = [key for key in self.distributions if self.loader.get_group_options(key.lstrip("+"))]
        jobs = [self.loader.load_sweep_config(config, list(self.overrides(first)))]
        metric = monitor(jobs[0])
        for key in groups:
            for option in ends(self.distributions[key]):
                jobs.append(self.loader.load_sweep_config(config, [*self.fixed, f"{key}={text(option)}"]))
                self._check_metric(key, metric, jobs[-1])
        for key in self.distributions:
            if only_referred_to(group := key.partition(".")[0]) and all(is_unused(job, group) for job in jobs):
                raise UserError(f"{key}={self.text[key]}: has no effect: nothing in the jobs refers to {group}")
        chosen = [f"{key}={text(first[key])}" for key in groups]
        default = self.loader.load_sweep_config(config, [*self.fixed, *chosen])
        if not groups:
            self._check_search(config, default)
        for key in self.distributions:
            if key not in groups and not key.startswith("+"):
                self._check_kind(key, OmegaConf.select(default, key, default=None))
        if _MONITOR in self.distributions:
            raise UserError(f"{_MONITOR}={self.text[_MONITOR]}: jobs return it; values of two metrics don't compare")
        return jobs[0]

    def _check_metric(self, key: str, metric: str | None, job: DictConfig) -> None:
        if (other := monitor(job)) != metric:
            raise UserError(f"{key}={self.text[key]}: jobs would return {metric} and {other}, which don't compare; "
                          f"add {_MONITOR}={metric or other}")  # fmt: skip

    def _check_search(self, config: DictConfig, job: DictConfig) -> None:
        """Reject a space that also sets a key of the jobs', which none of them would get."""
        of_search, of_job = cast(Any, [OmegaConf.to_container(node, resolve=False) for node in (config, job)])
        for key in of_search:
            if key not in ("hydra", *_OF_THE_SWEEP) and of_search[key] != of_job.get(key):
                raise UserError(f"search={config.hydra.runtime.choices.search}: sets {key}, which its jobs don't get; "
                              "give that on the command line, or in an experiment")  # fmt: skip

    def _check_kind(self, key: str, default: Any) -> None:
        for value in ends(self.distributions[key]):
            (override,) = _parse([f"{key}={text(value)}"], self.loader)
            wanted = mismatch(default, override.value())
            if wanted and OR_TEXT.get(key) != override.value():
                raise UserError(f"{key}={self.text[key]}: expected {wanted}, like the default {default}")


def monitor(config: DictConfig) -> str | None:
    """Return the metric whose best value a run returns; None where it keeps no best checkpoint."""
    metric = OmegaConf.select(config, _MONITOR)
    return None if metric is None else str(metric)


def _direction(job: DictConfig, metric: str) -> str | None:
    """Return `min` or `max`, whichever is better: as its class says, or the task whose own metric it is, both of which
    import torch; of a loss it is known without."""
    name, better = metric.partition("/")[0], None
    if target := OmegaConf.select(job, f"metrics.{name}._target_"):
        check_target(f"metrics.{name}", target)
        better = getattr(locate(target), "higher_is_better", None)
    elif name == "loss":
        return "min"
    else:
        from gradflow.tasks.task import tasks

        better = next((task.higher_is_better for task in tasks().values() if task.metric == name), None)
    return {True: "max", False: "min"}.get(better) if isinstance(better, bool) else None


def _parse(overrides: Sequence[str], loader: ConfigLoader) -> list[Override]:
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UserError(f"{error.override}: not a space; {_FORMS}") from None


def _distribution(override: Override, text: str) -> optuna.distributions.BaseDistribution:
    distributions = imported_optuna().distributions
    value: Any = override.value()
    tags = set(getattr(value, "tags", ()))
    log = "log" in tags
    try:
        if tags - {"log"}:
            raise ValueError(f"no such tag: {', '.join(sorted(tags - {'log'}))}; known: log")
        if isinstance(value, IntervalSweep):
            whole = type(value.start) is int and type(value.end) is int
            kind: Any = distributions.IntDistribution if whole else distributions.FloatDistribution
            return kind(value.start, value.end, log=log)
        choices = list(override.sweep_string_iterator())
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
        raise UserError(f"{override.get_key_element()}={text}: {error}") from None


def _values(override: str, distribution: Any) -> list[Any]:
    """Return every value of a distribution that has finitely many."""
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    if distribution.step is None:
        raise UserError(f"{override}: a grid has finitely many values; give choice(…) or range(…), or another sampler")
    return [
        distribution.low + number * distribution.step
        for number in range(round((distribution.high - distribution.low) / distribution.step) + 1)
    ]


def ends(distribution: Any) -> list[Any]:
    """Return all choices, or the lowest and the highest value."""
    return list(distribution.choices) if hasattr(distribution, "choices") else [distribution.low, distribution.high]


def text(value: Any) -> str:
    """Return a value as an override has it: six digits are more than a search can tell apart."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    return short if {".", "e"} & set(short) else f"{short}.0"


def imported_optuna() -> Any:
    """Return Optuna, silent about what is on the screen already."""
    try:
        import optuna
    except ImportError:
        raise UserError("hydra/sweeper=optuna: Optuna is not here; run  pip install 'optuna>=4.9'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
