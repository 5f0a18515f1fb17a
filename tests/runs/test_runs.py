"""The run folder: names that are never shared, files that are never half written."""

from __future__ import annotations

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradflow import runs
from gradflow.runs.errors import UserError

SRC = Path(runs.__file__).parents[2]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_table_grows_at_once(tmp_path):
    path = tmp_path / "metrics.csv"
    table = runs.Table(path)
    assert lines(path) == ["step"]
    table.add(0, {"loss": 2.5})
    assert lines(path) == ["step,loss", "0,2.5"]
    table.add(5, {"loss": 1.25})
    assert lines(path) == ["step,loss", "0,2.5", "5,1.25"]


def test_values_of_one_step_share_a_row(tmp_path):
    path = tmp_path / "metrics.csv"
    table = runs.Table(path, ("step", "a", "b"))
    table.add(1, {"a": 1.0})
    table.add(1, {"b": 0.123456789})
    table.add(1, {"a": 3.0})  # shorter than what stood there
    table.add(2, {"b": 4.0})
    assert lines(path) == ["step,a,b", "1,3.0,0.123456789", "2,,4.0"]
    table.add(2, {"b": 0.5})
    assert lines(path)[1:] == ["1,3.0,0.123456789", "2,,0.5"]


def test_a_shorter_row_leaves_nothing_of_the_longer(tmp_path):
    path = tmp_path / "metrics.csv"
    table = runs.Table(path, ("step", "a"))
    table.add(1, {"a": 0.12345678901234})
    table.add(1, {"a": 7})
    assert path.read_text().split() == ["step,a", "1,7"]


def test_new_columns_keep_the_old_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    table = runs.Table(path)
    table.add(0, {"loss/train": 1.5})
    table.add(1, {"loss/train": 1.0})
    table.add(1, {"loss/val": 3.0})  # widens in the middle of a row
    table.add(2, {"accuracy, top 1": 0.5})  # a name that must be quoted
    table.add(2, {"loss/train": 0.25})
    names, rows = runs.read_table(path)
    assert names == ["step", "loss/train", "loss/val", "accuracy, top 1"]
    nan = pytest.approx(math.nan, nan_ok=True)
    assert rows == [[0, 1.5, nan, nan], [1, 1.0, 3.0, nan], [2, 0.25, nan, 0.5]]


def test_many_tables_against_a_plain_dictionary(tmp_path):
    table, kept = runs.Table(tmp_path / "t.csv"), {}
    for number in range(120):
        step, name, value = number // 3, f"c{number * number % 7 + number // 40}", number / 7
        table.add(step, {name: value})
        kept.setdefault(step, {})[name] = value
        names, rows = runs.read_table(tmp_path / "t.csv")
        read = {int(row[0]): {n: v for n, v in zip(names[1:], row[1:], strict=True) if v == v} for row in rows}
        assert read == kept


@pytest.mark.parametrize(
    "value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -1e-7, math.inf, -math.inf, 123456789.123456789]
)
def test_floats_survive(tmp_path, value):
    runs.Table(tmp_path / "t.csv").add(2**40, {"x": value})
    assert runs.read_table(tmp_path / "t.csv") == (["step", "x"], [[2**40, value]])


def test_nan_survives(tmp_path):
    runs.Table(tmp_path / "t.csv").add(0, {"x": math.nan})
    assert math.isnan(runs.read_table(tmp_path / "t.csv")[1][0][1])


def test_a_table_is_gone_on_with(tmp_path):
    path = tmp_path / "t.csv"
    whole, first = runs.Table(tmp_path / "whole.csv", ("step", "x")), runs.Table(path, ("step", "x"))
    for table in (whole, first):
        table.add(0, {"x": 0.1, "late": 7.0})
        table.add(3, {"x": 0.3})
    for table in (whole, runs.Table(path, ("step", "x"))):
        table.add(3, {"late": 1 / 3})  # to the row that was there
        table.add(4, {"new": math.nan})
    assert path.read_text() == (tmp_path / "whole.csv").read_text()
    assert runs.Table(path).latest == whole.latest | {"new": pytest.approx(math.nan, nan_ok=True)}


def test_growing_files_are_cut_back(tmp_path):
    table = runs.Table(tmp_path / runs.METRICS)
    for step in range(3):
        table.add(step, {"x": step / 3})
    kept = runs.count_lines(tmp_path)
    assert kept == {runs.METRICS: 4}
    before = (tmp_path / runs.METRICS).read_text()
    table.add(3, {"x": 1.0})
    with (tmp_path / runs.METRICS).open("a") as file:
        file.write("4,0.")  # half a row of a process that was killed
    (tmp_path / runs.FLOW).write_text('{"step": 3}\n')
    (tmp_path / runs.CHECKPOINTS).mkdir()
    for draft in (".metrics.csv.17", "checkpoints/.last.ckpt.17"):
        (tmp_path / draft).touch()
    runs.truncate_tables(tmp_path, kept)
    assert {path.name for path in tmp_path.rglob("*")} == {runs.METRICS, runs.CHECKPOINTS}
    assert (tmp_path / runs.METRICS).read_text() == before
    assert not (tmp_path / runs.FLOW).exists()  # it had no line then


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    runs.write_json(path, {"a": [1, 2.5, None], "b": {"c": "é"}})
    assert runs.read_json(path) == {"a": [1, 2.5, None], "b": {"c": "é"}}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
    assert path.read_text().endswith("\n")


def test_json_that_cannot_be_written_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})

    def killed(*_arguments) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.write_json(path, {"a": 2})
    assert runs.read_json(path) == {"a": 1}


