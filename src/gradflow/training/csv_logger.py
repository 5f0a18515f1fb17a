"""The table of metrics that every run writes to its folder, whatever else it logs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from gradflow import runs


class TableLogger(Logger):
    """Write `metrics.csv`: a row a logged step, a column a metric. The norms of layers have a file of their own."""

    name, version = "table", ""

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.folder = Path(run_dir)
        self.table: runs.Table | None = None

    @property
    def latest(self) -> dict[str, float]:
        """Return the last value of each metric, of an earlier process of the same run too."""
        if self.table is None and (self.folder / runs.METRICS).is_file():
            self.table = runs.Table(self.folder / runs.METRICS)
        return self.table.latest if self.table else {}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's configuration is on disk already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {k: float(v) for k, v in metrics.items() if not k.startswith("grad_norm/") and k != "epoch"}
        if not values or step is None:
            return
        self.table = self.table or runs.Table(self.folder / runs.METRICS)
        self.table.add(step, values)
