"""Trackio: W&B's interface on this machine alone, without an account; a resumed run is the same Trackio run."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
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

    The history only grows, while a resumed run repeats the steps since its checkpoint, whose rows then stand twice.
    """

    name, version = "trackio", ""

    def __init__(self, run_dir: str, project: str) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise UserError("logger=trackio: needs trackio; pip install -e .[trackio]")
        self.folder, self.project = Path(run_dir).absolute(), project
        self.resumed = (self.folder / runs.SUMMARY).is_file()
        self.config: dict[str, Any] = {}
        self.step = 0
        self._run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._run is None:
            import huggingface_hub
            import trackio

            nobody = patch.object(huggingface_hub, "whoami", side_effect=OSError)  # is asked for the user's name
            with patch.dict(os.environ), nobody, redirect_stdout(io.StringIO()):
                for variable in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):  # where the run would be sent
                    os.environ.pop(variable, None)
                resume = "allow" if self.resumed else "never"
                self._run = trackio.init(self.project, **self._names(), config=self.config, resume=resume, embed=False)
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
        self.experiment.log({key: float(value) for key, value in metrics.items()}, step=self.step)

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
