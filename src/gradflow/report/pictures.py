"""Choose which pictures a page gets, and of which runs: numbers from run folders, drawn by `gradflow.plots`."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradflow import runs
from gradflow.plots import curves, factors, heatmap
from gradflow.plots.theme import Draw, png
from gradflow.report.configurations import DATASET, Configuration, best_and_worst, shortened, trivial_score
from gradflow.report.effects import Importance, grid, importance
from gradflow.report.results import RATIO, TRIVIAL
from gradflow.report.run import Run
from gradflow.runs.metric_direction import direction

NAMES = ("importance", "matrix", "training", "depth", "time", "heatmaps")  # report-<name>.png
_CURVES = ("accuracy/val", "loss/val", "loss/train", "flow/decades_depth", "flow/decades_time")
_LONGEST_LABEL = 44
_AXES = {
    "gradient": ("depth", "block l (1 is next to the input)", "‖∂L/∂h_l‖ / ‖∂L/∂h_L‖"),
    "time": ("time", "time step t (the loss is at the last)", "‖∂L/∂x_t‖ / ‖∂L/∂x_T‖"),
}
_MEANS = "Lines are means over seeds, bands ± one standard deviation."
_RANGES = "Lines are geometric means over seeds, bands their range. "
_BANDS = "Shaded: where the verdict is CAUTION or FAIL."


@dataclass(frozen=True)
class _Entry:
    """Hold a line of a picture: some runs under one name."""

    label: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Picture:
    """Hold a picture's words, and the function that draws it."""

    name: str
    title: str
    caption: str
    draw: Draw

    def save(self, folder: Path) -> tuple[str, str]:
        """Write the picture into `folder`; return its light and its dark version as data URLs."""
        light = png(self.draw, "light")
        with runs.write_whole(folder / f"report-{self.name}.png", "wb") as file:
            file.write(light)
        encoded = (base64.b64encode(content).decode() for content in (light, png(self.draw, "dark")))
        first, second = (f"data:image/png;base64,{content}" for content in encoded)
        return first, second


def of_runs(runs: Sequence[Run], groups: Sequence[Configuration], metric: str) -> list[Picture]:
    """Return the pictures of ranked configurations: what choices do, then lines and heat maps."""
    shares = importance(runs, groups, metric)
    keys, others = list(groups[0].values), ""
    pictures = []
    if shares:
        keys, others = list(shares.shares)[:2], f" and over {', '.join(list(shares.shares)[2:])}"
        pictures = [_importance(shares)]
    entries, note = _entries(groups, curves.MOST)
    if len(runs) == 2:
        entries = [_Entry(shortened(run.name, _LONGEST_LABEL), [run]) for run in runs]
    return [
        *pictures,
        *_matrices(runs, keys, metric, others),
        *_training_curves(entries, note),
        *_profiles(entries, note),
        *_heatmaps(*_single_runs(groups)),
    ]


def _entries(groups: Sequence[Configuration], most: int) -> tuple[list[_Entry], str]:
    """Return lines for ranked configurations, and a note on those left out. Labels that are too long to be told apart
    get their rank."""
    shown = best_and_worst(groups, most)
    labels = [group.label or "all runs" for group in shown]
    if max(map(len, labels)) > _LONGEST_LABEL:
        ranks = {id(group): rank for rank, group in enumerate(groups, 1)}
        labels = [f"#{ranks[id(group)]} {label}" for group, label in zip(shown, labels, strict=True)]
    note = f" Shown are the best and the worst of {len(groups)} configurations: {len(shown)}."
    entries = [_Entry(shortened(label, _LONGEST_LABEL), group.runs) for label, group in zip(labels, shown, strict=True)]
    return entries, note if len(shown) < len(groups) else ""


def _single_runs(groups: Sequence[Configuration]) -> tuple[list[_Entry], str]:
    """Return, for heat maps, a run of each configuration, or every run of the only one."""
    if len(groups) == 1:
        own = groups[0].runs
        note = f" Shown are the first {heatmap.MOST} of {len(own)} runs." if len(own) > heatmap.MOST else ""
        return [_Entry(f"seed {run.seed}", [run]) for run in own[: heatmap.MOST]], note
    entries, note = _entries(groups, heatmap.MOST)
    if any(len(entry.runs) > 1 for entry in entries):
        note = f" Of each configuration, its first finished run.{note}"
    return [_Entry(e.label, [next((run for run in e.runs if run.finished), e.runs[0])]) for e in entries], note


def _training_curves(entries: Sequence[_Entry], note: str) -> Iterator[Picture]:
    read = [[run.curves([*_CURVES, "mse/val"]) for run in entry.runs] for entry in entries]
    logged = {metric for own in read for curve in own for metric in curve}
    metrics = [metric for metric in _CURVES if metric in logged]
    if "mse/val" in logged and not logged & {"accuracy/val", "loss/val"}:
        metrics.insert(0, "mse/val")
    panels = []
    for metric in metrics:
        lines = [
            curves.averaged(entry.label, [curve[metric] for curve in own if metric in curve], slot)
            for slot, (entry, own) in enumerate(zip(entries, read, strict=True))
        ]
        title, unit, kind = metric, metric.partition("/")[0], "number"
        if metric.startswith("flow/"):
            title, kind = f"{RATIO} over {metric.rpartition('_')[2]}", "log_ratio"
            unit = f"log10 ratio, first over last {'block' if metric.endswith('depth') else 'time step'}"
        trivial = trivial_score([run for entry in entries for run in entry.runs], metric)
        panels.append(curves.Panel(title, "optimizer step", unit, [line for line in lines if line], kind, trivial))
    if panels := [panel for panel in panels if _says_something(panel)]:
        dotted = f" Dotted: {TRIVIAL}." if any(math.isfinite(panel.trivial) for panel in panels) else ""
        caption = _if_several(_MEANS, entries) + dotted + note
        yield Picture("training", "Training curves", caption, partial(curves.sheet, panels))


