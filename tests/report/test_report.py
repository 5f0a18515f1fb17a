from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow.report
import report
from gradflow import runs
from gradflow.plots import theme
from gradflow.report import chart_data, configurations, page, plain_data, results, significance, tables
from gradflow.report.collect import collect
from gradflow.report.run import read_run
from gradflow.runs.errors import UserError

SOURCE = Path(report.__file__)


def validated(scores: Any) -> float | None:
    """A validation loss that ranks as the test scores do."""
    known = scores if isinstance(scores, dict) else {}
    accuracy = known.get("accuracy/test")
    return known.get("loss/test", known.get("mse/test", 1.2)) if accuracy is None else 2 - accuracy


def make_run(folder: Path, *words: str, seed: int = 0, status: str = "finished", **more: Any) -> Path:
    """Write a run folder as `src/train.py` leaves one."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\noptimizer:\n  lr: 0.001\nmodel:\n  depth: 3\n")
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*words, f"seed={seed}"]))
    scores = more.pop("scores", {"accuracy/test": 0.5, "loss/test": 1.0})
    decades = more.pop("decades", -0.5)
    word = "FAIL" if decades is None or abs(decades) > 3 else "OK"
    verdict = {"word": word, "axis": "depth", "decades": decades, "reason": f"‖∂L/∂h₁‖ = 10^{decades} · ‖∂L/∂h₉‖"}
    facts = {
        "status": status,
        "command": f"python src/train.py {' '.join(words)}",
        "choices": {"model": "mlp", "optimizer": "adam", "activation": "relu"}
        | dict(w.split("=", 1) for w in words[:1]),
        "overrides": [*words, f"seed={seed}"],
        "data": {"name": "shapes", "samples": {"train": 9000}},
        "directions": {"loss": "min", "accuracy": "max", "mse": "min"},
        "device": "cpu",
        "devices": 1,
        "seed": seed,
        "versions": {"torch": "2.15.0"},
        "verdict": {"start": verdict, "end": verdict},
        "alarms": {"vanish": "step 4: the gradient shrinks"} if word == "FAIL" else {},
        "final": {"loss/val": 1.2, "loss/train": 1.1},
        "best": {"loss/val": validated(scores)},
        "test": scores,
    }
    runs.write_json(folder / runs.SUMMARY, facts | more)
    return folder


def with_tables(folder: Path, layers: int = 4, steps: int = 12, scale: float = 1.0) -> Path:
    """Add the tables and snapshots that pictures are drawn from."""
    rows = [f"{step},{scale * 2 / (step + 1)},{0.1 + step / 50},{-0.1 * step}" for step in range(steps)]
    (folder / runs.METRICS).write_text("\n".join(["step,loss/val,accuracy/val,flow/decades_depth", *rows]) + "\n")
    names = [f"{place:02d}.block{place}" for place in range(layers)]
    norms = [",".join(str(scale * 10.0 ** -(layers - place)) for place in range(layers)) for _ in range(steps)]
    lines = [f"{step},{norm}" for step, norm in enumerate(norms)]
    (folder / runs.GRADIENTS).write_text("\n".join([",".join(["step", *names]), *lines]) + "\n")
    for step in (0, steps):
        snapshot = {"step": step, "gradient": [10.0**-place for place in range(layers)][::-1], "time": []}
        runs.append_json(folder / runs.FLOW, snapshot | {"theory": {"gradient": [1.0] * layers, "time": None}})
    return folder


def sweep(top: Path, draws: bool = False) -> Path:
    """activation × optimizer × 3 seeds."""
    rng = np.random.default_rng(0)
    for place in range(12):
        activation, optimizer, seed = ("sigmoid", "relu")[place // 6], ("sgd", "adam")[place // 3 % 2], place % 3
        accuracy = 0.3 + 0.3 * (activation == "relu") + 0.1 * (optimizer == "adam") + 0.01 * rng.random()
        scores = {"accuracy/test": accuracy, "loss/test": 2 - accuracy}
        words = f"activation={activation}", f"optimizer={optimizer}"
        folder = make_run(
            top / str(place), *words, seed=seed, scores=scores, decades=-6 if activation == "sigmoid" else 0.1
        )
        if draws:
            with_tables(folder)
    noted = (
        "hydra:\n  job:\n    name: train\n  overrides:\n    hydra: [hydra.mode=MULTIRUN]\n    task: ['seed=0,1,2']\n"
    )
    (top / "multirun.yaml").write_text(noted)
    return top


def grouped(*folders: Path) -> list[configurations.Configuration]:
    return configurations.configurations(collect(folders).runs)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with all its pictures, which take most of the time; tests only read it."""
    return gradflow.report.write(sweep(tmp_path_factory.mktemp("swept"), draws=True))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def run(*words: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["src/report.py", *map(str, words)])
        report.main()

    return run


