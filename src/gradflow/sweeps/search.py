"""A search: Optuna's study of a space of overrides, kept in the sweep's folder. The jobs are the launcher's.

A study knows its trials by number, and for each the words of its job. A job is a function of its words, so none is run
twice; and a job that reports how it does finds its trial by its words.
"""

from __future__ import annotations

import itertools
import json
import math
import numbers
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, read_write

from gradflow import runs
from gradflow.runs import claims, sweep_folder
from gradflow.runs.errors import UserError, naming_file
from gradflow.runs.files import check_files
from gradflow.runs.overrides import quoted
from gradflow.sweeps.space import Options, Space, imported

if TYPE_CHECKING:
    import optuna

    Trials = Iterable[optuna.trial.FrozenTrial]

ADDRESS = "GRADFLOW_STUDY"  # environment of the jobs, when they are to report how they do
TRIALS = 20
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}  # Optuna's words and ours
Words = tuple[str, ...]


@dataclass
class Outcome:
    """What came of a job; its state is complete, pruned or failed."""

    state: str
    value: float | None = None
    reason: str = ""
    folder: str = ""


def search(config: DictConfig, options: Options, space: Space, launcher: Launcher) -> None:
    folder = folder_of(config)
    if not OmegaConf.select(config, "continue_sweep"):
        claims.claim(folder, "hydra.sweep.dir")
    elif not claims.go_on(folder):
        raise UserError(f"{folder}: its search is still running")
    with naming_file(folder / runs.STUDY):  # of which Optuna does not tell the name
        Search(config, folder, options, space).run(launcher)


class Search:
    """A study, and the jobs by which it learns."""

    def __init__(self, config: DictConfig, folder: Path, options: Options, space: Space) -> None:
        self.config, self.folder, self.options, self.space = config, folder, options, space
        going_on = bool(OmegaConf.select(config, "continue_sweep"))
        self.storage = str(options.storage or self.folder / runs.STUDY)
        self.study = self.opened()
        runs.write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(config))
        if going_on:
            self.close()
        self.known = {words_of(trial): told(trial) for trial in done(self.study.trials)}
        self.queue = list(self.planned(going_on))
        self.left = len(self.queue) if options.sampler == "grid" else self.wanted() - len(done(self.study.trials))
        self.count: Counter[str] = Counter()

    def opened(self) -> optuna.Study:
        options = self.options
        own = "search" if options.storage is None else "-".join(self.folder.absolute().parts[-2:])
        opened = storage(self.storage)
        if "://" not in self.storage:
            cut_torn_line(Path(self.storage).absolute())
        study = imported().create_study(
            storage=opened,
            study_name=options.study_name or own,
            direction=options.direction,
            pruner=pruner(options.pruner),
            load_if_exists=True,
        )
        comparable(study, options, self.space)
        study.sampler = sampler(options, len(study.trials))
        return study

    def own(self) -> list[optuna.trial.FrozenTrial]:
        """Trials of this folder; a database may hold those of other processes beside them."""
        shared, here = self.options.storage is not None, str(self.folder.absolute())
        return [trial for trial in self.study.trials if not shared or trial.user_attrs.get("sweep") == here]

    def close(self) -> None:
        """Trials that nobody was, or will be, there to see the end of."""
        for trial in self.own():
            if trial.state.name == "RUNNING":
                self.study.tell(trial.number, state=state("failed"))

    def wanted(self) -> int:
        return self.options.n_trials or TRIALS

    def planned(self, going_on: bool) -> Iterator[dict[str, Any]]:
        """Points that are due, rather than the sampler's: what has failed before, and those of a grid."""
        seen = set(self.known)
        failed = [trial.params for trial in self.own() if going_on and same_space(trial, self.space)]
        grid = self.space.points() if self.options.sampler == "grid" else iter(())
        for point in itertools.chain(failed, itertools.islice(grid, self.options.n_trials)):
            if (words := self.space.words(point)) not in seen:
                seen.add(words)
                yield point

    def run(self, launcher: Launcher) -> None:
        batch = self.options.n_jobs or at_once(launcher, self.config)
        try:
            while self.left > 0:
                trials = [self.ask() for _ in range(min(batch, self.left))]
                self.left -= len(trials)
                before = set(self.known)
                outcomes = self.launched(launcher, trials)
                for trial in trials:
                    self.tell(trial, outcomes[words_of(trial)], again=words_of(trial) in before)
        finally:
            self.close()
            self.conclude()

    def ask(self) -> optuna.Trial:
        if self.queue:
            self.study.enqueue_trial(self.queue.pop(0))
        trial = self.study.ask(self.space.axes)
        trial.set_user_attr("overrides", list(self.space.words(trial.params)))
        trial.set_user_attr("sweep", str(self.folder.absolute()))
        return trial

    def launched(self, launcher: Launcher, trials: Sequence[optuna.Trial]) -> dict[Words, Outcome]:
        """Those of the trials that are new, in the order of their numbers, which are the jobs' where it starts them."""
        new = list(dict.fromkeys(words for trial in trials if (words := words_of(trial)) not in self.known))
        found: dict[Words, Outcome] = {}
        if new:
            with self.addressed():
                returns = launcher.launch([list(words) for words in new], initial_job_idx=trials[0].number)
            found = dict(zip(new, map(outcome, returns), strict=True))
        self.known |= {words: came for words, came in found.items() if came.state != "failed"}
        return self.known | found

    @contextmanager
    def addressed(self) -> Iterator[None]:
        """Tell the jobs where to report: in the environment, since it is no choice of theirs."""
        if self.options.pruner == "none":
            yield
            return
        address = {"storage": self.storage, "study": self.study.study_name, "pruner": self.options.pruner}
        os.environ[ADDRESS] = json.dumps(address)
        try:
            yield
        finally:
            del os.environ[ADDRESS]

    def tell(self, trial: optuna.Trial, came: Outcome, again: bool) -> None:
        for name in ("reason", "folder"):
            trial.set_user_attr(name, getattr(came, name))
        self.study.tell(trial, came.value, state=state(came.state))
        self.count[came.state] += 1
        varied = shlex.join(words_of(trial)[len(self.space.fixed) :])
        result = f"{came.value:.5g}" if came.value is not None else f"{came.state}, {came.reason}"
        result += " (of an earlier job)" if again else ""
        print(f"trial {trial.number}: {result}  {varied}", flush=True)
        known = {str(job.folder) for job in sweep_folder.failed}  # that the launcher has told
        if came.state == "failed" and came.folder not in known:
            job = sweep_folder.Job(trial.number, words_of(trial), "failed", None, 0.0, Path(came.folder), came.reason)
            sweep_folder.failed.append(job)

    def conclude(self) -> None:
        """The best trial on the screen; the results as a file and as a picture."""
        from gradflow.plots.search import history_and_importance

        best, weights = best_of(self.study), importance(self.study)
        write_results(self.folder, self.study, best, weights)
        ended = [trial for trial in self.study.trials if trial.state.is_finished()]
        if points := [(trial.number, trial.value, STATES[trial.state.name]) for trial in ended]:
            direction = self.study.direction.name.lower()
            history_and_importance(points, weights, direction, self.folder / runs.SEARCH)
        print(f"\nstudy      {', '.join(f'{count} {name}' for name, count in states(self.study).items())}")
        if best:
            print(f"best       {best.value:.6g}, trial {best.number}")
            print(f"overrides  {shlex.join(words_of(best))}")
        print(f"results    {os.path.relpath(self.folder / runs.RESULTS)}, {runs.SEARCH}", flush=True)


