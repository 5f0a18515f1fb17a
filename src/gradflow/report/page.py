"""Runs → one HTML file with its tables and pictures inside, the same table as CSV, and each picture as PNG."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradflow import runs
from gradflow.plots import curves
from gradflow.report import gallery, tables
from gradflow.report.gallery import Entry, Picture
from gradflow.report.groups import (
    RULE,
    Configuration,
    Standing,
    clipped,
    configurations,
    importance,
    measures,
    primary,
    ranked,
    standings,
    trivial,
    without_effect,
)
from gradflow.report.html import Html, join, tag
from gradflow.report.look import SCRIPT, STYLE
from gradflow.report.read import Found, Run, Search, mapping
from gradflow.runs.errors import UserError

PAGE, TABLE = "report.html", "report.csv"
RIVALS = 5  # that the headline names


def make(found: Found, out: Path) -> Path:
    """The page of one run, or of many."""
    prepare(out)
    if len(found.runs) == 1:
        title, parts = of_one(found, out)
    else:
        title, parts = of_many(found, out)
    return finish(out, title, [*parts, ignored(found.broken)])


def compare(one: Run, other: Run, out: Path) -> Path:
    """Two runs beside each other, what differs on top."""
    prepare(out)
    told = [group.label for group in configurations([one, other])]
    lines = [
        Entry(clipped(f"{letter}: {label}", gallery.LONG), [run])
        for letter, label, run in zip("AB", told if len(told) == 2 else ("", ""), (one, other), strict=True)
    ]
    title = f"{one.name} beside {other.name}"
    differing = tables.differences(one, other)
    numbers = tables.pairs(one, other)
    numbers.csv(out / TABLE)
    names = tag("ul", *(tag("li", tag("b", line.label), line.runs[0].name) for line in lines), class_="cards")
    notes = ["★ the better of two runs, which may be chance; of a metric of unknown direction none is marked."]
    if one.dataset != other.dataset:
        notes = ["These runs saw different data; nothing is marked as better."]
    parts = [
        tag("h1", title),
        names,
        section("What differs", differing.html("what differs") if differing.rows else tag("p", "Nothing but the run.")),
        section("Numbers", numbers.html("numbers"), *(tag("p", note, class_="soft") for note in notes)),
        *pictures([*gallery.training(lines, ""), *gallery.profiles(lines, ""), *gallery.heatmaps(lines, "")], out),
        *(section(line.label, state(line.runs[0])) for line in lines),
        provenance([one, other]),
    ]
    return finish(out, title, parts)


def prepare(out: Path) -> None:
    """Nothing is written through a link, or into a pipe, that somebody has left there."""
    for path in (out / PAGE, out / TABLE):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path}: is not a plain file; remove it, or see --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out}: can't be written to ({error.strerror}); see --out") from error


def finish(out: Path, title: str, parts: Iterable[Html]) -> Path:
    """No request can leave the page, and no script but ours can run in it, whatever a run is called."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · gradflow"),
        tag("style", Html(STYLE)),
    )
    page = join(
        Html("<!doctype html>\n"), tag("html", head, tag("body", *parts, tag("script", Html(SCRIPT))), lang="en")
    )
    path = out / PAGE
    runs.write_text(path, page + "\n")
    for name in gallery.NAMES:  # no picture of an older report stays beside a newer page
        if f' id="{name}"' not in page:
            (out / f"report-{name}.png").unlink(missing_ok=True)
    return path


def section(title: str, *children: object) -> Html:
    return tag("section", tag("h2", title), *children)


def pictures(drawn: Iterable[Picture], out: Path) -> list[Html]:
    return [picture.html(out) for picture in drawn]


def of_many(found: Found, out: Path) -> tuple[str, list[Html]]:
    title = f"{len(found.runs)} runs of {found.title}"
    if not found.runs:
        (out / TABLE).unlink(missing_ok=True)
        return title, [tag("h1", title), tag("p", "None of the folders could be read.")]
    main = primary(found.runs)
    groups = ranked(configurations(found.runs), main)
    results = tables.results(groups)
    results.csv(out / TABLE)
    parts = [
        tag("h1", title),
        headline(found, groups, main),
        cards(found, groups),
        section("Results", results.html("results"), tag("p", legend(groups), class_="soft")),
        *pictures(drawings(found, groups, main), out),
        section("Runs", tables.each(found.runs).html("runs")),
        commands(found),
        provenance(found.runs),
    ]
    return title, parts