class Reader(HTMLParser):
    """The tags of a page, and the cells of its first table by their exact values."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.tables = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.tables += tag == "table"
        if tag == "script":
            self.scripts.append("")
        if self.tables == 1 and tag == "tr":
            self.rows.append([])
        if self.tables == 1 and tag == "td":
            self.rows[-1].append(dict(attrs).get("data-value") or "")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


# --- reading -----------------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("runs/b/x", "multirun/10", "multirun/9", "multirun/9/checkpoints/old", "multirun/9/wandb/run"):
        make_run(tmp_path / name)
    found = collect([tmp_path, tmp_path / "multirun"])
    assert [run.name for run in found.runs] == ["multirun/9", "multirun/10", "runs/b/x"]


def test_broken_folders_are_named_and_ignored(tmp_path: Path, command: Callable[..., None], capsys: Any) -> None:
    make_run(tmp_path / "all/good")
    for name, content in (("half", '{"status": "fin'), ("list", "[1]"), ("none", None), ("odd", '{"status": 3}')):
        (tmp_path / "all" / name / ".hydra").mkdir(parents=True)
        if content is not None:
            (tmp_path / "all" / name / runs.SUMMARY).write_text(content)
    (make_run(tmp_path / "all/probe") / runs.SUMMARY).rename(tmp_path / "all/probe" / runs.PROBE)
    (make_run(tmp_path / "all/binary") / runs.SUMMARY).write_bytes(b"\xff\xfe\x00")
    command("all")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"ignored {n}" for n in ["binary", "half", "list", "none", "odd", "probe"]
    ]
    written = (tmp_path / "all/report.html").read_text()
    assert "Ignored folders" in written
    assert all(name in written for name in ("it never started", "is not JSON", "has no status", "nothing was trained"))


def test_a_terminal_obeys_no_name_of_a_folder(tmp_path: Path, command: Callable[..., None], capsys: Any) -> None:
    make_run(tmp_path / "all/good")
    (tmp_path / "all/\x1b[31mred\n" / ".hydra").mkdir(parents=True)
    command("all")
    assert capsys.readouterr().err.startswith(r"ignored \x1b[31mred\n: no summary.json")


def test_ctrl_c_ends_a_report_without_a_traceback(
    tmp_path: Path, command: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    make_run(tmp_path / "run")
    monkeypatch.setattr(page, "write_page", interrupt)
    with pytest.raises(SystemExit) as ended:
        command("run")
    assert ended.value.code == 130


def test_a_folder_of_broken_runs_alone_still_gets_its_page(tmp_path: Path) -> None:
    (tmp_path / "sweep/0/.hydra").mkdir(parents=True)
    assert "it never started" in gradflow.report.write(tmp_path / "sweep").read_text()


def test_runs_without_any_score_that_differ_in_nothing_get_their_page(tmp_path: Path) -> None:
    for place in range(2):
        make_run(tmp_path / str(place), status="failed", scores={}, best={}, final={})
    assert gradflow.report.write(tmp_path / "0").read_text().count("<p>Nothing.</p>") == 1  # no metrics
    assert not (tmp_path / "0/report.csv").exists()
    assert gradflow.report.write(tmp_path).is_file()


@pytest.mark.parametrize(
    "key", ["choices", "overrides", "data", "verdict", "alarms", "final", "best", "test", "versions"]
)
def test_nonsense_in_a_summary_ends_nothing(tmp_path: Path, key: str) -> None:
    for place, nonsense in enumerate(("text", [1, None], {"a": {"b": 1}}, None, 1e308, {"loss/test": "x"})):
        make_run(tmp_path / str(place), "optimizer=adam", **{key: nonsense})
    assert gradflow.report.write(tmp_path).is_file()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", '{"status": "finished", "steps": 1%s, "wall_seconds": -1%s}' % (("0" * 400,) * 2)),
        ("summary.json", '{"status": "finished", "test": {"mse/test": 1e308, "loss/test": -1e308}}'),
        ("metrics.csv", f"step,{'x' * 200_000}\n0,1\n"),
        ("gradients.csv", f"step,{'x' * 200_000}\n0,1\n"),
        ("gradients.layout.json", "[" * 100_000),
        (os.fsdecode(b"\xff.png"), ""),
        ("../optimization_results.yaml",
         "{direction: minimize, trials: {complete: .inf}, best: {overrides: [], folder: a, value: 1, trial: .inf}}"),
    ],
)  # fmt: skip
def test_no_file_of_a_folder_ends_the_page_of_all(tmp_path: Path, name: str, content: str) -> None:
    for run in ("a", "b"):
        with_tables(make_run(tmp_path / run, f"optimizer={run}"))
    (tmp_path / "a" / name).write_text(content)
    assert gradflow.report.write(tmp_path).is_file()
    assert gradflow.report.write(tmp_path / "a").is_file()


def test_tables_that_are_damaged_or_half_written_give_what_they_hold(tmp_path: Path) -> None:
    run = read_run(with_tables(make_run(tmp_path / "run")), "run")
    with (tmp_path / "run" / runs.METRICS).open("a") as file:
        file.write("12,inf,nan,1\n13,0.5,,\n14,0.2")  # which may go on as 0.25
    steps, values = run.recorded.curves()["loss/val"]
    assert steps[-2:] == [11, 13]
    assert values[-1] == 0.5
    assert run.recorded.last_step() == 13
    (tmp_path / "run" / runs.FLOW).write_text('{"gradient"')
    (tmp_path / "run" / runs.GRADIENTS).write_text("step,a\n0,1\n1")
    assert run.recorded.snapshots() == []
    assert run.recorded.table("gradients") == (["a"], [0.0], [[1.0]])
    (tmp_path / "run" / runs.GRADIENTS).write_bytes(b"\xff")
    (tmp_path / "run" / runs.METRICS).write_bytes(b"\xff")
    assert run.recorded.table("gradients") == ([], [], [])
    assert run.recorded.curves() == {}


def test_a_strangers_table_costs_no_more_than_its_columns(tmp_path: Path) -> None:
    """Two axes of 100,000 entries would be 10¹⁰ names."""
    run, many = make_run(tmp_path / "run"), [str(number) for number in range(100_000)]
    look = {"title": r"$\frac{x", "label": r"$\y_{", "unit": "$", "log": True, "shown": []}
    for name, axes in {"odd": {"layer": [r"$\frac{a"]}, "huge": {"down": many, "across": many}}.items():
        (run / f"{name}.csv").write_text("step,$\\frac{a\n0,1\n1,2\n")
        runs.write_json(run / f"{name}.layout.json", look | {"axes": axes})
    found = chart_data.chart_data(collect([tmp_path]).runs, [], "")["runs"][0]["tables"]
    assert {name: (table["columns"], table["rows"]) for name, table in found.items()} == {
        "odd": (["$\\frac{a"], [[1.0], [2.0]])
    }  # fmt: skip
    assert gradflow.report.write(tmp_path).stat().st_size < 8e6


def test_long_tables_are_thinned_before_they_are_parsed_and_rare_values_stay(tmp_path: Path) -> None:
    rows = [f"{step},{'' if step % 500 else step / 2},{step}" for step in range(10_000)]
    run = read_run(make_run(tmp_path / "run"), "run")
    (run.folder / runs.METRICS).write_text("\n".join(["step,loss/val,loss/train", *rows, "10000,,x"]) + "\n")
    (run.folder / runs.GRADIENTS).write_text("\n".join(["step,a", *(f"{step},{step}" for step in range(10_000))]))
    assert len(run.recorded.curves()["loss/train"][0]) == 10_000
    assert not run.recorded.thinned
    curves = run.recorded.curves(100)
    assert curves["loss/val"] == ([*range(0, 10_000, 500)], [*range(0, 5000, 250)])
    assert curves["loss/train"][0][:2] == [0, 101]
    assert len(curves["loss/train"][0]) == 99  # the last cell is damaged
    assert run.recorded.thinned
    assert run.recorded.table("gradients", 3) == (["a"], [0.0, 5000.0, 9999.0], [[0.0], [5000.0], [9999.0]])
    whole = chart_data.chart_data([run], [], "")
    assert whole["points"] == 400
    assert len(chart_data.as_json(whole)) < 50_000


def test_diverged_runs_are_those_that_ended_with_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    make_run(tmp_path / "0", scores={"loss/test": None, "accuracy/test": 0.1})
    make_run(tmp_path / "1", final={"loss/train": None})
    make_run(tmp_path / "2", final={"flow/horizon_time": None, "loss/train": 1.0})
    make_run(tmp_path / "3", status="failed", final={"loss/train": None})
    states = [run.status for run in collect([tmp_path]).runs]
    assert states == ["diverged", "diverged", "finished", "failed"]


# --- grouping and numbers ----------------------------------------------------------------------------------------


def test_configurations_are_what_differs_but_the_seed(tmp_path: Path) -> None:
    grouping = grouped(sweep(tmp_path))
    assert next(list(group.values.items()) for group in grouping) == [("activation", "sigmoid"), ("optimizer", "sgd")]
    assert [len(group.runs) for group in grouping] == [3, 3, 3, 3]


def test_a_default_is_the_same_choice_as_the_same_value_given(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "optimizer=adam")  # 0.001, in config.yaml
    make_run(tmp_path / "1", "optimizer=adam", "optimizer.lr=1e-3", seed=1)
    make_run(tmp_path / "2", "activation=relu", seed=2)
    make_run(tmp_path / "3", "optimizer=adam", "optimizer.lr=0.1")
    assert [group.values for group in grouped(tmp_path)] == [{"optimizer.lr": "0.001"}, {"optimizer.lr": "0.1"}]


@pytest.mark.parametrize(
    ("key", "default", "given"),
    [("a", "true", "True"), ("a", "[0.9, 1]", "[0.9,1]"), ("a", "null", "null"), ("a.b", "1", "1")],
)
def test_values_are_one_however_they_are_spelled(tmp_path: Path, key: str, default: str, given: str) -> None:
    for place, words in enumerate(([f"{key}={given}"], ["model.depth=3"], [f"{key}=other"])):
        make_run(tmp_path / str(place), "optimizer=adam", *words)
        nested = f"{{{key.replace('.', ': {')}: {default}}}" + "}" * key.count(".")
        (tmp_path / str(place) / ".hydra" / "config.yaml").write_text(f"{nested[:-1]}, model: {{depth: 3}}}}")
    value = {"null": "", "True": "true"}.get(given, given)
    assert [group.values[key] for group in grouped(tmp_path)] == [value, "other"]


def test_runs_on_different_data_are_never_one_configuration(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "data=auto", data={"name": "shapes"}, scores={"accuracy/test": 0.9})
    make_run(tmp_path / "1", "data=auto", data={"name": "cifar10"}, scores={"accuracy/test": 0.4})
    grouping = grouped(tmp_path)
    assert [group.values for group in grouping] == [{"data set": "shapes"}, {"data set": "cifar10"}]
    assert not any(
        standing.won for standing in significance.standings(grouping, "loss/val best")
    )  # there is one of each


def test_a_page_says_where_data_and_machines_differ_and_where_seeds_repeat(tmp_path: Path) -> None:
    for place, (data, device) in enumerate([("shapes", "cpu"), ("shapes", "cpu"), ("digits", "H100")]):
        make_run(tmp_path / str(place), data={"name": data}, device=device)
    text = gradflow.report.write(tmp_path).read_text()
    assert "Several data sets: each is ranked by itself" in text
    assert "Some configurations hold several runs of one seed" in text
    assert [text.count(f"{name} ({count} of 3 runs)") for name, count in (("device", 2), ("device", 1))] == [1, 1]
    for seed in (0, 1):
        make_run(tmp_path / "alike" / str(seed), seed=seed, data={"name": "shapes"})
    text = gradflow.report.write(tmp_path / "alike").read_text()
    assert "Several data sets" not in text
    assert "several runs of one seed" not in text


def test_data_are_described_in_words(tmp_path: Path) -> None:
    told = {"name": "pictures", "samples": {"train": 45000, "val": 5000}, "classes": ["cat", "dog"], "fresh": False}
    make_run(tmp_path / "0", data=told)
    words = "name: pictures; samples: train 45,000, val 5,000; classes: cat, dog; fresh: False"
    assert words in gradflow.report.write(tmp_path).read_text(encoding="utf-8")


def test_means_and_deviations_are_numpys_over_finished_runs(tmp_path: Path) -> None:
    values = [0.2, 0.5, 0.9]
    for seed, value in enumerate(values):
        make_run(tmp_path / str(seed), seed=seed, scores={"accuracy/test": value})
    make_run(tmp_path / "3", seed=3, status="pruned", scores={"accuracy/test": 0.0}, reason="vanish")
    make_run(tmp_path / "4", seed=4, scores={"accuracy/test": 0.1, "loss/test": None})
    make_run(tmp_path / "5", seed=5, status="failed", error="RuntimeError: boom")
    (group,) = grouped(tmp_path)
    accuracy = group.score("accuracy/test")
    assert (accuracy.mean, accuracy.sd, accuracy.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        3,
    )
    table = results.results([group])
    counts = {name: cell.value for name, cell in table.rows[0].items()}
    assert [counts[name] for name in ("n", "failed", "diverged", "pruned")] == [3, 1, 1, 1]
    assert "interrupted" not in counts


def test_one_run_has_no_deviation_and_none_no_mean() -> None:
    assert math.isnan(configurations.statistic([1.0]).sd)
    assert configurations.statistic([math.nan, math.inf]).n == 0
    assert tables.mean_and_sd(configurations.statistic([0.25])) == "0.25"
    assert tables.mean_and_sd(configurations.statistic([])) == ""
    assert tables.mean_and_sd(configurations.statistic([0.9, 0.92])) == "0.910 ± 0.014"
    assert tables.mean_and_sd(configurations.statistic([2.0, 2.5])) == "2.2 ± 0.4"


def over_seeds(top: Path, word: str, values: list[float], measure: str = "loss/val", **more: Any) -> None:
    """A run a seed, with that best value of what it monitored."""
    for seed, value in enumerate(values):
        make_run(top / word / str(seed), word, seed=seed, best={measure: value}, **more)


def standing(folder: Path, measure: str = "loss/val best") -> tuple[str, list[str], bool]:
    (best,) = significance.standings(grouped(folder), measure)
    return best.leader.label, [rival.label for rival in best.rivals], best.won


@pytest.mark.parametrize(
    ("measure", "wins"), [("accuracy/val", "b"), ("loss/val", "a"), ("mse/val", "a"), ("f1/val", "b")]
)
def test_the_best_goes_by_the_direction_of_what_was_monitored(tmp_path: Path, measure: str, wins: str) -> None:
    ways = {"accuracy": "max", "mse": "min", "f1": "max"}
    for name, value in (("a", 0.1), ("b", 0.9), ("c", 0.5)):
        over_seeds(tmp_path, f"activation={name}", [value, value + 0.01], measure, directions=ways)
    assert configurations.ranking_metric(collect([tmp_path]).runs) == f"{measure} best"
    assert standing(tmp_path, f"{measure} best") == (wins, [], True)
    assert (
        next(group.values["activation"] for group in configurations.ranked(grouped(tmp_path), f"{measure} best"))
        == wins
    )


def test_validation_ranks_and_test_scores_choose_nothing(tmp_path: Path) -> None:
    over_seeds(tmp_path, "model=rnn", [0.30, 0.31], scores={"mse/test": 0.1})
    over_seeds(tmp_path, "model=lstm", [0.10, 0.11], scores={"mse/test": 0.9})
    text = gradflow.report.write(tmp_path).read_text()
    assert "<b>lstm</b> has the best loss/val best: 0.105 ± 0.007 on shapes (n = 2); mse/test 0.9 ± 0" in text
    with (tmp_path / "report.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["model"] == "lstm"
    for path in tmp_path.rglob(runs.SUMMARY):
        runs.write_json(path, json.loads(path.read_text()) | {"best": {}, "final": {}})
    assert configurations.ranking_metric(collect([tmp_path]).runs) == ""
    text = gradflow.report.write(tmp_path).read_text()
    assert "Nothing is ranked" in text
    assert "★ a winner" not in text
    table = results.results(grouped(tmp_path))
    assert not any(cell.best for row in table.rows for cell in row.values())
    assert "p" not in table.rows[0]


def test_runs_that_monitored_another_metric_are_counted(tmp_path: Path) -> None:
    over_seeds(tmp_path, "model=rnn", [0.30, 0.31, 0.32])
    text = gradflow.report.write(tmp_path).read_text()
    assert "Ranked by loss/val best" in text
    assert "not ranked" not in text
    last = max(tmp_path.rglob(runs.SUMMARY))
    runs.write_json(last, json.loads(last.read_text()) | {"best": {"r2/val": 0.5}})
    text = " ".join(gradflow.report.write(tmp_path).read_text().split())
    assert "1 finished run is not ranked: what it monitored is another metric" in text


def test_a_loss_does_not_rank_runs_that_differ_in_their_loss(tmp_path: Path) -> None:
    for place, loss in enumerate(("mse", "cross_entropy")):
        make_run(tmp_path / str(place), f"model.loss={loss}", final={"loss/val": 1.0, "accuracy/val": 0.5 + place})
    assert configurations.ranking_metric(collect([tmp_path]).runs) == "accuracy/val"


@pytest.mark.parametrize(
    ("t", "freedom", "p"),  # of tables of Student's t
    [
        (12.706, 1, 0.05),
        (4.3027, 2, 0.05),
        (2.7764, 4, 0.05),
        (2.2281, 10, 0.05),
        (63.657, 1, 0.01),
        (1.9840, 100, 0.05),
    ],
)
def test_p_is_students(t: float, freedom: int, p: float) -> None:
    """Of one mean against another without a spread, Welch's degrees of freedom are its own."""
    n = freedom + 1
    one, other = configurations.Statistic(t, math.sqrt(n), n), configurations.Statistic(0.0, 0.0, 2)
    assert significance.p_value(one, other) == pytest.approx(p, rel=2e-3)


