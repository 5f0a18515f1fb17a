"""The test split after each epoch, for recipes whose source shows such a curve. It chooses nothing."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast, final

import torch
from lightning import Callback, LightningModule, Trainer

from gradflow import runs
from gradflow.diagnostics.output import log_picture
from gradflow.models.base import Module
from gradflow.plots.layout import Layout, chosen
from gradflow.runs.errors import UserError


@final
class TestCurve(Callback):
    """Write `test_curve.csv`, a row an epoch: loss and metrics of the test split with the weights at its end.

    The numbers go to a table of their own, which the report draws, and to no logger: nothing that could be monitored,
    stop a run or rank it ever sees them. Each epoch costs a pass over the test split.
    """

    __test__ = False  # pytest takes every class for its own that is called so

    def __init__(self, run_dir: str, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise UserError(f"callbacks.test_curve.every_n_epochs={every_n_epochs}: expected 1 or more")
        self.path, self.every_n_epochs = Path(run_dir) / "test_curve.csv", every_n_epochs
        self.table: runs.Table | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or not data.has("test"):
            raise UserError("callbacks=test_curve: these data have no test split; add data.test=… or leave it out")
        names = [name.removesuffix("/test") for name in cast(Module, pl_module).metrics.of("test")]
        self.layout = Layout({"metric": names}, "test curve", "of the test split, which chooses nothing")
        if trainer.is_global_zero:
            self.table = runs.Table(self.path, ["step", *names])
            self.layout.write(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            values = _measure(trainer, cast(Module, pl_module))
            if self.table is not None:
                self.table.add(trainer.global_step - 1, values)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.table is None:
            return
        from gradflow.plots import curves, theme  # with matplotlib, which no step needs

        columns, (steps, rows) = chosen(self.layout, *runs.read_table(self.path))
        if steps:
            trivial = runs.read_json(self.path.with_name(runs.SUMMARY)).get("data", {}).get("trivial", {})
            panels = [
                curves.Panel(name, "optimizer step", self.layout.scale, [curves.line("test split", steps, values)],
                             trivial=trivial.get(f"{name}/test", math.nan))
                for name, values in zip(columns, zip(*rows, strict=True), strict=True)
            ]  # fmt: skip
            theme.save(partial(curves.sheet, panels), picture := self.path.with_suffix(".png"))
            log_picture(trainer, "test_curve", picture)


@torch.no_grad()
def _measure(trainer: Trainer, model: Module) -> dict[str, float]:
    """Return loss and metrics as a test would, on every rank; the model is left as it was, its modes too."""
    modes = [(module, module.training) for module in model.modules()]
    metrics = model.metrics.of("test")
    loader = cast(Any, trainer).datamodule.loader("test")
    limit = trainer.limit_test_batches
    model.eval()
    model.on_test_start()
    with trainer.precision_plugin.test_step_context():
        for index, batch in enumerate(islice(loader, limit if isinstance(limit, int) else int(limit * len(loader)))):
            model.test_step(batch, index)
    values = {name.removesuffix("/test"): float(metric.compute()) for name, metric in metrics.items()}
    for metric in metrics.values():
        metric.reset()
    for module, mode in modes:
        module.training = mode
    return values
