"""The benches measure what they say, and the pages say what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "scripts" / "bench"
sys.path.append(str(BENCH))

import check  # noqa: E402
import page  # noqa: E402

COMMITTED = json.loads(check.COMMITTED.read_text(encoding="utf-8"))


def figures(unit: str = "ms a step", ratio: float = 1.2, gpu: str | None = None, who: str = check.OURS) -> dict:
    rows = {"plain loop": {"ratio": 1.0}, who: {"ratio": ratio}}
    return {"machine": {"gpu": gpu}, "comparisons": {"step": {"unit": unit, "rows": rows}}}


@pytest.mark.parametrize(
    ("unit", "ratio", "status"),
    [
        ("ms a step", 1.49, 0),
        ("ms a step", 1.51, 1),
        ("ms a step", 0.5, 0),
        ("ms a step", float("nan"), 1),
        ("images/s", 0.97, 0),
        ("images/s", 0.95, 1),
        ("images/s", 9.0, 0),
        ("% of time", 0.95, 1),
    ],
)
def test_a_ratio_that_is_worse_by_more_than_the_margin_fails(unit, ratio, status, tmp_path, monkeypatch, capsys):
    files = [tmp_path / "new.json", tmp_path / "old.json"]
    for file, value in zip(files, (ratio, 1.2), strict=True):
        file.write_text(json.dumps(figures(unit, value)))
    monkeypatch.setattr(sys, "argv", ["check.py", str(files[0]), "--against", str(files[1]), "--margin", "0.25"])
    assert check.main() == status
    expected = (
        f"step, {check.OURS}: {ratio:g} × plain loop, was 1.2 ×" if status else "no ratio is worse by more than 25%"
    )
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize("new", [figures(gpu="a GPU"), figures(who="DataLoader")])
def test_what_can_not_be_compared_is_no_success(new, tmp_path):
    file = tmp_path / "new.json"
    file.write_text(json.dumps(new))
    for path in (file, tmp_path / "missing.json"):
        done = subprocess.run([sys.executable, BENCH / "check.py", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")


def test_only_our_own_ratios_are_judged():
    assert check.worse(figures(ratio=1.2), figures(ratio=1.2), 0.0) == []
    both = figures(ratio=1.2)
    both["comparisons"]["step"]["rows"]["Lightning"] = {"ratio": 9.0}
    old = figures(ratio=1.2)
    old["comparisons"]["step"]["rows"]["Lightning"] = {"ratio": 1.0}
    assert check.worse(both, old, 0.1) == []


def test_the_pages_say_what_was_measured():
    pages = list(page.pages())
    assert ROOT / "docs/performance.md" in pages
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert page.filled(text, COMMITTED) == text, f"{path.name}: python scripts/bench --only --write"
    shown = {name for path in pages for _, names, _ in page._MARKED.findall(path.read_text()) for name in names.split()}
    assert set(COMMITTED["comparisons"]) <= shown


def test_every_goal_is_of_something_that_is_measured():
    for goal in yaml.safe_load((BENCH / "goals.yaml").read_text()):
        rows = COMMITTED["comparisons"][goal["comparison"]]["rows"]
        assert {goal[key] for key in ("over", "bound") if key in goal} <= set(rows)
        assert goal.get("of", check.OURS).startswith(check.OURS)


def test_headlines_say_how_many_times_as_fast_ours_is():
    rows = {name: {"values": [value]} for name, value in ((check.OURS, 8.0), ("theirs", 4.0))}
    facts = {
        "comparisons": {name: {"unit": unit, "rows": {}} for name, unit in (("whole_run", "s"), ("sweep", "jobs/h"))}
    }
    for name, over, _ in page._HEADLINE[1:]:
        facts["comparisons"][name]["rows"] = {check.OURS: rows[check.OURS], over: rows["theirs"]}
    assert [line[:8] for line in page.headline(facts).splitlines()] == ["- not ru", "- 0.5 × ", "- 2 × th"]


def test_ratios_are_of_values_of_one_round():
    from timing import Comparison

    compared = Comparison("", "s", {"loop": [1.0, 10.0, 4.0], "ours": [8.0, 11.0, 4.4]})
    row = compared.facts()["rows"]["ours"]
    assert (row["median"], row["ratio"], row["low"], row["high"]) == (8.0, 1.1, 1.1, 8.0)
    assert page.ratio({"comparisons": {"x": compared.facts()}}, "x", "loop", "ours") == pytest.approx(1 / 1.1)


CONTENDERS = """
import sys, time
from functools import partial
sys.path.insert(0, sys.argv[1])
from timing import side_by_side