def folder_of(config: DictConfig) -> Path:
    """The sweep's; of one that is gone on with, where the launcher has not found it already, the one that was named."""
    named = OmegaConf.select(config, "continue_sweep")
    unresolved: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if not named or "${" not in str(unresolved["dir"]):
        return Path(config.hydra.sweep.dir)
    found = sorted(Path("multirun").glob(f"*/*/{runs.STUDY}"), key=lambda path: path.stat().st_mtime)
    folder = Path(named) if named != "newest" else found[-1].parent if found else None
    if folder is None or not (folder / "multirun.yaml").is_file():
        raise UserError(f"continue_sweep={named}: no search is there to go on with")
    check_files(folder)
    with read_write(config.hydra):  # for the launcher, and the jobs that it composes
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
    return folder


def storage(where: str) -> Any:
    """A journal is a file that many processes can write, on a shared disk too; anything with :// is a database."""
    storages = imported().storages
    try:
        if "://" in where:
            return storages.RDBStorage(where)
        path = Path(where).absolute()
        check_journal(path)
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
    except Exception as error:  # whatever a database's driver raises
        own = Path(where).name == runs.STUDY
        advice = "; put back a copy, or begin another search" if own else ""
        reason = f"{error}" if isinstance(error, ValueError) or not own else f"{type(error).__name__}: {error}"
        raise UserError(f"{where if own else f'hydra.sweeper.storage={where}'}: {reason}{advice}") from error


def check_journal(path: Path) -> None:
    """Optuna would stumble over a line that is no JSON. What follows the last whole line may be on its way."""
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.startswith(b"{"):
        raise ValueError("it is there, and not a study's journal")
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            json.loads(line)["op_code"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"damaged at line {number} ({error})") from error


