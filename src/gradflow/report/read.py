"""Run folders → plain data. What a folder holds is checked here, so that nothing later trips over it.

Only `summary.json` is read of every run; tables and looks are read of those that are drawn.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.runs.files import check_files, read_yaml

if TYPE_CHECKING:
    from gradflow.runs.sweep_folder import Job

PLACES = (".hydra", "checkpoints", "wandb")  # below which no run lies
DAMAGE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
NAN = math.nan
LOST = ("failed", "interrupted")  # jobs that may have left nothing but a line in their sweep's table


@dataclass
class Run:
    folder: Path
    name: str
    facts: dict[str, Any]
    status: str
    words: dict[str, str]  # overrides
    choices: dict[str, str]
    scores: dict[str, float]  # by metric; nan where it was not finite
    verdicts: dict[str, dict[str, Any]]  # start and end
    alarms: dict[str, str]
    dataset: str

    @property
    def seed(self) -> str:
        return text(self.facts.get("seed", ""))

    @property
    def command(self) -> str:
        return text(self.facts.get("command", ""))

    @property
    def scored(self) -> bool:
        return self.status == "finished"

    def trivial(self, measure: str) -> float:
        """What the best answer that does not look at the input has of a measure; nan where that was not recorded."""
        known = mapping(mapping(self.facts.get("data")).get("trivial"))
        return number(known.get(measure.removesuffix(" best")))

    def gap(self, moment: str) -> float:
        """R, in decades, at the start or the end."""
        return number(self.verdicts.get(moment, {}).get("decades"))

    def value(self, key: str) -> str:
        """What a key was in this run, whether it was chosen or a default."""
        if key in self.words:
            return self.words[key] if self.words[key] != "null" else ""
        if key in self.choices:
            return self.choices[key]
        chosen = select(self.config, key)
        return "" if isinstance(chosen, dict) else plain(text(chosen))

    @cached_property
    def config(self) -> Any:
        """As it was composed: an interpolation is a text. A folder that holds nonsense is no reason to end."""
        try:
            return read_yaml(self.folder / ".hydra" / "config.yaml")
        except UserError:
            return None

    def settings(self) -> dict[str, str]:
        """Every key of the configuration with its value, groups first; references stay unresolved."""
        told = {group: choice for group, choice in self.choices.items() if choice}
        return told | (dict(flat(self.config)) if isinstance(self.config, dict) else self.words)

    def curves(self, names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
        """Steps and finite values of some metrics; what can't be read is left out."""
        return columns(self.folder / runs.METRICS, names)

    def norms(self) -> tuple[list[str], list[float], list[list[float]]]:
        """Layers, steps, and a row of gradient norms a step."""
        try:
            names, rows = runs.read_table(self.folder / runs.GRADIENTS)
        except DAMAGE:
            return [], [], []
        rows = [row for row in rows if len(row) == len(names) and math.isfinite(row[0])]
        return names[1:], [row[0] for row in rows], [row[1:] for row in rows]

    def looks(self) -> list[dict[str, Any]]:
        """The first and the last line of `flow.jsonl`."""
        try:
            lines = (self.folder / runs.FLOW).read_text().splitlines()
            ends = [json.loads(line) for line in (lines[:1] + lines[-1:] if len(lines) > 1 else lines)]
        except DAMAGE:
            return []
        return [whole(look) for look in ends if isinstance(look, dict)]


@dataclass(frozen=True)
class Search:
    """What a search found, by its own results."""

    direction: str
    value: float
    trial: int
    words: list[str]
    folder: Path
    complete: int

    def made(self, run: Run) -> bool:
        """A study in a database may have its best trial from another sweep, of which this one has the number, too."""
        return run.folder == self.folder and run.facts.get("overrides") == self.words


@dataclass
class Found:
    """What lies below the folders that were given."""

    runs: list[Run]
    broken: dict[str, str] = field(default_factory=dict)  # name: why it is ignored
    commands: list[str] = field(default_factory=list)  # of the sweeps
    title: str = ""
    searches: list[Search] = field(default_factory=list)


