"""Which pictures a page gets, and of which runs: numbers from run folders, drawn by `gradflow.pictures`."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradflow import runs
from gradflow.plots import curves, factors, maps
from gradflow.plots.theme import Draw, png
from gradflow.report.groups import DATASET, Configuration, Grid, Importance, chosen, clipped, grid, trivial
from gradflow.report.html import Html, tag
from gradflow.report.read import Run
from gradflow.report.tables import TRIVIAL
from gradflow.runs.metric_direction import direction

NAMES = ("importance", "matrix", "training", "depth", "time", "heatmaps")  # report-<name>.png
SHOWN = ("accuracy/val", "loss/val", "loss/train", "flow/decades_depth", "flow/decades_time")
LONG = 44  # letters of a label
AXES = {
    "gradient": ("depth", "block l (1 is next to the input)", "‖dL/dh_l‖ / ‖dL/dh_L‖"),
    "time": ("time", "time step t (the loss is at the last)", "‖dL/dx_t‖ / ‖dL/dx_T‖"),
}
BAND = "Lines are means over seeds, bands ± one standard deviation."
RANGE = "Lines are geometric means over seeds, bands their range. "
THRESHOLDS = "Shaded: where the verdict is no longer OK."


@dataclass(frozen=True)
class Entry:
    """A line of a picture: some runs under one name."""

    label: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Picture:
    name: str
    title: str
    caption: str
    draw: Draw
    small: bool = False

    def html(self, folder: Path) -> Html:
        """Drawn into `folder`, and embedded: for light and dark, and narrow for a phone where it is wide."""
        light = png(self.draw, "light")
        with runs.write_whole(folder / f"report-{self.name}.png", "wb") as file:
            file.write(light)
        others = {"screen and (prefers-color-scheme: dark)": png(self.draw, "dark")}
        if not self.small:
            phone = "screen and (max-width: 640px)"
            slim = {theme: png(self.draw, theme, narrow=True) for theme in ("dark", "light")}
            others = {f"{phone} and (prefers-color-scheme: dark)": slim["dark"], phone: slim["light"]} | others
        sources = (tag("source", srcset=url(content), media=media) for media, content in others.items())
        image = tag("img", src=url(light), alt=f"{self.title}. {self.caption}")
        figure = tag("figure", tag("picture", *sources, image), tag("figcaption", self.caption))
        return tag("section", tag("h2", self.title), figure, id=self.name)


def url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def entries(groups: Sequence[Configuration], most: int) -> tuple[list[Entry], str]:
    """Lines for ranked configurations, and what is to be said of those left out."""
    shown = chosen(groups, most)
    left = (
        f" Shown are the best and the worst of {len(groups)} configurations: {len(shown)}."
        if len(shown) < len(groups)
        else ""
    )
    return [Entry(label, group.runs) for label, group in zip(labels(groups, shown), shown, strict=True)], left


def labels(groups: Sequence[Configuration], shown: Sequence[Configuration]) -> list[str]:
    """Short names; where they are too long to be told apart, with the place in the table."""
    full = [group.label or "all runs" for group in shown]
    if max(map(len, full)) <= LONG:
        return full
    places = [next(i for i, group in enumerate(groups, 1) if group is one) for one in shown]
    return [clipped(f"#{place} {label}", LONG) for place, label in zip(places, full, strict=True)]


def training(lines: Sequence[Entry], note: str) -> Iterator[Picture]:
    read = [[run.curves([*SHOWN, "mse/val"]) for run in entry.runs] for entry in lines]
    have = {name for entry in read for run in entry for name in run}
    names = [name for name in SHOWN if name in have]
    if "accuracy/val" not in have and "loss/val" not in have and "mse/val" in have:
        names.insert(0, "mse/val")
    panels = []
    for name in names:
        own = [
            curves.averaged(entry.label, [run[name] for run in found if name in run], slot)
            for slot, (entry, found) in enumerate(zip(lines, read, strict=True))
        ]
        if drawn := [line for line in own if line is not None]:
            flow = name.startswith("flow/")
            title = f"gradient reach over {name.rpartition('_')[2]}" if flow else name
            unit = (
                "R, decades (below 0: vanishes)"
                if flow
                else "share correct"
                if name[0] == "a"
                else name.partition("/")[0]
            )
            chance = trivial([run for entry in lines for run in entry.runs], name)
            panels.append(curves.Panel(title, "optimizer step", unit, drawn, "decades" if flow else "number", chance))
    if panels := telling(panels):
        level = f" Dotted: {TRIVIAL}." if any(math.isfinite(panel.trivial) for panel in panels) else ""
        yield Picture(
            "training", "Over training", said(BAND, lines) + level + note, lambda *how: curves.sheet(panels, *how)
        )


def telling(panels: Sequence[curves.Panel]) -> list[curves.Panel]:
    """A line needs two points; and R over depth is 0 by definition in networks of one block."""
    moving = [panel for panel in panels if any(len(line.x) > 1 for line in panel.lines)]
    return [panel for panel in moving if panel.kind != "decades" or any(np.any(line.middle) for line in panel.lines)]


def said(words: str, lines: Sequence[Entry]) -> str:
    """What bands are, where there are some."""
    return words if any(len(entry.runs) > 1 for entry in lines) else ""


def profiles(lines: Sequence[Entry], note: str) -> Iterator[Picture]:
    looks = [[seen for run in entry.runs if (seen := run.looks())] for entry in lines]
    for key, (axis, x, y) in AXES.items():
        if len(lines) == 1:
            panels = [curves.Panel(f"gradient by {axis}", x, y, own, "profile")] if (own := ends(looks[0], key)) else []
        else:
            panels = []
            for place, moment in ((0, "start"), (-1, "end")):
                drawn = [
                    curves.profiled(entry.label, [seen[place][key] for seen in found], slot)
                    for slot, (entry, found) in enumerate(zip(lines, looks, strict=True))
                ]
                if told := [line for line in drawn if line is not None]:
                    panels.append(curves.Panel(f"at the {moment} of training", x, y, told, "profile"))
        if panels:
            yield Picture(
                "depth" if key == "gradient" else "time",
                f"Gradient by {axis}",
                said(RANGE, lines) + THRESHOLDS + note,
                drawing(panels),
                len(panels) == 1,
            )


def drawing(panels: Sequence[curves.Panel]) -> Draw:
    return lambda *how: curves.sheet(panels, *how)


def ends(looks: Sequence[Sequence[dict]], key: str) -> list[curves.Line]:
    """Start, end and theory of one configuration, in one panel."""
    told = [
        curves.profiled("start", [seen[0][key] for seen in looks], 0),
        curves.profiled("end", [seen[-1][key] for seen in looks if len(seen) > 1], 1),
    ]
    theory = next((seen[0]["theory"][key] for seen in looks if seen[0]["theory"][key]), None)
    line = curves.profiled("theory, at the start", [theory]) if theory else None
    if line is not None:
        told.append(curves.Line(line.label, line.x, line.middle, line.low, line.high, theory=True))
    return [line for line in told if line is not None]


def heatmaps(lines: Sequence[Entry], note: str) -> Iterator[Picture]:
    """One map an entry, of its first run."""
    drawn = []
    for entry in lines:
        layers, steps, norms = entry.runs[0].norms()
        if layers and steps:
            drawn.append(maps.thinned(maps.Map(entry.label, layers, steps, norms, entry.runs[0].status != "diverged")))
    if drawn:
        scale = ", on one colour scale for all" if len(drawn) > 1 else ""
        caption = f"L2 norm of each layer's gradient, before clipping{scale}." + note
        yield Picture(
            "heatmaps",
            "Gradient norm by layer and step",
            caption,
            lambda *how: maps.heatmaps(drawn, *how),
            len(drawn) == 1,
        )


def single_runs(groups: Sequence[Configuration]) -> tuple[list[Entry], str]:
    """For maps: a run of each configuration, or every run of the only one."""
    if len(groups) == 1:
        found = groups[0].runs
        left = f" Shown are the first {maps.MOST} of {len(found)} runs." if len(found) > maps.MOST else ""
        return [Entry(f"seed {run.seed}", [run]) for run in found[: maps.MOST]], left
    lines, left = entries(groups, maps.MOST)
    shown = chosen(groups, maps.MOST)
    seeds = " Of each configuration, its first finished run." if any(len(group.runs) > 1 for group in shown) else ""
    return [Entry(line.label, [group.one()]) for line, group in zip(lines, shown, strict=True)], seeds + left


def factorial(found: Sequence[Run], keys: Sequence[str], measure: str, averaged_over: str = "") -> Iterator[Picture]:
    """Two factors: what came of each pair, and how far the gradient reached at the start."""
    if len(keys) != 2 or not measure or DATASET in keys:
        return
    told = grid(found, *keys)
    pair = [matrix(told, told.means(measure), measure, "", "down" if direction(measure) == "min" else "up")]
    gaps = told.gaps("start")
    if np.isfinite(gaps[..., 0]).any() and np.nanmax(abs(gaps[..., 0])) > 0:
        pair.append(matrix(told, gaps, "R at the start", "vanishes  ←  decades  →  explodes", "decades"))
    caption = f"Mean ± standard deviation over the runs of a cell{averaged_over}; grey: none finished. Bright is good."
    if math.isfinite(level := trivial(found, measure)):
        caption += f" The {TRIVIAL} has {measure.removesuffix(' best')} {level:.4g}."
    yield Picture(
        "matrix", f"{keys[0]} × {keys[1]}", caption, lambda *how: factors.matrices(pair, *how), len(pair) == 1
    )


def matrix(told: Grid, values: np.ndarray, title: str, unit: str, kind: str) -> factors.Matrix:
    return factors.Matrix(
        title, unit, named(told.rows), named(told.columns), told.down, told.across, values, kind, told.troubles()
    )


def named(values: Sequence[str]) -> list[str]:
    return [value or "–" for value in values]


def weights(told: Importance) -> Picture:
    shares = dict(told.shares)
    shares |= {"interactions": told.interactions, "seeds": told.seeds} if not math.isnan(told.seeds) else {}
    scale = "the logarithm of " if direction(told.measure) == "min" else ""
    caption = (
        f"Share of the variance of {scale}{told.measure} between {told.runs} finished runs that the group means of "
        "each choice explain (η², main effects of a functional ANOVA). The upright mark is what a choice without any "
        "effect would show. Grey is what main effects leave; in unbalanced designs shares overlap."
    )
    title = f"What matters for {told.measure}"
    return Picture(
        "importance", "What matters", caption, lambda *how: factors.bars(shares, told.chance, title, *how), True
    )
