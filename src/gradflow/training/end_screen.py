"""What a run prints when it ends, for a person or for the program that started it."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import LightningModule, Trainer
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from gradflow import runs
from gradflow.diagnostics.advice import NETWORK, changed
from gradflow.diagnostics.layers import layers, weighted
from gradflow.diagnostics.table import COLOURS, print_row, wrapped
from gradflow.diagnostics.verdict import superscript
from gradflow.plots.thinning import evenly_spaced
from gradflow.runs.overrides import key, top_key
from gradflow.training.live_line import LiveLine
from gradflow.training.start_screen import ROWS, link

_WHOLE = 34  # letters of a layer's name, with which the table still fits 80 columns
_BAR = 10  # letters
_LEAST = 4.0  # log₁₀ that a bar spans at least: a factor of 2 between layers is no long against short
_SPACE = "\0"  # within a word of a command, where its lines must not be broken
Cure = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]  # a verdict -> what would help


@contextmanager
def print_end(cfg: DictConfig, trainer: Trainer, model: LightningModule, cure: Cure) -> Iterator[None]:
    """Print the end of the run as `summary` says: the JSON line also of a run that fails or is stopped, the others of
    one that has finished or was pruned."""
    run, finished = Path(cfg.run_dir), False
    try:
        yield
        finished = True
    finally:
        if trainer.is_global_zero and (finished or cfg.summary == "json"):
            facts = runs.read_json(run / runs.SUMMARY)
            if cfg.summary == "json":
                print(_json_line(facts, run))
            elif cfg.summary == "short":
                print(*_short_lines(facts, run), sep="\n")
            else:
                _print_tables(facts, run, model, whole=cfg.summary == "full")
                if HydraConfig.get().mode == RunMode.RUN:
                    _print_next(cfg, facts, run, cure)


def _json_line(facts: Mapping[str, Any], run: Path) -> str:
    """Return what came of a run as one line of JSON; nan and infinities are null."""
    metrics = facts.get("final", {}) | facts.get("test", {})
    content = {
        "status": facts.get("status"),
        "reason": facts.get("reason") or facts.get("error"),
        "metrics": {k: v for k, v in metrics.items() if not k.startswith("alarm/")},
        "best": facts.get("best", {}),
        "verdict": facts.get("verdict", {}),
        "alarms": list(facts.get("alarms", {})),
        "steps": facts.get("steps"),
        "seconds": facts.get("wall_seconds"),
        "run_folder": os.path.relpath(run),
    }
    return json.dumps(content, allow_nan=False)


def _short_lines(facts: Mapping[str, Any], run: Path) -> Iterator[str]:
    """Yield one line on the best metric and the latest verdict, and one on where the run lies."""
    measured = facts.get("best") or {name: value for name, value in facts.get("final", {}).items() if "loss/" in name}
    parts = [f"{'best ' if facts.get('best') else ''}{name} {_number(value)}" for name, value in measured.items()]
    parts += [f"pruned: {facts['reason']}"] if facts["status"] == "pruned" else []
    verdicts = [f"{one['word']} at the {when}: {one['reason']}" for when, one in facts.get("verdict", {}).items()]
    yield "; ".join([*parts, *verdicts[-1:]])
    yield f"run folder  {os.path.relpath(run)}"


def _print_tables(facts: Mapping[str, Any], run: Path, model: LightningModule, whole: bool) -> None:
    """Print metrics, gradient norms in depth order, the verdict, and where everything is."""
    console = Console(highlight=False)
    if facts["status"] == "pruned":
        print_row(console, "pruned:", facts["reason"], margin=8)
    if "final" not in facts:
        return
    console.print(_metrics_table(facts))
    if (run / runs.GRADIENTS).is_file():
        _gradient_table(run, weighted(layers(model)), console, whole)
    for when, verdict in facts.get("verdict", {}).items():
        meaning = f"; {verdict['meaning']}" if verdict["word"] != "OK" else ""
        text = f"{verdict['word']} at the {when}: {verdict['reason']}{meaning}"
        print_row(console, "verdict", text, COLOURS[verdict["word"]])
    if alarms := facts.get("alarms"):
        print_row(console, "alarms", ", ".join(f"{kind} ({text.partition(':')[0]})" for kind, text in alarms.items()))
    sizes = [f"{facts['steps']:,} steps", f"{facts['wall_seconds']:.0f} s"]
    sizes += [f"{size:.1f} GiB of {name} memory" for name, size in facts["peak_memory_gib"].items()]
    print_row(console, "took", ", ".join(sizes))
    if skipped := facts.get("skipped"):
        print_row(console, "skipped", f"{skipped:,} of {facts['steps']:,} steps, whose gradient was not finite")
    print_row(console, "run folder", os.path.relpath(run), link(run))
    if any((run / "wandb").glob("offline-run-*")):
        print_row(console, "W&B", f"offline; to upload: wandb sync {os.path.relpath(run / 'wandb')}")


def _metrics_table(facts: Mapping[str, Any]) -> Table:
    """Return the last metrics of every split, with the trivial answer's below each."""
    final = {k: v for k, v in facts["final"].items() if k.partition("/")[2] in ("train", "val")}
    metrics = final | facts.get("test", {})
    splits = [split for split in ("train", "val", "test") if any(name.endswith(f"/{split}") for name in metrics)]
    trivial = {k: v for k, v in facts["data"].get("trivial", {}).items() if k in metrics}
    table = Table("metric", box=SIMPLE_HEAD)
    for split in splits:
        where = f" ({facts['tested']})" if split == "test" else ""
        table.add_column(split + where, justify="right")

    def cells(name: str, values: Mapping[str, float | None]) -> list[str]:
        return [_number(values[f"{name}/{split}"]) if f"{name}/{split}" in values else "" for split in splits]

    for name in dict.fromkeys(name.partition("/")[0] for name in metrics):
        one_batch = " (train: one batch)" if name == "loss" and "train" in splits else ""
        table.add_row(name + one_batch, *cells(name, metrics))
        if any(row := cells(name, trivial)):
            table.add_row("  trivial answer", *row)
    return table