def test_p_is_welchs() -> None:
    """Standard errors² of 1/3 and 4/5 have (17/15)² / (1/18 + 4/25) = 5.96 degrees of freedom, where t is 2.4515."""
    gap = 2.4515 * math.sqrt(1 / 3 + 4 / 5)
    one, other = configurations.Statistic(0.0, 1.0, 3), configurations.Statistic(gap, 2.0, 5)
    assert [significance.p_value(one, other), significance.p_value(other, one)] == pytest.approx([0.05, 0.05], rel=2e-3)
    assert math.isnan(significance.p_value(one, configurations.statistic([1.0])))
    for scale in (1e-180, 1e200):  # nonsense of a foreign folder ends nothing
        p = significance.p_value(configurations.Statistic(0.0, scale, 3), configurations.Statistic(scale, scale, 3))
        assert math.isnan(p) or 0 <= p <= 1
    same = configurations.Statistic(1.0, 0.0, 3)
    assert (significance.p_value(same, same), significance.p_value(same, configurations.Statistic(2.0, 0.0, 3))) == (
        1.0,
        0.0,
    )


def test_noise_has_no_winner() -> None:
    """Of eight configurations that differ in their seeds alone, in fewer than 5 of 100 sweeps."""
    rng = np.random.default_rng(0)
    won = 0
    for _ in range(300):
        statistics = [configurations.statistic(rng.normal(size=3)) for _ in range(8)]
        first, *others = sorted(statistics, key=lambda one: one.mean)
        won += all(significance.p_value(first, other) < significance.LEVEL for other in others)
    assert won < 0.05 * 300


