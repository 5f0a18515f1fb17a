"""A search: Optuna's study proposes trials in a space of overrides, and the launcher runs each as a job.

A study knows its trials by number, and for each the overrides of its job. A job is a function of its overrides, so none
is run twice; and a job that reports how it does finds its trial by its overrides.
"""

from __future__ import annotations

import itertools
import json
import math
import numbers
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradflow import runs
from gradflow.runs.errors import naming_file, wrapped
from gradflow.runs.sweep_jobs import Job, failed_jobs, take_folder
from gradflow.sweeps import study as studies
from gradflow.sweeps.space import Options, Space
from gradflow.sweeps.study import STATES, overrides_of, trial_state

if TYPE_CHECKING:
    import optuna

_TRIALS = 20


def checked(config: DictConfig, options: Mapping[str, Any], loader: ConfigLoader) -> tuple[Options, Space]:
    """Return the options and the space of a search, both checked before a folder is made."""
    hydra = config.hydra.overrides.hydra
    if not any(override.startswith("hydra/sweeper=") for override in hydra):
        # as if the sweeper had been named on the command line: jobs are composed without `search`, which chose it
        with read_write(config.hydra), open_dict(config.hydra):
            hydra.append(f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}")
    chosen = Options(**options)
    space = Space(config.hydra.overrides.task, chosen.params, loader)
    chosen.check(space)
    chosen.set_direction(space.check(config))
    return chosen, space


def search(config: DictConfig, options: Options, space: Space, launcher: Launcher) -> None:
    folder = Path(config.hydra.sweep.dir)
    take_folder(folder, going_on=bool(OmegaConf.select(config, "continue_sweep")))
    with naming_file(folder / runs.STUDY):  # of which Optuna does not tell the name
        Search(config, folder, options, space).run(launcher)


