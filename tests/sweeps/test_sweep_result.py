"""What stands on the screen when a sweep has ended."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.report.collect import collect
from gradflow.report.configurations import configurations, ranked
from gradflow.runs import sweep_jobs
from gradflow.runs.screen import Screen
from gradflow.runs.sweep_jobs import Job
from gradflow.sweeps import hydra_callbacks, sweep_result

RATES = {"0.1": 1.0, "0.2": 1.01, "0.3": 3.0, "0.4": 4.0, "0.5": 5.0, "0.6": 6.0, "0.7": None}


def write(folder: Path, rate: str, seed: int, loss: float | None, data: str = "shapes") -> None:
    facts = {
        "status": "failed" if loss is None else "finished",
        "overrides": [f"optimizer.lr={rate}", f"seed={seed}"],
        "choices": {"model": "mlp"},
        "seed": seed,
        "data": {"name": data},
        "directions": {"loss": "min", "accuracy": "max"},
        "best": {} if loss is None else {"loss/val": loss},
        "test": {} if loss is None else {"accuracy/test": 1 / loss, "loss/test": loss},
    }
    folder.mkdir(parents=True)
    runs.write_json(folder / runs.SUMMARY, facts)


@pytest.fixture
def result(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def run(rates: dict[str, float | None], seeds: int = 3, apart: float = 0.01) -> list[str]:
        for place, (rate, loss) in enumerate(rates.items()):
            for seed in range(seeds):
                value = loss and loss + apart * seed * (1 + place)
                write(tmp_path / "sweep" / str(place * seeds + seed), rate, seed, value)
        sweep_result.print_result(collect([tmp_path / "sweep"]))
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]

    return run


def test_the_best_five_with_their_spread_and_what_is_not_separable(result, tmp_path):
    header, rule, *rows, sentence, more, jobs = result(RATES)
    assert header == "# best 5 of 7 loss/val best accuracy/test n"
    assert set(rule) == {"─"}
    assert rows == [
        "1 lr=0.1 1.010 ± 0.010 0.990 ± 0.010 3 best mean",
        "2 lr=0.2 1.03 ± 0.02 0.971 ± 0.019 3 not separable",
        "3 lr=0.3 3.03 ± 0.03 0.330 ± 0.003 3",
        "4 lr=0.4 4.04 ± 0.04 0.248 ± 0.002 3",
        "5 lr=0.5 5.05 ± 0.05 0.1980 ± 0.0020 3",
    ]
    assert f"{sentence} {more}".startswith("No winner: 1 of the other 5 are not separable from the best mean. Welch's")
    assert jobs == "jobs 18 finished, 3 failed"
    order = ranked(configurations(collect([tmp_path / "sweep"]).runs), "loss/val best")  # which is the page's
    assert [re.search(r"lr=\S+", row)[0] for row in rows] == [group.label for group in order[:5]]


def test_a_winner_is_one_that_can_be_told_from_all_others(result):
    header, _, first, second, sentence, *_ = result({"0.1": 1.0, "0.2": 3.0, "0.3": None})
    assert header.startswith("# best 2 of 3 ")
    assert (first[-8:], second[-1:]) == ("the best", "3")
    assert sentence.startswith("The best is separable from all others.")


def test_single_seeds_tell_nothing(result):
    _, _, *rows, sentence, _ = result({"0.1": 1.0, "0.2": 3.0}, seeds=1)
    assert rows == ["1 lr=0.1 1 1 1", "2 lr=0.2 3 0.3333 1"]
    assert sentence == "One seed each tells no difference from chance; seed=0,1,2 would."


def test_one_configuration_has_no_rival(result):
    _, _, row, jobs = result({"0.1": 1.0})
    assert row == "1 all jobs 1.010 ± 0.010 0.990 ± 0.010 3"
    assert jobs == "jobs 3 finished"


def test_where_nothing_is_ranked_the_jobs_are_counted(result):
    assert result({"0.1": None, "0.2": None}) == ["jobs 6 failed"]


def test_numbers_are_never_cut_where_names_are_long(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = result({"0.1111111111111111111111": 1.0, "0.22222222222222222222": 3.0})
    assert any("1.010 ± 0.010" in line for line in lines)


def test_a_narrow_terminal_shows_which_configurations_these_are(result, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = result({"0.1": 1.0, "0.2": 1.01})
    assert [line[:8] for line in lines if "±" in line] == ["1 lr=0.1", "2 lr=0.2"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_page_is_a_link_on_a_terminal_and_a_path_in_a_pipe(tmp_path, monkeypatch, terminal):
    monkeypatch.chdir(tmp_path)
    screen, known = io.StringIO(), {"force_terminal": terminal, "color_system": "standard" if terminal else None}
    monkeypatch.setattr(sweep_result, "Screen", lambda: Screen(file=screen, **known))
    sweep_result.print_page(tmp_path / "a b" / "report.html")
    address = f"{tmp_path.as_uri()}/a%20b/report.html"
    shown = re.sub(r"\x1b\]8;[^;]*;([^\x1b]*)\x1b\\", r"<\1>", screen.getvalue())
    assert shown == (f"report     <{address}>a b/report.html<>\n" if terminal else "report     a b/report.html\n")


def test_the_callback_prints_the_result_before_the_page_and_without_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}, "report": False})
    hydra_callbacks.WriteReport().on_multirun_end(config)
    assert capsys.readouterr().out == ""  # of jobs that never started there is nothing to say
    write(folder / "0", "0.1", 0, 1.0)
    hydra_callbacks.WriteReport().on_multirun_end(config)
    assert capsys.readouterr().out.splitlines()[-1] == "jobs       1 finished"
    assert not (folder / "report.html").exists()
    config.report = True
    monkeypatch.setattr("gradflow.report.page.write_page", lambda *_: pytest.fail(capsys.readouterr().out[-22:]))
    with pytest.raises(pytest.fail.Exception, match="jobs       1 finished"):
        hydra_callbacks.WriteReport().on_multirun_end(config)


def test_jobs_that_failed_for_one_reason_are_reported_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_jobs, "failed_jobs", [])
    reasons = enumerate(["no memory", "error: a=1", "no memory", "no memory"])
    failed = [Job(n, (f"seed={n}",), "failed", None, 0.0, tmp_path / str(n), why) for n, why in reasons]
    with pytest.raises(SystemExit) as ended, sweep_jobs.failures_reported():
        sweep_jobs.failed_jobs.extend(failed)
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "",
        "4 failed:",
        "    job 0 failed: seed=0",
        "      no memory",
        "      0/job.log",
        "      and 2 more: 2, 3",
        "    job 1 failed: seed=1",
        "      error: a=1",
        "      1/job.log",
    ]


def test_a_failure_names_what_varies_and_breaks_between_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sweep_jobs, "constant_overrides", {"data=shapes"})
    overrides = ("optimizer.lr=0.001", "data=shapes", "model.depth=12", "seed=1")
    job = Job(3, overrides, "failed", None, 0.0, tmp_path / "3", "ValueError: a reason that is longer than a line")
    assert sweep_jobs.describe(job).splitlines() == [
        "  job 3 failed: optimizer.lr=0.001",
        "        model.depth=12 seed=1",
        "      ValueError: a reason that is",
        "        longer than a line",
        "      3/job.log",
    ]