def test_no_winner_within_the_spread_nor_of_one_run(tmp_path: Path) -> None:
    over_seeds(tmp_path / "near", "model=rnn", [0.160, 0.164])
    over_seeds(tmp_path / "near", "model=lstm", [0.1610, 0.1646])
    over_seeds(tmp_path / "near", "model=gru", [0.9, 0.901])
    assert standing(tmp_path / "near") == ("rnn", ["lstm"], False)
    text = gradflow.report.write(tmp_path / "near").read_text()
    assert "has the best" not in text
    assert "No winner: the best mean is of <b>rnn</b>" in text
    assert "not separable from lstm (the rule: Welch&#39;s t-test on one value a seed: p &lt; 0.05" in text
    over_seeds(tmp_path / "one", "model=rnn", [0.1])
    over_seeds(tmp_path / "one", "model=lstm", [0.9])
    assert standing(tmp_path / "one") == ("rnn", ["lstm"], False)
    assert "one seed each tells no difference from chance" in gradflow.report.write(tmp_path / "one").read_text()


def test_a_seed_that_is_run_again_is_no_new_evidence(tmp_path: Path) -> None:
    for place in range(6):
        name = ("relu", "tanh")[place % 2]
        make_run(tmp_path / str(place), f"activation={name}", seed=0, best={"loss/val": place % 2 + place / 100})
    assert standing(tmp_path) == ("relu", ["tanh"], False)


