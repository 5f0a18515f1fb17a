"""What the pictures of profiles and of sweeps draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradflow.diagnostics import verdict
from gradflow.plots import curves, phase, theme
from gradflow.plots.curves import relative
from gradflow.plots.phase import phase_diagram, varied
from gradflow.plots.profile import depth_profile, log_ratios, time_profile, update_profile, weight_gradient_profile

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    plain = FigureCanvasAgg.print_png
    monkeypatch.setattr(
        FigureCanvasAgg, "print_png", lambda canvas, file: (canvas.figure.set_dpi(20), plain(canvas, file))
    )


def snapshot(gradient=(1e-4, 1e-2, 1.0), step=0, **known):
    names = [f"block{index + 1}" for index in range(len(gradient))]
    rms = [1.0] * len(gradient)
    return {"step": step, "trunk": names, "gradient": list(gradient), "rms": rms, "weights": {}, "time": []} | known


def drawn(snapshots, key="gradient"):
    axes = Figure().add_subplot()
    lines = curves.start_and_end(snapshots, key)
    curves.draw(axes, curves.Panel("title", "x", "y", lines, "profile"))
    return axes


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def test_norms_are_relative_to_the_last():
    assert relative([2.0, 8.0, 4.0]).tolist() == [0.5, 2, 1]
    assert relative([0.0, 4.0]).tolist() == [curves.FLOOR, 1]
    assert np.isnan(relative([1.0, 0.0])).all()
    assert np.isnan(relative([1.0, None])).all()  # null is what JSON holds for nan
    assert np.isnan(relative([None, 1.0])).tolist() == [True, False]


def test_start_end_and_theory():
    theory = {"gradient": [None, 0.02, 1.0], "time": None, "no_prediction": "a sum"}
    axes = drawn([snapshot(theory=theory), snapshot((5.0, 5.0, 5.0), 3), snapshot((2.0, 2.0, 4.0), 9)])
    drawn_lines = lines(axes)
    assert list(drawn_lines) == ["start", "end", "theory at initialisation"]
    assert drawn_lines["start"] == pytest.approx([1e-4, 1e-2, 1])
    assert drawn_lines["end"] == pytest.approx([0.5, 0.5, 1])
    assert drawn_lines["theory at initialisation"] == pytest.approx([math.nan, 0.02, 1], nan_ok=True)
    low, high = axes.get_ylim()
    assert low < 1e-4
    assert high > 1
    assert axes.get_yscale() == "log"


def test_one_snapshot_is_measured():
    assert list(lines(drawn([snapshot()]))) == ["measured"]


def test_the_bands_are_those_of_the_verdict():
    axes = drawn([snapshot((1e-9, 1.0))])
    ends = [y for patch in axes.patches for y in (patch.get_y(), patch.get_y() + patch.get_height())]
    edges = [round(math.log10(y), 3) for y in ends]
    assert {-verdict.FAIL, -verdict.CAUTION, verdict.CAUTION} <= set(edges)
    assert {text.get_text() for text in axes.texts} == {"CAUTION", "FAIL"}


@pytest.mark.parametrize(("value", "word"), [(1.3, "OK"), (-1.31, "CAUTION"), (3.0, "CAUTION"), (-3.1, "FAIL")])
def test_the_verdicts_of_a_phase_diagram_are_those_of_the_verdict(value, word):
    assert phase.verdict(value) == word
    assert phase.verdict(math.nan) == "not finite"


def test_the_title_has_the_log_ratio():
    assert log_ratios([snapshot()], "gradient") == "log10 ratio -4.0"
    assert log_ratios([snapshot(), snapshot((1.0, 1.0, 10.0))], "gradient") == "log10 ratio -4.0 → -1.0"
    assert log_ratios([snapshot((0.0, 1.0))], "gradient") == "log10 ratio zero or not finite"
    assert log_ratios([snapshot(time=[100.0, 1.0])], "time") == "log10 ratio +2.0"


@pytest.mark.parametrize(
    "gradient", [(1e-4, 1.0), (0.0, 1.0), (1.0, 0.0), (None, 1.0), (None, None), (1e-290, 1e200), (1.0,) * 200]
)
def test_anything_can_be_drawn(tmp_path, gradient):
    snapshots = [snapshot(gradient), snapshot(gradient, 5)]
    assert depth_profile(snapshots, tmp_path / "depth.png")
    assert (tmp_path / "depth.png").read_bytes()[:4] == PNG
    assert time_profile([snapshot(time=list(gradient))], tmp_path / "time.png")
    assert (tmp_path / "time.png").read_bytes()[:4] == PNG


def test_nothing_to_draw(tmp_path):
    assert not depth_profile([snapshot((1.0,))], tmp_path / "x.png")
    assert not time_profile([snapshot()], tmp_path / "x.png")
    assert not weight_gradient_profile(snapshot((1.0,)), tmp_path / "x.png")
    assert not update_profile([snapshot(), snapshot(updates={})], tmp_path / "x.png")
    assert not phase_diagram([], [], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_updates_and_trap(tmp_path):
    assert update_profile([snapshot(updates={"a": 1e-3, "b": None, "c": 0.0})], tmp_path / "updates.png")
    assert weight_gradient_profile(snapshot(weights={"a": 1.0, "b": 0.0, "c": 2.0}), tmp_path / "weights.png")
    assert all((tmp_path / name).read_bytes()[:4] == PNG for name in ("updates.png", "weights.png"))


def test_what_varies_in_a_sweep():
    jobs = [["model=mlp", "model.depth=2", "seed=0", "x"], ["model=mlp", "model.depth=4", "seed=1", "x"]]
    assert varied(jobs) == ["model.depth", "seed"]
    assert varied(jobs[:1]) == []


def test_the_cells_of_a_sweep(tmp_path, monkeypatch):
    """Two choices are the axes, a third is averaged; what is not finite stays so."""
    texts = {}
    plain = phase.Axes.text

    def keep(axes, x, y, words, **style):
        texts[x, y] = words
        return plain(axes, x, y, words, **style)

    monkeypatch.setattr(phase.Axes, "text", keep)
    gaps = {("2", "relu", "0"): -1.0, ("2", "relu", "1"): -3.0, ("4", "relu", "0"): 0.5, ("2", "tanh", "0"): None}
    found = [
        {"words": [f"model.depth={depth}", f"activation={phi}", f"seed={seed}"], "verdict": {"decades": gap}}
        for (depth, phi, seed), gap in gaps.items()
    ]
    assert phase_diagram(found, ["model.depth", "activation", "seed"], tmp_path / "phase.png")
    assert (tmp_path / "phase.png").read_bytes()[:4] == PNG
    assert texts[0, 0] == "-2.0\nCAUTION"
    assert texts[1, 0] == "+0.5\nOK"
    assert texts[0, 1] == "not finite"
    assert texts[1, 1] == "no probe"
    assert phase_diagram(found, ["model.depth"], tmp_path / "phase.png")


@pytest.fixture
def flat(tmp_path):
    """The axes of a curve in a picture on disk."""

    def draw(loss, kind="number", trivial=math.nan):
        line = curves.line("a", 1_000_000 + np.arange(len(loss)), loss)
        panel = curves.Panel("loss/val", "optimizer step", "loss", [line], kind, trivial)
        figures = []
        theme.save(lambda: figures.append(curves.sheet([panel])) or figures[0], tmp_path / "x.png")
        return figures[0].axes[0]

    return draw


@pytest.mark.parametrize("loss", [[2.3026, 2.3023], [2.3026] * 2, [1e-5, 1.0001e-5], [-4.0, -4.0001], [3e6, 3.0001e6]])
def test_what_is_flat_looks_flat_and_no_tick_has_an_offset(flat, loss):
    axes = flat(loss)
    low, high = axes.get_ylim()
    assert low < min(loss) <= max(loss) < high
    assert high - low == pytest.approx(0.1 * max(map(abs, loss)), rel=0.11)
    assert axes.yaxis.get_offset_text().get_text() == axes.xaxis.get_offset_text().get_text() == ""
    labels = [float(label.get_text().replace("−", "-")) for label in axes.get_yticklabels()]
    assert labels == pytest.approx(axes.get_yticks().tolist(), rel=1e-3)


def test_a_curve_that_moves_fills_its_panel_and_the_trivial_answer_is_named(flat):
    low, high = flat([2.0, 1.0]).get_ylim()
    assert (low, high) == (pytest.approx(0.95), pytest.approx(2.05))
    axes = flat([2.0, 1.0], trivial=2.3026)
    assert [text.get_text() for text in axes.texts] == ["trivial answer"]
    assert axes.texts[0].get_position()[1] == 2.3026
    assert any(line.get_linestyle() == ":" and set(line.get_ydata()) == {2.3026} for line in axes.lines)
    assert axes.get_ylim()[1] > 2.3026


def test_a_linear_scale_is_never_empty():
    assert theme.spanned(0.0, 0.0) == (-1, 1)
    assert theme.spanned(1.0, 3.0) == (1, 3)
    assert theme.spanned(2.0, 2.0) == (pytest.approx(1.9), pytest.approx(2.1))
