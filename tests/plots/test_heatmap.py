"""Maps of the gradient by layer and step: what the axes and the colours say is what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from gradflow import runs
from gradflow.plots.heatmap import NOT_FINITE, heatmap
from gradflow.plots.layout import Layout, layouts_of, read_layout
from gradflow.plots.tables import draw_table
from gradflow.runs.errors import UserError

STEPS = [0, 1, 2, 4, 8, 16, 32, 50, 64, 100, 139]  # of a run of 140 steps


def drawn(draw: Callable[[], None]) -> Figure:
    with patch.object(FigureCanvasAgg, "print_png", autospec=True) as saved:
        draw()
    return saved.call_args.args[0].figure


def drawn_map(steps: list[int], norms: list[list[float]], tmp_path: Path) -> Figure:
    names = [f"{place:02}.layer" for place in range(len(norms[0]))]
    return drawn(lambda: heatmap(names, steps, norms, tmp_path / "gradients.png"))


def meshes(figure: Figure) -> list[QuadMesh]:
    return [mesh for mesh in figure.axes[0].collections if isinstance(mesh, QuadMesh)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_the_x_axis_ends_at_the_last_step_and_every_column_holds_its_own(tmp_path):
    figure = drawn_map(STEPS, [[1.0, 2.0]] * len(STEPS), tmp_path)
    assert figure.axes[0].get_xlim() == (0, 139)
    edges = meshes(figure)[0].get_coordinates()[0, :, 0]
    assert len(edges) == len(STEPS) + 1
    assert all(left <= step <= right for left, step, right in zip(edges[:-1], STEPS, edges[1:], strict=True))
    assert np.all(np.diff(edges) > 0)


def test_a_single_step_has_a_column(tmp_path):
    low, high = drawn_map([7], [[1.0, 2.0]], tmp_path).axes[0].get_xlim()
    assert low < 7 < high


@pytest.mark.parametrize(
    ("norms", "low", "high"),
    [
        ([1.0, 5.0], 5e-4, 5.0),  # 0.7 decades are not drawn from black to yellow
        ([3.0, 3.0], 3e-4, 3.0),
        ([1e-9, 1.0], 1e-9, 1.0),
        ([0.0, 2.0], 2e-4, 2.0),
        ([math.inf, 2.0], 2e-4, 2.0),
        ([0.0, math.nan], 1e-4, 1.0),
    ],
)
def test_the_colours_span_four_decades_at_least(norms, low, high, tmp_path):
    figure = drawn_map([0, 1], [norms, norms], tmp_path)
    norm = meshes(figure)[0].norm
    assert (norm.vmin, norm.vmax) == (pytest.approx(low), high)
    size = {5.0: "10^0.7 from", 3.0: "10^0.0 from", 1.0: "10^9.0 from", 2.0: "10^0.0 from"}[high]
    if not any(math.isfinite(value) and value > 0 for value in norms):
        size = "none is finite and above 0"
    assert size in figure.axes[0].get_title(loc="left")


def test_zero_and_what_is_not_finite_are_told_apart(tmp_path):
    table = [[0.0, 1.0, 1.0], [math.nan, 1.0, math.inf]]
    figure = drawn_map([0, 10], table, tmp_path)
    finite, bad = meshes(figure)
    shown, marked = (np.ma.getmaskarray(mesh.get_array()).T for mesh in (finite, bad))
    assert shown.tolist() == [[True, False, False], [True, False, True]]  # masked: neither darkest nor brightest
    assert marked.tolist() == [[True, True, True], [False, True, False]]
    assert bad.cmap(bad.norm(1.0)) == to_rgba(NOT_FINITE)
    assert legend(figure) == ["zero", "not finite"]
    assert legend(drawn_map([0, 10], [[1.0, 0.0]] * 2, tmp_path)) == ["zero"]
    sound = drawn_map([0, 10], [[1.0, 2.0]] * 2, tmp_path)
    assert (len(meshes(sound)), legend(sound)) == (1, [])


def test_a_table_is_drawn_as_its_layout_says(tmp_path):
    """By layer over steps; of two axes at the last step; and curves, whose gaps are left out."""
    by_layer = Layout({"layer": ["a", "b"]}, "share", "share of units")
    two = Layout({"layer": ["a", "b"], "bin": ["1", "2", "3"]}, "shares", "share", "%")
    lines = Layout({"quantity": ["a", "b"]}, "sharpness", "λ", log=True)
    assert two.columns == ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3"]
    assert two.scale == "share (%)"

    def of(layout: Layout, steps: list[float], rows: list[list[float]]) -> Axes:
        return drawn(lambda: draw_table(layout, layout.columns, steps, rows, tmp_path / "x.png")).axes[0]

    axes = of(two, [0, 7], [[0.0] * 6, [1, 2, 3, 4, 5, 6]])
    assert (axes.get_title(loc="left"), axes.get_xlabel()) == ("shares, step 7", "bin")
    assert axes.collections[0].get_array().tolist() == [[1, 2, 3], [4, 5, 6]]
    assert of(by_layer, [0, 7], [[1, 2], [3, 4]]).collections[0].get_array().tolist() == [[1, 3], [2, 4]]
    drawn_lines = of(lines, [0, 1, 2], [[1.0, math.nan], [2.0, math.inf], [3.0, 1.0]]).lines
    assert [(line.get_label(), line.get_xdata().tolist()) for line in drawn_lines] == [("a", [0, 1, 2]), ("b", [2])]


@pytest.mark.parametrize(
    "change", [{"axes": {}}, {"axes": {"layer": [1]}}, {"log": "yes"}, {"title": 3}, {"shown": "a"}]
)
def test_a_layout_that_somebody_damaged(tmp_path, change):
    (tmp_path / "norms.csv").write_text("step,a\n0,1\n")
    layout = Layout({"layer": ["a"]}, "norm", "n", shown=[])
    layout.write(tmp_path / "norms.csv")
    assert layouts_of(tmp_path) == {"norms": layout}
    runs.write_json(tmp_path / "norms.layout.json", asdict(layout) | change)
    with pytest.raises(UserError, match=r"norms.layout.json: expected one or two axes"):
        read_layout(tmp_path / "norms.csv")
    assert layouts_of(tmp_path) == {}