def _says_something(panel: curves.Panel) -> bool:
    """A curve needs two points; and the gradient ratio over depth is 0 by definition in networks of one block."""
    moves = any(len(line.x) > 1 for line in panel.lines)
    return moves and (panel.kind != "log_ratio" or any(np.any(line.middle) for line in panel.lines))


def _if_several(caption: str, entries: Sequence[_Entry]) -> str:
    return caption if any(len(entry.runs) > 1 for entry in entries) else ""


def _profiles(entries: Sequence[_Entry], note: str) -> Iterator[Picture]:
    """Yield the gradient by depth and by time; of a single entry start, end and theory stand in one panel."""
    read = [[snapshots for run in entry.runs if (snapshots := run.snapshots())] for entry in entries]
    for key, (axis, x, y) in _AXES.items():
        stages = {"at the start of training": 0, "at the end of training": -1}
        panels = [
            curves.Panel(title, x, y, _profile_lines(entries, read, key, place), "profile")
            for title, place in stages.items()
        ]
        if len(entries) == 1:
            panels = [curves.Panel(f"gradient by {axis}", x, y, curves.start_and_end(read[0], key), "profile")]
        if panels := [panel for panel in panels if panel.lines]:
            name = "depth" if key == "gradient" else "time"
            caption = _if_several(_RANGES, entries) + _BANDS + note
            yield Picture(name, f"Gradient by {axis}", caption, partial(curves.sheet, panels))


def _profile_lines(entries: Sequence[_Entry], read: Sequence[Any], key: str, place: int) -> list[curves.Line]:
    lines = [
        curves.profiled(entry.label, [snapshots[place][key] for snapshots in own], slot)
        for slot, (entry, own) in enumerate(zip(entries, read, strict=True))
    ]
    return [line for line in lines if line]


def _heatmaps(entries: Sequence[_Entry], note: str) -> Iterator[Picture]:
    """Yield one map an entry, of its first run."""
    drawn = []
    for label, run in ((entry.label, entry.runs[0]) for entry in entries):
        layers, steps, norms = run.gradient_norms()
        if layers and steps:
            drawn.append(heatmap.thinned(heatmap.Map(label, layers, steps, norms, run.status == "diverged")))
    if drawn:
        scale = ", on one colour scale for all" if len(drawn) > 1 else ""
        caption = f"L2 norm of each layer's gradient, before clipping{scale}." + note
        title = "Gradient norm by layer and step"
        yield Picture("heatmaps", title, caption, partial(heatmap.heatmaps, drawn))


def _matrices(runs: Sequence[Run], keys: Sequence[str], metric: str, averaged_over: str) -> Iterator[Picture]:
    """Yield two factors: the metric of each pair of levels, and the gradient ratio at the start."""
    if len(keys) != 2 or not metric or DATASET in keys:
        return
    down, across = keys
    scores = grid(runs, down, across, lambda run: run.score(metric))
    ratios = grid(runs, down, across, lambda run: run.log_ratio("start"))
    better = "down" if direction(metric) == "min" else "up"
    drawn = [(scores, metric, "", better), (ratios, f"{RATIO} at the start", "vanishes  ←  →  explodes", "log_ratio")]
    pair = [
        factors.Matrix(title, unit, cells.rows, cells.columns, down, across, cells.values, kind, cells.unfinished)
        for cells, title, unit, kind in drawn
        if cells is scores or np.nan_to_num(cells.values[..., 0]).any()
    ]
    caption = f"Mean ± standard deviation over the runs of a cell{averaged_over}; grey: none finished. Bright is good."
    if math.isfinite(trivial := trivial_score(runs, metric)):
        caption += f" The {TRIVIAL} has {metric.removesuffix(' best')} {trivial:.4g}."
    yield Picture("matrix", f"{down} × {across}", caption, partial(factors.matrices, pair))


def _importance(found: Importance) -> Picture:
    shares = found.shares | {"interactions": found.interactions, "seeds": found.seeds}
    scale = "the logarithm of " if direction(found.metric) == "min" else ""
    caption = (
        f"Share of the variance of {scale}{found.metric} between {found.runs} finished runs that the group means of "
        "each choice explain (η², main effects of a functional ANOVA). The upright mark is what a choice without any "
        "effect would show. Grey is what main effects leave; in unbalanced designs shares overlap."
    )
    title = f"Hyperparameter importance for {found.metric}"
    draw = partial(factors.importance, shares, found.chance, title)
    return Picture("importance", "Hyperparameter importance", caption, draw)
