"""Write runs as one HTML file: its tables, the data of its charts, which the browser draws, and a table as CSV."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from gradflow import runs
from gradflow.plots.thinning import cut
from gradflow.report import results
from gradflow.report.chart_data import as_json, chart_data
from gradflow.report.collect import Collection, Search
from gradflow.report.configurations import (
    Configuration,
    configurations,
    direction,
    keys_without_effect,
    ranked,
    ranking_metric,
    shown_metrics,
    trivial_score,
)
from gradflow.report.plain_data import mapping, number, text
from gradflow.report.results import STAGES, TRIVIAL, TRIVIAL_HINT
from gradflow.report.run import Run
from gradflow.report.significance import RULE, Standing, standings
from gradflow.report.tables import Cell, four_digits, mean_and_sd, set_texts
from gradflow.runs.errors import UserError

_PAGE, _TABLE = "report.html", "report.csv"
_TEMPLATES = Path(__file__).with_name("templates")
_RIVALS = 5  # that the headline names

_Sentence = tuple[str, str, str]  # its second part is emphasised
_Row = tuple[str, "Cell | str"]


def write_page(collection: Collection, out: Path, refresh: int | None = None) -> Path:
    """Write the page of some runs into a folder: of one run its metrics and configuration, of several the results. A
    browser reads it anew after `refresh` seconds."""
    _check_out(out)
    own, metric = collection.runs, ranking_metric(collection.runs)
    groups = ranked(configurations(own), metric)
    table = results.metrics_of(own[0]) if len(own) == 1 else results.results(groups) if groups else None
    if table and table.rows:
        table.write_csv(out / _TABLE)
    else:
        (out / _TABLE).unlink(missing_ok=True)
    scripts = _scripts()
    page = _template().render(
        title=_title(collection),
        runs=own,
        groups=groups,
        metric=metric,
        table=table,
        state=_state(own[0], out) if len(own) == 1 else [],
        all_runs=results.all_runs(own, list(groups[0].values), out) if len(own) > 1 else None,
        unfinished=results.unfinished(own),
        headline=list(_headline(collection, groups, metric)) if len(own) > 1 else [],
        statuses=Counter(run.status for run in own),
        refresh=refresh,
        verdicts=results.badges(sum((group.verdicts("end") for group in groups), Counter())),
        rule=RULE,
        trivial=TRIVIAL_HINT if any(mapping(run.summary.get("data")).get("trivial") for run in own) else "",
        several_datasets=len({group.dataset for group in groups}) > 1,
        repeated_seeds=any(len({run.seed for run in group.runs}) < len(group.runs) for group in groups),
        unranked=sum(run.finished and not math.isfinite(run.score(metric)) for run in own) if metric else 0,
        commands=collection.commands,
        provenance=list(_provenance(own)),
        ignored=collection.ignored,
        data=Markup(as_json(chart_data(own, groups, metric, collection.searches))),
        scripts=[Markup(text) for text in scripts],
        policy=" ".join(map(_source, scripts)),
    )
    runs.write_text(out / _PAGE, page + "\n")
    return out / _PAGE


def _source(script: str) -> str:
    """Return a script as the policy of the page allows it: by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _scripts() -> list[str]:
    """Return plotly, whose package is never imported, then page.js, which the others build on. Views stand in the order
    of their files: what came out, then gradients, which may be why."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise UserError("The page is drawn by plotly, which is not installed: pip install plotly")
    own = sorted(
        _TEMPLATES.glob("*.js"), key=lambda file: (file.stem != "page", file.stem.startswith("gradient"), file.name)
    )
    files = [Path(spec.origin).parent / "package_data" / "plotly.min.js", *own]
    return [file.read_text(encoding="utf-8") for file in files]


def _template() -> Template:
    """Return the page's: everything that a run folder says is escaped, and a name that is not given is an error."""
    loader = FileSystemLoader(_TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html")


def _title(collection: Collection) -> str:
    names = [f"run {run.name}" if run.name.isdecimal() else run.name for run in collection.runs]  # of a sweep
    if not 1 <= len(names) <= 2:
        return f"{len(names)} runs of {collection.title}"
    title = " vs ".join(names)
    return "R" + title[1:] if title.startswith("run ") else title


def _check_out(out: Path) -> None:
    """Reject a link or a pipe that somebody has left there: nothing is written through it."""
    for path in (out / _PAGE, out / _TABLE):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path}: is not a plain file; remove it, or see --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{out}: can't be written to ({error.strerror}); see --out") from error


def _headline(collection: Collection, groups: Sequence[Configuration], metric: str) -> Iterator[_Sentence]:
    """Yield the point in a few sentences: what a search chose, which is best on each data set, or why none is."""
    for search in collection.searches:
        yield _search_result(search, groups)
    for standing in standings(groups, metric)[:3]:
        if not collection.searches or standing.leader.score_over_seeds(metric).n > 1:
            yield _standing(standing, metric)
    if trivial := [group for group in groups if _is_trivial(group, metric)]:
        yield f"No better than the {TRIVIAL} by {metric}: ", _names(trivial), ""
    if not metric:
        yield "Nothing is ranked: no score of validation is here, and test scores choose nothing", "", ""
    for key in keys_without_effect(groups):
        yield f"{key} has no effect: runs that differ in nothing else are identical in every number", "", ""


