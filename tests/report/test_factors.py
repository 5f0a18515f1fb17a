"""Factors and searches: the importance of choices, and what the page draws of them in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser
from test_report import grouped, make_run, sweep

import gradflow.report
from gradflow import runs
from gradflow.report import effects
from gradflow.report.chart_data import chart_data
from gradflow.report.collect import collect
from gradflow.report.configurations import configurations

LR, DEPTH = ("0.0001", "0.01", "0.1", "0.001", "1", "0.03"), (2, 4, 6, 3, 5, 8)
LOSSES = (2.0, 1.0, 1.5, 0.5, 4.0, 3.0)  # of which the fifth run is pruned, and the sixth diverged


def searched(top: Path) -> Path:
    """A search over two numbers, which chose the fourth of its six runs."""
    for place, (lr, depth, loss) in enumerate(zip(LR, DEPTH, LOSSES, strict=True)):
        status = "pruned" if place == 4 else "finished"
        more: dict[str, Any] = {"final": {"loss/val": None}, "best": {}} if place == 5 else {"best": {"loss/val": loss}}
        words, data = (f"optimizer.lr={lr}", f"model.depth={depth}"), {"name": "shapes", "trivial": {"loss/val": 2.25}}
        run = make_run(top / str(place), *words, status=status, scores={"loss/test": loss}, data=data, **more)
        (run / runs.METRICS).write_text(f"step,loss/val\n0,{loss}\n1,{loss}\n")
    best = {"value": 0.5, "trial": 4, "overrides": json.loads((top / "3" / runs.SUMMARY).read_text())["overrides"]}
    best["folder"] = "/elsewhere/3"
    shares = {"model.depth": 0.75, "optimizer.lr": 0.25}
    content = {"direction": "minimize", "trials": {"complete": 4}, "best": best, "importance": shares}
    (top / runs.RESULTS).write_text(json.dumps(content))
    return top


def factorial(top: Path, noise: float = 0.0, interaction: float = 0.0) -> effects.Importance:
    """accuracy = 0.3 a + 0.1 b (+ interaction a b) over a, b, c = ±1 and two seeds."""
    for place in range(16):
        a, b, c, seed = (1 if place >> bit & 1 else -1 for bit in range(4))
        value = 0.3 * a + 0.1 * b + interaction * a * b + noise * seed
        words = f"activation={a}", f"optimizer={b}", f"model.depth={c}"
        make_run(top / str(place), *words, seed=max(seed, 0), scores={"accuracy/test": value})
    grouping = grouped(top)
    found = effects.importance(grouping, "accuracy/test")
    assert found is not None
    return found


def test_importance_of_a_factorial_is_known(tmp_path: Path) -> None:
    importance = factorial(tmp_path / "sum")
    assert importance.shares == pytest.approx({"activation": 0.9, "optimizer": 0.1, "model.depth": 0})
    assert next(iter(importance.shares)) == "activation"
    assert importance.chance == pytest.approx(dict.fromkeys(importance.shares, 1 / 15))
    assert (importance.seeds, importance.interactions) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    importance = factorial(tmp_path / "all", noise=0.1, interaction=0.3)
    whole = 0.09 + 0.01 + 0.09 + 0.01
    assert importance.shares == pytest.approx({"activation": 0.09 / whole, "optimizer": 0.01 / whole, "model.depth": 0})
    assert (importance.interactions, importance.seeds) == (pytest.approx(0.09 / whole), pytest.approx(0.01 / whole))


def test_importance_needs_three_factors_and_twelve_runs(tmp_path: Path) -> None:
    grouping = grouped(sweep(tmp_path))
    assert effects.importance(grouping, "accuracy/test") is None


# --- the data of the page ----------------------------------------------------------------------------------------


def charted(top: Path, metric: str) -> dict[str, Any]:
    found = collect([top])
    return chart_data(found.runs, configurations(found.runs), metric, found.searches)


def test_the_data_of_a_search_say_which_runs_it_made_and_which_it_chose(tmp_path: Path) -> None:
    searched(tmp_path / "search")
    make_run(tmp_path / "alone", "optimizer.lr=0.5", decades=-2.5)
    data = charted(tmp_path, "loss/val best")
    (search,) = data["searches"]
    assert [data["runs"][place]["name"] for place in search["runs"]] == [f"search/{number}" for number in range(6)]
    assert (data["runs"][search["best"]]["name"], search["trial"]) == ("search/3", 4)
    assert search["importance"] == {"model.depth": 0.75, "optimizer.lr": 0.25}
    assert data["importance"] is None  # of two factors
    assert data["runs"][0]["ratio"] == {"start": -2.5, "end": -2.5}


def test_a_run_of_another_sweep_is_not_what_a_search_chose(tmp_path: Path) -> None:
    searched(tmp_path)
    path = tmp_path / "3" / runs.SUMMARY
    runs.write_json(path, json.loads(path.read_text()) | {"overrides": ["optimizer.lr=7"]})
    assert charted(tmp_path, "loss/val best")["searches"][0]["best"] is None


def test_the_data_carry_importance_where_it_is_known(tmp_path: Path) -> None:
    importance = factorial(tmp_path)
    found = charted(tmp_path, "accuracy/test")["importance"]
    assert (found["runs"], next(iter(found["shares"]))) == (16, "activation")
    assert found["shares"] == importance.shares


# --- in a browser ------------------------------------------------------------------------------------------------


needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


SHOW = """
for (const section of document.querySelectorAll('#views section')) {
  section.scrollIntoView();
  await new Promise(done => setTimeout(done, 150));
}
const keys = ['name', 'type', 'x', 'y', 'z', 'text'];
const fields = trace => Object.fromEntries(keys.filter(key => key in trace).map(key => [key, trace[key]]));
const traces = name => [...document.querySelectorAll(`#${name} .js-plotly-plot`)].map(chart => chart.data.map(fields));
const hidden = [...document.querySelectorAll('#views section')].filter(one => one.hidden).map(one => one.id);
const shown = {hidden};
for (const name of ['importance', 'pairs', 'history', 'slices']) shown[name] = traces(name);
"""


@needs_browser
@pytest.mark.slow
def test_the_charts_of_a_search(seen: Browser, tmp_path: Path) -> None:
    seen.open(gradflow.report.write(searched(tmp_path)))
    shown = seen.run(SHOW + "return shown;")
    history = {trace["name"]: trace for trace in shown["history"][0]}
    assert (history["best so far"]["x"], history["best so far"]["y"]) == ([0, 1, 2, 3, 5], [2, 1, 1, 0.5, 0.5])
    assert (history["finished"]["x"], history["finished"]["y"]) == ([0, 1, 2], [2, 1, 1.5])
    assert (history["did not finish"]["x"], history["did not finish"]["y"]) == ([4], [4])  # pruned
    assert history["no number"]["x"] == [5]  # diverged
    assert (history["chosen by the search"]["x"], history["chosen by the search"]["y"]) == ([3], [0.5])
    assert shown["importance"][0][0]["x"] == [0.25, 0.75]
    depth, rate = ({trace["name"]: trace for trace in panel} for panel in shown["slices"])
    assert (rate["finished"]["x"], rate["chosen by the search"]["x"]) == ([0.0001, 0.01, 0.1], [0.001])
    assert (depth["did not finish"]["x"], depth["no number"]["x"]) == ([5], [8])
    lines = seen.run("""return document.querySelector('#parallel .js-plotly-plot').data.map(
        line => [line.text[0], line.y.filter(height => height !== null).length]);""")
    # those that did not finish first; what diverged has no number, so it ends before the axis of the metric
    assert [(text.split(",")[0], stops) for text, stops in lines] == [
        ("run 4", 3), ("run 5", 2), ("run 0", 3), ("run 2", 3), ("run 1", 3), ("run 3", 3),
    ]  # fmt: skip
    assert "The best: run 3, finished: lr=0.001 depth=3; loss/val best 0.5" in seen.run(
        "return document.querySelector('#parallel figcaption').textContent"
    )
    told = seen.run("const chart = document.querySelector('#parallel .js-plotly-plot');"
                    "Plotly.Fx.hover(chart, [{curveNumber: 5, pointNumber: 1}]);"
                    "return chart.querySelector('.hovertext').textContent;")  # fmt: skip
    assert told == "run 3, finished: lr=0.001 depth=3; loss/val best 0.5"
    caption = "document.querySelector('#history figcaption').textContent"
    assert seen.run(f"return {caption}") == "4 finished, 1 pruned, 1 diverged; ★ trial 4, which the search chose"
    chosen = "location.hash = 'filter=pruned'; await new Promise(later => setTimeout(later, 500));"
    assert seen.run(f"{chosen} return {caption}") == "1 pruned"
    seen.run("location.hash = ''; await new Promise(later => setTimeout(later, 500));")
    axes = "const {xaxis, annotations} = document.querySelector('#parallel .js-plotly-plot').layout;"
    names, depths = seen.run(
        f"{axes} return [xaxis.ticktext, annotations.filter(one => one.x === 0).map(one => one.text)];"
    )
    assert names == ["model.<br>depth", "optimizer.<br>lr", "loss/val <br>best"]
    assert depths == ["2", "3", "4", "5", "6", "8"]
    order = seen.run("return [...document.querySelectorAll('#views section')].map(one => one.id)")
    assert order[:7] == ["compare", "training", "importance", "history", "slices", "parallel", "pairs"]
    scales = "return [...document.querySelectorAll('#slices .js-plotly-plot')].map(chart => chart.layout.xaxis.type)"
    assert seen.run(scales) == ["linear", "log"]
    assert seen.complaints() == []


@needs_browser
@pytest.mark.slow
def test_ten_trials_of_two_numbers_are_a_map_between_its_points(seen: Browser, tmp_path: Path) -> None:
    for place in range(12):
        words, score = (f"optimizer.lr={10 ** (-place / 4)}", f"model.width={100 - place}"), {"loss/val": 1.0 + place}
        make_run(tmp_path / str(place), *words, status="pruned" if place == 11 else "finished", best=score)
    seen.open(gradflow.report.write(tmp_path))
    (surface, finished, pruned), _ = seen.run(SHOW + "return shown.pairs;")
    assert (surface["type"], len(surface["z"])) == ("heatmap", 11)  # one a trial that finished
    ends = (10**-2.5, 1)  # no importance: keys in their order
    assert (min(surface["y"]), max(surface["y"])) == pytest.approx(ends)
    assert (min(surface["x"]), max(surface["x"])) == (90, 100)
    assert (len(finished["x"]), len(pruned["x"])) == (11, 1)
    assert seen.complaints() == []


@needs_browser
@pytest.mark.slow
def test_the_matrix_of_a_grid(seen: Browser, tmp_path: Path) -> None:
    top = sweep(tmp_path)
    make_run(top / "12", "activation=elu", "optimizer=sgd", status="pruned")
    make_run(top / "13", "activation=<b>x", "optimizer=sgd", status="failed", scores={}, best={}, final={})
    seen.open(gradflow.report.write(top))
    shown = seen.run(SHOW + "return shown;")
    assert {"history", "slices", "parallel", "importance"} <= set(shown["hidden"])
    means, unfinished = shown["pairs"][0]
    found = {place: collect([top]).runs[place].scores["loss/val best"] for place in range(12)}
    cells = [np.mean([found[place] for place in range(first, first + 3)]) for first in (0, 3, 6, 9)]
    relu = [pytest.approx(cells[place], rel=1e-4) for place in (3, 2)]  # adam, sgd
    assert means["z"][1:3] == [[None, None], relu]
    sd = np.std([found[place] for place in (0, 1, 2)], ddof=1)
    assert means["text"][3][1] == f"{cells[0]:.3g}<br>±{sd:.2g}"
    assert unfinished["z"] == [[None, 0], [None, 0], [None, None], [None, None]]
    assert unfinished["text"][:2] == [["", "1 failed"], ["", "1 pruned"]]
    ticks = "return document.querySelector('#pairs .js-plotly-plot').layout.yaxis.ticktext"
    assert seen.run(ticks) == ["&lt;b>x", "elu", "relu", "sigmoid"]
    seen.run("const rows = document.querySelector('#pairs select'); rows.value = 'optimizer';"
             "rows.dispatchEvent(new Event('change'));")  # fmt: skip
    assert seen.run(ticks) == ["adam", "sgd"]
    assert seen.run("return location.hash") == "#down=optimizer"
    assert seen.complaints() == []