def collect(folders: Sequence[Path]) -> Found:
    """All runs below some folders, in the order of their names; 10 comes after 9."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    top = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    paths = dict.fromkeys(path.resolve() for folder in folders for path in run_folders(folder))
    found = Found([], title=", ".join(shown(folder) for folder in folders))
    jobs = jobs_of({path.parent for path in paths} | {path for folder in folders for path in sweeps(folder)}, found)
    given = [folder.resolve() for folder in folders]
    lost = [path for path, job in jobs.items() if job.state in LOST and any(map(path.is_relative_to, given))]
    paths |= dict.fromkeys(lost)
    if not paths:
        raise UserError(f"{', '.join(map(str, folders))}: no run folder below it (none holds a {runs.SUMMARY})")
    found.commands = sweep_commands({folder for path in paths for folder in (path.parent, path.parent.parent)})
    found.searches = [told for folder in sorted({path.parent for path in paths}) if (told := search_of(folder))]
    for path in sorted(paths, key=natural):
        name = path.name if path == top else str(path.relative_to(top))
        try:
            found.runs.append(read(path, name, jobs.get(path)))
        except Broken as why:
            found.broken[name] = str(why)
        except DAMAGE as error:
            found.broken[name] = f"{type(error).__name__}: {error}"
    return found


def pair(*folders: Path) -> list[Run]:
    """Two runs, named by what tells them apart."""
    paths = []
    for folder in folders:
        try:
            paths.append(runs.find(str(folder)).resolve())
        except FileNotFoundError as error:
            raise UserError(str(error)) from None
    top = Path(os.path.commonpath(paths))
    names = [path.name if path == top else str(path.relative_to(top)) for path in paths]
    try:
        return [read(path, name) for path, name in zip(paths, names, strict=True)]
    except (Broken, *DAMAGE) as error:
        raise UserError(f"can't be compared: {error}") from None


def shown(folder: Path) -> str:
    """A folder as a reader of the page knows it: without the path of somebody's home."""
    whole = folder.resolve()
    return "/".join(whole.parts[-2:]) if len(whole.parts) > 2 else str(whole)


def run_folders(top: Path) -> Iterator[Path]:
    for here, is_run, _ in walk(top):
        if is_run:
            yield here


def sweeps(top: Path) -> Iterator[Path]:
    """The folders with a table of jobs, some of which may have left no folder of their own."""
    for here, _, files in walk(top):
        if runs.JOBS in files:
            yield here.resolve()


def walk(top: Path) -> Iterator[tuple[Path, bool, list[str]]]:
    """Every folder that may hold runs, whether it is a run's itself, and its files."""
    for here, inside, files in os.walk(top):
        is_run = ".hydra" in inside or runs.SUMMARY in files
        yield Path(here), is_run, files
        inside[:] = sorted(name for name in inside if not is_run and name not in PLACES and not name.startswith("."))


def jobs_of(folders: set[Path], found: Found) -> dict[Path, Job]:
    """What the tables of sweeps say of their jobs, by folder; not of probes, which train nothing."""
    tables = sorted(folder / runs.JOBS for folder in folders if (folder / runs.JOBS).is_file())
    told: dict[Path, Job] = {}
    if tables:
        from gradflow.runs import sweep_folder

        for table in tables:
            try:
                rows = sweep_folder.read(table) if sweep_folder.command(table.parent)[0] != "probe" else []
            except (UserError, *DAMAGE) as error:
                found.broken[shown(table.parent)] = str(error)
                continue
            done = {tuple(sorted(job.overrides)): job.folder.name for job in rows if job.state in runs.OVER}
            for job in rows:
                if job.state in LOST and (later := done.get(tuple(sorted(job.overrides)))):
                    job.state = f"{job.state}, and was run again: {later}"
                told[job.folder.resolve()] = job
    return told


def natural(path: Path) -> list[Any]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]


