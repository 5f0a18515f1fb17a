"""A page that follows runs while they go on, and ends with the last of them; no test waits."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_report import make_run

import report
from gradflow import runs
from gradflow.report import watch as module
from gradflow.report.collect import collect
from gradflow.report.page import write_page
from gradflow.report.run import read_run
from gradflow.report.watch import EVERY, SILENCE, watch
from gradflow.runs import locks
from gradflow.runs.errors import UserError
from gradflow.runs.sweep_jobs import COLUMNS

GRID = ["model=mlp", "seed=range(3)", "activation=relu,tanh", "optimizer.lr=0.1"]


def going_on(folder: Path, steps: int = 0, **more: object) -> Path:
    """A run as it is while it trains: no score yet, and rows so far."""
    make_run(folder, status="running", scores={}, best={}, final={}, **more)
    return log(folder, steps)


def log(folder: Path, steps: int) -> Path:
    rows = [f"{step},{1 / (step + 1)}" for step in range(steps)]
    (folder / runs.METRICS).write_text("\n".join(["step,loss/train", *rows]) + "\n")
    return folder


def finish(folder: Path) -> None:
    facts = json.loads((folder / runs.SUMMARY).read_text())
    runs.write_json(folder / runs.SUMMARY, facts | {"status": "finished", "test": {"loss/test": 0.5}})


def sweep(folder: Path, states: list[str], overrides: list[str] = GRID, **sweeper: object) -> Path:
    folder.mkdir(exist_ok=True)
    own = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"} | sweeper
    content = {"job": {"name": "train"}, "overrides": {"task": overrides, "hydra": []}, "sweeper": own}
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": content}))
    with (folder / runs.JOBS).open("w", newline="") as file:
        rows = [[n, f"seed={n}", state, "null", "0.0", str(n), ""] for n, state in enumerate(states)]
        csv.writer(file).writerows([COLUMNS, *rows])
    return folder


def pauses(*steps: Callable[[], object]) -> Callable[[float], None]:
    """What happens while `watch` waits; it is not to wait once more."""
    todo = iter(steps)

    def pause(seconds: float) -> None:
        assert seconds == EVERY
        next(todo)()

    return pause


def refreshes(page: Path) -> list[str]:
    return re.findall(r'<meta name="refresh" content="(\d+)">', page.read_text())


@pytest.fixture
def locked() -> Iterator[Callable[[Path], Callable[[], None]]]:
    """The lock of a folder, as its process has it; how it is released, at last with the test."""
    taken = []

    def take(folder: Path) -> Callable[[], None]:
        taken.append(locks.acquire(folder))
        return taken[-1].release

    yield take
    for lock in taken:
        lock.release()


def test_a_run_is_followed_until_it_ends(tmp_path, locked):
    run = going_on(tmp_path / "run", 3, planned_steps=700)
    release, seen = locked(run), []

    def look(steps: int) -> None:
        seen.append(
            (re.findall(r"running, (step [\d,/]+)", (run / "report.html").read_text()), refreshes(run / "report.html"))
        )
        log(run, steps)

    def end() -> None:
        look(411)
        finish(run)
        release()

    page = watch([run], run, pauses(lambda: look(410), lambda: look(410), end))
    assert seen == [(["step 3/700"], ["5"]), *[(["step 410/700"], ["5"])] * 2]
    assert refreshes(page) == []
    assert "running, step" not in page.read_text()


def test_the_page_is_made_anew_only_where_something_was_written(tmp_path, locked, monkeypatch):
    run = going_on(tmp_path / "0", 3)
    make_run(tmp_path / "1", seed=1)
    release, made = locked(run), []
    monkeypatch.setattr(module, "write_page", lambda found, out, refresh=None: made.append((len(found.runs), refresh)))
    nothing = lambda: None  # noqa: E731
    watch([tmp_path], tmp_path, pauses(nothing, nothing, lambda: log(run, 4), nothing, release))
    assert made == [(2, EVERY), (2, EVERY), (2, None)]


def test_a_run_whose_process_was_killed_is_interrupted(tmp_path, locked):
    run = going_on(tmp_path / "run", 3)
    locked(run)()
    page = watch([run], run, pauses())
    assert "interrupted: its process ended without a word" in page.read_text()
    (run / locks.LOCK).write_text("1 another-machine\n")
    assert collect([run]).runs[0].status == "running"


@pytest.mark.parametrize("lock", [None, "1 another-machine\n"])
def test_where_the_lock_says_nothing_silence_ends_it(tmp_path, lock, monkeypatch):
    run = going_on(tmp_path / "run", 3)
    if lock:
        (run / locks.LOCK).write_text(lock)
    later = time.time() + SILENCE
    monkeypatch.setattr(module.time, "time", lambda: later - 5)
    page = watch([run], run, pauses(lambda: monkeypatch.setattr(module.time, "time", lambda: later + 5)))
    assert refreshes(page) == []
    assert "running, step 3" in page.read_text()


def test_a_sweep_is_followed_between_its_jobs(tmp_path, locked):
    top, counted = sweep(tmp_path / "sweep", []), []
    release = locked(top)

    def count(*states: str) -> None:
        counted.append(re.findall(r"<b>(\d)</b>(running|finished)", (top / "report.html").read_text()))
        sweep(top, list(states))

    def first() -> None:
        count("finished")
        make_run(top / "0")

    def second() -> None:
        count("finished", "running")
        locked(going_on(top / "1", 3, seed=1))

    page = watch(
        [top], top, pauses(first, second, lambda: (count("finished", "running"), finish(top / "1"), release()))
    )
    assert sorted(counted[2]) == [("1", "finished"), ("1", "running")]
    assert re.findall(r"<b>(\d)</b>(running|finished)", page.read_text()) == [("2", "finished")]


def test_ctrl_c_leaves_a_last_page(tmp_path, locked, monkeypatch, capsys):
    run = going_on(tmp_path / "run", 3)
    locked(run)

    def interrupt(seconds: float) -> None:
        log(run, 8)
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    monkeypatch.setattr(watch, "__defaults__", (interrupt,))
    monkeypatch.setattr(sys, "argv", ["report.py", str(run), "--watch"])
    monkeypatch.chdir(tmp_path)
    report.main()
    said = capsys.readouterr()
    assert said.out == f"report {os.path.join('run', 'report.html')}\n"
    assert said.err == f"watching {os.path.join('run', 'report.html')} (Ctrl-C ends it)\n"
    assert refreshes(run / "report.html") == []
    assert "running, step 8" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["a", "b"], "--watch: several folders need --out"),
        (["a"], "a: no run folder below"),
        (["c"], "c: no such folder"),
    ],
)
def test_what_can_not_be_watched_is_one_line(tmp_path, monkeypatch, capsys, words, line):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", *words, "--watch"])
    with pytest.raises(SystemExit, match="2"):
        report.main()
    assert line in capsys.readouterr().err


def test_asking_for_a_lock_changes_nothing(tmp_path, locked):
    assert locks.held(tmp_path) is None
    release = locked(tmp_path)
    before = (tmp_path / locks.LOCK).read_text()
    assert before.split()[0] == str(os.getpid())
    assert locks.held(tmp_path) is True
    release()
    assert locks.held(tmp_path) is False
    assert (tmp_path / locks.LOCK).read_text() == before
    locked(tmp_path)


def test_a_torn_table_has_the_step_of_its_last_whole_row(tmp_path):
    run = going_on(tmp_path / "run", 12)
    with (run / runs.METRICS).open("a") as file:
        file.write("9")
    assert read_run(run, "run").progress == "step 12"
    (run / runs.METRICS).unlink()
    assert read_run(run, "run").progress == "step 0"
    with pytest.raises(UserError, match="no such folder"):
        watch([run / "x"], run, pauses())


@pytest.mark.slow
def test_an_open_page_follows_and_keeps_what_is_chosen(tmp_path):
    chromium = pytest.importorskip("browser")
    if None in (chromium.CHROMIUM, chromium.DRIVER):
        pytest.skip(chromium.MISSING)
    for place in range(20):
        going_on(tmp_path / str(place), 3, seed=place)
    page = write_page(collect([tmp_path]), tmp_path, refresh=1)
    state = "return [location.hash, Math.round(scrollY), document.body.textContent.includes('step 8')]"
    with chromium.browser(tmp_path) as window:
        window.open(page, address="#filter=seed", height=400)
        window.run("window.before = true; scrollTo(0, 300)")
        for place in range(20):
            log(tmp_path / str(place), 8)
        write_page(collect([tmp_path]), tmp_path)  # the last one
        deadline = time.monotonic() + 30
        while window.run("return window.before || document.readyState !== 'complete'"):
            assert time.monotonic() < deadline
        assert window.run(state) == ["#filter=seed", 300, True]
        assert window.run("return document.querySelector('meta[name=refresh]')") is None
        assert window.complaints() == []
