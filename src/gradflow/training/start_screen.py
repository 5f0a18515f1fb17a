"""What a run says before it starts: its choices, its data and device, and the network as a table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from gradflow.data.datamodule import DataModule
from gradflow.diagnostics.layers import layers
from gradflow.diagnostics.table import print_row
from gradflow.models.base import Module
from gradflow.plots.thinning import evenly_spaced
from gradflow.training.summary import device_name, init_name, not_initialised

ROWS = 24  # of a table on the screen; of more, evenly spaced ones
_NAMED = 8  # parameters in a line on the screen; summary.json has all of them


class _Block(NamedTuple):
    name: str
    shapes: tuple[tuple[int, ...], ...]
    parameters: int


def print_start(
    cfg: DictConfig, trainer: Trainer, data: DataModule, model: Module, choices: Sequence[str], notes: Sequence[str]
) -> None:
    """Print what is about to be trained, and a line on each choice that does nothing here."""
    if not trainer.is_global_zero:
        return
    console = Console(highlight=False)
    blocks = list(_blocks(model, unfolded=cfg.summary == "full"))
    device = (f"{trainer.world_size} × " if trainer.world_size > 1 else "") + device_name(trainer)
    print_row(console, "model", f"{type(model).__name__}, {sum(one.parameters for one in blocks):,} parameters")
    print_row(console, "choices", " ".join(choices) or "none but the defaults")
    print_row(console, "data", f"{describe(data.describe())}, batches of {data.batch_size}")
    print_row(console, "device", f"{device}, precision {trainer.precision}")
    print_row(console, "run folder", os.path.relpath(cfg.run_dir), link(Path(cfg.run_dir)))
    if cfg.summary not in ("short", "json"):
        console.print(_table(blocks, whole=cfg.summary == "full"))
    if names := not_initialised(model):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        notes = [*notes, f"init={init_name(model)} left as they were: {', '.join(names[:_NAMED])}{more}"]
    if names := model.metrics.not_on_train:
        why = "their states are no sums, or to find which entries count waits for the device"
        notes = [*notes, f"no training metric {', '.join(names)}: {why}; of val and test only"]
    for note in notes:
        print_row(console, "note:", note, margin=6)


def describe(data: Mapping[str, Any]) -> str:
    """Return which data these are, and where they come from."""
    known = dict(data)
    name, samples, home = (known.pop(key) for key in ("name", "samples", "memory"))
    sizes = ", ".join(f"{count:,} {split}" for split, count in samples.items() if count)
    origin = next((f", {key} {value}" for key, value in known.items() if isinstance(value, str)), "")
    if "reason" in known:
        origin = f", chosen by data=auto: {known['reason']}"
    return f"{name} ({sizes}){origin}, {home}"


def link(path: Path) -> str:
    """Return the style of a text that a terminal opens."""
    return f"link {path.absolute().as_uri()}"


def _blocks(model: Module, unfolded: bool) -> Iterator[_Block]:
    """Yield the blocks of the trunk, and what stands before and behind it; unfolded every layer."""

    def block(layer: str) -> str:
        name = layer.partition(".")[2]
        inside = (one for one in model.trunk if name.startswith(f"{one}."))
        return layer if unfolded else next(inside, name.partition(".")[0])

    for name, members in groupby(layers(model, frozen=True).items(), key=lambda item: block(item[0])):
        own = [parameter for _, parameters in members for parameter in parameters]
        yield _Block(name, tuple(tuple(p.shape) for p in own), sum(p.numel() for p in own))


def _table(blocks: Sequence[_Block], whole: bool) -> Table:
    """Return the parameters by block; neighbours of the same shapes share a row where not the whole is asked for."""
    rows = []
    for _, group in groupby(blocks, key=lambda one: one.name if whole else one.shapes):
        alike = list(group)
        name = alike[0].name + (f" … {alike[-1].name}" if alike[1:] else "")
        matrices = ", ".join("×".join(map(str, shape)) for shape in alike[0].shapes if len(shape) > 1)
        times = f"{len(alike)} × " if alike[1:] else ""
        rows.append((name, matrices, f"{times}{alike[0].parameters:,}"))
    columns = Column("block", overflow="fold"), Column("weights", no_wrap=True), Column("parameters", justify="right")
    table = Table(*columns, box=SIMPLE_HEAD)
    shown = evenly_spaced(len(rows), len(rows) if whole else ROWS)
    for index in shown:
        table.add_row(*rows[index])
    if len(shown) < len(rows):
        table.add_row(f"{len(shown)} of {len(rows)} rows; summary=full shows all")
    return table
