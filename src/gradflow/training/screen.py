"""What a run prints when it starts and when it ends, for a person or for the program that started it."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from gradflow.data.datamodule import DataModule
from gradflow.diagnostics.layers import layers, weighted
from gradflow.models.base import Module
from gradflow.plots.thinning import evenly_spaced
from gradflow.runs.overrides import key, top_key
from gradflow.training.summary import device_name, init_name, not_initialised

_NAMED = 8  # parameters in a line on the screen; summary.json has all of them
_WHOLE = 34  # letters of a layer's name, with which the table still fits 80 columns
_ROWS = 24  # layers that a table on the screen shows; of more, evenly spaced ones


def print_start(cfg: DictConfig, trainer: Trainer, data: DataModule, model: Module, notes: Sequence[str]) -> None:
    """Print one line on what is about to be trained, and one on each choice that does nothing here."""
    if not trainer.is_global_zero:
        return
    device = (f"{trainer.world_size} × " if trainer.world_size > 1 else "") + device_name(trainer)
    device += f" in {trainer.precision}" if cfg.trainer.precision == "auto" else ""
    known = data.describe()
    print(f"{type(model).__name__} on {known['name']}, {device} -> {os.path.relpath(cfg.run_dir)}")
    print(f"data: {known['samples']['train']:,} training samples, {known['memory']}")
    if names := not_initialised(model):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        print(f"note: init={init_name(model)} left as they were: {', '.join(names[:_NAMED])}{more}")
    if names := model.metrics.not_on_train:
        why = "their states are no sums, or to find which entries count waits for the device"
        notes = [*notes, f"no training metric {', '.join(names)}: {why}; of val and test only"]
    for note in notes:
        print(f"note: {note}")


@contextmanager
def print_end(cfg: DictConfig, trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Print the end of the run as `summary=full|short|json` says: the JSON line also of a run that fails or is stopped,
    the others of one that has finished or was pruned."""
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
                _print_full(facts, run, model)


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
    yield "; ".join([*parts, *list(_verdicts(facts))[-1:]])
    yield f"run folder  {os.path.relpath(run)}"


def _print_full(facts: Mapping[str, Any], run: Path, model: LightningModule) -> None:
    """Print metrics, gradient norms in depth order, where everything is, and what to try next."""
    console = Console(highlight=False)
    if facts["status"] == "pruned":
        console.print(f"pruned: {facts['reason']}\n", soft_wrap=True, markup=False)
    if "final" not in facts:
        return
    console.print(_metrics_table(facts))
    if any(value is None for name, value in facts["final"].items() if name.startswith("loss/")):
        console.print("the run diverged (its loss is not finite): try a smaller optimizer.lr first\n", soft_wrap=True)
    if (run / runs.GRADIENTS).is_file():
        _gradient_table(run, weighted(layers(model)), console)
    rows = [("verdict", sentence) for sentence in _verdicts(facts)] + [("data", _describe(facts["data"]))]
    sizes = [f"{facts['parameters']:,} parameters", f"{facts['steps']:,} steps", f"{facts['wall_seconds']:.0f} s"]
    sizes += [f"{size:.1f} GiB of {name} memory" for name, size in facts["peak_memory_gib"].items()]
    rows += [("size", ", ".join(sizes))]
    if skipped := facts.get("skipped"):
        rows += [("skipped", f"{skipped:,} of {facts['steps']:,} steps, whose gradient was not finite")]
    rows += [("run folder", os.path.relpath(run))]
    if any((run / "wandb").glob("offline-run-*")):
        rows += [("W&B", f"offline; to upload: wandb sync {os.path.relpath(run / 'wandb')}")]
    if HydraConfig.get().mode == RunMode.RUN:
        rows += [("try next" if not index else "", command) for index, command in enumerate(_next_commands(facts))]
    for name, text in rows:
        console.print(f"{name:<11} {text}", soft_wrap=True, markup=False)


def _verdicts(facts: Mapping[str, Any]) -> Iterator[str]:
    for when, verdict in facts.get("verdict", {}).items():
        yield f"{verdict['word']} at the {when}: {verdict['reason']}"


def _describe(data: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{count:,} {split}" for split, count in data["samples"].items() if count)
    return f"{data['name']} ({sizes})" + (f", chosen by data=auto: {data['reason']}" if "reason" in data else "")


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
        row = cells(name, metrics)
        if name == "loss" and "train" in splits:
            row[splits.index("train")] += " (one batch)"
        table.add_row(name, *row)
        if any(row := cells(name, trivial)):
            table.add_row("  trivial answer", *row)
    return table


def _gradient_table(run: Path, shown: Sequence[str], console: Console) -> None:
    """Print norms at the first and last logged step, and log₁₀ of how far each is below the largest of its step."""
    names, rows = runs.read_table(run / runs.GRADIENTS)
    if not rows:
        return
    steps = [dict(zip(names, row, strict=True)) for row in rows[:1] + rows[1:][-1:]]
    whole = max(map(len, shown)) <= _WHOLE
    table = Table(Column("gradient norm", overflow="fold", no_wrap=whole), box=SIMPLE_HEAD)  # cut, two could look alike
    for row in steps:
        table.add_column(f"step {row['step']:.0f}", justify="right")
        table.add_column("log₁₀ below the largest", max_width=16)
    chosen = [shown[index] for index in evenly_spaced(len(shown), _ROWS)]
    for name in chosen:
        cells = [(f"{row[name]:.1e}", _bar(row[name], [row[other] for other in shown])) for row in steps]
        table.add_row(name, *(cell for pair in cells for cell in pair))
    console.print(table)
    if len(chosen) < len(shown):
        console.print(f"{len(chosen)} of {len(shown)} layers; all are in {runs.GRADIENTS}\n")


def _bar(norm: float, all_norms: Sequence[float]) -> str:
    if not norm > 0 or not math.isfinite(norm):
        return "zero" if norm == 0 else "not finite"
    decades = math.log10(max(n for n in all_norms if math.isfinite(n)) / norm)
    return f"{decades:4.1f} " + "▪" * min(round(decades), 10)


def _next_commands(facts: Mapping[str, Any]) -> list[str]:
    """Return commands for the same run with three seeds, and a network whose gradient vanishes, or what cures it."""
    overrides = [one for one in facts["overrides"] if key(one) not in ("seed", "resume", "summary")]
    commands = [shlex.join(["python", "src/train.py", "-m", *overrides, "seed=0,1,2"])]
    if facts.get("verdict", {}).get("start", {}).get("word", "OK") != "OK":
        network = [one for one in overrides if top_key(one) in ("model", "activation", "init", "data", "experiment")]
        commands.insert(0, shlex.join(["python", "src/probe.py", *network]) + "    # what would help, computed")
    if facts["choices"].get("experiment") == "deep_sigmoid_mlp":
        return [*commands, "python src/train.py experiment=deep_sigmoid_mlp_bn    # what cures it"]
    return [*commands, "python src/train.py experiment=deep_sigmoid_mlp    # a gradient that vanishes"]


def print_scores(run: Path, checkpoint: str, scores: Mapping[str, float]) -> None:
    """Print the metrics of one checkpoint of a run."""
    table = Table(f"{os.path.relpath(run)}, {checkpoint}.ckpt", box=SIMPLE_HEAD)
    table.add_column("score", justify="right")
    for name, value in scores.items():
        table.add_row(name, _number(value))
    Console(highlight=False).print(table)


def _number(value: float | None) -> str:
    """Return a number of JSON for a person; JSON writes null for nan."""
    return "nan" if value is None else f"{value:.4g}"
