"""What a run prints when it ends, for a person or for the program that started it."""

from __future__ import annotations

import json
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
from rich.table import Table

from gradflow import runs
from gradflow.diagnostics.advice import NETWORK, changed
from gradflow.diagnostics.layers import layers, weighted
from gradflow.diagnostics.table import COLOURS, print_gradients
from gradflow.runs.errors import wrapped
from gradflow.runs.overrides import key, top_key
from gradflow.runs.screen import Screen, link
from gradflow.training.live_line import LiveLine

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
                print(*map(wrapped, _short_lines(facts, run)), sep="\n")
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
    console = Screen()
    if facts["status"] == "pruned":
        console.row("pruned:", facts["reason"], margin=8)
    if "final" not in facts:
        return
    console.print(_metrics_table(facts))
    names, rows = runs.read_table(run / runs.GRADIENTS) if (run / runs.GRADIENTS).is_file() else ([], [])
    if steps := [dict(zip(names, row, strict=True)) for row in rows[:1] + rows[1:][-1:]]:
        print_gradients(console, weighted(layers(model)), steps, whole)
    for when, verdict in facts.get("verdict", {}).items():
        meaning = f"; {verdict['meaning']}" if verdict["word"] != "OK" else ""
        text = f"{verdict['word']} at the {when}: {verdict['reason']}{meaning}"
        console.row("verdict", text, COLOURS[verdict["word"]])
    if alarms := facts.get("alarms"):
        console.row("alarms", ", ".join(f"{kind} ({text.partition(':')[0]})" for kind, text in alarms.items()))
    sizes = [f"{facts['steps']:,} steps", f"{facts['wall_seconds']:.0f} s"]
    sizes += [f"{size:.1f} GiB of {name} memory" for name, size in facts["peak_memory_gib"].items()]
    console.row("took", ", ".join(sizes))
    if skipped := facts.get("skipped"):
        console.row("skipped", f"{skipped:,} of {facts['steps']:,} steps, whose gradient was not finite")
    console.row("run folder", os.path.relpath(run), link(run))
    if replay := facts.get("replay"):
        console.row("reproduce", replay)
    if any((run / "wandb").glob("offline-run-*")):
        console.row("W&B", f"offline; to upload: wandb sync {os.path.relpath(run / 'wandb')}")


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


def _print_next(cfg: DictConfig, facts: Mapping[str, Any], run: Path, cure: Cure) -> None:
    """Print what to do after this run, with commands that can be pasted."""
    console = Screen()
    for number, (why, command) in enumerate(_next_commands(cfg, facts, run, cure)):
        console.row("try next" if not number else "", why)
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
            result = (
                f"log₁₀ gradient ratio {_one_decimal(found['decades'])} instead of {_one_decimal(start['decades'])}"
            )
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
    Screen().print(table)


def _number(value: float | None) -> str:
    """Return a number of JSON for a person, so that decimals stand below each other; JSON writes null for nan."""
    if value is None:
        return "nan"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def _one_decimal(ratio: float | None) -> str:
    return "not finite" if ratio is None else f"{round(ratio, 1) + 0.0:.1f}"
