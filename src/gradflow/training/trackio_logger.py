"""Trackio: W&B's interface on this machine alone, without an account; a resumed run is the same Trackio run."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from gradflow import runs
from gradflow.runs.errors import UserError


class TrackioLogger(Logger):
    """Log to Trackio's database, in its own folder or TRACKIO_DIR; `trackio show` finds it, nothing asks the network.

    The history only grows, while a resumed run repeats the steps since its checkpoint: a row that is there already, of
    the same step and the same numbers, is not added again.
    """

    name, version = "trackio", ""

    def __init__(self, run_dir: str, project: str) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise UserError("logger=trackio: needs trackio; pip install -e .[trackio]")
        self.folder, self.project = Path(run_dir).absolute(), project
        self.resumed = (self.folder / runs.SUMMARY).is_file()
        self.config: dict[str, Any] = {}
        self.known: set[str] = set()  # rows of an earlier process
        self.step = 0
        self._run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._run is None:
            import trackio
            from trackio.sqlite_storage import SQLiteStorage  # not public in 0.43, which has no other way to read rows

            with _offline(), redirect_stdout(io.StringIO()):
                resume = "allow" if self.resumed else "never"
                self._run = trackio.init(self.project, **self._names(), config=self.config, resume=resume, embed=False)
            for row in SQLiteStorage.get_logs(self.project, run_id=self._run.id) if self.resumed else ():
                self.known.add(_mark(row.pop("step"), {key: row[key] for key in row if key != "timestamp"}))
            print(f"Trackio: on this machine; to see it: trackio show --project {self.project}", flush=True)
        return self._run

    def _names(self) -> dict[str, str | None]:
        sweep = runs.shared_folder(self.folder)
        group = "-".join(sweep.parts[-2:]) if sweep != self.folder else None
        return {"group": group, "name": "-".join(self.folder.parts[-3 if group else -2 :])}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep them for the start of the Trackio run, which is the only time that it takes them."""
        self.config = dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.step = self.step if step is None else step
        row = {key: float(value) for key, value in metrics.items()}
        run = self.experiment
        if _mark(self.step, row) not in self.known:
            run.log(row, step=self.step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str]) -> None:
        import trackio

        self.experiment.log({key: trackio.Image(images[0])}, step=self.step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is waiting; what is logged later, like the test's metrics, is written at once."""
        if self._run is not None:
            import trackio

            with redirect_stdout(io.StringIO()), suppress(RuntimeError):  # it has no run any more: this one has ended
                trackio.finish()


@contextmanager
def _offline() -> Iterator[None]:
    """Let `trackio.init` send the run nowhere, and ask nobody for the name of the user."""
    import huggingface_hub

    with patch.dict(os.environ), patch.object(huggingface_hub, "whoami", side_effect=OSError):
        for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            os.environ.pop(variable, None)
        yield


def _mark(step: int, row: Mapping[str, Any]) -> str:
    return json.dumps([step, row], sort_keys=True).replace('"', "")  # it stores nan as a text
