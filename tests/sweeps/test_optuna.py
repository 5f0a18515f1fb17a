"""Searches with Optuna: on cheap objectives behind a launcher of this file's own, and as a user makes them."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import OPTIONS
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from invalid_input import line_of
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.config.options import CONF
from gradflow.runs import sweep_jobs
from gradflow.runs.errors import UserError
from gradflow.sweeps.search import Search
from gradflow.sweeps.space import Options, Space, ends, text
from gradflow.sweeps.study import ADDRESS, running_trial

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
PLAIN: Any = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "sweeper" / "optuna.yaml"))
PLAIN.pop("_target_")
QUICK = (
    *(
        "data=regression",
        "report=false",
        "data.points=200",
        "logger=none",
        "callbacks=minimal",
        "callbacks.progress=null",
    ),
    *("trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "model.depth=1", "test=false"),
)

LR, WIDTH = "optimizer.lr=tag(log, interval(1e-4, 1e-1))", "model.width=choice(32,64,128)"


class Cheap:
    """A launcher whose jobs are calls of a function of their overrides."""

    def __init__(self, folder: Path, objective: Callable[[dict[str, str]], Any]) -> None:
        self.folder, self.objective = folder, objective
        self.started: list[tuple[str, ...]] = []
        self.batches: list[tuple[int, int]] = []
        self.planner, self.trials = SimpleNamespace(trials=None), []  # as a launcher of ours has one

    def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append((initial_job_idx, len(overrides)))
        self.trials.append(self.planner.trials)
        return [self.job(words, initial_job_idx + place) for place, words in enumerate(overrides)]

    def job(self, words: Sequence[str], number: int) -> JobReturn:
        self.started.append(tuple(words))
        run = self.folder / str(number)
        run.mkdir(parents=True)
        node = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(run)}}})
        told = JobReturn(overrides=list(words), hydra_cfg=node)
        try:
            told.return_value = self.objective(dict(word.split("=", 1) for word in words))
            told.status = JobStatus.COMPLETED
        except runs.Pruned as reason:
            runs.write_json(run / runs.SUMMARY, {"status": "pruned", "reason": str(reason)})
            told.return_value, told.status = 0.5, JobStatus.COMPLETED
        except Exception as error:
            told.return_value, told.status = error, JobStatus.FAILED
        return told


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SimpleNamespace]]:
    """A search of words with the options given; what it started, and its study."""

    def run(objective: Any, *words: str, folder: str = "s", **options: Any) -> SimpleNamespace:
        launcher = Cheap(tmp_path / folder, objective)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            given = ["hydra/sweeper=optuna", f"hydra.sweep.dir={tmp_path / folder}", *words]
            config = loader.load_configuration("train", overrides=given, run_mode=RunMode.MULTIRUN)
            chosen = Options(**PLAIN | {"seed": 1, "direction": "minimize"} | options)
            space = Space(config.hydra.overrides.task, chosen.params, loader)
            chosen.check(space)
            (tmp_path / folder).mkdir(exist_ok=True)
            search = Search(config, tmp_path / folder, chosen, space)
            search.run(launcher)
        return SimpleNamespace(launcher=launcher, study=search.study, started=launcher.started, space=space)

    sweep_jobs.failed_jobs.clear()
    yield run
    sweep_jobs.failed_jobs.clear()


def valley(words: dict[str, str]) -> float:
    """Lowest, 0, where lr is 10^-2.5 and the width 64."""
    off = math.log10(float(words["optimizer.lr"])) + 2.5
    return off**2 + abs(math.log2(int(words.get("model.width", 64))) - 6)


def values(result: SimpleNamespace) -> list[float | None]:
    return [trial.value for trial in result.study.trials]


def state_names(result: SimpleNamespace) -> list[str]:
    return [trial.state.name for trial in result.study.trials]


def test_random_with_a_seed_equals_itself(searched):
    one, same, other = (
        searched(valley, LR, WIDTH, sampler="random", seed=seed, n_trials=6, n_jobs=jobs, folder=folder)
        for seed, jobs, folder in ((3, 1, "a"), (3, 4, "b"), (4, 1, "c"))
    )
    assert one.started == same.started  # however many at once
    assert one.started != other.started
    assert same.launcher.batches == [(0, 4), (4, 2)]


def test_tpe_finds_the_region_of_the_optimum(searched):
    result = searched(valley, LR, WIDTH, n_trials=30)
    start, late = values(result)[:10], values(result)[20:]
    assert statistics.median(late) < 0.5 * statistics.median(start)
    best = result.study.best_trial
    assert best.params["model.width"] == "64"
    assert abs(math.log10(best.params["optimizer.lr"]) + 2.5) < 0.2


def test_the_direction_is_heard(searched):
    result = searched(lambda words: -valley(words), LR, n_trials=5, direction="maximize", sampler="random")
    assert result.study.best_value == max(values(result))


def test_grid_covers_exactly_the_product(searched):
    words = ["seed=1,2", "model.depth=range(2,6,2)", "activation=choice(relu,tanh)", "trainer.max_epochs=3"]
    result = searched(lambda words: float(words["seed"]), *words, sampler="grid", n_jobs=3)
    (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert sorted(map(sorted, result.started)) == sorted(map(sorted, batch))
    assert len(result.started) == 8
    assert [trial.number for trial in result.study.trials] == list(range(8))


def test_grid_takes_the_first_of_its_points(searched):
    result = searched(lambda words: 1.0, "seed=range(0,100000)", "model.depth=1,2", sampler="grid", n_trials=3)
    assert [words[-2:] for words in result.started] == [
        ("seed=0", "model.depth=1"), ("seed=0", "model.depth=2"), ("seed=1", "model.depth=1"),
    ]  # fmt: skip


def test_log_intervals_are_even_in_decades(searched):
    drawn = searched(valley, LR, sampler="random", n_trials=45)
    lrs = [float(words[-1].partition("=")[2]) for words in drawn.started]
    assert all(1e-4 <= lr <= 1e-1 for lr in lrs)
    decades = Counter(math.floor(math.log10(lr)) for lr in lrs)
    assert set(decades) == {-4, -3, -2}
    assert min(decades.values()) > 7


@pytest.fixture
def space() -> Callable[..., Any]:
    """The distribution that a word means."""

    def of(word: str, params: dict[str, str] | None = None) -> Any:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return Space([word] if word else [], params, GlobalHydra.instance().config_loader())

    return of


def test_words_of_hydra_become_distributions_of_optuna(space):
    made = optuna.distributions
    known = {
        "interval(0.1, 2)": made.FloatDistribution(0.1, 2.0),
        "tag(log, interval(1e-4, 1e-1))": made.FloatDistribution(1e-4, 1e-1, log=True),
        "int(interval(2, 9))": made.IntDistribution(2, 9),
        "tag(log, int(interval(2, 900)))": made.IntDistribution(2, 900, log=True),
        "range(1, 5)": made.IntDistribution(1, 4),  # as everywhere in Hydra, without its stop
        "range(9, 1, -3)": made.IntDistribution(3, 9, step=3),
        "shuffle(range(1, 8, 2))": made.IntDistribution(1, 7, step=2),
        "range(0.1, 0.5, 0.1)": made.FloatDistribution(0.1, 0.4, step=0.1),
        "choice(a, 'b c', [1, 2])": made.CategoricalDistribution(["a", "b\\ c", "[1,2]"]),
        "1,2": made.CategoricalDistribution(["1", "2"]),
    }
    assert {given: space(f"seed={given}").distributions["seed"] for given in known} == known


def test_the_command_line_wins_over_the_space(space):
    both = space("model.width=7", {"model.width": "choice(1,2)", "seed": "range(0,3)"})
    assert both.fixed == ["model.width=7"]
    assert list(both.distributions) == ["seed"]


def test_values_are_words_that_keep_their_kind():
    assert [text(value) for value in (0.0031622776, 1.0, 1e-5, 3, "'b c'")] == [
        "0.00316228",
        "1.0",
        "1e-05",
        "3",
        "'b c'",
    ]
    assert ends(optuna.distributions.IntDistribution(2, 9)) == [2, 9]


def test_a_search_goes_on_past_failures(searched, capsys):
    def objective(words):
        number = int(words["seed"])
        if number == 1:
            raise ValueError("out of luck")
        if number == 2:
            raise runs.Pruned("collapse: nothing reaches the first layer")
        return {3: math.inf, 4: None}.get(number, number / 10)

    result = searched(objective, "seed=range(0,7)", sampler="grid", n_jobs=2)
    assert state_names(result) == ["COMPLETE", "FAIL", "PRUNED", "PRUNED", "FAIL", "COMPLETE", "COMPLETE"]
    assert [job.number for job in sweep_jobs.failed_jobs] == [1, 4]  # so that the command ends with status 1
    screen = capsys.readouterr().out
    for line in (
        "trial 0: 0  seed=0",
        "trial 1: failed, ValueError: out of luck  seed=1",
        "trial 2: pruned, collapse: nothing reaches the first layer  seed=2",
        "trial 3: pruned, its objective is not finite  seed=3",
        "study      3 complete, 2 failed, 2 pruned",
        "best       0, trial 0",
        "overrides  seed=0",
    ):
        assert line in screen.splitlines()


def test_results(searched, tmp_path):
    best = searched(valley, LR, WIDTH, "trainer.max_epochs=2", n_trials=12).study.best_trial
    told = OmegaConf.to_container(OmegaConf.load(tmp_path / "s" / runs.RESULTS))
    assert told["trials"] == {"complete": 12}
    assert told["best"]["value"] == best.value
    assert told["best"]["overrides"][0] == "trainer.max_epochs=2"
    assert told["best"]["folder"] == str(tmp_path / "s" / str(best.number))
    assert set(told["importance"]) == {"optimizer.lr", "model.width"}
    assert sum(told["importance"].values()) == pytest.approx(1, abs=1e-3)


def test_equal_jobs_are_run_once(searched, capsys):
    result = searched(lambda words: float(words["seed"]), "seed=1,2", sampler="random", n_trials=9, n_jobs=3)
    assert sorted(result.started) == [("seed=1",), ("seed=2",)]
    assert state_names(result) == ["COMPLETE"] * 9
    assert "(of an earlier job)  seed=" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_continuing_keeps_trials_and_numbers(searched, sampler):
    first = searched(valley, LR, sampler=sampler, n_trials=4)
    before = [trial.params for trial in first.study.trials]
    assert first.launcher.trials == [(0, 4), (1, 4), (2, 4), (3, 4)]
    more = searched(valley, LR, "continue_sweep=s", sampler=sampler, n_trials=7)
    assert more.launcher.trials == [(4, 7), (5, 7), (6, 7)]
    assert [trial.params for trial in more.study.trials[:4]] == before
    assert more.launcher.batches == [(4, 1), (5, 1), (6, 1)]
    assert not set(first.started) & set(more.started)  # the seeded sampler does not begin anew
    assert not searched(valley, LR, "continue_sweep=s", sampler=sampler, n_trials=7).started


def test_continuing_a_grid_runs_what_is_new_and_what_failed(searched):
    def objective(words):
        if words["seed"] == "1" and not mended:
            raise ValueError("a full disk")
        return 1.0

    mended = False
    searched(objective, "seed=range(0,3)", sampler="grid")
    mended = True
    more = searched(objective, "seed=range(0,5)", "continue_sweep=s", sampler="grid")
    assert more.started == [("seed=1",), ("seed=3",), ("seed=4",)]
    assert state_names(more) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_what_was_interrupted_is_run_again(searched):
    def objective(words):
        if len(tried) == 3:
            tried.append(words)
            raise KeyboardInterrupt
        tried.append(words)
        return valley(words)

    tried: list[dict[str, str]] = []
    with pytest.raises(KeyboardInterrupt):
        searched(objective, LR, n_trials=5)
    more = searched(valley, LR, "continue_sweep=s", n_trials=5)
    assert state_names(more) == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 2
    assert more.started[0] == tuple(f"{key}={value}" for key, value in tried[3].items())


def test_a_trial_of_a_killed_search_is_run_again(searched):
    first = searched(valley, LR, n_trials=1)
    trial = first.study.ask(first.space.distributions)
    trial.set_user_attr("overrides", list(first.space.overrides(trial.params)))  # and then SIGKILL
    more = searched(valley, LR, "continue_sweep=s", n_trials=3)
    assert state_names(more) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert more.started[0] == first.space.overrides(trial.params)


def test_a_journal_whose_last_line_was_cut_off_is_gone_on_with(searched, tmp_path):
    searched(valley, LR, n_trials=1)
    whole = (tmp_path / "s" / runs.STUDY).read_bytes()
    (tmp_path / "s" / runs.STUDY).write_bytes(whole + whole.splitlines()[-1][:20])  # SIGKILL in the middle of it
    searched(valley, LR, "continue_sweep=s", n_trials=2)
    more = searched(valley, LR, "continue_sweep=s", n_trials=3)
    assert state_names(more) == ["COMPLETE"] * 3
    now = (tmp_path / "s" / runs.STUDY).read_bytes()
    assert now.startswith(whole)
    assert [json.loads(line)["op_code"] for line in now.splitlines()]


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"op_code": 4}', b"\xff"])
def test_a_damaged_journal_is_named(searched, tmp_path, line):
    searched(valley, LR, n_trials=1)
    journal = tmp_path / "s" / runs.STUDY
    first, _, *rest = journal.read_bytes().splitlines()
    journal.write_bytes(damaged := b"\n".join([first, line, *rest, b""]))
    with pytest.raises(UserError, match=f"^{journal}: .*; put back a copy, or begin another search"):
        searched(valley, LR, "continue_sweep=s", n_trials=2)
    assert journal.read_bytes() == damaged


def test_other_studies_are_not_mixed_in(searched):
    searched(valley, LR, WIDTH, n_trials=2)
    for words, options, line in (
        ([LR, WIDTH, "continue_sweep=s", "data=shapes"], {}, "data=shapes: not in all of the study's jobs"),
        ([LR, "model.width=1,2", "continue_sweep=s"], {}, r"model.width=1,2: choice\(32,64,128\) in this study"),
        ([LR, WIDTH, "continue_sweep=s"], {"direction": "maximize"}, "direction=maximize: the study is to minimize"),
    ):
        with pytest.raises(UserError, match=line):
            searched(valley, *words, n_trials=3, **options)


def test_jobs_find_their_trial_by_their_words(searched):
    def objective(words):
        address = os.environ[ADDRESS]
        trial = running_trial(address, ["resume=x", *(f"{key}={value}" for key, value in words.items())])
        assert running_trial(address, ["optimizer.lr=7"]) is None
        trial.report(valley(words), 1)
        if trial.should_prune():
            raise runs.Pruned("median")
        return valley(words)

    result = searched(objective, LR, n_trials=20, pruner="median", sampler="random", n_jobs=2)
    assert ADDRESS not in os.environ
    assert all(trial.intermediate_values == {1: valley(words(trial))} for trial in result.study.trials)
    counts = Counter(state_names(result))
    assert counts["PRUNED"] >= 3
    assert counts["FAIL"] == 0


def words(trial: Any) -> dict[str, str]:
    return dict(word.split("=", 1) for word in trial.user_attrs["overrides"])


# As a user does it


def test_a_search_of_real_jobs(trained, tmp_path, capsys):
    options = ("hydra.sweeper.n_trials=1", "hydra.sweeper.seed=1", "hydra/launcher=basic")
    trained("-m", "search=mlp", *QUICK, *options)
    (folder,) = tmp_path.glob("multirun/*/*")
    told = OmegaConf.load(folder / runs.RESULTS)
    best = folder / str(told.best.trial)
    given = runs.recorded_overrides(best)
    assert given[: len(QUICK)] == list(QUICK)
    assert [word.partition("=")[0] for word in given[len(QUICK) :]] == ["optimizer.lr", "model.width"]
    assert told.best.value == runs.read_json(best / runs.SUMMARY)["best"]["loss/val"]
    assert list(told.best.overrides) == given
    (line,) = re.findall(r"^overrides  (.*)$", capsys.readouterr().out, re.M)
    assert line.split() == given
    trained("-m", "search=mlp", *QUICK, *options[1:], "hydra.sweeper.n_trials=2", "continue_sweep=newest")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]


ACCURATE = ("data=shapes", "data.size=16", *QUICK[1:2], *QUICK[3:], "callbacks.best.monitor=accuracy/val")


@pytest.mark.slow
def test_a_search_by_accuracy_maximizes_it(trained, tmp_path):
    options = ("hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra/launcher=basic")
    trained("-m", "optimizer.lr=1e-9,0.003", *ACCURATE, *options, "trainer.limit_val_batches=4")
    (folder,) = tmp_path.glob("multirun/*/*")
    told = OmegaConf.load(folder / runs.RESULTS)
    best = [runs.read_json(folder / number / runs.SUMMARY)["best"]["accuracy/val"] for number in "01"]
    assert (told.direction, told.best.value, told.best.trial) == ("maximize", max(best), 1)


@pytest.mark.slow
def test_what_jobs_return_has_one_direction(trained, capsys):
    search = (
        "-m",
        "hydra/sweeper=optuna",
        "data=shapes",
        "hydra/launcher=basic",
        "optimizer.lr=interval(0.1,1)",
        "hydra.sweeper.n_trials=1",
    )
    for words, line in {
        "callbacks.best.monitor=accuracy/val hydra.sweeper.direction=minimize":
            "hydra.sweeper.direction=minimize: a higher accuracy/val is better; leave hydra.sweeper.direction out",
        "callbacks.best.monitor=accuracy/val,loss/val": "values of two metrics don't compare",
        "callbacks=default,none": "callbacks=default,none: jobs would return loss/val and None, which don't compare",
    }.items():  # fmt: skip
        with pytest.raises(SystemExit):
            trained(*search, *words.split())
        assert line in line_of(capsys)


def test_a_job_reports_the_metric_that_its_search_follows(composed, monkeypatch):
    from gradflow.sweeps import prune

    monkeypatch.setenv(ADDRESS, "{}")
    made = prune.callbacks(composed("data=shapes", "callbacks.best.monitor=accuracy/val"))
    assert made[-1].monitor == "accuracy/val"


def test_a_pruned_run_is_pruned_and_not_failed(trained, tmp_path):
    rates = "0.01,0.011,0.012,0.013,0.014,1e-9"  # the rule looks at a trial when five are complete
    options = ("hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=median")
    trained("-m", f"optimizer.lr={rates}", *QUICK, "trainer.max_epochs=3", *options,
            "hydra/launcher=basic")  # fmt: skip
    facts = [runs.read_json(next(tmp_path.glob(f"multirun/*/*/{number}")) / runs.SUMMARY) for number in range(6)]
    assert [told["status"] for told in facts] == ["finished"] * 5 + ["pruned"]
    assert re.fullmatch(r"by MedianPruner: loss/val was [\d.]+ after validation 1", facts[5]["reason"])
    assert facts[5]["epochs"] == 1
    (results,) = tmp_path.glob(f"multirun/*/*/{runs.RESULTS}")
    assert OmegaConf.load(results).trials == {"complete": 5, "pruned": 1}


MISTAKES = {
    "": r"nothing to search; add search=mlp\|trainable, or a space",
    "model.width=interval(3,50)": r"model.width=interval\(3,50\): expected a whole number, like the default 256",
    "model=mlp,foo": "model=foo: no such option",
    "search=mlpp": r"search=mlpp: no such option; did you mean mlp\?",
    "search=mlp hydra.sweeper.sampler=tpee": r"hydra.sweeper.sampler=tpee: no such sampler; did you mean tpe\?",
    "model=lstm activation=relu,tanh": "activation=relu,tanh: has no effect: nothing in the jobs refers to activation",
    "search=mlp continue_sweep=nowhere": "continue_sweep=nowhere: not a sweep.s folder",
}
WORDS = {
    "optimizer.lr=tag(lag,interval(1,2))": "no such tag: lag; known: log",
    "optimizer.lr=tag(log,interval(0,1))": r"optimizer.lr=tag\(log,interval\(0,1\)\): .low > 0. must hold",
    "optimizer.lr=interval(1,0)": "low <= high",
    "seed=range(3,3)": r"seed=range\(3,3\): it is empty",
    "seed=foo(1)": r"seed=foo\(1\): not a space; write interval",
}
OPTION = {
    "sampler=grid": "a grid has finitely many values; give choice",
    "pruner=median2": r"hydra.sweeper.pruner=median2: no such pruner; did you mean median\?",
    "direction=up": "hydra.sweeper.direction=up: no such direction; known: maximize, minimize",
    "n_trials=0": "hydra.sweeper.n_trials=0: expected a whole number, 1 or more",
    "n_jobs=1.5": "hydra.sweeper.n_jobs=1.5: expected a whole number, 1 or more",
    "seed=-1": "hydra.sweeper.seed=-1: expected a whole number, 0 or more",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_one_line(trained, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        trained("-m", "hydra/sweeper=optuna", "data=regression", "hydra/launcher=basic", *words.split())
    assert stopped.value.code == 2
    line = line_of(capsys)
    assert line.startswith("error: ")
    assert re.search(MISTAKES[words], line), line
    assert not list(tmp_path.glob("*"))


def test_wrong_words(space):
    for word, line in WORDS.items():
        with pytest.raises(UserError, match=line):
            space("", dict([word.split("=", 1)]))


def test_wrong_options(space):
    lr = space(LR)
    for word, line in OPTION.items():
        key, _, value = word.partition("=")
        with pytest.raises(UserError, match=line):
            Options(**PLAIN | {key: yaml.safe_load(value)}).check(lr)


def test_without_optuna(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as stopped:
        trained("-m", "search=mlp", "data=regression", "hydra/launcher=basic")
    assert stopped.value.code == 2
    assert "Optuna is not here; run pip install 'optuna>=4.9'" in line_of(capsys)
    assert not list(tmp_path.glob("*"))


def test_a_space_sets_nothing_else(searched, monkeypatch):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", overrides=["search=mlp"], run_mode=RunMode.MULTIRUN)
        config.trainer.max_epochs += 1  # as a line of the file would
        with pytest.raises(UserError, match="search=mlp: sets trainer, which its jobs don't get"):
            Space([], config.hydra.sweeper.params, loader).check(config)


@pytest.mark.parametrize("option", OPTIONS["search"])
def test_every_space_can_be_searched(space, option):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", overrides=[f"search={option}"], run_mode=RunMode.MULTIRUN)
        assert config.hydra.sweeper._target_ == "hydra_plugins.gradflow.OptunaSweeper"
        Space([], config.hydra.sweeper.params, loader).check(config)


def test_help_does_without_optuna():
    modules = "set(sys.modules) & {'optuna', 'numpy', 'gradflow.sweeps.search'}"
    program = f"import sys, atexit; atexit.register(lambda: print({modules})); sys.argv = ['train.py', '--help']"
    program += "; import train; train.main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# Through the local launcher


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "src" / "train.py"), "-m", *words]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def jobs(folder: Path) -> list[dict[str, str]]:
    (table,) = folder.glob(f"multirun/*/*/{runs.JOBS}")
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_ranks_of_a_job_have_one_configuration_and_one_end(tmp_path):
    done = launch(tmp_path, "optimizer.lr=0.01,0.011,0.012,0.013,0.014,1e-9", *QUICK, "trainer=ddp_cpu",
                  "trainer.max_epochs=3", "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid",
                  "hydra.sweeper.pruner=median", "hydra.sweeper.n_jobs=1")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [job["state"] for job in jobs(tmp_path)] == ["finished"] * 5 + ["pruned"]
    (folder,) = tmp_path.glob("multirun/*/*")
    for job in jobs(tmp_path):
        facts = runs.read_json(folder / job["folder"] / runs.SUMMARY)
        assert facts["devices"] == 2
        assert not any("hydra" in word for word in facts["overrides"])
    assert facts["epochs"] == 1
    assert len(list(tmp_path.glob("multirun/*/*"))) == 1


@pytest.mark.slow
def test_an_unseeded_search_over_two_ranks(tmp_path):
    """Both ranks write what they were told: the values of a search are drawn once."""
    program = tmp_path / "both.py"
    program.write_text(RANKS.format(src=str(ROOT / "src")))
    words = ("-m", "search=mlp", *QUICK, "trainer=ddp_cpu", "hydra.sweeper.n_trials=3")
    done = subprocess.run(
        [sys.executable, str(program), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for job in jobs(tmp_path):
        (folder,) = tmp_path.glob(f"multirun/*/*/{job['folder']}")
        one, two = ((folder / f"rank{rank}.yaml").read_text() for rank in (0, 1))
        assert one == two
        assert f"lr: {job['overrides'].partition('optimizer.lr=')[2].split()[0]}" in one
    assert len({job["overrides"] for job in jobs(tmp_path)}) == 3


RANKS = """
import os, sys
from pathlib import Path
sys.path.insert(0, {src!r})
import train
from gradflow.config import build
from omegaconf import OmegaConf

data = build.data

def told(cfg):
    rank = Path(cfg.run_dir, f"rank{{os.environ.get('LOCAL_RANK', 0)}}.yaml")
    rank.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return data(cfg)

if __name__ == "__main__":
    build.data = told
    train.main()
"""


@pytest.mark.slow
def test_the_local_launcher_continues_a_search(tmp_path):
    words = ("search=mlp", *QUICK, "hydra.sweeper.seed=1")
    assert launch(tmp_path, *words, "hydra.sweeper.n_trials=2").returncode == 0
    done = launch(tmp_path, *words, "hydra.sweeper.n_trials=5", "continue_sweep=newest")
    assert done.returncode == 0, done.stderr
    assert [job["number"] for job in jobs(tmp_path)] == ["0", "1", "2", "3", "4"]
    assert json.loads(jobs(tmp_path)[4]["objective"]) > 0
