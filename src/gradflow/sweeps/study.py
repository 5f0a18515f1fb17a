"""Optuna's study of a search: where it is stored, how it samples and prunes, what it has found.

Optuna is imported where it is used: it is an extra, and most sweeps do without it.
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.sweeps.space import Options, Space, imported_optuna

if TYPE_CHECKING:
    import optuna

ADDRESS = "GRADFLOW_STUDY"  # environment of the jobs, when they are to report to their trials
_NAME = "search"  # of the one study in a journal
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}  # Optuna's names, and those on the screen


def create_study(journal: Path, options: Options, space: Space) -> optuna.Study:
    """Return the study of a search, or the one that the journal has, of which trials have to be comparable."""
    storage = _open(journal)
    _cut_torn_line(journal.absolute())
    study = imported_optuna().create_study(
        storage=storage,
        study_name=_NAME,
        direction=options.direction,
        pruner=_pruner(options.pruner),
        load_if_exists=True,
    )
    _check_comparable(study, options, space)
    # a sampler that continues must not propose again what it proposed before
    seed = None if options.seed is None else options.seed + len(study.trials)
    samplers = imported_optuna().samplers
    tpe = options.sampler == "tpe"
    study.sampler = samplers.TPESampler(seed=seed) if tpe else samplers.RandomSampler(seed=seed)
    return study


def _open(journal: Path) -> Any:
    """Open a study's journal: a file that many processes can write, on a shared disk too."""
    storages = imported_optuna().storages
    try:
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(journal.absolute())))
    except Exception as error:
        raise UserError(
            f"{journal}: damaged, {type(error).__name__}: {error}; put back a copy, or begin another search"
        ) from error


def running_trial(address: str, overrides: Sequence[str]) -> optuna.Trial | None:
    """Return a job's trial: the one that runs with its overrides, of which a resumed job has one more."""
    optuna, where = imported_optuna(), json.loads(address)
    sampler, pruner = optuna.samplers.RandomSampler(), _pruner(where["pruner"])
    storage = _open(Path(where["journal"]))
    study = optuna.load_study(study_name=_NAME, storage=storage, sampler=sampler, pruner=pruner)
    own = _without_resume(overrides)
    for trial in study.trials:
        if trial.state.name == "RUNNING" and own == _without_resume(overrides_of(trial)):
            return optuna.trial.Trial(study, trial._trial_id)
    return None


def overrides_of(trial: Any) -> tuple[str, ...]:
    return tuple(trial.user_attrs.get("overrides", ()))


def trial_state(name: str) -> Any:
    """Return Optuna's state of our name."""
    return imported_optuna().trial.TrialState[next(state for state, known in STATES.items() if known == name)]


def count_states(study: optuna.Study) -> Counter[str]:
    return Counter(STATES[trial.state.name] for trial in study.trials if trial.state.is_finished())


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    return study.best_trial if count_states(study)["complete"] else None


def importance(study: optuna.Study) -> dict[str, float]:
    """Return the share of each key in telling the best trials from the rest (PED-ANOVA); empty for too few trials."""
    if count_states(study)["complete"] < 4:
        return {}
    module = imported_optuna().importance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys with a single value
        return module.get_param_importances(study, evaluator=module.PedAnovaImportanceEvaluator())


def write_results(folder: Path, study: optuna.Study, best: Any, weights: dict[str, float]) -> None:
    content: dict[str, Any] = {"direction": study.direction.name.lower(), "trials": dict(count_states(study))}
    if best:
        content["best"] = {"value": best.value, "trial": best.number, "overrides": list(overrides_of(best))}
        content["best"]["folder"] = best.user_attrs.get("folder", "")
    content["importance"] = {key: round(weight, 4) for key, weight in weights.items()}
    runs.write_text(folder / runs.RESULTS, OmegaConf.to_yaml(OmegaConf.create(content)))


def _without_resume(overrides: Sequence[str]) -> set[str]:
    return {override for override in overrides if not override.startswith("resume=")}


def _cut_torn_line(path: Path) -> None:
    """Cut what a process that was killed left of its last line: Optuna would continue in that line."""
    lock = imported_optuna().storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def _pruner(name: str) -> Any:
    pruners = imported_optuna().pruners
    return {"none": pruners.NopPruner, "median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}[name]()


def _check_comparable(study: optuna.Study, options: Options, space: Space) -> None:
    """Reject a study of another kind, whose values say nothing about new ones."""
    if (was := study.direction.name.lower()) != options.direction:
        raise UserError(f"hydra.sweeper.direction={options.direction}: the study is to {was}")
    fixed = sorted(space.fixed)
    if differing := set(fixed) ^ set(study.user_attrs.get("fixed", fixed)):
        raise UserError(f"{shlex.join(sorted(differing))}: not in all of the study's jobs; start another search")
    for trial in study.trials:
        for key in set(trial.distributions) & set(space.distributions):
            _check_same_kind(key, trial.distributions[key], space)
    study.set_user_attr("fixed", fixed)


def _check_same_kind(key: str, old: Any, space: Space) -> None:
    try:
        imported_optuna().distributions.check_distribution_compatibility(old, space.distributions[key])
    except ValueError:
        was = f"choice({','.join(old.choices)})" if hasattr(old, "choices") else str(old)
        raise UserError(f"{key}={space.text[key]}: {was} in this study, which has to stay; start another") from None
