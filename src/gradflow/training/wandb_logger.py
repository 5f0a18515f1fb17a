"""Weights & Biases: may be out of reach, fail or hang, and never stops a run; a resumed run is the same W&B run."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from gradflow import runs
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.training.wandb_files import AXIS, Mark, drop_empty, files, mark, rows, unsynced
from gradflow.training.wandb_service import end_service, no_key, service, time_limit

os.environ.setdefault("WANDB_SILENT", "true")  # the end of the run says where it went
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # measured: ends 20 s later where the host never answers

REACH = 8.0  # seconds for the network: at the start, and at the end to upload the rest
PATIENCE = 10.0  # seconds for one call
_TAIL = 1500  # values: what 32 KiB hold, at 25 bytes or more each
_MODES = ("auto", "online", "offline", "disabled")


class ResumableWandbLogger(WandbLogger):
    """Lightning's WandbLogger, with two promises.

    A call to W&B that fails, or takes longer than `PATIENCE`, ends W&B for this run with one line, and the run goes on.
    A host that can't be reached within `REACH` makes it an offline run.

    A resumed run is the same W&B run: its id stays in the run folder. W&B's history is append-only, while the steps
    since the last checkpoint are trained once more; so a row's number (W&B's `_step`) is that of its log call within
    the run, checkpoints keep the count, and a row that W&B has is not sent again. What W&B has, its server says, or
    the files of an offline run do. Checkpoints also keep the last rows: W&B's service writes blocks of 32 KiB, so that
    many are lost if it is killed too, and are sent again.
    """

    def __init__(self, save_dir: str, mode: str = "auto", **wandb_init: Any) -> None:
        super().__init__(save_dir=save_dir, **wandb_init)
        self._wandb_init.pop("anonymous", None)  # Lightning always passes it; W&B warns that it is no more
        self.folder = Path(save_dir)
        self.mode, self.why_offline = choose_mode(mode)
        self.lost: str | None = None
        self.service: subprocess.Popen[bytes] | None = None
        self.closed = False
        self.step = self.calls = 0
        self.tail: deque[tuple[int, dict[str, float]]] = deque()
        self.uploaded: int | None = None  # rows that W&B has; unknown until the first call
        self.repeatable: dict[int, Mark] = {}  # those of them that may be logged again
        self.sent: int | None = None  # number of the last row that this process has sent

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._guard(self._open, REACH + PATIENCE)
        return self._experiment

    @property
    def facts(self) -> dict[str, Any]:
        """Return what summary.json says of the W&B run."""
        return {"id": self._id, "mode": self.mode} | ({"lost": self.lost} if self.lost else {})

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self._call(lambda run: super(ResumableWandbLogger, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.step = self.step if step is None else step  # a picture comes without one
        row = {**metrics, AXIS: self.step}
        if self.uploaded is None:
            self._call(self._catch_up)
        number, self.calls = self.calls, self.calls + 1
        if self.uploaded and number < self.uploaded:
            if self.repeatable.pop(number, row_mark := mark(self.step, row)) == row_mark:
                return
            number, self.uploaded = self.uploaded, 0  # another row, as when a finished run goes on: all are new
            self.calls = number + 1
        self._remember(number, row)
        self._call(partial(self._send, number, row))

    def state_dict(self) -> dict[str, Any]:
        tail = [[number, row] for number, row in self.tail]
        return {"id": self._id, "calls": self.calls, "step": self.step, "tail": tail}

    @rank_zero_only
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A checkpoint of another W&B run says nothing about this one."""
        if self.experiment is not None and state["id"] == self._id:
            self.calls, self.step, self.uploaded = state["calls"], state["step"], None
            self.tail = deque((number, row) for number, row in state["tail"])

    @rank_zero_only
    def close(self, status: int) -> None:
        """End the W&B run, marked failed if `status` is not 0."""
        if self._experiment is not None and not self.closed:
            self._call(partial(self._finish, status))
            self.closed = True

    def _open(self) -> None:
        import wandb

        if self.mode == "disabled":
            self._experiment = wandb.init(mode="disabled")
            return
        file = self.folder / runs.WANDB_ID
        if not file.is_file() or not file.read_text(encoding="utf-8").strip():
            file.parent.mkdir(exist_ok=True)
            runs.write_text(file, f"{os.environ.get('WANDB_RUN_ID') or token_hex(4)}\n")
        self._id = self._wandb_init["id"] = file.read_text(encoding="utf-8").strip()
        drop_empty(self.folder)
        if self.why_offline:
            _print(f"offline: {self.why_offline}")
        if self.mode == "online" and unsynced(self.folder):
            self.mode = "offline"
            _print(f"offline, like the part of this run that was not uploaded yet ({self.upload})")
        try:
            self._experiment = self._begin()
        except wandb.Error as error:
            if self.mode == "offline":
                raise
            end_service()
            self.mode = "offline"
            _print(f"offline, can't begin online: {' '.join(str(error).split())}")
            self._experiment = self._begin()

    def _begin(self) -> Any:
        import wandb

        limits = wandb.Settings(init_timeout=REACH, finish_timeout=REACH, finish_timeout_raises=True)
        run = wandb.init(**self._wandb_init | {"mode": self.mode, "settings": limits})
        self.service = service()
        run.define_metric(AXIS)
        run.define_metric("*", step_metric=AXIS, step_sync=True)
        return run

    def _catch_up(self, run: Any) -> None:
        """Learn what W&B has already of the rows that come now, and send what it lacks of those before."""
        self.uploaded, self.repeatable = 0, {}
        if self.mode == "disabled":
            return
        written = dict(row for path in files(self.folder) for row in rows(path))
        self.uploaded = run.starting_step if self.mode == "online" else max(written, default=-1) + 1
        self.repeatable = {number: row_mark for number, row_mark in written.items() if number >= self.calls}
        missing = [(number, row) for number, row in self.tail if number >= self.uploaded]
        for number, row in missing:
            self._send(number, row, run)
        if (lost := self.calls - self.uploaded - len(missing)) > 0:
            _print(f"lacks {lost} rows of this run; {runs.METRICS} and {runs.GRADIENTS} have them")

    def _send(self, number: int, row: dict[str, Any], run: Any) -> None:
        run.log(row, step=number, commit=True)
        self.sent = number

    def _remember(self, number: int, row: dict[str, Any]) -> None:
        if all(isinstance(value, (int, float)) for value in row.values()):  # pictures are made again anyhow
            self.tail.append((number, row))
        while len(self.tail) > 1 and len(self.tail) * len(self.tail[0][1]) > _TAIL:
            self.tail.popleft()

    def _finish(self, status: int, run: Any) -> None:
        try:
            run.finish(exit_code=status)
        except TimeoutError:
            self.lost = f"not all was uploaded within {REACH:.0f} s"
            _print(f"{self.lost}; {self.upload} --include-online")
        end_service()
        if self.mode == "offline" and not self.lost and self.sent is not None:
            newest = files(self.folder)[-1]
            if self.sent not in (number for number, _ in rows(newest, 2**20)):
                self.lost = f"the last rows are not in {newest}"  # its service does not report a full disk
                _print(f"{self.lost}; {runs.METRICS} and {runs.GRADIENTS} have them")

    def _call(self, act: Callable[[Any], object]) -> None:
        """The way to W&B for all but its start."""
        self._guard(partial(act, self.experiment), PATIENCE)

    def _guard(self, act: Callable[[], object], patience: float) -> None:
        with time_limit(patience, self.service):
            try:
                act()
            except Exception as error:  # of W&B, its service, the network, the disk: none is worth a run
                self._lose(f"{type(error).__name__}: {error}")

    def _lose(self, reason: str) -> None:
        import wandb

        self.lost = reason
        _print(f"off from step {self.step} on ({reason}); {runs.METRICS} and {runs.GRADIENTS} go on")
        if self._experiment is not None:
            with suppress(Exception):  # the reason is on the screen already
                self._experiment.finish(exit_code=1)
        end_service()
        self._experiment = wandb.init(mode="disabled")

    @property
    def upload(self) -> str:
        return f"to upload: wandb sync {os.path.relpath(self.folder / 'wandb')}"


@contextmanager
def ended(loggers: Sequence[Logger], run: runs.Run) -> Iterator[None]:
    """End this run's W&B run with it, marked failed if it failed, and note what became of it."""
    status = 1
    try:
        yield
        status = 0
    except runs.Pruned:
        status = 0
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, ResumableWandbLogger):
                logger.close(status)
                run.note(wandb=logger.facts)


def choose_mode(mode: str) -> tuple[str, str | None]:
    """Return the mode, and why it is offline where nobody asked for that: `auto` is online when a key is configured,
    else offline, so that no run ever stops to ask."""
    key, mode = ("WANDB_MODE", os.environ.get("WANDB_MODE", mode)) if mode == "auto" else ("logger.mode", mode)
    if mode not in _MODES:
        raise UserError(f"{key}={mode}: no such mode; {did_you_mean(mode, _MODES)}")
    if mode in ("offline", "disabled"):
        return mode, None
    lacking = no_key()
    if mode == "online" and lacking:
        raise UserError(f"logger.mode=online: {lacking}")
    return ("offline", lacking) if lacking else ("online", None)


def _print(message: str) -> None:
    print(f"W&B: {message}", flush=True)
