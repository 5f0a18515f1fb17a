"""What a page shows of the gradient: the data that it carries, and what a browser draws from them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser

import gradflow.report
from gradflow import runs
from gradflow.diagnostics import verdict
from gradflow.plots.layout import OF_GRADIENTS, Layout
from gradflow.report.recorded import map_data

BINS = Layout({"layer": ["a", "b"], "log₁₀ |g|": ["-2", "-1", "0"]}, "sizes", "share of the entries")
MARKUP = "<b>x</b><a href='https://a.b'>"
LONG = "04.encoder.transformer_blocks.block4.self_attention.linear"


def write_table(run: Path, name: str, layout: Layout, rows: Mapping[int, list[float]]) -> None:
    layout.write(run / f"{name}.csv")
    lines = [",".join(map(str, [step, *row])) for step, row in rows.items()]
    (run / f"{name}.csv").write_text("\n".join([",".join(["step", *layout.columns]), *lines]) + "\n")


def make_run(run: Path, *overrides: str, loss: float = 1.0, status: str = "finished", scale: float = 1.0) -> Path:
    """Write a run of five layers and blocks whose gradient shrinks by 10 from one to the one before it."""
    layers = [*(f"{place:02}.block{place}" for place in range(4)), LONG]
    run.mkdir(parents=True)
    facts = {
        "status": status,
        "overrides": list(overrides),
        "seed": 0,
        "best": {"loss/val": loss},
        "final": {"loss/val": loss},
    }
    runs.write_json(run / runs.SUMMARY, facts | {"directions": {"loss": "min"}})
    (run / runs.OVERRIDES).parent.mkdir(exist_ok=True)
    (run / runs.OVERRIDES).write_text(json.dumps(list(overrides)))
    norms = [scale * 10.0 ** (place - 4) for place in range(5)]
    gradients = Layout({"layer": layers}, "gradient norm", OF_GRADIENTS.label, log=True)
    write_table(run, "gradients", gradients, {0: norms, 1: [0.0, *norms[1:]], 9: [math.nan, math.inf, *norms[2:]]})
    flat = Layout({"layer": [MARKUP, "b"]}, "noise", f"{MARKUP} of it", log=True)
    write_table(run, "flat", flat, {0: [1.0, 5.0], 9: [2.0, 4.0]})
    write_table(run, "gradient_histogram", BINS, {0: [0.1, 0.2, 0.7, 0.3, 0.3, 0.4], 9: [0, 0, 1, 0.5, 0.25, 0.25]})
    write_table(run, "sharpness", Layout({"quantity": ["largest", "trace"]}, "sharpness", "λ", "1/lr", log=True),
                {0: [2.0, 30.0], 9: [3.0, 40.0]})  # fmt: skip
    for step, rate in ((0, 0.1), (4, 0.5), (9, 1.0)):
        profile = [rate ** (4 - place) for place in range(5)]
        snapshot = {"step": step, "trunk": layers, "gradient": profile, "time": [0.5 ** (2 - t) for t in range(3)]}
        theory = {"theory": {"gradient": [0.1 ** (4 - place) for place in range(5)], "time": None}} if step == 0 else {}
        runs.append_json(run / runs.FLOW, snapshot | theory)
    return run


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


# --- what the page carries -------------------------------------------------------------------------------------------


def test_zero_nan_and_infinity_stay_apart(tmp_path: Path) -> None:
    (run,) = data_of(gradflow.report.write(make_run(tmp_path / "run")))["runs"]
    assert run["tables"]["gradients"]["rows"][1:] == [[0, 1e-3, 1e-2, 0.1, 1], [None, "inf", 1e-2, 0.1, 1]]
    assert run["tables"]["gradients"]["columns"][-1] == LONG
    assert run["tables"]["gradient_histogram"]["axes"] == [["a", "b"], ["-2", "-1", "0"]]
    assert (run["trunk"][0], run["places"]["gradient"]) == ("00.block0", [1, 2, 3, 4, 5])
    assert run["theory"] == {"gradient": [1e-4, 1e-3, 1e-2, 0.1, 1], "time": []}
    assert [one["step"] for one in run["snapshots"]] == [0, 4, 9]


def test_late_steps_are_not_rounded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_table(run, "sharpness", Layout({"quantity": ["x"]}, "t", "l"), {123_456: [1.234567], 123_457: [2.0]})
    (own,) = data_of(gradflow.report.write(run))["runs"]
    assert own["curves"]["sharpness/x"] == [[123_456, 123_457], [1.2346, 2]]


def test_what_no_picture_has_room_for_is_not_carried(tmp_path: Path) -> None:
    """A table of 1,000 layers keeps 120 of them at all steps, one of two axes all of its 1,000 cells at fewer steps."""
    rows, names = [[float(place)] * 1000 for place in range(400)], [str(place) for place in range(1000)]
    table = names, [float(step) for step in range(400)], rows
    deep = map_data(Layout({"layer": names}, "t", "l"), table, 400)
    assert (len(deep["rows"]), len(deep["columns"]), deep["width"], deep["thinned"]) == (400, 120, 1000, False)
    assert (deep["columns"][0], deep["columns"][-1]) == ("0", "999")
    wide = map_data(Layout({"layer": names[:20], "bin": names[:50]}, "t", "l"), table, 400)
    assert ([len(row) for row in wide["rows"]], wide["thinned"]) == ([1000] * 48, True)
    assert wide["steps"][::47] == [0, 399]
    run = make_run(tmp_path / "run")
    snapshots = [{"step": step, "gradient": [1.0] * 130, "time": [1.0] * 150} for step in range(500)]
    (run / runs.FLOW).write_text("\n".join(map(json.dumps, snapshots)))
    (own,) = data_of(gradflow.report.write(run))["runs"]
    assert [(len(own["places"][key]), own["places"][key][-1]) for key in ("gradient", "time")] == [
        (120, 130),
        (120, 150),
    ]
    assert len(own["snapshots"]) == 80_000 // 240
    assert {len(one["gradient"]) for one in own["snapshots"]} == {120}
    assert own["snapshots"][-1]["step"] == 499


def test_a_strangers_table_draws_dollars_as_they_are_and_no_more_columns_than_it_has(tmp_path: Path) -> None:
    """Two axes of 100,000 entries would be 10¹⁰ names."""
    run, many = make_run(tmp_path / "run"), [str(number) for number in range(100_000)]
    look = {"title": r"$\frac{x", "label": r"$\y_{", "unit": "$", "log": True, "shown": []}
    for name, axes in {"odd": {"layer": [r"$\frac{a"]}, "huge": {"down": many, "across": many}}.items():
        (run / f"{name}.csv").write_text("step,$\\frac{a\n0,1\n1,2\n")
        runs.write_json(run / f"{name}.layout.json", look | {"axes": axes})
    page = gradflow.report.write(tmp_path)
    data = data_of(page)
    assert "huge" not in data["layouts"] | data["runs"][0]["tables"]
    assert data["layouts"]["odd"] == {"title": r"$\frac{x", "scale": r"$\y_{ ($)", "log": True, "axes": ["layer"]}
    assert data["runs"][0]["tables"]["odd"]["columns"] == [r"$\frac{a"]
    (run / "odd.csv").unlink()
    assert "odd" not in data_of(gradflow.report.write(tmp_path))["layouts"]


# --- what a browser draws --------------------------------------------------------------------------------------------

in_a_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, Path]]:
    top = tmp_path_factory.mktemp("gradients")
    make_run(top / "one/run", MARKUP)
    for place in range(6):
        status, scale = ("diverged" if place == 0 else "finished"), (1e30 if place == 0 else 1.0)
        make_run(top / f"many/{place}", f"activation=a{place}{MARKUP}", loss=1.0 + place, status=status, scale=scale)
    for place in range(2):
        make_run(top / f"two/{place}", f"activation=a{place}")
    for name in ("one", "many", "two"):
        gradflow.report.write(top / name)
    with browser(top) as opened:
        yield opened, top


def shown(opened: Browser, page: Path, name: str, address: str = "") -> Any:
    """Open a page at a section; return the titles, traces and layouts of its charts."""
    opened.open(page, address=address)
    return drawn(opened, name)


def drawn(opened: Browser, name: str) -> Any:
    return opened.run(
        """const section = document.getElementById(arguments[0]);
        section.scrollIntoView();
        while (!section.querySelector(".js-plotly-plot")?.data) await new Promise(later => setTimeout(later, 20));
        return [...section.querySelectorAll(".js-plotly-plot")].map(({data, layout, previousSibling}) =>
          ({title: previousSibling.textContent, data, layout: JSON.parse(JSON.stringify(layout))}));""",
        name,
    )


def named(chart: Any, name: str) -> Any:
    return next(trace for trace in chart["data"] if trace.get("name") == name and trace.get("x") != [None])


@pytest.mark.slow
@in_a_browser
def test_the_profile_has_start_end_theory_and_the_step_of_the_slider(seen: tuple[Browser, Path]) -> None:
    opened, top = seen
    start, end = shown(opened, top / "one/report.html", "gradient-depth")
    assert start["title"] == "at the start, step 0: log₁₀ gradient ratio, first over last, −4.0"
    assert end["title"] == "at step 9: log₁₀ gradient ratio, first over last, 0.0"
    assert [trace["name"] for trace in start["data"]] == ["all runs", "all runs, theory"]
    assert [trace["y"] for trace in start["data"]] == [pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])] * 2
    assert [trace["y"] for trace in end["data"]] == [[1] * 5]
    assert start["data"][1]["line"]["dash"] == "dot"
    assert start["data"][0]["text"][4] == f"5, {LONG}: 1"
    edges = {round(math.log10(shape[key]), 6) for shape in start["layout"]["shapes"] for key in ("y0", "y1")}
    assert {-verdict.FAIL, -verdict.CAUTION, verdict.CAUTION} <= edges
    opened.run("""const slider = document.querySelector("#gradient-depth input[type=range]");
        slider.value = 1;
        for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind));""")
    middle = drawn(opened, "gradient-depth")[1]
    assert middle["data"][0]["y"] == pytest.approx([0.5**4, 0.5**3, 0.25, 0.5, 1])
    assert opened.run("return location.hash + document.querySelector('#gradient-depth output').textContent") == (
        "#probe-gradient=4step 4"
    )
    assert drawn(opened, "gradient-time")[0]["data"][0]["y"] == [0.25, 0.5, 1]
    assert opened.complaints() == []


@pytest.mark.slow
@in_a_browser
def test_zero_and_what_is_not_finite_have_colours_and_words_of_their_own(seen: tuple[Browser, Path]) -> None:
    opened, top = seen
    (chart,) = shown(opened, top / "one/report.html", "table-gradients")
    norms, zero, bad = [trace for trace in chart["data"] if trace.get("type") == "heatmap"]
    assert norms["x"] == [0, 0.5, 5, 9]
    assert norms["z"] == [[-4, None, None], [-3, -3, None], [-2] * 3, [-1] * 3, [0] * 3]
    assert (norms["zmin"], norms["zmax"]) == (-4, 0)
    marks = {one["name"]: [[cell == 1 for cell in row] for row in one["z"]] for one in (zero, bad)}
    assert marks["zero"][:2] == [[False, True, False], [False] * 3]
    assert marks["not finite"][:2] == [[False, False, True]] * 2
    assert len({zero["colorscale"][0][1], bad["colorscale"][0][1]}) == 2
    assert [zero["text"][0][1], bad["text"][0][2], bad["text"][1][2]] == [
        "00.block0, step 1: 0", "00.block0, step 9: not finite", "01.block1, step 9: not finite: ∞",
    ]  # fmt: skip
    legend = opened.run(
        "return [...document.querySelectorAll('#table-gradients .legendtext')].map(one => one.textContent)"
    )
    assert legend == ["zero", "not finite"]
    (flat,) = drawn(opened, "table-flat")
    assert [flat["data"][0]["zmin"], flat["data"][0]["zmax"]] == pytest.approx([math.log10(5) - 4, math.log10(5)])
    assert flat["data"][0]["text"][0][1] == f"{MARKUP.replace('<', '&lt;')}, step 9: 2"
    assert flat["layout"]["yaxis"]["ticktext"][0].startswith("&lt;b>x")
    assert opened.run("return document.querySelectorAll('#views a[href*=\"a.b\"]').length") == 0
    assert chart["layout"]["yaxis"]["range"] == [4.5, -0.5]  # the input on top
    assert chart["layout"]["yaxis"]["ticktext"][0] == "00.block0"
    assert chart["layout"]["yaxis"]["ticktext"][4] == "04.encoder.tra…ention.linear"


@pytest.mark.slow
@in_a_browser
def test_the_best_and_the_worst_share_a_scale_until_the_reader_chooses(seen: tuple[Browser, Path]) -> None:
    opened, top = seen
    maps = shown(opened, top / "many/report.html", "table-gradients")
    assert [one["title"][:2] for one in maps] == ["a1", "a2", "a5", "a0"]  # the diverged one is ranked last
    assert {(one["data"][0]["zmin"], one["data"][0]["zmax"]) for one in maps} == {(-4, 0)}
    note = opened.run("return document.querySelector('#table-gradients > .soft').textContent")
    assert "Of 6 configurations the best 2 and the worst 2 by loss/val best are drawn" in note
    assert "Diverged runs don't set the scale." in note
    opened.run("""const menu = document.querySelector("#table-gradients select");
        menu.value = menu.options[3].value;
        menu.dispatchEvent(new Event("change"));""")
    assert len(drawn(opened, "table-gradients")) == 1
    assert (
        opened.run("return document.querySelector('#table-gradients select').selectedOptions[0].textContent[1]") == "3"
    )
    assert opened.run("return document.querySelectorAll('#views b, #views a[href*=\"a.b\"]').length") == 0
    assert opened.complaints() == []


@pytest.mark.slow
@in_a_browser
def test_two_axes_are_drawn_at_the_step_of_their_slider_and_others_as_curves(seen: tuple[Browser, Path]) -> None:
    opened, top = seen
    (chart,) = shown(opened, top / "one/report.html", "table-gradient_histogram", "#step-gradient_histogram=5")
    assert (chart["title"], chart["data"][0]["z"]) == ("run, seed 0, step 0", [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    assert chart["layout"]["xaxis"]["ticktext"] == ["-2", "-1", "0"]
    opened.run("""const slider = document.querySelector("#table-gradient_histogram input");
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));""")
    (chart,) = drawn(opened, "table-gradient_histogram")
    assert (chart["title"], chart["data"][0]["z"]) == ("run, seed 0, step 9", [[0, 0, 1], [0.5, 0.25, 0.25]])
    assert (chart["data"][0]["zmin"], chart["data"][0]["zmax"]) == (0, 1)  # of all steps
    curves = {one["title"]: one for one in drawn(opened, "training")}
    assert [curves[f"sharpness/{name}"]["data"][0]["y"] for name in ("largest", "trace")] == [[2, 3], [30, 40]]
    assert curves["sharpness/trace"]["layout"]["yaxis"]["title"]["text"] == "λ (1/lr)"


@pytest.mark.slow
@in_a_browser
def test_several_entries_have_a_chart_of_the_start_and_one_of_the_step(seen: tuple[Browser, Path]) -> None:
    opened, top = seen
    start, step = shown(opened, top / "two/report.html", "gradient-depth")
    assert [start["title"], step["title"]] == ["at the start, step 0", "at step 9"]
    assert [trace["name"] for trace in step["data"]] == ["a0", "a1"]
    assert [trace["name"] for trace in start["data"]] == ["a0", "a0, theory", "a1", "a1, theory"]
    maps = drawn(opened, "table-gradients")
    assert [one["title"] for one in maps] == ["a0", "a1"]
    largest = next(one for one in drawn(opened, "training") if one["title"] == "sharpness/largest")
    assert [(trace["name"], trace["y"]) for trace in largest["data"]] == [("a0", [2, 3]), ("a1", [2, 3])]
    assert not start["layout"]["showlegend"]
    opened.run("document.querySelector('#gradient-depth .legend button').click();")
    assert [[trace["name"] for trace in one["data"]] for one in drawn(opened, "gradient-depth")] == [
        ["a1", "a1, theory"], ["a1"],
    ]  # fmt: skip


@pytest.mark.slow
@in_a_browser
def test_where_theory_predicts_nothing_nothing_is_drawn_of_it(seen: tuple[Browser, Path], tmp_path: Path) -> None:
    opened, _ = seen
    run = make_run(tmp_path / "run")
    snapshot = {"step": 0, "gradient": [1.0] * 3, "time": None, "theory": {"gradient": [None, None, 1.0], "time": None}}
    (run / runs.FLOW).write_text(json.dumps(snapshot))
    (start,) = shown(opened, gradflow.report.write(run), "gradient-depth")
    assert [trace["name"] for trace in start["data"]] == ["all runs"]
    assert "theory" not in opened.run("return document.querySelector('#gradient-depth > .soft').textContent")