def drawings(found: Found, groups: Sequence[Configuration], main: str) -> list[Picture]:
    keys, told = list(groups[0].values), importance(found.runs, groups, main)
    drawn = [gallery.weights(told)] if told else []
    if told:
        others = f" and over {', '.join(list(told.shares)[2:])}"
        drawn += gallery.factorial(found.runs, list(told.shares)[:2], main, others)
    else:
        drawn += gallery.factorial(found.runs, keys, main)
    lines, note = gallery.entries(groups, curves.MOST)
    return [
        *drawn,
        *gallery.training(lines, note),
        *gallery.profiles(lines, note),
        *gallery.heatmaps(*gallery.single_runs(groups)),
    ]


def headline(found: Found, groups: Sequence[Configuration], main: str) -> Html:
    """The point, in a few sentences: what a search chose, who wins on each data set, or why nobody does."""
    idle = [f"{key} has no effect: runs that differ in nothing else are identical in every number" for key in
            without_effect(groups)]  # fmt: skip
    searches = [chosen_by(search, groups) for search in found.searches]
    told = [
        standing(one, main) for one in standings(groups, main)[:3] if not (searches and one.leader.seeds(main).n < 2)
    ]
    if not main:
        told = [join("Nothing is ranked: no score of validation is here, and test scores choose nothing")]
    return join(*(tag("p", words, ".", class_="lead") for words in (*searches, *told, *idle)))


def standing(one: Standing, main: str) -> Html:
    """A winner with its spread, n and test score; or those that can't be told apart."""
    label, seeds = tag("b", clipped(one.leader.label, 100)), one.leader.seeds(main)
    score = join(f"{main}: {tables.spread(one.leader.of(main))}", several(one.leader, main), beside(one.leader, main))
    if not one.others:
        return join(label, ": " if one.leader.label else "", score)
    if one.won:
        return join(label, " has the best ", score, f" ({RULE})")
    rivals = ", ".join(clipped(group.label, 60) for group in one.rivals[:RIVALS])
    rivals += f" and {len(one.rivals) - RIVALS} more" if len(one.rivals) > RIVALS else ""
    why = f"not separable from {rivals} (the rule: {RULE})"
    if seeds.n < 2 and all(group.seeds(main).n < 2 for group in one.rivals):
        why = "one seed each tells no difference from chance; seed=0,1,2 would"
    return join("No winner: the best mean is of ", label, ", ", score, "; ", why)


def beside(group: Configuration, main: str) -> str:
    """The test's scores of the same runs, and what the trivial answer has."""
    tested = [name for name in measures(group.runs, main) if name.endswith("/test")]
    told = "".join(f"; {name} {tables.spread(group.of(name))}" for name in tested[:2])
    level = trivial(group.runs, main)
    return told + (
        f"; the {tables.TRIVIAL} has {main.removesuffix(' best')} {level:.4g}" if math.isfinite(level) else ""
    )


def chosen_by(search: Search, groups: Sequence[Configuration]) -> Html:
    """What a search's own results call the best, as the terminal did."""
    pairs = [(group, run) for group in groups for run in group.runs if search.made(run)]
    label, scores = (pairs[0][0].label, pairs[0][1].scores) if pairs else ("", {})
    name = next((key for key in scores if key.endswith(" best")), "objective")
    tested = "".join(f"; {key} {tables.number(value)}" for key, value in scores.items() if key.endswith("/test"))
    which = "lowest" if search.direction == "minimize" else "highest"
    return join(
        f"The search chose trial {search.trial}, ", tag("b", clipped(label or " ".join(search.words), 100)),
        f": the {which} {name} of {search.complete} complete trials, {search.value:.6g}{tested}. ",
        "It is the best of single runs, so it looks better than it is: repeat it over seeds",
    )  # fmt: skip


def several(group: Configuration, main: str) -> str:
    where = f" on {group.dataset}" if group.dataset else ""
    runs, seeds = group.of(main).n, group.seeds(main).n
    return f"{where} (n = {runs})" if runs == seeds else f"{where} (n = {runs} runs, {seeds} of different seeds)"


def cards(found: Found, groups: Sequence[Configuration]) -> Html:
    states = Counter(run.status for run in found.runs)
    ends: Counter[str] = sum((group.verdicts("end") for group in groups), Counter())
    told = [
        ("configuration" if len(groups) == 1 else "configurations", str(len(groups))),
        *((state, str(count)) for state, count in states.most_common()),
    ]
    told += [("ignored folders", str(len(found.broken)))] if found.broken else []
    items = [tag("li", tag("b", count), name) for name, count in told]
    if ends:
        items.append(tag("li", tag("b", tables.chips(ends)), "the gradient's reach at the end"))
    return tag("ul", *items, class_="cards")