def test_json_is_never_seen_half(tmp_path):
    path, content = tmp_path / "summary.json", {"numbers": list(range(3000))}
    runs.write_json(path, content)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [runs.write_json(path, content) for _ in range(60)])
        while not writing.done():
            assert runs.read_json(path) == content
        writing.result()


def test_absent_json_is_empty(tmp_path):
    assert runs.read_json(tmp_path / "none.json") == {}


@pytest.fixture
def folder(tmp_path) -> Path:
    run = tmp_path / "runs" / "one"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("- model=mlp\n- model.depth=3\n- optimizer.lr=1e-3\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    return run


@pytest.mark.parametrize(
    "inside", ["", "checkpoints", "checkpoints/last.ckpt", ".hydra/overrides.yaml", "not/there/yet"]
)
def test_a_run_is_found_by_what_is_in_it(folder, inside):
    assert runs.find(str(folder / inside)) == folder
    assert runs.recorded_overrides(folder) == ["model=mlp", "model.depth=3", "optimizer.lr=1e-3"]


@pytest.mark.parametrize(
    ("where", "word"), [("", "."), ("checkpoints", "last.ckpt"), ("checkpoints", "../checkpoints"), ("..", "one")]
)
def test_a_run_is_found_from_within(folder, monkeypatch, where, word):
    monkeypatch.chdir(folder / where)
    assert runs.find(word).resolve() == folder


def test_overrides_of_older_runs_have_the_keys_of_today(folder):
    file = folder / ".hydra" / "overrides.yaml"
    file.write_text("- callbacks.last.every_n_steps=5\n- ~callbacks.finite\n- callbacks.best=null\n")
    today = ["callbacks.resume_checkpoint.every_n_steps=5", "~callbacks.nonfinite", "callbacks.best=null"]
    assert runs.recorded_overrides(folder) == today


def test_other_folders_are_not_runs(folder, tmp_path):
    for wrong in (folder.parent, tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match=f"{wrong}: not a run folder"):
            runs.find(str(wrong))


def test_jobs_of_a_sweep_share_a_folder(tmp_path):
    job = tmp_path / "sweep" / "3"
    job.mkdir(parents=True)
    assert runs.shared_folder(job) == job
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert runs.shared_folder(job) == tmp_path / "sweep"


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_that_finishes(tmp_path):
    with runs.Run(str(tmp_path), {"model": "mlp"}, writes=True) as run:
        opened = summary(tmp_path)
        assert opened == {"status": "running", "model": "mlp", "wall_seconds": opened["wall_seconds"]}
        time.sleep(0.05)
        run.note(loss=0.5, model="cnn")
        noted = summary(tmp_path)
        assert (noted["status"], noted["loss"], noted["model"]) == ("running", 0.5, "cnn")
        assert 0.05 <= noted["wall_seconds"] < 5
        assert opened["wall_seconds"] < 0.05
    closed = summary(tmp_path)
    assert closed["status"] == "finished"
    assert closed["loss"] == 0.5
    assert closed["wall_seconds"] >= noted["wall_seconds"]
    assert "error" not in closed


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("loss is nan"), "failed", "ValueError: loss is nan"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(1), "interrupted", None),
    ],
)
def test_a_run_that_ends_early(tmp_path, error, status, text):
    with pytest.raises(type(error)), runs.Run(str(tmp_path), {}, writes=True):
        raise error
    assert summary(tmp_path)["status"] == status
    assert summary(tmp_path).get("error") == text
    assert {entry.name for entry in tmp_path.iterdir()} == {"summary.json"}


def test_other_ranks_write_nothing(tmp_path):
    with runs.Run(str(tmp_path), {}, writes=False) as run:
        run.note(loss=1.0)
    assert run.facts["status"] == "finished"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("later", "total"), [(7.0, 107.0), (-7.0, 100.0)])
def test_the_time_of_a_killed_process_counts_up_to_its_checkpoint(tmp_path, later, total):
    runs.write_json(tmp_path / runs.SUMMARY, {"status": "running", "wall_seconds": 100.0})
    (tmp_path / runs.CHECKPOINTS).mkdir()
    (tmp_path / runs.LAST).touch()
    for name, moment in ((runs.SUMMARY, 1e9), (runs.LAST, 1e9 + later)):
        os.utime(tmp_path / name, (moment, moment))
    with runs.Run(str(tmp_path), {}, writes=True) as run:
        pass
    assert run.facts["wall_seconds"] == pytest.approx(total, abs=0.5)
    assert run.facts["resumed"] == 1


def test_tables_register_themselves_and_what_is_somebody_s_own_stays(tmp_path):
    """A table of a diagnostic that has begun since the checkpoint goes; another with steps, without a layout, stays."""
    for name in ("mine", "late", "copy"):
        runs.Table(tmp_path / f"{name}.csv", ["step", "a"]).add(0, {"a": 1.0})
    (tmp_path / "late.layout.json").write_text("{}")
    (tmp_path / "jobs.csv").write_text("job,state\n0,x\n1,y\n")
    assert runs.count_lines(tmp_path) == {"copy.csv": 2, "late.csv": 2, "mine.csv": 2}
    runs.Table(tmp_path / "mine.csv").add(1, {"a": 2.0})
    runs.truncate_tables(tmp_path, {"mine.csv": 2})
    assert runs.count_lines(tmp_path) == {"copy.csv": 2, "mine.csv": 2}
    assert len((tmp_path / "jobs.csv").read_text().splitlines()) == 3
