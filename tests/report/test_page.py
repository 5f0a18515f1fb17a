"""The page in a real Chromium: what a reader does with it, and what it shows then."""

from __future__ import annotations

import base64
import csv
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser
from test_report import make_run, sweep

import gradflow.report
from gradflow import runs

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)]

PAGE = """
const table = id => document.getElementById(id), heads = id => [...table(id).tHead.rows[0].cells];
const rows = id => [...table(id).tBodies[0].rows].filter(row => !row.hidden);
const place = (id, name) => heads(id).findIndex(head => head.dataset.column === name);
const column = (id, name) => rows(id).map(row => row.cells[place(id, name)].dataset.value);
const sort = (id, name) => heads(id)[place(id, name)].querySelector("button").click();
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const until = async ready => { for (let turn = 0; turn < 100 && !ready(); turn++) await wait(50); };
const tick = (id, place) => rows(id)[place].querySelector("input").click();
const all = selector => [...document.querySelectorAll(selector)];
const texts = caption => all("#compare table").filter(table => table.caption.textContent === caption)
  .map(table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent)))[0];
const best = () => all("#compare .best").map(cell => cell.parentElement.cells[0].textContent + cell.cellIndex);
const type = text => { const box = all("#bar input")[0]; box.value = text; box.dispatchEvent(new Event("input")); };
const shownNames = () => {
  const own = new Set(shownConfigurations().flatMap(one => one.runs));
  return data.runs.filter(run => own.has(run)).map(run => run.name);
};
const box = place => rows("results")[0].cells[place].getBoundingClientRect();
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sweep(tmp_path_factory.mktemp("page"), draws=True)
    make_run(folder / "12", "activation=tanh", "optimizer=sgd", status="failed", error="boom", scores={}, best={})
    return gradflow.report.write(folder)


def ask(window: Browser, script: str) -> Any:
    return window.run(f"{PAGE}\n{script}")


def test_a_click_on_a_heading_sorts_and_the_address_keeps_it(window: Browser, swept: Path) -> None:
    window.open(swept)
    best = "loss/val best"
    assert ask(window, "return column('results', '#')") == ["1", "2", "3", "4", "5", "trivial answer"][:5]
    orders = [ask(window, f"sort('runs', '{best}'); return column('runs', '{best}')") for _ in range(2)]
    numbers = [[float(value) for value in order if value] for order in orders]
    assert numbers == [sorted(numbers[0]), sorted(numbers[0], reverse=True)]
    assert [order[-1] for order in orders] == ["", ""]  # the run that failed comes last both times
    assert ask(window, "return heads('runs').map(head => head.ariaSort).filter(Boolean)") == ["descending"]
    address = ask(window, "return location.hash")
    window.open(swept, address=address)
    assert ask(window, f"return column('runs', '{best}')") == orders[1]
    assert window.complaints() == []


def test_a_filter_hides_rows_and_curves_of_other_runs(window: Browser, swept: Path) -> None:
    window.open(swept)
    ask(window, "type('relu seed=1'); await until(() => rows('runs').length < 13)")
    assert ask(window, "return [column('runs', 'run'), column('results', 'activation')]") == [
        ["7", "10"],
        ["relu", "relu"],
    ]
    assert ask(window, "return document.querySelector('#bar output').value") == "2 of 13 runs"
    assert ask(window, "return shownNames()") == ["7", "10"]
    ask(window, "location.hash = 'filter=failed'; await until(() => rows('runs').length === 1)")  # as by hand
    assert ask(window, "return [column('runs', 'run'), document.querySelector('#bar input').value]") == [
        ["12"],
        "failed",
    ]
    assert window.complaints() == []


def test_runs_that_are_picked_are_compared_and_shown_alone(window: Browser, swept: Path) -> None:
    window.open(swept)
    ask(window, "tick('runs', 0); tick('runs', 9); compare.scrollIntoView(); await until(() => texts('Metrics'))")
    assert ask(window, "return texts('Configuration that differs')") == [
        ["", "run 0sigmoid sgd", "run 9relu adam"], ["activation", "sigmoid", "relu"],
    ]  # fmt: skip
    metrics = {row[0]: row[1:] for row in ask(window, "return texts('Metrics')")[1:]}
    assert list(map(float, metrics["accuracy/test"])) == pytest.approx([0.303, 0.703], abs=0.01)
    assert sorted(ask(window, "return best()")) == ["accuracy/test2", "loss/test2", "loss/val best2"]
    assert ask(window, "return shownNames()") == ["0", "9"]
    ask(window, "tick('results', 0)")  # the best configuration: relu adam, of which one is picked
    assert ask(window, "return pickedRuns().map(run => run.name)") == ["0", "9", "10", "11"]
    address = ask(window, "return location.hash")
    window.open(swept, address=address)
    assert ask(window, "return all('#results input').map(box => [box.checked, box.indeterminate])") == [
        [True, False], [False, False], [False, False], [False, True], [False, False]
    ]  # fmt: skip
    ask(window, "[...document.querySelectorAll('#bar button')].at(-1).click()")
    assert ask(window, "return [shownNames().length, document.getElementById('compare').hidden]") == [13, True]
    assert window.complaints() == []


def test_a_page_of_two_runs_opens_with_both(window: Browser, tmp_path: Path) -> None:
    for place, score in enumerate((0.2, 0.8)):
        scores = {"f1/test": score, "mae/test": score, "foo/test": score}
        make_run(tmp_path / str(place), f"activation=a{place}", scores=scores, directions={"f1": "max", "mae": "min"})
    window.open(gradflow.report.write(tmp_path))
    ask(window, "compare.scrollIntoView(); await until(() => texts('Metrics'))")
    assert {mark for mark in ask(window, "return best()") if "test" in mark} == {"f1/test2", "mae/test1"}
    assert ["foo/test", "0.2000", "0.8000"] in ask(window, "return texts('Metrics')")


def test_a_table_is_saved_as_csv_with_all_digits(window: Browser, swept: Path, tmp_path: Path) -> None:
    window.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    window.open(swept, address="#filter=adam")
    ask(window, "document.querySelector('#results').parentElement.nextElementSibling.click()")
    for _ in range(100):
        if (tmp_path / "results.csv").is_file():
            break
        time.sleep(0.05)
    paths = tmp_path / "results.csv", swept.with_name("report.csv")
    saved, written = (list(csv.DictReader(path.read_text().splitlines())) for path in paths)
    assert [row["optimizer"] for row in saved] == ["adam", "adam"]
    assert {row["loss/val best"] for row in saved} < {row["loss/val best"] for row in written}
    assert ask(window, "return csv(table('runs')).split('\\r\\n').length") == 6 + 2
    assert window.complaints() == []


def test_charts_are_saved_as_png_and_none_is_sent_anywhere(window: Browser, swept: Path) -> None:
    window.open(swept)
    ask(
        window,
        "training.scrollIntoView(); await until(() => all('.js-plotly-plot .modebar-btn').length)",
    )
    titles = ask(
        window,
        "return [...document.querySelector('.modebar').querySelectorAll('.modebar-btn')].map(one => one.dataset.title)",
    )
    assert titles[-2:] == ["Download as SVG", "Download as PNG"]
    assert not [title for title in titles if "hare" in title or "loud" in title]
    chart = "pictureOf(document.querySelector('#training .js-plotly-plot'))"
    picture = ask(window, f"return Plotly.toImage({chart}, {{format: 'png'}})")
    assert picture.startswith("data:image/png;base64,")
    drawing = ask(window, f"return decodeURIComponent(await Plotly.toImage({chart}, {{format: 'svg'}}))")
    names = re.findall(r'class="(?:legendtext|gtitle)"[^>]*>([^<]*)<', drawing)
    assert sorted(names) == ["loss/val", "relu adam", "relu sgd", "sigmoid adam", "sigmoid sgd"]
    assert window.complaints() == []


def test_the_dark_page_is_dark_and_print_is_not(window: Browser, swept: Path) -> None:
    colours = (
        "return [document.body, document.querySelector('.FAIL')].map(one => getComputedStyle(one).backgroundColor)"
    )
    seen = {}
    for media, scheme in (("screen", "light"), ("screen", "dark"), ("print", "dark")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        window.command("Emulation.setEmulatedMedia", media=media, features=features)
        window.open(swept)
        seen[media, scheme] = ask(window, colours)
    window.command("Emulation.setEmulatedMedia", media="", features=[])
    assert seen["screen", "light"][0] == "rgb(255, 255, 255)"
    assert seen["screen", "dark"][0] == "rgb(22, 25, 30)"
    assert seen["print", "dark"] == seen["screen", "light"]  # chips keep their colours
    paper = base64.b64decode(window.command("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert len(re.findall(rb"/Type /Page\b", paper)) == 2  # of thirteen runs
    widths = (
        "all('#views .charts').map(grid => [...grid.querySelectorAll('.js-plotly-plot')].map(one => one.layout.width))"
    )
    printed = ask(window, f"dispatchEvent(new Event('beforeprint')); return {widths};")
    row = {1: 1288, 2: 638}  # one or two charts take all of a row of four
    assert printed == [[row.get(len(own), 313)] * len(own) for own in printed]
    assert {2, 4} <= {len(own) for own in printed}


@pytest.mark.parametrize("width", [1400, 900, 390])
def test_the_first_column_stays_and_the_metric_is_beside_it(window: Browser, swept: Path, width: int) -> None:
    window.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
    )
    window.open(swept)
    assert ask(window, "return document.documentElement.scrollWidth") == width
    assert ask(window, "return [0, 1, 2, 3].every(place => box(place).right <= innerWidth)")
    scroll = "const before = box(0).left; table('results').parentElement.scrollLeft = 200; return [before, box(0).left]"
    before, after = ask(window, scroll)
    assert after == pytest.approx(before, abs=1)
    window.command("Emulation.clearDeviceMetricsOverride")


def test_a_finger_on_a_chart_scrolls_the_page(window: Browser, swept: Path) -> None:
    window.command("Emulation.setTouchEmulationEnabled", enabled=True)
    window.open(swept)
    chart = "document.querySelector('#training .js-plotly-plot')"
    ask(window, f"training.scrollIntoView(); await until(() => {chart})")
    before, x, y = ask(
        window, f"const own = {chart}.getBoundingClientRect(); return [scrollY, own.left + 150, own.top + 150]"
    )
    window.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    for moved in range(20, 140, 20):
        window.command("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y - moved}])
    window.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    window.command("Emulation.setTouchEmulationEnabled", enabled=False)
    assert ask(window, f"await until(() => scrollY > {before} + 50); return scrollY") > before + 50


def test_the_browser_would_have_complained(window: Browser, tmp_path: Path) -> None:
    written = gradflow.report.write(make_run(tmp_path / "run")).read_text()
    for harm in ("<script>1</script>", "<img src='https://example.org/x.png'>"):
        (tmp_path / "harm.html").write_text(written.replace("</body>", f"{harm}</body>"))
        window.open(tmp_path / "harm.html")
        assert any("Content Security Policy" in line for line in window.complaints())


def test_a_column_may_have_the_name_of_what_every_object_has(window: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "odd.csv").write_text("step,__proto__,toString\n0,1,2\n5,2,1\n")
    layout = {"axes": {"kind": ["__proto__", "toString"]}, "title": "odd", "label": "odd", "unit": "", "log": False}
    runs.write_json(run / "odd.layout.json", layout)
    window.open(gradflow.report.write(run))
    titles = "return all('#training figcaption').map(one => one.textContent)"
    assert ask(window, titles) == ["odd/__proto__", "odd/toString"]
    assert window.complaints() == []
