"""Figures as tables and as a picture: what stands between two marks of a page is written from docs/performance.json.

<!-- bench: step_mlp --> … <!-- /bench -->      the table of a comparison; also goals, headline, machine
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from check import OURS, more_is_better
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

Facts = Mapping[str, Any]
ROOT = Path(__file__).parents[2]
_MARKED = re.compile(r"(<!-- bench: ([\w ]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_HEADLINE = (
    ("batches", "DataLoader, 2 workers", "the augmented images a second of a DataLoader with two workers"),
    (
        "whole_run",
        "Lightning, DataLoader, CSVLogger",
        "as fast as a usual Lightning project, from command to test score",
    ),
    ("sweep", "a fresh process a job", "the jobs an hour of a sweep that starts a process for each"),
)


def pages() -> Iterator[Path]:
    """Return the pages that have such marks."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if _MARKED.search(path.read_text(encoding="utf-8")):
            yield path


def filled(text: str, facts: Facts) -> str:
    """Return a page with the tables of these figures."""

    def table(match: re.Match[str]) -> str:
        special = {"goals": goals, "headline": headline, "machine": machine}
        parts = [special[name](facts) if name in special else comparison(facts, name) for name in match[2].split()]
        return f"{match[1]}{chr(10).join(parts)}{match[3]}"

    return _MARKED.sub(table, text)


def comparison(facts: Facts, name: str) -> str:
    """Return the table of one comparison."""
    found = facts["comparisons"].get(name)
    if not found:
        return "Not run yet.\n"
    lines = [f"| {found['title']} | {found['unit']} | ratio | range |", "|---|---|---|---|"]
    for who, row in found["rows"].items():
        spread = f"{row['low']:.3g} – {row['high']:.3g}" if found["rounds"] > 1 else ""
        lines.append(f"| {who} | {number(row['median'])} | {row['ratio']:.3g} | {spread} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(facts: Facts, name: str, who: str, over: str) -> float | None:
    """Return the median over the rounds of one row's ratio to another."""
    rows = facts["comparisons"].get(name, {}).get("rows", {})
    if who not in rows or over not in rows:
        return None
    return median(a / b for a, b in zip(rows[who]["values"], rows[over]["values"], strict=True))


def reached(facts: Facts, goal: Facts, who: str) -> tuple[float | None, str]:
    """Return a figure that a goal asks for, and how it is written."""
    if over := goal.get("over"):
        value, unit = ratio(facts, goal["comparison"], who, over), "×"
    else:
        found = facts["comparisons"].get(goal["comparison"], {"rows": {}, "unit": ""})
        value, unit = found["rows"].get(who, {}).get("median"), found["unit"]
    return value, "not run yet" if value is None else f"{value:.3g} {unit}"


def goals(facts: Facts) -> str:
    """Return the table of what should be reached, what is, and what holds it where it is not."""
    lines = ["| work | bound | goal | reached | |", "|---|---|---|---|---|"]
    for goal in yaml.safe_load((Path(__file__).parent / "goals.yaml").read_text(encoding="utf-8")):
        value, text = reached(facts, goal, goal.get("of", OURS))
        unit = facts["comparisons"].get(goal["comparison"], {}).get("unit", "")
        more = more_is_better(unit)
        met = value is not None and (value >= goal["goal"] if more else value <= goal["goal"])
        bound = f"{goal['bound']}: {reached(facts, goal, goal['bound'])[1]}" if "bound" in goal else ""
        asked = f"{'≥' if more else '≤'} {goal['goal']} {'×' if 'over' in goal else unit}"
        lines.append(f"| {goal['work']} | {bound} | {asked} | {text} | {'met' if met else goal['holds']} |")
    return "\n".join(lines) + "\n"


def headline(facts: Facts) -> str:
    """Return three ratios for the README: how many times as fast ours is."""
    lines = []
    for name, over, text in _HEADLINE:
        value, one = ratio(facts, name, OURS, over), facts["comparisons"].get(name, {"unit": ""})
        value = value if value is None or more_is_better(one["unit"]) else 1 / value
        lines.append(f"- {'not run yet:' if value is None else f'{value:.2g}'} × {text}")
    return "\n".join(lines) + "\n"


def machine(facts: Facts) -> str:
    """Return where the figures are from, and whether others computed there when the bench began."""
    of = facts["machine"]
    kind = f"{of['gpu']}, {of['cores']} cores" if of["gpu"] else f"{of['cores']} cores of {of['cpu']}"
    busy = f" **The machine was busy (load {of['load']:.0f}): do not rely on these figures.**"
    busy = busy if of["load"] > of["cores"] else ""
    versions = f"torch {of['torch']}, Lightning {of['lightning']}, Python {of['python']}"
    return f"{kind}, {versions}, commit {of['commit']}, {of['date']}.{busy}\n"


def picture(facts: Facts) -> Figure:
    """Draw what each thing costs in terms of its yardstick, ours as diamonds; further left is better."""
    found = [one for one in facts["comparisons"].values() if OURS in one["rows"]]
    figure = Figure(figsize=(9, 0.4 * len(found) + 1), layout="constrained")
    axes = figure.subplots()
    look = {True: ("D", "C1", "gradflow, also with trainer=fast"), False: ("o", "C7", "what it is compared with")}
    for marker, color, label in look.values():
        axes.plot([], [], marker, color=color, label=label)
    for place, one in enumerate(found):
        for who, row in one["rows"].items():
            cost = 1 / row["ratio"] if more_is_better(one["unit"]) else row["ratio"]
            mine = who.startswith(OURS)
            axes.plot(cost, place, look[mine][0], color=look[mine][1], zorder=3 if mine else 2)
    axes.set(xscale="log", xlabel="cost; 1 is that of what stands in brackets, and further left is better")
    axes.set_yticks(range(len(found)), [f"{one['title']} ({next(iter(one['rows']))})" for one in found], fontsize=7)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_yaxis()
    axes.legend(loc="lower left", fontsize=7)
    axes.axvline(1, linewidth=0.8, color="C7")
    return figure