def test_a_configuration_of_which_a_run_was_lost_is_not_the_best_and_in_the_way_of_one(tmp_path: Path) -> None:
    over_seeds(tmp_path, "activation=tanh", [0.10, 0.11])
    make_run(tmp_path / "lost", "activation=tanh", seed=2, status="failed")
    over_seeds(tmp_path, "activation=relu", [0.40, 0.41])
    over_seeds(tmp_path, "activation=elu", [0.50, 0.51])
    assert standing(tmp_path) == ("relu", ["tanh"], False)


def test_a_factor_that_changes_no_number_is_named_and_has_no_winner(tmp_path: Path) -> None:
    for place, (activation, seed) in enumerate((a, s) for a in ("relu", "tanh") for s in (0, 1)):
        score = {"best": {"loss/val": 0.5 + seed / 10}, "scores": {"mse/test": 0.5 + seed / 10}}
        make_run(tmp_path / str(place), f"activation={activation}", seed=seed, **score)
    assert configurations.keys_without_effect(grouped(tmp_path)) == ["activation"]
    text = gradflow.report.write(tmp_path).read_text()
    assert "activation has no effect: runs that differ in nothing else are identical in every number" in text
    assert "has the best" not in text
    make_run(tmp_path / "4", "activation=elu", seed=1, best={"loss/val": 0.6 + 1e-9})
    assert configurations.keys_without_effect(grouped(tmp_path)) == []


def test_the_trivial_answer_stands_in_every_table_where_it_is_known(tmp_path: Path) -> None:
    data = {"name": "adding", "trivial": {"loss/val": 0.1667, "mse/test": 0.1655}}
    over_seeds(tmp_path, "model=rnn", [0.160, 0.164], scores={"mse/test": 0.162}, data=data)
    over_seeds(tmp_path, "model=lstm", [0.161, 0.165], scores={"mse/test": 0.1628}, data=data)
    found = collect([tmp_path]).runs
    last = results.results(configurations.configurations(found)).rows[-1]
    assert [cell.text for cell in last.values() if cell.text] == ["trivial answer", "0.167", "0.1655"]
    assert "the trivial answer has loss/val 0.1667" in gradflow.report.write(tmp_path).read_text()
    assert "No better than" not in (tmp_path / "report.html").read_text()
    over_seeds(tmp_path, "model=gru", [0.166, 0.168], scores={"mse/test": 0.167}, data=data)
    assert (
        "No better than the trivial answer by loss/val best: <b>gru</b>." in gradflow.report.write(tmp_path).read_text()
    )
    one = {row["metric"].value: row["trivial answer, test"].value for row in results.metrics_of(found[0]).rows}
    assert one["mse"] == 0.1655


def test_numbers_of_a_column_have_the_same_decimals() -> None:
    def texts(*values: Any) -> list[str | None]:
        cells = [tables.Cell(*value) if isinstance(value, tuple) else tables.Cell(value) for value in values]
        return [row["x"].text for row in tables.Table([{"x": cell} for cell in cells]).rows]

    assert texts(0.25, 0.1234567, math.nan) == ["0.2500", "0.1235", ""]
    assert texts((1.792, None, False, 0.0152), (2.03, None, False, 0.08), 2.3) == [
        "1.792 ± 0.015",
        "2.030 ± 0.080",
        "2.300",
    ]
    assert texts((2.3034, None, False, 0.0002), (81062.9, None, False, 4021.9)) == ["2.3034 ± 0.0002", "81063 ± 4022"]
    assert texts(140, 12345) == ["140", "12,345"]
    assert texts(1e8, 2.0) == ["1.00e8", "2.00e0"]
    assert texts(0.5, 3e-7) == ["5.00e-1", "3.00e-7"]
    assert texts("relu", 0) == ["relu", "0"]
    assert [tables.signed(value) for value in (-math.inf, math.inf, -0.04, -3.06, math.nan)] == [
        "−∞",
        "+∞",
        "+0.0",
        "−3.1",
        "",
    ]
    assert [plain_data.normalised(value) for value in ("1e8", "100000000", "2500000.0", "1234567", "1e-5", "1e12")] == [
        "1e8", "1e8", "2.5e6", "1234567", "1e-5", "1e12"
    ]  # fmt: skip