class Search:
    """A study, and the jobs by which it learns."""

    def __init__(self, config: DictConfig, folder: Path, options: Options, space: Space) -> None:
        self.config, self.folder, self.options, self.space = config, folder, options, space
        continued = bool(OmegaConf.select(config, "continue_sweep"))
        self.study = studies.create_study(folder / runs.STUDY, options, space)
        runs.write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(config))
        if continued:
            self._fail_running()
        ended = [trial for trial in self.study.trials if trial.state.name in ("COMPLETE", "PRUNED")]
        self.known = {overrides_of(trial): _job_of(trial) for trial in ended}
        self.queue = list(self._queued(continued))
        self.left = len(self.queue) if options.sampler == "grid" else (options.n_trials or _TRIALS) - len(ended)
        self.total = len(ended) + self.left

    def run(self, launcher: Launcher) -> None:
        at_once = self.options.n_jobs or _jobs_at_once(launcher, self.config)
        if self.options.pruner != "none":  # tell the jobs where to report: no choice of theirs, so in the environment
            address = {"journal": str(self.folder.absolute() / runs.STUDY), "pruner": self.options.pruner}
            os.environ[studies.ADDRESS] = json.dumps(address)
        try:
            while self.left > 0:
                trials = [self._ask() for _ in range(min(at_once, self.left))]
                self.left -= len(trials)
                before = set(self.known)
                outcomes = self._launch(launcher, trials)
                for trial in trials:
                    overrides = overrides_of(trial)
                    self._tell(trial, outcomes[overrides], repeated=overrides in before)
        finally:
            os.environ.pop(studies.ADDRESS, None)
            self._fail_running()
            self._conclude()

    def _fail_running(self) -> None:
        """Fail the trials that no job will report any more: of a search that was killed, or is ending."""
        for trial in self.study.trials:
            if trial.state.name == "RUNNING":
                self.study.tell(trial.number, state=trial_state("failed"))

    def _queued(self, continued: bool) -> Iterator[dict[str, Any]]:
        """Yield the parameters to try before the sampler proposes any: those that failed before, and a grid's."""
        seen = set(self.known)
        trials = self.study.trials if continued else []
        failed = [trial.params for trial in trials if trial.state.name == "FAIL"
                  and trial.distributions == self.space.distributions]  # fmt: skip
        grid = self.space.grid() if self.options.sampler == "grid" else iter(())
        for params in itertools.chain(failed, itertools.islice(grid, self.options.n_trials)):
            if (overrides := self.space.overrides(params)) not in seen:
                seen.add(overrides)
                yield params

    def _ask(self) -> optuna.Trial:
        if self.queue:
            self.study.enqueue_trial(self.queue.pop(0))
        trial = self.study.ask(self.space.distributions)
        trial.set_user_attr("overrides", list(self.space.overrides(trial.params)))
        return trial

    def _launch(self, launcher: Launcher, trials: Sequence[optuna.Trial]) -> dict[tuple[str, ...], Job]:
        """Run those of the trials that are new, in the order of their numbers, and return the outcome of each known."""
        new = list(dict.fromkeys(own for trial in trials if (own := overrides_of(trial)) not in self.known))
        outcomes: dict[tuple[str, ...], Job] = {}
        if new:
            if planner := getattr(launcher, "planner", None):  # of a launcher of ours, which says how far the search is
                planner.trials = self.total - self.left - len(trials), self.total
            returns = launcher.launch([list(own) for own in new], initial_job_idx=trials[0].number)
            outcomes = {own: _outcome(own, returned) for own, returned in zip(new, returns, strict=True)}
        self.known |= {own: outcome for own, outcome in outcomes.items() if outcome.state != "failed"}
        return self.known | outcomes

    def _tell(self, trial: optuna.Trial, outcome: Job, repeated: bool) -> None:
        value, error = outcome.objective, outcome.error
        trial.set_user_attr("reason", error)
        trial.set_user_attr("folder", str(outcome.folder))
        self.study.tell(trial, value, state=trial_state(outcome.state))
        result = f"{value:.5g}" if value is not None else f"{outcome.state}, {error}"
        result += " (of an earlier job)" if repeated else ""
        print(f"trial {trial.number}: {result}  {shlex.join(outcome.overrides[len(self.space.fixed) :])}", flush=True)
        known = {job.folder for job in failed_jobs}  # which the launcher has put there
        if outcome.state == "failed" and outcome.folder not in known:
            failed_jobs.append(replace(outcome, number=trial.number))

    def _conclude(self) -> None:
        """Print the best trial, and write the results, which the report draws."""
        best, weights = studies.best_trial(self.study), studies.importance(self.study)
        studies.write_results(self.folder, self.study, best, weights)
        counts = studies.count_states(self.study)
        print(f"\nstudy      {', '.join(f'{count} {name}' for name, count in counts.items())}")
        if best:
            print(f"best       {best.value:.6g}, trial {best.number}")
            print(wrapped(f"overrides  {shlex.join(overrides_of(best))}", 11))
        print(f"results    {os.path.relpath(self.folder / runs.RESULTS)}", flush=True)


def _jobs_at_once(launcher: Any, config: DictConfig) -> int:
    """Return how many jobs a launcher of ours has room for; of another nobody knows."""
    backend = getattr(getattr(launcher, "planner", None), "backend", None)
    return backend.jobs_at_once(backend.need(OmegaConf.select(config, "trainer") or {})) if backend else 1


def _outcome(overrides: tuple[str, ...], returned: JobReturn) -> Job:
    """Return a job of which the state is complete, pruned or failed."""
    node: Any = returned.hydra_cfg
    job = Job(0, overrides, "failed", None, 0.0, Path(node.hydra.runtime.output_dir if node else ""))
    if returned.status != JobStatus.COMPLETED:
        return replace(job, error=_failure(returned))
    facts = runs.read_json(job.folder / runs.SUMMARY) if node else {}
    if facts.get("status") == "pruned":
        return replace(job, state="pruned", error=facts["reason"])
    value = returned.return_value
    if not isinstance(value, numbers.Real):
        return replace(job, error=f"it returned {value}, no number: see callbacks.best")
    if not math.isfinite(value):
        return replace(job, state="pruned", error="its objective is not finite")
    return replace(job, state="complete", objective=float(value))


def _failure(returned: JobReturn) -> str:
    try:
        value = returned.return_value  # raises what the job did
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "see its log" if value is None else f"it returned {value}"


def _job_of(trial: optuna.trial.FrozenTrial) -> Job:
    state, known = STATES[trial.state.name], trial.user_attrs
    value = trial.value if state == "complete" else None
    folder = Path(known.get("folder", ""))
    return Job(trial.number, overrides_of(trial), state, value, 0.0, folder, known.get("reason", ""))
