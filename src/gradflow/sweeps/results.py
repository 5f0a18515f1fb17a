"""What a sweep ends with. Hydra calls these in the process that was started, after the last job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from gradflow import runs
from gradflow.runs import sweep_folder
from gradflow.runs.errors import UserError


@contextmanager
def errors_kept() -> Iterator[None]:
    """Hydra makes a warning of what a callback raises; kept here, it is raised when the sweep has ended."""
    try:
        yield
    except (UserError, OSError) as error:
        sweep_folder.unwritten.append(error)


class Report(Callback):
    """One page on all runs of the sweep; `report=false` leaves it out."""

    @errors_kept()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from gradflow import report

        folder = Path(config.hydra.sweep.dir)
        if config.report and any(folder.glob(f"*/{runs.SUMMARY}")):
            print(f"report  {os.path.relpath(report.write(folder))}")


class Phase(Callback):
    """Of probes: a line a job, and a picture of where networks can be trained."""

    @errors_kept()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from gradflow.plots.phase import phase_diagram, varied

        folder = Path(config.hydra.sweep.dir)
        files = sorted(folder.glob(f"*/{runs.PROBE}"), key=lambda path: int(path.parent.name))
        found = [runs.read_json(path) for path in files]
        if not found:
            return
        keys = varied([one["words"] for one in found])
        for one in found:
            told = one["verdict"]
            words = " ".join(word for word in one["words"] if word.partition("=")[0] in keys)
            size = "no finite number" if told["decades"] is None else f"R = {abs(told['decades']):5.1f}"
            print(f"{told['word']:<8} {size}  {words}")
        picture = folder / runs.PHASE
        if phase_diagram(found, keys, picture):
            print(f"picture {os.path.relpath(picture)}")
