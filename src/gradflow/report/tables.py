"""A table once, as HTML and as CSV: what a reader sees is what a program reads, with all digits."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradflow import runs
from gradflow.report.groups import Configuration, Statistic, measures, p_value, primary, standings, trivial
from gradflow.report.html import Html, join, tag
from gradflow.report.read import Run
from gradflow.runs.metric_direction import direction
from gradflow.runs.tables import to_cell

MOMENTS = ("start", "end")
TRIVIAL = "trivial answer"
EXPLAINED = "the best that takes no look at the input: the class frequencies, or the mean target, of the training data"
TROUBLES = ("failed", "diverged", "pruned", "interrupted", "running")  # columns only where there is one
LONG = 25  # rows after which a table scrolls by itself, so that the pictures stay in reach
FEW = 4  # choices that stand before the numbers; more would push them off the screen
HINT = "verdict, and decades that the gradient changes from the last block or time step to the first; below 0: vanishes"
ORDER = ("FAIL", "CAUTION", "OK")  # the worst first


@dataclass(frozen=True)
class Column:
    name: str
    hint: str = ""
    numeric: bool = False
    more: tuple[str, ...] = ()  # what CSV tells in columns of their own: a standard deviation, a verdict


@dataclass(frozen=True)
class Cell:
    text: str | Html
    value: float | str = ""  # to sort by, and for CSV
    best: bool = False
    more: tuple[float | str, ...] = ()


@dataclass(frozen=True)
class Table:
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def html(self, caption: str) -> Html:
        heads = (
            tag("th", tag("button", column.name, type="button"), scope="col", title=column.hint or None,
                class_="number" if column.numeric else None)
            for column in self.columns
        )  # fmt: skip
        rows = (tag("tr", *(self._cell(*pair) for pair in zip(self.columns, row, strict=True))) for row in self.rows)
        table = tag(
            "table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="sortable", aria_label=caption
        )
        return tag("div", table, class_="scroll long" if len(self.rows) > LONG else "scroll", tabindex="0")

    @staticmethod
    def _cell(column: Column, cell: Cell) -> Html:
        kinds = [kind for kind, there in (("number", column.numeric), ("best", cell.best)) if there]
        return tag("td", cell.text, class_=" ".join(kinds) or None, data_value=exact(cell.value))

    def csv(self, path: Path) -> None:
        with runs.write_whole(path, newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(to_cell(name) for column in self.columns for name in (column.name, *column.more))
            for row in self.rows:
                writer.writerow(to_cell(exact(value)) for cell in row for value in (cell.value, *cell.more))


def exact(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if not math.isfinite(value) else str(int(value)) if value == int(value) else repr(float(value))


def number(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.4g}"


def spread(told: Statistic) -> str:
    """mean ± sd, both to the first digit of the sd, or the second where the first is 1."""
    if not math.isfinite(told.sd):
        return number(told.mean)
    if told.sd == 0 or not 1e-4 <= abs(told.mean) < 1e5 or told.sd > 1e5:
        return f"{told.mean:.4g} ± {told.sd:.2g}"
    size = math.floor(math.log10(told.sd))
    places = min(max((told.sd < 2 * 10**size) - size, 0), 4)
    return f"{told.mean:.{places}f} ± {told.sd:.{places}f}"


def decades(told: Statistic) -> str:
    if not math.isfinite(told.mean):
        return ""
    return signed(told.mean) + (f" ± {told.sd:.1f}" if math.isfinite(told.sd) else "")


def signed(gap: float) -> str:
    return f"{round(gap, 1) + 0.0:+.1f}"  # no -0.0


def chips(words: Mapping[str, int]) -> Html:
    """Each word of a verdict with how often it was said, the worst first."""
    several = sum(words.values()) > 1
    said = [word for word in ORDER if words.get(word)]
    return join(*(tag("span", f"{word} ×{words[word]}" if several else word, class_=word) for word in said))


def worst(words: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {words[word]}" for word in ORDER if words.get(word))


def results(groups: Sequence[Configuration]) -> Table:
    """A row a configuration, in the order given; choices come first where they are few."""
    found = [run for group in groups for run in group.runs]
    shown = measures(found, primary(found))
    chosen, ended, seen = choices(groups), endings(groups), numbers(groups, shown)
    order = [chosen, ended, seen] if len(groups[0].values) <= FEW else [ended, seen, chosen]
    parts = [numbered(groups), *order]
    rows = [[cell for part in parts for cell in part.rows[place]] for place in range(len(groups))]
    columns = [column for part in parts for column in part.columns]
    return Table(columns, [*rows, *trivial_rows(groups, columns, shown)])


def trivial_rows(
    groups: Sequence[Configuration], columns: Sequence[Column], shown: Sequence[str]
) -> Iterator[list[Cell]]:
    """What the trivial answer has on each data set, where that was recorded."""
    datasets = list(dict.fromkeys(group.dataset for group in groups if group.dataset))
    for dataset in datasets:
        found = [run for group in groups if group.dataset == dataset for run in group.runs]
        known = {name: trivial(found, name) for name in shown}
        if any(map(math.isfinite, known.values())):
            name = f"{TRIVIAL}, {dataset}" if len(datasets) > 1 else TRIVIAL
            cells = [Cell(number(v := known.get(c.name, math.nan)), v, more=("",) * len(c.more)) for c in columns]
            yield [Cell(name, name), *cells[1:]]


def numbered(groups: Sequence[Configuration]) -> Table:
    return Table([Column("#", "the place", True)], [[Cell(str(place), place)] for place in range(1, len(groups) + 1)])


def choices(groups: Sequence[Configuration]) -> Table:
    keys = list(groups[0].values)
    columns = [Column(key, numeric=numeric(group.values[key] for group in groups)) for key in keys]
    return Table(columns, [[Cell(value or "–", value) for value in group.values.values()] for group in groups])


def endings(groups: Sequence[Configuration]) -> Table:
    """How many runs came to their end, and a column for each other way to end that there was."""
    had = {state for group in groups for state in group.states} - {"finished"}
    states = [state for state in TROUBLES if state in had] + sorted(had - set(TROUBLES))
    columns = [Column("n", "finished runs: those that the means are of", True)]
    columns += [Column(state, "runs that ended so; they are in no mean of a metric", True) for state in states]
    counts = ([group.states[state] for state in ("finished", *states)] for group in groups)
    return Table(columns, [[Cell(str(count), count) for count in row] for row in counts])


def numbers(groups: Sequence[Configuration], shown: Sequence[str]) -> Table:
    """Metrics over seeds; the winner marked in the first, which ranks, and p of Welch's t-test against the best mean.
    After the first score of a test, how far the gradient reached."""
    found = standings(groups, shown[0]) if shown else []
    won = {id(standing.leader) for standing in found if standing.won}
    leaders = {standing.leader.dataset: standing.leader for standing in found}
    columns = [Column(measure, hint(measure), True, (f"{measure} sd",)) for measure in shown]
    reach = [Column(f"R {moment}", HINT, True, (f"R {moment} sd", f"verdict {moment}")) for moment in MOMENTS]
    rows = []
    for group in groups:
        told = [(group.of(measure), not place and id(group) in won) for place, measure in enumerate(shown)]
        row = [Cell(spread(seen), seen.mean, wins, (seen.sd,)) for seen, wins in told]
        leader = leaders.get(group.dataset, group)
        p = math.nan if group is leader else p_value(leader.seeds(shown[0]), group.seeds(shown[0]))
        row[1:1] = [Cell(number(round(p, 4)), p)] if shown else []
        rows.append([*row[:3], *(reached(group, moment) for moment in MOMENTS), *row[3:]])
    columns[1:1] = (
        [Column("p", f"of Welch's t-test over seeds, against the best mean of {shown[0]}", True)] if shown else []
    )
    table = Table([*columns[:3], *reach, *columns[3:]], rows)
    return table if any(cell.text for row in rows for cell in row[1:2]) or not shown else without(table, 1)


def without(table: Table, place: int) -> Table:
    """A table without one of its columns."""
    columns, *rows = ([*row[:place], *row[place + 1 :]] for row in (table.columns, *table.rows))
    return Table(columns, rows)  # type: ignore[arg-type]


def hint(measure: str) -> str:
    better = {"min": "less is better", "max": "more is better", None: ""}[direction(measure)]
    return f"{better}; the best of the run, by validation" if measure.endswith(" best") else better


def reached(group: Configuration, moment: str) -> Cell:
    words, gap = group.verdicts(moment), group.gap(moment)
    return Cell(join(chips(words), " ", decades(gap)), gap.mean, more=(gap.sd, worst(words)))


def numeric(values: Iterable[str]) -> bool:
    try:
        return bool([float(value) for value in values if value])
    except ValueError:
        return False


def each(found: Sequence[Run]) -> Table:
    """A row a run: what came of it, what the gradient did, the command that made it."""
    main = primary(found)
    columns = [Column("run"), Column("seed", numeric=True), Column("status")]
    columns += [Column(main, numeric=True), Column(TRIVIAL, f"{main} of it", numeric=True)] if main else []
    columns += [Column("verdict start"), Column("verdict end"), Column("alarms"), Column("steps", numeric=True)]
    columns += [Column("seconds", "wall time", numeric=True), Column("command")]
    rows = []
    for run in found:
        row = [Cell(run.name, run.name), Cell(run.seed, run.seed), Cell(ended(run), run.status)]
        row += [Cell(number(v), v) for v in (run.scores.get(main, math.nan), run.trivial(main))] if main else []
        row += [reach(run, moment) for moment in MOMENTS]
        row += [Cell(folded(", ".join(run.alarms), *run.alarms.values()), ", ".join(run.alarms))]
        row += [fact(run, "steps"), fact(run, "wall_seconds")]
        row += [Cell(folded("show", tag("code", run.command)), run.command)]
        rows.append(row)
    return Table(columns, rows)


def ended(run: Run) -> str | Html:
    why = str(run.facts.get("reason") or run.facts.get("error") or "")
    return folded(run.status, why) if why else run.status


def reach(run: Run, moment: str) -> Cell:
    """The word of a verdict and R; the reason stands in the hint."""
    told, gap = run.verdicts.get(moment, {}), run.gap(moment)
    word = str(told.get("word", ""))
    chip = tag("span", word, class_=word if word in ORDER else None, title=str(told.get("reason", "")))
    return Cell(join(chip, f" {signed(gap)}" if math.isfinite(gap) else ""), word) if word else Cell("")


def verdict(run: Run, moment: str) -> Cell:
    told = run.verdicts.get(moment, {})
    word, reason = str(told.get("word", "")), str(told.get("reason", ""))
    chip = tag("span", word, class_=word) if word in ORDER else Html()
    return Cell(join(chip, " ", reason) if word else "", word)


def fact(run: Run, name: str) -> Cell:
    value = run.facts.get(name)
    good = isinstance(value, (int, float))
    return Cell(f"{value:,.4g}" if isinstance(value, float) else f"{value:,}", value) if good else Cell("")  # type: ignore[arg-type]


def folded(summary: str, *inside: str) -> Html:
    """Long words behind a short one."""
    if not inside:
        return join(summary)
    return tag("details", tag("summary", summary), *(tag("div", words) for words in inside))


def scores(run: Run) -> Table:
    """A row a metric, a column a split."""
    splits = [
        split for split in ("train", "val", "val best", "test") if any(k.endswith(f"/{split}") for k in run.scores)
    ]
    hints = {"train": "at the last logged step", "val": "at the end", "val best": "the best of the run"}
    known = [
        split for split in splits if any(math.isfinite(run.trivial(k)) for k in run.scores if k.endswith(f"/{split}"))
    ]
    known = [split for split in known if not split.endswith("best")]
    columns = [Column("metric"), *(Column(s, hints.get(s, str(run.facts.get("tested", ""))), True) for s in splits)]
    columns += [Column(f"{TRIVIAL}, {split}", EXPLAINED, True) for split in known]
    rows = []
    for name in dict.fromkeys(key.partition("/")[0] for key in run.scores):
        values = [run.scores.get(f"{name}/{split}", None) for split in splits]
        cells = [Cell("") if v is None else Cell(number(v) or "not finite", v) for v in values]
        cells += [Cell(number(v := run.trivial(f"{name}/{split}")), v) for split in known]
        rows.append([Cell(name, name), *cells])
    return Table(columns, rows)


def pairs(one: Run, other: Run) -> Table:
    """A row a number of either run; the better of two is marked where it is known which that is."""
    columns = [Column("number"), Column("A", one.name, True), Column("B", other.name, True), Column("B − A", "", True)]
    known = [name for run in (one, other) for name in run.scores]
    told = {name: [run.scores.get(name, math.nan) for run in (one, other)] for name in dict.fromkeys(known)}
    better = {name: direction(name) for name in told if one.dataset == other.dataset}
    for name in [name for name in told if any(math.isfinite(run.trivial(name)) for run in (one, other))]:
        told[f"{name}, {TRIVIAL}"] = [run.trivial(name) for run in (one, other)]
    for moment in MOMENTS:
        told[f"R {moment}, decades"] = [run.gap(moment) for run in (one, other)]
    for fact_name in ("steps", "wall_seconds", "parameters"):
        values = [run.facts.get(fact_name) for run in (one, other)]
        told[fact_name] = [float(v) if isinstance(v, (int, float)) else math.nan for v in values]
    rows = []
    for name, (a, b) in told.items():
        wins = b < a if better.get(name) == "min" else b > a
        marks = (bool(better.get(name)) and a != b and not math.isnan(a + b) and wins is side for side in (False, True))
        cells = [
            Cell((f"{v:,.0f}" if v == v // 1 and v >= 1 else number(v)) or "–", v, mark)
            for v, mark in zip((a, b), marks, strict=True)
        ]
        rows.append([Cell(name, name), *cells, Cell(f"{b - a:+.4g}" if math.isfinite(b - a) else "", b - a)])
    return Table(columns, rows)


def differences(one: Run, other: Run) -> Table:
    """A row a key whose value differs; files and folders of the runs themselves are no choice."""
    settings = [run.settings() for run in (one, other)]
    keys = [key for key in dict.fromkeys(key for told in settings for key in told) if key not in ("run_dir", "resume")]
    rows = []
    for key in keys:
        a, b = (told.get(key) for told in settings)
        if a != b:
            rows.append([Cell(key, key), *(Cell("–" if v is None else v, v or "") for v in (a, b))])
    return Table([Column("key"), Column("A", one.name), Column("B", other.name)], rows)