def _gradient_table(run: Path, shown: Sequence[str], console: Console, whole: bool = False) -> None:
    """Print norms at the first and last logged step, and bars that are long where the norm is large."""
    names, rows = runs.read_table(run / runs.GRADIENTS)
    if not rows:
        return
    steps = [dict(zip(names, row, strict=True)) for row in rows[:1] + rows[1:][-1:]]
    largest = [max((row[name] for name in shown if math.isfinite(row[name])), default=0.0) for row in steps]
    tops = list(zip(steps, largest, strict=True))
    span = max([_LEAST, *(math.log10(top / row[name]) for row, top in tops for name in shown if 0 < row[name] <= top)])
    uncut = max(map(len, shown)) <= _WHOLE
    table = Table(Column("gradient norm", overflow="fold", no_wrap=uncut), box=SIMPLE_HEAD)  # cut, two could look alike
    for row in steps:
        table.add_column(f"step {row['step']:.0f}", min_width=8 + _BAR)
    chosen = [shown[index] for index in evenly_spaced(len(shown), len(shown) if whole else ROWS)]
    for name in chosen:
        table.add_row(name, *(f"{row[name]:.1e} {_bar(row[name], top, span)}" for row, top in tops))
    console.print(table)
    note = f"bars: log₁₀ of the norm, full at the step's largest, empty at 10{superscript(-span)} of it"
    if len(chosen) < len(shown):
        note += f"; {len(chosen)} of {len(shown)} layers, summary=full shows all"
    console.print(f"{wrapped(note)}\n", soft_wrap=True)


def _bar(norm: float, largest: float, span: float) -> str:
    if not norm > 0 or not math.isfinite(norm):
        return "zero" if norm == 0 else "not finite"
    halves = round(2 * _BAR * (1 - math.log10(largest / norm) / span))
    return "━" * (halves // 2) + "╸" * (halves % 2)


def _print_next(cfg: DictConfig, facts: Mapping[str, Any], run: Path, cure: Cure) -> None:
    """Print what to do after this run, with commands that can be pasted."""
    console = Console(highlight=False)
    for number, (why, command) in enumerate(_next_commands(cfg, facts, run, cure)):
        print_row(console, "try next" if not number else "", why)
        fitting = wrapped(" " * 12 + " ".join(shlex.quote(one).replace(" ", _SPACE) for one in command), 14, spare=2)
        console.print(fitting.replace("\n", " \\\n").replace(_SPACE, " "), soft_wrap=True, markup=False)


def _next_commands(
    cfg: DictConfig, facts: Mapping[str, Any], run: Path, cure: Cure
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the cure of a network whose gradient fails at the start, or else what its training asks for."""
    overrides = [one for one in facts["overrides"] if key(one) not in ("seed", "resume", "summary")]
    train, verdict = ["python", "src/train.py"], facts.get("verdict", {})
    start, end = (verdict.get(when, {"word": "OK"}) for when in ("start", "end"))
    diverged = any(value is None for name, value in facts.get("final", {}).items() if name.startswith("loss/"))
    if start["word"] != "OK":
        found = None
        with (
            LiveLine().working("probing what would help"),
            suppress(Exception),
        ):  # a run that is done does not fail by it
            found = cure(start)
        if found:
            result = f"log₁₀ gradient ratio {found['decades']:.1f} instead of {start['decades']:.1f}"
            yield f"{found['why']}: {found['word']}, {result}", [*train, *changed(overrides, found["words"])]
        else:
            network = [one for one in overrides if top_key(one) in NETWORK]
            yield "no change of one choice was found that helps", ["python", "src/probe.py", *network]
    elif (diverged or end["word"] != "OK") and "lr" in cfg.optimizer:
        why = "the run diverged (its loss is not finite)" if diverged else "its gradient was OK before it was trained"
        yield (
            f"{why}: a tenth of the learning rate",
            [*train, *changed(overrides, f"optimizer.lr={cfg.optimizer.lr / 10:g}")],
        )
    else:
        yield "how much of it is luck: three seeds", [*train, "-m", *overrides, "seed=0,1,2"]
    yield "this run on a page", ["python", "src/report.py", os.path.relpath(run)]


def print_scores(run: Path, checkpoint: str, scores: Mapping[str, float]) -> None:
    """Print the metrics of one checkpoint of a run."""
    table = Table(f"{os.path.relpath(run)}, {checkpoint}.ckpt", box=SIMPLE_HEAD)
    table.add_column("score", justify="right")
    for name, value in scores.items():
        table.add_row(name, _number(value))
    Console(highlight=False).print(table)


def _number(value: float | None) -> str:
    """Return a number of JSON for a person, so that decimals stand below each other; JSON writes null for nan."""
    if value is None:
        return "nan"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"