def sleeps(name, seconds, clock):
    time.sleep(0.2)  # to set up, which does not count
    clock.start()
    while True:
        time.sleep(seconds)
        with open(sys.argv[2], "a") as file:
            file.write(name)
        clock.tick()

def fails(clock):
    clock.start()
    raise KeyError("of a contender")

if __name__ == "__main__":
    found = side_by_side({"a": (partial(sleeps, "a", 0.004), 6), "b": (partial(sleeps, "b", 0.001), 4)}, 2, 1)
    print([len(found[name].seconds) for name in "ab"], min(found["a"].seconds) >= 0.004, max(found["b"].seconds) < 0.2)
    side_by_side({"fails": (fails, 3)}, 2, 1)
"""


def test_steps_are_taken_in_turns_and_a_failure_is_shown(tmp_path):
    program, steps = tmp_path / "contenders.py", tmp_path / "steps"
    program.write_text(CONTENDERS)
    done = subprocess.run([sys.executable, program, BENCH, steps], capture_output=True, text=True, check=False)
    assert done.stdout == "[6, 4] True True\n"
    assert steps.read_text() == "aabbaabbaa"
    assert (done.returncode, "KeyError: 'of a contender'" in done.stderr) == (1, True)


TALKS = """
import sys, time
print("a word")
time.sleep(0.3)
open("table.csv", "w").write("step\\n0\\n")
time.sleep(0.3)
sys.exit(int(sys.argv[1]))
"""


def test_a_command_is_timed_by_its_words_and_steps(tmp_path, monkeypatch):
    from timing import command

    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    found = command(["-c", TALKS, "0"], tmp_path, watch="table.csv")
    assert found.output.split() == ["a", "word"]
    assert found.first_word + 0.25 < found.first_step < found.seconds - 0.25
    assert 0 < found.cpu < found.seconds
    for status, watch in (("3", None), ("0", "another.csv")):
        with pytest.raises(RuntimeError, match="a word"):
            command(["-c", TALKS, status], tmp_path, watch)


class Enough(Exception):
    """Ends a contender."""


class Counter:
    """A clock that ends after three steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def start(self) -> None: ...

    def tick(self) -> None:
        self.seconds.append(1.0)
        if len(self.seconds) == 3:
            raise Enough


@pytest.mark.slow
def test_contenders_do_the_same_work(tmp_path, monkeypatch):
    """After three steps, the weights of the plain loop and of the bare Trainer are ours to the bit."""
    import steps

    weights = {}
    for name, way in {"ours": steps.ours, "plain": steps.plain, "bare": steps.bare}.items():
        for target, attribute in ((Trainer, "fit"), (sys, "argv")):
            monkeypatch.setattr(target, attribute, getattr(target, attribute))
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)

        def kept(clock, trainer, model, data, fit, name=name, way=way):
            weights[name] = model.net
            way(clock, trainer, model, data, fit)

        with pytest.raises(Enough):
            steps.run(("model=mlp", "data=shapes", "data.size=16", "trainer=cpu", "logger=none"), kept, Counter())
    for parameters in zip(*(net.parameters() for net in weights.values()), strict=True):
        assert all(torch.equal(parameters[0], other) for other in parameters[1:])
        assert not torch.equal(parameters[0], torch.zeros_like(parameters[0]))


@pytest.mark.slow
def test_the_whole_suite_runs_quickly(tmp_path):
    line = [sys.executable, BENCH, "--quick", "--device", "cpu", "--out", tmp_path]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "bench.json").read_text())
    expected = {name: set(one["rows"]) for name, one in COMMITTED["comparisons"].items() if name != "gpu_busy"}
    for name, rows in expected.items():
        quick = facts["comparisons"][name]["rows"]
        assert len(quick) == len(rows)
        assert all(row["median"] > 0 for row in quick.values())
    assert (tmp_path / "bench.png").stat().st_size > 10_000
    assert "step_mlp" in facts["comparisons"]