def test_columns_of_zeros_are_left_to_csv(tmp_path: Path) -> None:
    for place in range(2):
        make_run(
            tmp_path / str(place), f"optimizer.lr=0.{place + 1}", status="failed" if place else "finished", decades=0
        )
    table = results.results(grouped(tmp_path))
    assert table.shown == ["#", "loss/val best", "optimizer.lr", "n", "failed", "accuracy/test", "loss/test",
                           "log10 gradient ratio start", "log10 gradient ratio end"]  # fmt: skip
    assert table.heads["optimizer.lr"] == "lr"
    assert table.runs == [["0"], ["1"]]
    for row in table.rows:
        row["failed"].value, row["failed"].text = 0, "0"
    assert "failed" not in table.shown
    gradflow.report.write(tmp_path)
    assert "failed" in (tmp_path / "report.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("gradient", "value"), [([0.0, 1.0], -math.inf), ([1.0, 0.0], math.inf), ([None, 0.0], math.nan)]
)
def test_a_ratio_is_infinite_where_a_norm_is_zero(tmp_path: Path, gradient: list[float], value: float) -> None:
    for seed in range(2):
        make_run(tmp_path / str(seed), seed=seed, decades=None)
        runs.append_json(tmp_path / str(seed) / runs.FLOW, {"step": 0, "gradient": gradient, "time": []})
    (group,) = grouped(tmp_path)
    assert group.runs[0].log_ratio("end") == pytest.approx(value, nan_ok=True)
    cell = results.results([group]).rows[0]["log10 gradient ratio end"]
    sign = {-math.inf: "−∞ ×2", math.inf: "+∞ ×2"}.get(value, "")
    assert (cell.text, cell.exact) == (sign, {"−": "-Infinity", "+": "Infinity", "": ""}[sign[:1]])


def test_runs_that_did_not_finish_stand_there_with_their_reason(tmp_path: Path) -> None:
    for place in range(5):
        reasons = ("finished", ""), ("failed", f"boom at 1e-{place}\nin line 3"), ("pruned", "worse than the median")
        status, reason = reasons[place % 3]
        make_run(tmp_path / str(place), status=status, error=reason)
    assert results.unfinished(collect([tmp_path]).runs) == [
        ("failed", "boom at 1e-1, and alike", ["1", "4"]), ("pruned", "worse than the median", ["2"])
    ]  # fmt: skip
    assert "<b>failed ×2</b> boom" in gradflow.report.write(tmp_path).read_text()


def test_links_lead_from_the_page_to_files_of_the_run(tmp_path: Path) -> None:
    make_run(tmp_path / "a b/0", wandb={"url": "https://wandb.ai/x/y"})
    make_run(tmp_path / "a b/1", wandb={"url": "javascript:alert(1)"})
    (tmp_path / "a b/1/wandb").mkdir()
    for name in ("job.log", "depth.png", "report-old.png"):
        (tmp_path / "a b/0" / name).touch()
    rows = results.all_runs(collect([tmp_path]).runs, [], tmp_path / "out").rows
    assert [*rows[0]["run"].links, *rows[0]["files"].links] == [
        ("a b/0", "../a%20b/0"), ("job.log", "../a%20b/0/job.log"), ("depth.png", "../a%20b/0/depth.png"),
        ("W&B", "https://wandb.ai/x/y"),
    ]  # fmt: skip
    assert rows[1]["files"].links == [("W&B files", "../a%20b/1/wandb")]