def _standing(standing: Standing, metric: str) -> _Sentence:
    """Return a winner with its spread, n and test score; or those that can't be told apart."""
    leader, seeds = standing.leader, standing.leader.score_over_seeds(metric)
    (label,), score = cut([leader.label], 100), f"{metric}: {_score(leader, metric)}"
    if not standing.others:
        return "", label, f"{': ' if label else ''}{score}"
    if standing.won:
        return "", label, f" has the best {score} ({RULE})"
    why = f"not separable from {_names(standing.rivals)} (the rule: {RULE})"
    if seeds.n < 2 and all(group.score_over_seeds(metric).n < 2 for group in standing.rivals):
        why = "one seed each tells no difference from chance; seed=0,1,2 would"
    return "No winner: the best mean is of ", label, f", {score}; {why}"


def _names(groups: Sequence[Configuration]) -> str:
    names = ", ".join(cut([group.label or "all runs" for group in groups[:_RIVALS]], 60))
    return names + (f" and {len(groups) - _RIVALS} more" if len(groups) > _RIVALS else "")


def _is_trivial(group: Configuration, metric: str) -> bool:
    """Return whether the mean of a configuration is not better than the trivial answer, where both are known."""
    sign = {"min": 1, "max": -1, None: math.nan}[direction(group.runs, metric)]
    return sign * group.score(metric).mean >= sign * trivial_score(group.runs, metric)


def _score(group: Configuration, metric: str) -> str:
    """Return mean and spread with n, the test scores of the same runs, and the trivial answer."""
    count, seeds = group.score(metric).n, group.score_over_seeds(metric).n
    text = mean_and_sd(group.score(metric)) + (f" on {group.dataset}" if group.dataset else "")
    text += f" (n = {count})" if count == seeds else f" (n = {count} runs, {seeds} of different seeds)"
    tested = [name for name in shown_metrics(group.runs, metric) if name.endswith("/test")]
    text += "".join(f"; {name} {mean_and_sd(group.score(name))}" for name in tested[:2])
    trivial = trivial_score(group.runs, metric)
    if math.isfinite(trivial):
        text += f"; the {TRIVIAL} has {metric.removesuffix(' best')} {trivial:.4g}"
    return text


def _search_result(search: Search, groups: Sequence[Configuration]) -> _Sentence:
    """Return what a search's own results call the best, as the terminal did."""
    label, scores = " ".join(search.overrides), {}
    for group in groups:
        for run in group.runs:
            if search.chose(run):
                label, scores = group.label or label, run.scores
    name = next((key for key in scores if key.endswith(" best")), "objective")
    tested = "".join(f"; {key} {four_digits(value)}" for key, value in scores.items() if key.endswith("/test"))
    which = "lowest" if search.direction == "minimize" else "highest"
    rest = f": the {which} {name} of {search.complete} complete trials, {search.value:.6g}{tested}. "
    rest += "It is the best of single runs, so it looks better than it is: repeat it over seeds"
    return f"The search chose trial {search.trial}, ", cut([label], 100)[0], rest


def _state(run: Run, out: Path) -> list[_Row]:
    """Return how a run ended, what the gradient did, which alarms were raised, and where its files are."""
    rows: list[_Row] = [("status", f"{run.status}: {run.reason}" if run.reason else run.state)]
    rows += [(f"verdict at the {stage}", results.verdict(stage, run, reason=True)) for stage in STAGES]
    rows += [(f"alarm: {kind}", message) for kind, message in run.alarms.items()]
    counts = ("steps", "epochs", "parameters", "wall_seconds")
    rows += [(name.replace("_", " "), Cell(number(run.summary.get(name)))) for name in counts]
    rows += [("seed", run.seed), ("command", run.command), ("files", results.files(run, out))]
    for _, value in rows:
        if isinstance(value, Cell):
            set_texts([value])
    return [(name, value) for name, value in rows if isinstance(value, str) or value.text]


def _words(value: object) -> str:
    """Return what data say of themselves without the brackets and quotes of Python."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return f"{value:,}" if type(value) is int else str(value)


def _provenance(runs: Sequence[Run]) -> Iterator[_Row]:
    """Yield each different data set, device, state of the code and set of versions, with how many runs it had."""
    counters: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        data, versions, git = (mapping(run.summary.get(key)) for key in ("data", "versions", "git"))
        data = {k: v for k, v in data.items() if k not in ("memory", "trivial")}  # which each seed has its own of
        count, device = run.summary.get("devices", 1), str(run.summary.get("device", ""))
        dirty = ", with uncommitted changes" if git.get("dirty") else ""
        rows = {
            "data": "; ".join(f"{name}: {_words(value)}" for name, value in data.items()),
            "device": f"{count} × {device}" if count != 1 else device,
            "processor": text(run.summary.get("processor")),
            "code": f"commit {git['commit']}{dirty}" if git.get("commit") else "",
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        }
        for name, description in rows.items():
            counters[name][description] += 1
    for name, counts in counters.items():
        for description, count in counts.most_common():
            of_all = f" ({count} of {len(runs)} runs)" if len(counts) > 1 else ""
            yield f"{name}{of_all}", description or "not recorded"