def cut_torn_line(path: Path) -> None:
    """Of a process that was killed while it wrote: Optuna would write on in that line."""
    lock = imported().storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def pruner(name: str) -> Any:
    pruners = imported().pruners
    return {"none": pruners.NopPruner, "median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}[name]()


def sampler(options: Options, before: int) -> Any:
    """One that goes on must not draw again what it drew before."""
    samplers = imported().samplers
    seed = None if options.seed is None else options.seed + before
    return samplers.TPESampler(seed=seed) if options.sampler == "tpe" else samplers.RandomSampler(seed=seed)


def state(name: str) -> Any:
    states = {ours: theirs for theirs, ours in STATES.items()}
    return imported().trial.TrialState[states[name]]


def comparable(study: optuna.Study, options: Options, space: Space) -> None:
    """A study that is there already is of the same kind, or its values say nothing about new ones."""
    if (was := study.direction.name.lower()) != options.direction:
        raise UserError(f"hydra.sweeper.direction={options.direction}: the study is to {was}")
    fixed = sorted(space.fixed)
    if differing := set(fixed) ^ set(study.user_attrs.get("fixed", fixed)):
        raise UserError(f"{shlex.join(sorted(differing))}: not in all of the study's jobs; start another search")
    for trial in study.trials:
        for key in set(trial.distributions) & set(space.axes):
            same_kind(key, trial.distributions[key], space)
    study.set_user_attr("fixed", fixed)


def same_kind(key: str, old: Any, space: Space) -> None:
    try:
        imported().distributions.check_distribution_compatibility(old, space.axes[key])
    except ValueError:
        was = f"choice({','.join(old.choices)})" if hasattr(old, "choices") else str(old)
        raise UserError(f"{key}={space.given[key]}: {was} in this study, which has to stay; start another") from None


def same_space(trial: optuna.trial.FrozenTrial, space: Space) -> bool:
    return trial.state.name == "FAIL" and trial.distributions == space.axes


def at_once(launcher: Any, config: DictConfig) -> int:
    """Jobs for which this machine has room, where the launcher is ours; another one tells nothing."""
    pool = getattr(getattr(launcher, "jobs", None), "pool", None)
    return pool.at_once(pool.need(OmegaConf.select(config, "trainer") or {})) if pool else 1


def outcome(returned: JobReturn) -> Outcome:
    node: Any = returned.hydra_cfg
    folder = str(node.hydra.runtime.output_dir) if node else ""
    if returned.status != JobStatus.COMPLETED:
        return Outcome("failed", None, failure(returned), folder)
    facts = runs.read_json(Path(folder) / runs.SUMMARY) if folder else {}
    if facts.get("status") == "pruned":
        return Outcome("pruned", None, facts["reason"], folder)
    value = returned.return_value
    if not isinstance(value, numbers.Real):
        return Outcome(
            "failed",
            None,
            f"it returned {value}, no number: see callbacks.best",
            folder,
        )
    if not math.isfinite(value):
        return Outcome("pruned", None, "its objective is not finite", folder)
    return Outcome("complete", float(value), "", folder)


def failure(returned: JobReturn) -> str:
    try:
        value = returned.return_value  # raises what the job did
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "see its log" if value is None else f"it returned {value}"


def words_of(trial: Any) -> Words:
    return tuple(trial.user_attrs.get("overrides", ()))


def told(trial: optuna.trial.FrozenTrial) -> Outcome:
    name = STATES[trial.state.name]
    value = trial.value if name == "complete" else None
    return Outcome(name, value, trial.user_attrs.get("reason", ""), trial.user_attrs.get("folder", ""))


def done(trials: Trials) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]


def states(study: optuna.Study) -> Counter[str]:
    return Counter(STATES[trial.state.name] for trial in study.trials if trial.state.is_finished())


def best_of(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    return study.best_trial if any(trial.state.name == "COMPLETE" for trial in study.trials) else None


def importance(study: optuna.Study) -> dict[str, float]:
    """The share of each key in telling the best trials from the rest (PED-ANOVA); empty for too few trials."""
    module = imported().importance
    if states(study)["complete"] < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys with a single value
        return module.get_param_importances(study, evaluator=module.PedAnovaImportanceEvaluator())


def write_results(folder: Path, study: optuna.Study, best: Any, weights: dict[str, float]) -> None:
    content: dict[str, Any] = {"direction": study.direction.name.lower(), "trials": dict(states(study))}
    if best:
        content["best"] = {"value": best.value, "trial": best.number, "overrides": list(words_of(best))}
        content["best"]["folder"] = best.user_attrs.get("folder", "")
    content["importance"] = {key: round(weight, 4) for key, weight in weights.items()}
    runs.write_text(folder / runs.RESULTS, OmegaConf.to_yaml(OmegaConf.create(content)))


def running(address: str, words: Sequence[str]) -> optuna.Trial | None:
    """A job's trial: the one that runs with its words, of which a resumed job has one more."""
    optuna, where = imported(), json.loads(address)
    sampler = optuna.samplers.RandomSampler()
    made = {"study_name": where["study"], "sampler": sampler, "pruner": pruner(where["pruner"])}
    study = optuna.load_study(storage=storage(where["storage"]), **made)
    own = {word for word in words if not word.startswith("resume=")}
    for trial in study.trials:
        if trial.state.name == "RUNNING" and own == {w for w in words_of(trial) if not w.startswith("resume=")}:
            return optuna.trial.Trial(study, trial._trial_id)
    return None