def legend(groups: Sequence[Configuration]) -> str:
    """How to read the table, as far as this one needs it."""
    found = [run for group in groups for run in group.runs]
    told = ["Mean ± standard deviation over finished runs; click a heading to sort."]
    main = primary(found)
    if main:
        told.append(f"Ranked by {main}; test scores stand beside it and choose nothing.")
        told.append(f"★ a winner: {RULE}. p is that of the best mean, of configurations whose every run finished.")
    if any(math.isfinite(trivial(found, name)) for name in measures(found, main)):
        told.append(f"Trivial answer: {tables.EXPLAINED}.")
    if len({group.dataset for group in groups}) > 1:
        told.append("Several data sets: each is ranked by itself, and means of different ones don't compare.")
    if any(len({run.seed for run in group.runs}) < len(group.runs) for group in groups):
        told.append("Some configurations hold several runs of one seed; their deviation is not one over seeds.")
    if any(group.verdicts("start") for group in groups):
        told.append("R: decades that the gradient changes from the last to the first block, or time step.")
    return " ".join(told)


def of_one(found: Found, out: Path) -> tuple[str, list[Html]]:
    (run,) = found.runs
    title = run.name if run.name != "." else found.title
    scores = tables.scores(run)
    scores.csv(out / TABLE)
    lines = [Entry(title, [run])]
    parts = [
        tag("h1", title),
        state(run),
        section("Metrics", scores.html("metrics")) if scores.rows else Html(),
        *pictures([*gallery.profiles(lines, ""), *gallery.heatmaps(lines, ""), *gallery.training(lines, "")], out),
        section("Choices", chosen(run)),
        commands(found),
        provenance([run]),
    ]
    return title, parts


def state(run: Run) -> Html:
    """How a run ended, what the gradient did, which alarms were raised."""
    why = str(run.facts.get("reason") or run.facts.get("error") or "")
    rows: list[tuple[str, str]] = [("status", f"{run.status}: {why}" if why else run.status)]
    rows += [
        (f"verdict at the {moment}", told.text)
        for moment in tables.MOMENTS
        if (told := tables.verdict(run, moment)).text
    ]
    rows += [(f"alarm: {kind}", words) for kind, words in run.alarms.items()]
    rows += [(name.replace("_", " "), cell.text) for name in ("steps", "epochs", "parameters", "wall_seconds")
             if (cell := tables.fact(run, name)).text]  # fmt: skip
    rows += [("seed", run.seed), ("command", tag("code", run.command))]
    return facts(rows)


def facts(rows: Iterable[tuple[str, str]]) -> Html:
    body = tag("tbody", *(tag("tr", tag("th", name, scope="row"), tag("td", words)) for name, words in rows))
    return tag("div", tag("table", body), class_="scroll")


def chosen(run: Run) -> Html:
    given = [(key, value) for key, value in run.words.items()]
    taken = [(group, choice) for group, choice in run.choices.items() if choice and group not in run.words]
    return join(
        facts([(f"{key} (given)", value) for key, value in given] + taken),
        tag("details", tag("summary", "the whole configuration"), facts(run.settings().items())),
    )


def commands(found: Found) -> Html:
    """Those of the sweeps; a run's own stands beside it."""
    if not found.commands:
        return Html()
    return section("Made by", *(tag("pre", tag("code", words)) for words in found.commands))


def provenance(found: Sequence[Run]) -> Html:
    """Each different data set, device and set of versions, with how many runs it had."""
    rows: list[tuple[str, str]] = []
    for name, told in (("data", data_of), ("device", device_of), ("versions", versions_of)):
        counts = Counter(told(run) for run in found)
        for words, count in counts.most_common():
            rows.append(
                (f"{name} ({count} of {len(found)} runs)" if len(counts) > 1 else name, words or "not recorded")
            )
    return section("Data and machine", facts(rows))


def data_of(run: Run) -> str:
    told = mapping(run.facts.get("data"))
    known = [
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in told.items()
        if key not in ("memory", "trivial")  # the second follows the seed
    ]
    return ", ".join(known)


def device_of(run: Run) -> str:
    count = run.facts.get("devices", 1)
    name = str(run.facts.get("device", ""))
    return f"{count} × {name}" if count != 1 else name


def versions_of(run: Run) -> str:
    return ", ".join(f"{name} {number}" for name, number in mapping(run.facts.get("versions")).items())


def ignored(broken: dict[str, str]) -> Html:
    return section("Ignored folders", facts(broken.items())) if broken else Html()
