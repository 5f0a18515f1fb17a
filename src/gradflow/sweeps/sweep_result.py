"""What came of a sweep, on the screen: its best configurations, what can't be told from the best, and its page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from gradflow.report.collect import Collection
from gradflow.report.configurations import Configuration, configurations, ranked, ranking_metric, shown_metrics
from gradflow.report.significance import RULE, Standing, standings
from gradflow.report.tables import mean_and_sd
from gradflow.runs.screen import Screen, link

_BEST = 5  # configurations that are shown
_METRICS = 2  # of each, the first of which ranks
_MARGIN = 11  # letters, as in what a search prints before
_NARROW = 60  # columns of a terminal, in fewer of which there is room for one metric and no notes


def print_result(collection: Collection) -> None:
    """Print the best configurations, as the page ranks them, and how the jobs have ended."""
    console, metric = Screen(), ranking_metric(collection.runs)
    groups = ranked(configurations(collection.runs), metric)
    judged = [_judged(standing, metric) for standing in standings(groups, metric) if standing.others]
    if metric:
        notes = {group: note for own, _ in judged for group, note in own.items()}
        metrics, narrow = shown_metrics(collection.runs, metric), console.width < _NARROW
        console.print(_table(groups, metrics[: 1 if narrow else _METRICS], {} if narrow else notes))
    for _, sentence in judged:
        console.print(sentence, markup=False)
    counts = Counter(run.status for run in collection.runs)
    console.row("jobs", ", ".join(f"{count} {status}" for status, count in counts.most_common()), margin=_MARGIN)


def print_page(page: Path) -> None:
    """Print where the page is, as a link on a terminal."""
    Screen().row("report", os.path.relpath(page), link(page), margin=_MARGIN)


def _table(groups: list[Configuration], metrics: list[str], notes: Mapping[Configuration, str]) -> Table:
    """Return the best that have a number; the page has them all."""
    shown = [group for group in groups if group.score(metrics[0]).n][:_BEST]
    all_shown = len(shown) == len(groups)
    title = "configuration" if all_shown else f"best {len(shown)} of {len(groups)}"
    table = Table(Column("#", no_wrap=True), title, box=SIMPLE_HEAD)
    for name in (*metrics, "n", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for place, group in enumerate(shown, 1):
        values = [mean_and_sd(group.score(name)) or "–" for name in metrics]
        label = Text(group.label or "all jobs")
        table.add_row(str(place), label, *values, str(group.score(metrics[0]).n), notes.get(group, ""))
    return table


def _judged(standing: Standing, metric: str) -> tuple[dict[Configuration, str], str]:
    """Return a word on the best configuration and each that can't be told from it, and what they rest on."""
    best, rivals = standing.leader, standing.rivals
    if all(group.score_over_seeds(metric).n < 2 for group in (best, *rivals)):
        return {}, "One seed each tells no difference from chance; seed=0,1,2 would."
    if standing.won:
        return {best: "the best"}, f"The best is separable from all others. {RULE}."
    who = "the other is" if standing.others == 1 else f"{len(rivals)} of the other {standing.others} are"
    sentence = f"No winner: {who} not separable from the best mean. {RULE}."
    return {best: "best mean"} | dict.fromkeys(rivals, "not separable"), sentence
