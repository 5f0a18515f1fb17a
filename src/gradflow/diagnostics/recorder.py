"""Runs the diagnostics of a training: asks which are due, makes one transfer to the host, writes and draws tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradflow import runs
from gradflow.diagnostics.diagnostic import Diagnostic, Layers, Step
from gradflow.plots.layout import chosen
from gradflow.runs.errors import UserError

_RESERVED = ("metrics", "jobs", "batch", "depth", "time")  # what else lies in a run folder under such a name


class Recorder:
    """Holds the diagnostics, and what the last measured step gave: its numbers by table and column."""

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = {one.name: one for one in diagnostics}
        for one in diagnostics:
            if self.diagnostics[one.name] is not one:
                raise UserError(f"diagnostics: two are called {one.name}; a table has one")
            if not re.fullmatch(r"[a-z]\w*", one.name) or one.name in _RESERVED:
                raise UserError(f"diagnostics: {one.name!r} can't be the name of a table; expected one like my_norms")
            if type(one).update is not Diagnostic.update and type(one).state is Diagnostic.state:
                raise UserError(
                    f"diagnostics.{one.name}: {type(one).__name__} has `update` and no `state`, so that a resumed run "
                    "would measure something else; return there what it keeps from step to step, {} for nothing"
                )
            if one.every_n_steps is not None and one.every_n_steps < 1:
                raise UserError(f"diagnostics.{one.name}.every_n_steps={one.every_n_steps}: expected 1 or more")
        self.updated = [one for one in diagnostics if type(one).update is not Diagnostic.update]
        self.tables: dict[str, runs.Table] = {}
        self.saved: Mapping[str, Any] = {}  # of a checkpoint
        self.pending: tuple[Step, list[Diagnostic], dict[str, Tensor]] | None = None

    def start(self, model: nn.Module, layers: Layers, folder: Path | None) -> None:
        """Get ready for a training; without a folder nothing is written."""
        self.layouts = {name: one.start(model, layers) for name, one in self.diagnostics.items()}
        for name, state in self.saved.items():
            if name in self.diagnostics and state:
                self.diagnostics[name].load(state)
        for name, layout in self.layouts.items() if folder else ():
            path = Path(str(folder)) / f"{name}.csv"
            columns = ["step", *layout.columns]
            self.tables[name] = table = runs.Table(path, columns)
            if table.columns != columns:
                raise UserError(f"{path}: has other columns, those of another network; expected a folder for each")
            layout.write(path)

    def due(self, step: int, last: float, every_n_steps: int) -> list[Diagnostic]:
        """Return which are measured at a step."""
        return [one for one in self.diagnostics.values() if one.due(step, last, every_n_steps)]

    def before_step(self, step: Step, due: list[Diagnostic]) -> None:
        """Show a step to those that see every one, and measure what is due before the optimizer changes the weights."""
        for one in self.updated:
            one.update(step)
        if due:
            measured = {"": step.norm} | {one.name: one.measure(step) for one in due if not one.after_step}
            if any(one.after_step for one in due):
                step.before  # noqa: B018  a copy, made now
            self.pending = step, due, measured
        step.end()

    def after_step(self) -> tuple[int, float, dict[str, dict[str, float]]] | None:
        """Return the step that was measured, the norm of its whole gradient, and the numbers by table and column; they
        are in the tables then. Wait for the device, once."""
        if self.pending is None:
            return None
        step, due, measured = self.pending
        self.pending = None
        measured |= {one.name: one.measure(step) for one in due if one.after_step}
        like = measured[""]
        flat = {name: tensor.detach().flatten().to(like) for name, tensor in measured.items()}
        numbers = iter(torch.cat(list(flat.values())).tolist())  # the only wait for the device
        by_table = {name: list(islice(numbers, len(tensor))) for name, tensor in flat.items()}
        (norm,) = by_table.pop("")
        values = {one.name: self._by_column(one.name, by_table[one.name]) for one in due}
        for name, row in values.items():
            if name in self.tables:
                self.tables[name].add(step.index, row)
        return step.index, norm, values

    def _by_column(self, name: str, numbers: Sequence[float]) -> dict[str, float]:
        columns = self.layouts[name].columns
        if len(numbers) != len(columns):
            raise UserError(f"diagnostics.{name}: measured {len(numbers)} numbers, and its layout has {len(columns)}")
        return dict(zip(columns, numbers, strict=True))

    def keys(self, values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return what the loggers get of a measured step."""
        return {key: value for name, row in values.items() for key, value in self.diagnostics[name].keys(row).items()}

    def draw(self) -> Iterator[tuple[str, Path]]:
        """Draw every table that has rows, and yield the name and the file of each picture."""
        from gradflow.plots.tables import draw_table  # with matplotlib, which no step needs

        for name, table in self.tables.items():
            names, rows = runs.read_table(table.path)
            columns, (steps, numbers) = chosen(self.layouts[name], names, rows)
            picture = table.path.with_suffix(".png")
            if steps and not self.diagnostics[name].draw(steps, numbers, picture):
                draw_table(self.layouts[name], columns, steps, numbers, picture)
            if steps:
                yield name, picture

    def state(self) -> dict[str, Any]:
        return {name: state for name, one in self.diagnostics.items() if (state := one.state())}
