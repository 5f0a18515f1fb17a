"""Choose which pictures a page gets, and of which runs: numbers from run folders, drawn by `gradflow.plots`."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gradflow import runs
from gradflow.plots import curves, factors, heatmap, tables
from gradflow.plots.theme import Draw, png
from gradflow.plots.thinning import cut
from gradflow.report.configurations import (
    DATASET,
    Configuration,
    best_and_worst,
    direction,
    is_another_name_of_the_loss,
    metrics_in_order,
    trivial_score,
)
from gradflow.report.effects import Importance, importance, matrix
from gradflow.report.results import RATIO, TRIVIAL
from gradflow.report.run import Run

NAMES = ("importance", "matrix", "training", "depth", "time", "heatmaps")  # report-<name>.png
_FLOW_CURVES = {  # title, unit and kind of a panel by the value it shows
    "flow/decades_depth": (f"{RATIO} over depth", "log10 ratio, first over last block", "log_ratio"),
    "flow/decades_time": (f"{RATIO} over time", "log10 ratio, first over last time step", "log_ratio"),
}
_AXES = {  # key of a snapshot, and what the axes say
    "depth": ("gradient", "block l (1 is next to the input)", "‖∂L/∂h_l‖ / ‖∂L/∂h_L‖"),
    "time": ("time", "time step t (the loss is at the last)", "‖∂L/∂x_t‖ / ‖∂L/∂x_T‖"),
}
_LONGEST_LABEL = 44

_Entry = tuple[str, list[Run]]  # a line of a picture: some runs under one label


@dataclass(frozen=True)
class Picture:
    """Hold a picture's words, and the function that draws it."""

    name: str
    title: str
    caption: str
    draw: Draw

    def save(self, folder: Path) -> list[str]:
        """Write the picture into `folder`; return its light and its dark version as data URLs."""
        versions = [png(self.draw, theme) for theme in ("light", "dark")]
        with runs.write_whole(folder / f"report-{self.name}.png", "wb") as file:
            file.write(versions[0])
        return [f"data:image/png;base64,{base64.b64encode(version).decode()}" for version in versions]


def of_runs(own: Sequence[Run], groups: Sequence[Configuration], metric: str) -> Iterator[Picture]:
    """Yield the pictures of ranked configurations: what choices do, then lines and heat maps."""
    keys, averaged_over = list(groups[0].values), ""
    if found := importance(groups, metric):
        yield _importance(found, metric, direction(own, metric) == "min")
        keys, others = list(found.shares)[:2], list(found.shares)[2:]
        averaged_over = f" and over {', '.join(others)}"
    if len(keys) == 2 and metric and DATASET not in keys:
        yield _matrices(own, keys, metric, averaged_over)
    entries, note = _entries(groups, curves.MOST)
    if len(own) == 2:
        names = cut([run.name for run in own], _LONGEST_LABEL)
        entries = [(name, [run]) for name, run in zip(names, own, strict=True)]
    yield from _training_curves(entries, note)
    yield from _profiles(entries, note)
    yield from _tables(entries, note, groups)


def _entries(groups: Sequence[Configuration], most: int) -> tuple[list[_Entry], str]:
    """Return lines for ranked configurations, and a note on those left out. Labels that are too long to be told apart
    get their rank."""
    shown = best_and_worst(groups, most)
    labels = [group.label or "all runs" for group in shown]
    if max(map(len, labels)) > _LONGEST_LABEL:
        labels = [f"#{groups.index(group) + 1} {label}" for group, label in zip(shown, labels, strict=True)]
    note = f" Shown are the best and the worst of {len(groups)} configurations: {len(shown)}."
    entries = list(zip(cut(labels, _LONGEST_LABEL), (group.runs for group in shown), strict=True))
    return entries, note if len(shown) < len(groups) else ""


def _single_runs(groups: Sequence[Configuration]) -> tuple[list[tuple[str, Run]], str]:
    """Return, for heat maps, a run of each configuration, or every run of the only one."""
    if len(groups) == 1:
        own = groups[0].runs
        note = f" Shown are the first {heatmap.MOST} of {len(own)} runs." if len(own) > heatmap.MOST else ""
        return [(f"seed {run.seed}", run) for run in own[: heatmap.MOST]], note
    entries, note = _entries(groups, heatmap.MOST)
    first = "" if all(len(own) == 1 for _, own in entries) else " Of each configuration, its first finished run."
    return [(label, next((run for run in own if run.finished), own[0])) for label, own in entries], first + note


def _training_curves(entries: Sequence[_Entry], note: str) -> Iterator[Picture]:
    runs = [run for _, own in entries for run in own]
    validated = [name for name in metrics_in_order(runs) if name.endswith("/val")]
    names = [name for name in validated if not is_another_name_of_the_loss(runs, name)]
    wanted = {name: (name, name.partition("/")[0], "number") for name in (*names, "loss/train")}
    wanted |= {name: (name, "learning rate", "rate") for run in runs for name in run.learning_rates} | _FLOW_CURVES
    logged = [(label, [run.curves(wanted) for run in own]) for label, own in entries]
    panels = []
    for metric, (title, unit, kind) in wanted.items():
        lines = [
            curves.averaged(label, [curve[metric] for curve in own if metric in curve], slot)
            for slot, (label, own) in enumerate(logged)
        ]
        trivial = trivial_score(runs, metric)
        panels.append(curves.Panel(title, "optimizer step", unit, [line for line in lines if line], kind, trivial))
    if panels := [panel for panel in panels if _says_something(panel)]:
        caption = "Lines are means over seeds, bands ± one standard deviation." if _averaged(entries) else ""
        caption += f" Dotted: {TRIVIAL}." if any(math.isfinite(panel.trivial) for panel in panels) else ""
        yield Picture("training", "Training curves", caption + note, partial(curves.sheet, panels))


