"""The training curves of a page, in a real browser: what is drawn, and what a reader's choices change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DRIVER, MISSING, Browser, browser

import gradflow.report
from gradflow import runs
from gradflow.report.chart_data import as_json, chart_data
from gradflow.report.configurations import configurations
from gradflow.report.run import read_run

in_a_browser = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)]
TRIVIAL = {"loss/train": 2.3026, "loss/val": 2.3026, "accuracy/val": 0.1}
PANELS = (
    "const figures = [...document.querySelectorAll('#training figure')];"
    "const panels = Object.fromEntries(figures.map(one => [one.firstChild.textContent, one.lastChild]));"
)


def make_run(folder: Path, *choices: str, columns: dict[str, Sequence[float]], seed: int = 0, **more: Any) -> Path:
    """Write a run folder with those columns, of which `step` may be one."""
    columns = {"step": range(len(next(iter(columns.values())))), **columns}
    (folder / ".hydra").mkdir(parents=True)
    (folder / runs.OVERRIDES).write_text("[]")
    overrides = [*choices, f"seed={seed}"]
    facts = {"status": "finished", "overrides": overrides, "seed": seed, "data": {"name": "d", "trivial": TRIVIAL}}
    facts |= {"final": {}, "best": {"loss/val": [*columns.get("loss/val", [1.0])][-1]}, "directions": {"loss": "min"}}
    runs.write_json(folder / runs.SUMMARY, facts | more)
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join("" if math.isnan(cell) else str(cell) for cell in row) for row in rows)]
    (folder / runs.METRICS).write_text("\n".join(lines) + "\n")
    return folder


def carried(*folders: Path) -> dict[str, Any]:
    own = [read_run(folder, folder.name) for folder in folders]
    return json.loads(as_json(chart_data(own, configurations(own), "")))


def test_the_page_carries_the_steps_as_they_are_and_what_makes_epochs_and_seconds_of_them(tmp_path: Path) -> None:
    columns = {"step": [0, 123_457], "loss/val": [2.000004, math.nan], "loss/train": [123_456.7, 1.0]}
    counts = {"steps": 200, "steps_per_epoch": 70, "wall_seconds": 50.5}
    (run,) = carried(make_run(tmp_path / "run", columns=columns, **counts))["runs"]
    assert run["curves"] == {"loss/val": [[0], [2]], "loss/train": [[0, 123_457], [123_460, 1]]}
    assert (run["steps"], run["steps_per_epoch"], run["seconds"]) == (200, 70, 50.5)
    (run,) = carried(make_run(tmp_path / "old", columns=columns, wall_seconds="?"))["runs"]
    assert (run["steps"], run["steps_per_epoch"], run["seconds"]) == (None, None, None)


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def values(activation: str, optimizer: str, seed: int) -> np.ndarray:
    return 2.0 - np.arange(6) * (0.1 * (activation == "relu") + 0.05 * (optimizer == "adam") + 0.02 * seed + 0.01)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """activation × optimizer × 2 seeds; the worst diverged with its second seed."""
    top = tmp_path_factory.mktemp("swept")
    for place in range(8):
        activation, optimizer, seed = ("relu", "tanh")[place // 4], ("adam", "sgd")[place // 2 % 2], place % 2
        loss = values(activation, optimizer, seed)
        columns = {"loss/val": loss, "loss/train": loss * 10.0 ** -np.arange(6), "accuracy/val": 1 - loss / 2.2}
        more: dict[str, Any] = {"steps": 6, "steps_per_epoch": 2, "wall_seconds": 12 * (1 + seed)}
        if place == 7:
            columns["loss/val"] = [*loss[:3], math.nan, math.nan, math.nan]
            more |= {"status": "failed", "final": {"loss/train": None}}
        choices = f"activation={activation}", f"optimizer={optimizer}"
        make_run(top / str(place), *choices, columns=columns, seed=seed, **more)
    runs.write_json(top / "7" / runs.NONFINITE, {})
    return gradflow.report.write(top)


def show(window: Browser, page: Path, address: str = "") -> None:
    window.open(page, address=address)
    window.run(
        "document.querySelector('#training').scrollIntoView();"
        "for (let turn = 0; turn < 100 && !document.querySelector('#training .js-plotly-plot'); turn += 1)"
        " await new Promise(done => setTimeout(done, 50));"
    )


def drawn(window: Browser, name: str, kind: str = "line") -> list[SimpleNamespace]:
    """Return the traces of a kind in a panel: line, band or raw."""
    script = "return panels[arguments[0]].data.filter(one => one.meta === arguments[1]);"
    found = window.run(PANELS + script.replace("arguments[0]", json.dumps(name)).replace("arguments[1]", f"'{kind}'"))
    return [SimpleNamespace(**one) for one in found]


def layout(window: Browser, name: str) -> Any:
    return window.run(
        f"{PANELS} const own = panels[{json.dumps(name)}].layout;"
        + """
        return {type: own.yaxis.type, range: own.yaxis.range, x: own.xaxis.range, title: own.xaxis.title.text,
          shapes: own.shapes.map(one => one.y0), notes: own.annotations.map(one => [one.text, one.yref, one.y])};"""
    )


def press(window: Browser, label: str) -> None:
    window.run(f"const own = document.querySelector('#training [aria-label=\"{label}\"]'); own.focus(); own.click();")


def zoom(window: Browser, name: str) -> list[float]:
    """Drag over the middle of a panel; return the x axis then."""
    script = f"{PANELS} const box = panels[{json.dumps(name)}].querySelector('.nsewdrag').getBoundingClientRect();"
    left, top, width, height = window.run(f"{script} return [box.left, box.top, box.width, box.height];")
    for kind, part in (("mouseMoved", 0.3), ("mousePressed", 0.3), ("mouseMoved", 0.6), ("mouseReleased", 0.6)):
        place = {"x": left + part * width, "y": top + height * part}
        held = {} if kind == "mouseMoved" and part == 0.3 else {"button": "left", "buttons": 1, "clickCount": 1}
        window.command("Input.dispatchMouseEvent", type=kind, **place, **held)
    window.run("await new Promise(done => setTimeout(done, 300));")
    return layout(window, name)["x"]


class TestInABrowser:
    pytestmark = in_a_browser

    def test_a_line_is_the_mean_over_seeds_with_its_band(self, window: Browser, swept: Path) -> None:
        show(window, swept)
        line, band = drawn(window, "loss/val")[0], drawn(window, "loss/val", "band")[0]
        both = np.array([values("relu", "adam", seed) for seed in range(2)])
        assert line.name == "relu adam"
        assert line.x == [0, 1, 2, 3, 4, 5]
        assert line.y == pytest.approx(both.mean(0))
        low, high = both.mean(0) - both.std(0, ddof=1), both.mean(0) + both.std(0, ddof=1)
        assert band.y == pytest.approx([*high, *low[::-1]])
        assert window.complaints() == []

    def test_hue_is_one_factor_and_dash_the_other(self, window: Browser, swept: Path) -> None:
        show(window, swept)
        for name in ("loss/val", "accuracy/val"):
            lines = {one.name: (one.line["color"], one.line["dash"]) for one in drawn(window, name)}
            assert lines["relu adam"][0] == lines["relu sgd"][0]
            assert lines["relu adam"][0] != lines["tanh adam"][0]
            assert {name.split()[1]: dash for name, (_, dash) in lines.items()} == {"adam": "solid", "sgd": "dash"}
        show(window, swept, "#hue=rank&dash=activation")
        lines = {one.name: (one.line["color"], one.line["dash"]) for one in drawn(window, "loss/val")}
        assert len({color for color, _ in lines.values()}) == 4
        assert {name.split()[0]: dash for name, (_, dash) in lines.items()} == {"relu": "solid", "tanh": "dash"}

    @pytest.mark.parametrize("inits", [("he", "lecun"), ("he", "lecun", "xavier", "torch")])
    def test_no_two_configurations_of_three_factors_look_alike(
        self, window: Browser, tmp_path: Path, inits: tuple[str, ...]
    ) -> None:
        for place, (activation, lr, init) in enumerate(product(("relu", "tanh"), ("0.1", "10"), inits)):
            choices = f"activation={activation}", f"optimizer.lr={lr}", f"init={init}"
            make_run(tmp_path / str(place), *choices, columns={"loss/val": [2.0, 1 + place / 100]})
        show(window, gradflow.report.write(tmp_path))
        lines = drawn(window, "loss/val")
        assert len({(one.line["color"], one.line["dash"]) for one in lines}) == len(lines) == 4 * len(inits)
        if len(inits) == 2:  # as many others as there are dashes: a colour is an activation
            assert len({(one.name.split()[0], one.line["color"]) for one in lines}) == 2

    def test_a_click_hides_a_configuration_in_all_panels_and_the_address_keeps_it(
        self, window: Browser, swept: Path
    ) -> None:
        show(window, swept)
        whole, zoomed = layout(window, "loss/val")["x"], zoom(window, "loss/val")
        assert whole[0] < zoomed[0] < zoomed[1] < whole[1]
        press(window, "relu sgd")
        rest = ["relu adam", "tanh adam", "tanh sgd"]
        for name in ("loss/val", "loss/train", "accuracy/val"):
            assert sorted(one.name for one in drawn(window, name)) == rest
        assert layout(window, "loss/val")["x"] == zoomed
        assert window.run("return document.activeElement.getAttribute('aria-label')") == "relu sgd"
        address = window.run("return location.hash")
        show(window, swept, address)
        assert sorted(one.name for one in drawn(window, "loss/val")) == rest
        show(window, swept, "#off=nonsense&curves=3&xunit=furlong&smoothing=Infinity&yscale=foo&hue=x&dash=x&seeds=x")
        assert len(drawn(window, "accuracy/val")) == 4
        assert (layout(window, "loss/train")["type"], drawn(window, "loss/train", "raw")) == ("log", [])
        menus = "return [...document.querySelectorAll('#training select')].map(one => one.selectedIndex)"
        assert window.run(menus) == [0] * 6
        assert window.complaints() == []

    def test_single_runs_and_those_that_diverged_up_to_where_they_did(self, window: Browser, swept: Path) -> None:
        show(window, swept)
        worst = next(one for one in drawn(window, "loss/val") if one.name == "tanh sgd")
        assert [count for _, count in worst.customdata] == [2, 2, 2, 1, 1, 1]
        assert worst.y[3:] == pytest.approx(values("tanh", "sgd", 0)[3:])
        button = window.run("return document.querySelector('#training [aria-label=\"tanh sgd\"]').textContent.trim()")
        assert button == "tanh sgd (1 of 2 diverged)"
        show(window, swept, "#seeds=single")
        own = [one for one in drawn(window, "loss/val") if one.name == "tanh sgd"]
        assert [one.x for one in own] == [[0, 1, 2, 3, 4, 5], [0, 1, 2]]
        assert drawn(window, "loss/val", "band") == []

    def test_epochs_and_seconds_are_offered_where_all_runs_have_them(self, window: Browser, swept: Path) -> None:
        show(window, swept, "#xunit=epoch")
        assert drawn(window, "loss/val")[0].x == [0.5, 1, 1.5, 2, 2.5, 3]
        show(window, swept, "#xunit=time&seeds=single")
        assert [one.x for one in drawn(window, "loss/val")[:2]] == [[2, 4, 6, 8, 10, 12], [4, 8, 12, 16, 20, 24]]
        assert layout(window, "loss/val")["title"] == "seconds, at each run's mean pace"
        assert layout(window, "loss/train")["x"] == layout(window, "loss/val")["x"] == [0, pytest.approx(24.48)]

    def test_an_axis_is_logarithmic_where_losses_span_decades_and_as_is_chosen(
        self, window: Browser, swept: Path
    ) -> None:
        kinds = {"": ("log", "linear"), "#yscale=linear": ("linear", "linear"), "#yscale=log": ("log", "log")}
        for address, expected in kinds.items():
            show(window, swept, address)
            assert tuple(layout(window, name)["type"] for name in ("loss/train", "loss/val")) == expected
        ticks = "return [...panels['loss/val'].querySelectorAll('.ytick')].map(one => Number(one.textContent))"
        labels = window.run(PANELS + ticks)
        assert len(labels) > 3  # over less than one power of ten

    def test_smoothing_is_an_exponential_mean_over_a_part_of_the_axis(self, window: Browser, tmp_path: Path) -> None:
        x, y = np.array([0, 1, 2, 4, 50, 100]), np.array([3.0, 1.0, 2.0, 1.5, 1.0, 2.5])
        page = gradflow.report.write(make_run(tmp_path / "run", columns={"step": x, "loss/val": y}))
        show(window, page, "#smoothing=10")
        gaps = np.array([1, 1, 1, 2, 46, 50])
        expected = []
        for last in range(6):
            weights = [(1 - np.exp(-gaps[at] / 10)) * np.exp((x[at] - x[last]) / 10) for at in range(last + 1)]
            expected.append(np.dot(weights, y[: last + 1]) / sum(weights))
        assert drawn(window, "loss/val")[0].y == pytest.approx(expected, rel=1e-6)
        assert drawn(window, "loss/val", "raw")[0].y == y.tolist()
        options = "return [...document.querySelector('#training [aria-label=\"x\"]').options].map(one => one.value)"
        assert window.run(options) == ["step"]  # this run recorded neither time nor epochs

    def test_the_learning_rate_of_each_group_that_moves_is_a_curve(self, window: Browser, tmp_path: Path) -> None:
        rates = {"lr/rest": [0.1, 0.1, 0.001], "lr/hidden": [2.0, 1.0, 0.0], "lr/vectors": [0.5, 0.5, 0.5]}
        causes = {"grad/clip_coef": [1.0, 1.0, 1.0], "update/ratio_median": [1e-3, 1e-2, 0.1], "odd": [1.0, 2.0, 3.0]}
        columns = {"constructor": [1.0, 2.0, 3.0], "loss/val": [2.0, 1.0, 0.5], **causes, **rates}
        page = gradflow.report.write(make_run(tmp_path / "run", columns=columns))
        show(window, page)
        titles = PANELS + "return Object.keys(panels)"
        assert window.run(titles) == ["loss/val", "lr/rest", "lr/hidden", "update/ratio_median"]
        assert drawn(window, "lr/hidden")[0].y == [2, 1, 0]
        kinds = {name: layout(window, name)["type"] for name in ("lr/rest", "lr/hidden", "update/ratio_median")}
        assert kinds == {"lr/rest": "linear", "lr/hidden": "linear", "update/ratio_median": "log"}
        press(window, "draw lr/vectors")
        press(window, "draw lr/rest")
        press(window, "draw constructor")
        assert window.run(titles) == ["loss/val", "lr/hidden", "lr/vectors", "update/ratio_median", "constructor"]
        assert window.complaints() == []

    def test_a_flat_loss_looks_flat_beside_the_trivial_answer(self, window: Browser, tmp_path: Path) -> None:
        columns = {"loss/val": [2.3028, 2.3026, 2.3025], "accuracy/val": [0.9, 0.91, 0.92]}
        show(window, gradflow.report.write(make_run(tmp_path / "run", columns=columns)))
        loss, accuracy = layout(window, "loss/val"), layout(window, "accuracy/val")
        assert loss["range"][1] - loss["range"][0] > 0.23
        assert (loss["shapes"], loss["notes"]) == (
            [2.3026],
            [["┈ trivial answer 2.303", "paper", 1]],
        )  # above the curves
        assert accuracy["shapes"] == accuracy["notes"] == []

    def test_a_run_of_one_point_is_a_marker(self, window: Browser, tmp_path: Path) -> None:
        show(window, gradflow.report.write(make_run(tmp_path / "run", columns={"step": [69], "loss/val": [2.0]})))
        (point,) = drawn(window, "loss/val")
        assert (point.mode, point.x, point.y) == ("markers", [69], [2])

    def test_of_many_configurations_the_best_and_the_worst_are_drawn(self, window: Browser, tmp_path: Path) -> None:
        for place in range(40):
            columns = {"loss/val": np.linspace(3, 1 + place / 40, 500)}
            make_run(tmp_path / str(place), f"model.width={place + 1}", columns=columns)
        show(window, gradflow.report.write(tmp_path))
        names = [one.name for one in drawn(window, "loss/val")]
        assert names == [f"width={number}" for number in [*range(1, 9), *range(33, 41)]]
        said = window.run("return document.querySelector('#training > .soft').textContent")
        assert said.startswith("Of 40 configurations the best 8 and the worst 8 by loss/val best are drawn;")
        assert "Of longer curves 400 points, evenly spaced, are in the page" in said
        styles = {(one.line["color"], one.line["dash"]) for one in drawn(window, "loss/val")}
        assert len(styles) == 16

    def test_hovering_says_values_and_nothing_in_a_label_is_markup(self, window: Browser, tmp_path: Path) -> None:
        for place, choice in enumerate(("<b>bold</b>", "<b>bold</b>", "other")):
            make_run(tmp_path / str(place), f"model={choice}", columns={"loss/val": [2.0, 1.0 + place]}, seed=place)
        show(window, gradflow.report.write(tmp_path))
        place = next(at for at, one in enumerate(drawn(window, "loss/val")) if "bold" in one.name)
        text = window.run(
            PANELS
            + f"""
            const own = panels['loss/val'], lines = own.data.filter(one => one.meta === 'line');
            Plotly.Fx.hover(own, [{{curveNumber: own.data.indexOf(lines[{place}]), pointNumber: 1}}]);
            await new Promise(done => setTimeout(done, 100));
            return [...own.querySelectorAll('.hoverlayer text')].map(one => one.textContent);"""
        )
        assert "1.5 ± 0.71 at step 1" in text
        assert "<b>bold</b> (2 runs)" in text