def sweep_commands(folders: set[Path]) -> list[str]:
    """`python src/train.py -m …` as Hydra noted it in each sweep's folder."""
    told = []
    for file in sorted(folder / "multirun.yaml" for folder in folders):
        try:
            noted = read_yaml(file)["hydra"]
            words = [*noted["overrides"]["task"], *noted["overrides"]["hydra"]]
            words = [str(word) for word in words if not str(word).startswith("hydra.mode=")]
            told.append(shlex.join(["python", f"src/{noted['job']['name']}.py", "-m", *words]))
        except Exception:  # no sweep, or one that can't be read; the runs' own commands are there
            continue
    return told


def search_of(folder: Path) -> Search | None:
    """The results of the search in a sweep's folder; None where there is none, or it found nothing."""
    try:
        told = mapping(read_yaml(folder / runs.RESULTS))
        best = mapping(told["best"])
        return Search(
            direction=text(told["direction"]),
            value=float(best["value"]),
            trial=int(best["trial"]),
            words=[text(word) for word in best["overrides"]],
            folder=folder / Path(text(best["folder"])).name,
            complete=int(mapping(told["trials"])["complete"]),
        )
    except (UserError, *DAMAGE):
        return None


class Broken(Exception):
    """Why a folder is ignored."""


def read(folder: Path, name: str, job: Job | None = None) -> Run:
    """A run as its folder tells of it, and of what it can't tell as the table of its sweep does."""
    if job is not None and "run again" in job.state:
        raise Broken(job.state)
    try:
        check_files(folder)
    except UserError as mistake:
        raise Broken(str(mistake).replace(f"{folder}/", "").replace(str(folder), name)) from None
    if not (folder / runs.SUMMARY).is_file():
        return run_of(folder, name, unstarted(folder, job))
    try:
        facts = json.loads((folder / runs.SUMMARY).read_text())
    except ValueError as error:
        raise Broken(f"{runs.SUMMARY} is not JSON ({error})") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("status"), str):
        raise Broken(f"{runs.SUMMARY} has no status")
    if job is not None and job.state in LOST:
        ended = {"status": job.state} if facts["status"] == "running" else {}
        facts = {"error": job.error} | facts | ended
    return run_of(folder, name, facts)


def unstarted(folder: Path, job: Job | None) -> dict[str, Any]:
    """What is known of a run without a summary: it ended before its first step."""
    noted = hydra_of(folder)
    if (folder / runs.PROBE).is_file() or mapping(noted.get("job")).get("name") == "probe":
        raise Broken("a probe: nothing was trained in it")
    if job is not None and job.state in runs.OVER:
        raise Broken(f"no {runs.SUMMARY}, though its sweep has it as {job.state}")
    if job is None and not (folder / runs.OVERRIDES).is_file():
        raise Broken(f"no {runs.SUMMARY} and no {runs.OVERRIDES}: it never started")
    try:
        words = list(job.overrides) if job else runs.recorded_overrides(folder)
    except UserError as mistake:
        raise Broken(str(mistake)) from None
    begins = job is not None and job.state == "running"
    swept = (folder.parent / "multirun.yaml").is_file()
    return {
        "status": job.state if job else "failed" if swept else "never started",
        "error": (job.error if job else "") or f"no {runs.SUMMARY}: it {'has not' if begins else 'never'} started",
        "command": shlex.join(["python", "src/train.py", *words]),
        "choices": {
            k: v for k, v in mapping(mapping(noted.get("runtime")).get("choices")).items() if "/" not in str(k)
        },
        "overrides": words,
        "seed": words_of(words).get("seed", ""),
    }


def hydra_of(folder: Path) -> dict[str, Any]:
    """Hydra's own record of a run, as plain data."""
    try:
        return mapping(mapping(read_yaml(folder / ".hydra" / "hydra.yaml")).get("hydra"))
    except (UserError, *DAMAGE):
        return {}