def _says_something(panel: curves.Panel) -> bool:
    """A curve needs two points, a learning rate two values; and the gradient ratio over depth is 0 by definition in
    networks of one block."""
    moves = any(len(line.x) > 1 for line in panel.lines)
    if panel.kind == "rate":
        return moves and len({value for line in panel.lines for value in line.middle.tolist()}) > 1
    return moves and (panel.kind != "log_ratio" or any(np.any(line.middle) for line in panel.lines))


def _averaged(entries: Sequence[_Entry]) -> bool:
    return any(len(own) > 1 for _, own in entries)


def _profiles(entries: Sequence[_Entry], note: str) -> Iterator[Picture]:
    """Yield the gradient by depth and by time; of a single entry start, end and theory stand in one panel."""
    read = [(label, [snapshots for run in own if (snapshots := run.snapshots())]) for label, own in entries]
    for axis, (key, x, y) in _AXES.items():
        panels = {}
        if len(read) == 1:
            panels[f"gradient by {axis}"] = curves.start_and_end(read[0][1], key)
        else:
            for stage, place in (("start", 0), ("end", -1)):
                lines = [
                    curves.profiled(label, [snapshots[place][key] for snapshots in own], slot)
                    for slot, (label, own) in enumerate(read)
                ]
                panels[f"at the {stage} of training"] = [line for line in lines if line]
        if drawn := [curves.Panel(title, x, y, lines, "profile") for title, lines in panels.items() if lines]:
            caption = "Lines are geometric means over seeds, bands their range. " if _averaged(entries) else ""
            caption += f"Shaded: where the verdict is CAUTION or FAIL.{note}"
            yield Picture(axis, f"Gradient by {axis}", caption, partial(curves.sheet, drawn))


def _tables(entries: Sequence[_Entry], note: str, groups: Sequence[Configuration]) -> Iterator[Picture]:
    """Yield a picture of each table that a diagnostic wrote: heat maps of single runs, or curves."""
    singles, note_of_singles = _single_runs(groups)
    for name, layout in {name: layout for _, run in singles for name, layout in run.layouts.items()}.items():
        picture = "heatmaps" if f"{name}.csv" == runs.GRADIENTS else f"table-{name}"
        title = layout.title[:1].upper() + layout.title[1:]
        if tables.is_map(layout):
            own = [(label, run) for label, run in singles if run.layouts.get(name) == layout or len(layout.axes) == 1]
            maps = (_map(label, run, name) for label, run in own if name in run.layouts)
            if drawn := [heatmap.thinned(one) if len(layout.axes) == 1 else one for one in maps if one]:
                scale = ", on one colour scale for all" if len(drawn) > 1 else ""
                by = "layer and step" if len(layout.axes) == 1 else " and ".join(layout.axes)
                draw = partial(heatmap.heatmaps, drawn, layout=layout)
                yield Picture(picture, f"{title} by {by}", f"{layout.scale}{scale}.{note_of_singles}", draw)
        else:
            read = [(label, [run.table(name) for run in own if name in run.layouts]) for label, own in entries]
            if panels := tables.panels(layout, read):
                yield Picture(picture, title, f"{layout.scale}.{note}", partial(curves.sheet, panels))


def _map(label: str, run: Run, name: str) -> heatmap.Map | None:
    names, steps, rows = run.table(name)
    return tables.map_of(label, run.layouts[name], names, steps, rows, run.status == "diverged") if steps else None


def _matrices(runs: Sequence[Run], keys: Sequence[str], metric: str, averaged_over: str) -> Picture:
    """Return the metric of each pair of two factors' levels, and the gradient ratio at the start where it is known."""
    down, across = keys
    kind = "down" if direction(runs, metric) == "min" else "up"
    pair = [matrix(runs, down, across, lambda run: run.score(metric), title=metric, unit="", kind=kind)]
    labels = {"title": f"{RATIO} at the start", "unit": "vanishes  ←  →  explodes", "kind": "log_ratio"}
    ratios = matrix(runs, down, across, lambda run: run.log_ratio("start"), **labels)
    if np.nan_to_num(ratios.means).any():
        pair.append(ratios)
    caption = f"Mean ± standard deviation over the runs of a cell{averaged_over}; grey: none finished. Bright is good."
    if math.isfinite(trivial := trivial_score(runs, metric)):
        caption += f" The {TRIVIAL} has {metric.removesuffix(' best')} {trivial:.4g}."
    return Picture("matrix", f"{down} × {across}", caption, partial(factors.matrices, pair))


def _importance(found: Importance, metric: str, logarithmic: bool) -> Picture:
    shares = found.shares | {"interactions": found.interactions, "seeds": found.seeds}
    scale = "the logarithm of " if logarithmic else ""
    caption = (
        f"Share of the variance of {scale}{metric} between {found.runs} finished runs that the group means of "
        "each choice explain (η², main effects of a functional ANOVA). The upright mark is what a choice without any "
        "effect would show. Grey is what main effects leave; in unbalanced designs shares overlap."
    )
    draw = partial(factors.importance, shares, found.chance, f"Hyperparameter importance for {metric}")
    return Picture("importance", "Hyperparameter importance", caption, draw)