def test_the_page_of_a_search_names_what_the_search_chose(tmp_path: Path) -> None:
    for place, value in enumerate((0.5, 0.9, 0.7)):
        make_run(
            tmp_path / str(place),
            f"optimizer.lr=0.{place}",
            best={"accuracy/val": value},
            scores={"accuracy/test": 1 - value},
        )
    words = json.loads((tmp_path / "1" / runs.SUMMARY).read_text())["overrides"]
    result = {"direction": "maximize", "trials": {"complete": 3}, "importance": {}}
    result["best"] = {"value": 0.9, "trial": 1, "overrides": words, "folder": "/elsewhere/s/1"}
    (tmp_path / runs.RESULTS).write_text(json.dumps(result))
    text = gradflow.report.write(tmp_path).read_text()
    chosen = "trial 1, <b>lr=0.1</b>: the highest accuracy/val best of 3 complete trials, 0.9; accuracy/test 0.1"
    assert f"The search chose {chosen}" in text
    assert "No winner" not in text
    with (tmp_path / "report.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["optimizer.lr"] == "0.1"


# --- the page ----------------------------------------------------------------------------------------------------


def test_csv_is_the_table(swept: Path) -> None:
    with swept.with_name("report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shown = Reader(swept.read_text()).rows[1:]
    names = [
        "#",
        "loss/val best",
        "activation",
        "optimizer",
        "p",
        "n",
        "accuracy/test",
        "loss/test",
        "log10 gradient ratio start",
        "log10 gradient ratio end",
    ]
    assert [[row[name] for name in names] for row in rows] == shown
    assert rows[0]["activation"] == "relu"
    own = [run.scores["accuracy/test"] for run in collect([swept.parent]).runs[9:]]
    assert float(rows[0]["accuracy/test sd"]) == pytest.approx(np.std(own, ddof=1))
    assert rows[-1]["verdict start"] == "FAIL 3"


def test_nothing_from_a_run_folder_becomes_markup(tmp_path: Path) -> None:
    bad = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    name = "<script>alert(0)<script>"
    for place, words in enumerate((f"activation={bad}", "activation=$\\frac{")):
        make_run(
            tmp_path / name / str(place), words, status=bad if place else "finished", alarms={bad: bad}, error=bad,
            data={"name": bad, bad: bad}, versions={bad: bad}, device=bad, tested=bad, seed=place, choices={bad: bad},
            verdict={"start": {"word": bad, "reason": bad}, "end": {"word": "OK", "reason": bad}},
        )  # fmt: skip
    (tmp_path / name / bad.replace("/", "")).mkdir()
    (tmp_path / name / bad.replace("/", "") / runs.SUMMARY).write_text(bad)
    for written in (gradflow.report.write(tmp_path / name), gradflow.report.write(tmp_path / name / "0")):
        text = written.read_text()
        reader, scripts = Reader(text), page._scripts()
        assert reader.scripts[1:] == scripts  # behind the data
        (policy,) = [a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a]
        assert policy is not None
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        assert policy.partition("script-src ")[2].split() == [f"'sha256-{one}'" for one in hashes]
        assert not {tag for tag, _ in reader.tags} & {"img", "iframe", "object", "link", "base", "form", "svg"}
        assert not [key for _, attributes in reader.tags for key in attributes if key.startswith("on")]
        assert all(re.match(r"[\w./%-]+$", a["href"] or "") for tag, a in reader.tags if tag == "a")
        assert json.loads(reader.scripts[0])["runs"][0]["status"]


def test_a_wheel_has_the_templates() -> None:
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["gradflow.report"]
    package = Path(gradflow.report.__file__).parent
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others == set(package.glob(pattern)) != set()


def test_the_page_asks_nobody_for_anything(swept: Path) -> None:
    text = swept.read_text()
    plotly = page._scripts()[0]
    assert len(plotly) > 1e6
    own = text.replace(plotly, "").replace("http://www.w3.org/2000/svg", "")  # a namespace, which nobody asks for
    assert not re.findall(r"(?:https?:)?//[a-z]", own)
    assert not [a for _, a in Reader(text).tags if a.get("src")]
    assert "python src/train.py -m seed=0,1,2" in text


def test_the_page_is_the_same_each_time_and_writes_no_pictures(tmp_path: Path) -> None:
    (with_tables(make_run(tmp_path)) / runs.METRICS).unlink()
    written = gradflow.report.write(tmp_path)
    before = written.read_bytes()
    assert gradflow.report.write(tmp_path).read_bytes() == before
    assert not [*tmp_path.glob("*.png")]


def test_a_real_run_gets_its_page(trained: Callable[..., Path], command: Callable[..., None], capsys: Any) -> None:
    run = trained("data=shapes", "data.size=16", "model.depth=4", "activation=sigmoid", "trainer.max_epochs=1",
                  "trainer.limit_train_batches=0.1", "callbacks.progress=null", "logger=none")  # fmt: skip
    capsys.readouterr()
    command(run)
    assert capsys.readouterr().out == f"report {(run / 'report.html').relative_to(Path.cwd())}\n"
    text = (run / "report.html").read_text()
    words = ("verdict at the start", "accuracy", "model.depth", "activation=sigmoid", "shapes", "Metrics")
    assert [word for word in words if word not in text] == []
    (own,) = json.loads(Reader(text).scripts[0])["runs"]
    assert len(own["tables"]["gradients"]["columns"]) == 5  # four blocks and the head
    assert own["curves"]["loss/val"][1] == [pytest.approx(own["scores"]["loss/val"], rel=1e-4)]


def test_two_runs_are_compared_by_what_differs_between_them(tmp_path: Path, command: Callable[..., None]) -> None:
    make_run(tmp_path / "a", "activation=relu", scores={"accuracy/test": 0.9, "loss/test": 0.4})
    make_run(tmp_path / "b", "activation=sigmoid", "optimizer.lr=0.1", seed=1, directions={"accuracy": "min"})
    command("a", "b", "--out", "both")
    text = (tmp_path / "both/report.html").read_text()
    assert "<h1>a vs b</h1>" in text
    sweep = [make_run(tmp_path / "sweep" / name) for name in "04"]
    assert [page._title(collect(own)) for own in (sweep[:1], sweep)] == ["Run 0", "Run 0 vs run 4"]
    data = json.loads(Reader(text).scripts[0])
    assert data["settings"] == {"activation": ["relu", "sigmoid"], "seed": ["0", "1"]}
    assert data["directions"] == {"loss": "min", "accuracy": None}  # they contradict each other
    assert [run["scores"]["accuracy/test"] for run in data["runs"]] == [0.9, 0.5]


def test_where_the_page_goes(tmp_path: Path, command: Callable[..., None]) -> None:
    make_run(tmp_path / "a/0")
    make_run(tmp_path / "b/0", seed=1)
    command("a")
    command("a", "b")
    command("a", "b")
    command("a", "b", "--out", "c/d")
    places = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("report.html"))
    assert [re.sub(r"\d{4}-\d\d-\d\d", "DATE", place) for place in places] == [
        "a",
        "c/d",
        "report-DATE",
        "report-DATE-2",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: folders"),
        (["nowhere"], "nowhere: no such folder"),
        (["empty"], "empty: no run folder below it"),
        (["run", "--out", "file"], "file: can't be written to"),
        pytest.param(
            ["run", "--out", "/proc/x"],
            "/proc/x: can't be written to",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="of Linux"),
        ),
        (["\x1b[31mred"], r"\x1b[31mred: no such folder"),
        (["run", "--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_invalid_input_prints_one_line_and_exits_with_status_2(
    tmp_path: Path, command: Callable[..., None], capsys: Any, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    make_run(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_it_starts_at_once_and_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "0")
    ask = (
        "import sys, runpy\nsys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'lightning', 'wandb', 'pandas', 'matplotlib.pyplot')"
        " if name in sys.modules])"
    )

    def loaded(*words: str) -> str:
        done = subprocess.run([sys.executable, "-c", ask, SOURCE, *words], capture_output=True, text=True, check=True,
                              env={"PYTHONPATH": str(SOURCE.parent), "PATH": ""})  # fmt: skip
        return done.stdout.splitlines()[-1]

    assert loaded(str(tmp_path)) == "[]"

    def seconds() -> float:
        """Return what the processor spends on it, however busy others keep it."""
        start = os.times()
        loaded("nowhere")
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system

    assert min(seconds() for _ in range(2)) < 1


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [(1e-7, "10⁻⁷"), (0.01, "0.01"), (1e12, "10¹²"), (0.3, "0.3"), (0, "0")])
def test_powers_of_ten_are_written_plainly(value: float, text: str) -> None:
    assert theme.power_of_ten(value) == text


# --- as a user ---------------------------------------------------------------------------------------------------

# The peak of getrusage would be that of the tests, from which the process is forked, where that is larger.
MEASURED = """
import re, sys, time
start = time.perf_counter()
sys.argv = sys.argv[1:]
import report
report.main()
peak = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
print(time.perf_counter() - start, int(peak[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_500_runs_of_10_000_steps_take_less_than_20_seconds_a_gibibyte_and_15_megabytes(tmp_path: Path) -> None:
    names = [
        "step",
        "loss/train",
        "lr",
        "grad/norm",
        "grad/clip_coef",
        "update/ratio_median",
        "update/ratio_max",
        "loss/val",
    ]
    table = [",".join(names)]
    for step in range(10_000):
        table.append(f"{step},{2.3 / (1 + step / 500):.5g},0.01,{1 + step % 7},1.0,0.00{step % 9},0.01,")
        table.extend([f"{step},,,,,,,{2.4 / (1 + step / 500):.5g}"] if step % 500 == 499 else [])
    for place in range(500):
        words = [
            f"activation=a{place % 5}",
            f"optimizer.lr={10.0 ** -(place // 5 % 5)}",
            f"model.depth={place // 25 % 4}",
        ]
        scores = {"accuracy/test": (place * 37 % 500) / 500, "loss/test": 1.0}
        folder = make_run(tmp_path / str(place), *words, seed=place // 100, scores=scores)
        with_tables(folder, layers=40, steps=400).joinpath(runs.METRICS).write_text("\n".join(table) + "\n")
    ran = subprocess.run([sys.executable, "-c", MEASURED, "report.py", tmp_path], capture_output=True, text=True,
                         check=True, cwd=SOURCE.parent)  # fmt: skip
    seconds, gibibytes = map(float, ran.stdout.split()[-2:])
    print(ran.stdout)
    assert seconds < 20
    assert gibibytes < 1
    assert (tmp_path / "report.html").stat().st_size < 15e6  # a third of it plotly


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        gradflow.report.write(tmp_path / "nowhere")


# --- runs that failed ---------------------------------------------------------------------------------------------


def write_jobs(top: Path, *lines: str) -> None:
    """The table of a sweep's jobs, and what marks its folder."""
    header = "number,overrides,state,objective,seconds,folder,error"
    (top / runs.JOBS).write_text("\n".join([header, *lines]) + "\n")
    (top / "multirun.yaml").write_text("hydra: {job: {name: train}, overrides: {task: [], hydra: []}}\n")


def test_failed_jobs_count_with_their_choices_and_their_error(tmp_path: Path) -> None:
    """One failed in its training, one before its summary, one left no folder at all, one was killed."""
    for seed in (0, 1):
        make_run(tmp_path / str(seed), "activation=relu", seed=seed)
    make_run(
        tmp_path / "2", "activation=tanh", status="failed", error="RuntimeError: boom", scores={}, best={}, final={}
    )
    make_run(tmp_path / "3", "activation=elu").joinpath(runs.SUMMARY).unlink()
    choices = "hydra: {job: {name: train}, runtime: {choices: {model: cnn, optimizer: sgd, hydra/launcher: local}}}"
    (tmp_path / "3/.hydra/hydra.yaml").write_text(choices)
    make_run(tmp_path / "5", "activation=selu", status="running", scores={}, best={}, final={})
    write_jobs(
        tmp_path,
        "0,activation=relu seed=0,finished,1.2,3.0,0,",
        "2,activation=tanh seed=0,failed,null,3.0,2,RuntimeError: boom",
        "3,activation=elu seed=0,failed,null,1.0,3,FileNotFoundError: no images",
        "4,activation=gelu seed=4,failed,null,0.1,4,ended by SIGKILL",
        "5,activation=selu seed=0,interrupted,null,0.1,5,ended by SIGTERM",
    )
    found = collect([tmp_path])
    assert found.ignored == {}
    by_name = {
        run.name: (run.value("activation"), run.seed, run.status, run.summary.get("error")) for run in found.runs[2:]
    }
    assert by_name == {
        "2": ("tanh", "0", "failed", "RuntimeError: boom"),
        "3": ("elu", "0", "failed", "FileNotFoundError: no images"),
        "4": ("gelu", "4", "failed", "ended by SIGKILL"),
        "5": ("selu", "0", "interrupted", "ended by SIGTERM"),
    }
    assert found.runs[3].choices == {"model": "cnn", "optimizer": "sgd"}
    text = gradflow.report.write(tmp_path).read_text()
    assert "FileNotFoundError: no images" in text
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = {row["activation"]: row for row in csv.DictReader(file)}
    assert {name: (row["n"], row["failed"]) for name, row in rows.items()} == {
        "relu": ("2", "0"), "tanh": ("0", "1"), "elu": ("0", "1"), "gelu": ("0", "1"), "selu": ("0", "0"),
    }  # fmt: skip


def test_a_factor_is_one_though_all_but_one_of_its_values_failed(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "optimizer=adam")
    for place, option in enumerate(("sgd", "foo"), 1):
        make_run(tmp_path / str(place), f"optimizer={option}").joinpath(runs.SUMMARY).unlink()
    (tmp_path / "multirun.yaml").touch()  # of hydra/launcher=basic, which keeps no table
    make_run(tmp_path / "alone/run", "optimizer=adam").joinpath(runs.SUMMARY).unlink()
    found = collect([tmp_path]).runs
    assert [run.status for run in found] == ["finished", "failed", "failed", "never started"]
    assert [group.values for group in configurations.configurations(found)] == [
        {"optimizer": "adam"}, {"optimizer": "sgd"}, {"optimizer": "foo"},
    ]  # fmt: skip


def test_a_failure_that_was_run_again_is_named_and_counts_no_more(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "activation=relu", status="failed", scores={}, best={}, final={})
    make_run(tmp_path / "1", "activation=relu")
    write_jobs(
        tmp_path, "0,activation=relu seed=0,failed,null,3.0,0,boom", "1,activation=relu seed=0,finished,1.2,3.0,1,"
    )
    found = collect([tmp_path])
    assert [run.status for run in found.runs] == ["finished"]
    assert found.ignored == {"0": "failed, and was run again: 1"}


def test_a_damaged_table_of_jobs_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "s/0")
    write_jobs(tmp_path / "s", "0,a,b")
    found = collect([tmp_path])
    assert len(found.runs) == 1
    assert "line 2 is damaged" in next(iter(found.ignored.values()))