def run_of(folder: Path, name: str, facts: dict[str, Any]) -> Run:
    choices = {text(group): text(choice) for group, choice in mapping(facts.get("choices")).items()}
    scores = scores_of(facts)
    return Run(
        folder=folder,
        name=name,
        facts=facts,
        status=state(facts["status"], scores, (folder / runs.NONFINITE).is_file()),
        words=words_of(facts.get("overrides")),
        choices=choices,
        scores=scores,
        verdicts={moment: mapping(told) for moment, told in mapping(facts.get("verdict")).items()},
        alarms={text(kind): text(words) for kind, words in mapping(facts.get("alarms")).items()},
        dataset=text(mapping(facts.get("data")).get("name", "")),
    )


def state(status: str, scores: dict[str, float], found: bool) -> str:
    """`diverged` for a run that was ended where its numbers went bad, which is `found` beside it then, and for one that
    went on to its end with a loss that is not finite."""
    if found and status in ("failed", "pruned"):
        return "diverged"
    bad = any(name.startswith(("loss/", "mse/")) and not math.isfinite(value) for name, value in scores.items())
    return "diverged" if status == "finished" and bad else status


def scores_of(facts: dict[str, Any]) -> dict[str, float]:
    final = {name: value for name, value in mapping(facts.get("final")).items() if name.endswith(("/train", "/val"))}
    best = {f"{name} best": value for name, value in mapping(facts.get("best")).items()}
    return {text(k): number(v) for k, v in (final | best | mapping(facts.get("test"))).items()}


def words_of(overrides: Any) -> dict[str, str]:
    words = [text(word) for word in overrides] if isinstance(overrides, list) else []
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {key: plain(value) for key, _, value in pairs if key}


def plain(value: str) -> str:
    """One spelling for one value: 1e-3 is 0.001, True is true, and lists have no spaces."""
    if value in ("True", "False"):
        return value.lower()
    if value.startswith("["):
        return value.replace(" ", "")
    try:
        return f"{float(value):.10g}" if "_" not in value else value
    except ValueError:
        return value


def columns(path: Path, names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Of a table, some columns against `step`, where they are finite. A row that is half written is left out."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    try:
        with path.open(newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            places = {name: header.index(name) for name in names if name in header}
            found = {name: ([], []) for name in places}
            start = header.index("step")
            for row in reader:
                for name, place in places.items():
                    if place < len(row) and row[place] and math.isfinite(value := float(row[place])):
                        found[name][0].append(float(row[start]))
                        found[name][1].append(value)
    except DAMAGE:
        pass  # what was read so far is true
    return {name: series for name, series in found.items() if series[0] and len(series[0]) == len(series[1])}


def whole(look: dict[str, Any]) -> dict[str, Any]:
    """A look whose profiles are lists of numbers, nan for those that were not finite."""
    theory = mapping(look.get("theory"))
    return {
        "step": number(look.get("step")),
        **{key: numbers(look.get(key)) for key in ("gradient", "time")},
        "theory": {key: numbers(theory.get(key)) for key in ("gradient", "time")},
    }


def numbers(content: Any) -> list[float]:
    return [number(one) for one in content] if isinstance(content, list) else []


def select(content: Any, key: str, hops: int = 9) -> Any:
    """What a dotted key holds; a reference to another key is followed, a resolver never asked."""
    found = content
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    reference = re.fullmatch(r"\$\{([\w.]+)\}", found) if isinstance(found, str) and hops else None
    return select(content, reference[1], hops - 1) if reference else found


def flat(content: Any, above: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from flat(value, f"{above}.{key}" if above else str(key))
    else:
        yield above, plain(text(content))


def mapping(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def number(content: Any) -> float:
    """nan for whatever is not a finite number: JSON's null stands for nan and the infinities."""
    good = isinstance(content, (int, float)) and not isinstance(content, bool)
    try:
        return float(content) if good and math.isfinite(content) else NAN
    except OverflowError:
        return NAN


def text(content: Any) -> str:
    return "" if content is None else str(content)
