"""Weights & Biases: may be out of reach, fail or hang, and never stops a run; a resumed run is the same W&B run."""

from __future__ import annotations

import math
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from gradflow import runs
from gradflow.runs.errors import UserError, did_you_mean
from gradflow.training.wandb_files import AXIS, Mark, drop_empty, files, mark, rows, unsynced

os.environ.setdefault("WANDB_SILENT", "true")  # the run's own words say where it went
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # measured: ends 20 s later where the host never answers

REACH = 8.0  # seconds for the network: at the start, and at the end to upload the rest
PATIENCE = 10.0  # seconds for one call
TAIL = 1500  # values: what 32 KiB hold, at 25 bytes or more each
MODES = ("auto", "online", "offline", "disabled")


class ResumableWandbLogger(WandbLogger):
    """Lightning's, with two promises.

    A call to W&B that fails, or takes longer than `PATIENCE`, ends W&B for this run with one line, and the run goes on.
    A host that can't be reached within `REACH` makes it an offline run.

    A resumed run is the same W&B run: its id stays in the run folder. W&B's history is append-only, while the steps
    since the last checkpoint are trained once more; so a row's number (W&B's `_step`) is that of its log call within
    the run, checkpoints keep the count, and a row that W&B has is not sent again. What W&B has, its server tells, or
    the files of an offline run do. Checkpoints also keep the last rows: W&B's service writes blocks of 32 KiB, so that
    many are lost if it is killed too, and are sent again.
    """

    def __init__(self, save_dir: str, mode: str = "auto", **wandb_init: Any) -> None:
        super().__init__(save_dir=save_dir, **wandb_init)
        self._wandb_init.pop("anonymous", None)  # Lightning always passes it; W&B warns that it is no more
        self.folder = Path(save_dir)
        self.mode, self.why = chosen(mode)
        self.lost: str | None = None
        self.timer = Timer()
        self.step = self.calls = 0
        self.tail: deque[tuple[int, dict[str, float]]] = deque()
        self.has: int | None = None  # rows that W&B has; unknown until the first call
        self.held: dict[int, Mark] = {}  # those of them that may come again
        self.sent: int | None = None  # number of the last row that this process has sent

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self.timer.start()
            self._guard(self._open, REACH + PATIENCE)
        return self._experiment

    @property
    def facts(self) -> dict[str, Any]:
        return {"id": self._id, "mode": self.mode} | ({"lost": self.lost} if self.lost else {})

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        self._call(lambda run: super(ResumableWandbLogger, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.step = self.step if step is None else step  # a picture comes without one
        row = {**metrics, AXIS: self.step}
        if self.has is None:
            self._call(self._catch_up)
        number, self.calls = self.calls, self.calls + 1
        if self.has and number < self.has:
            if self.held.pop(number, told := mark(self.step, row)) == told:
                return
            number, self.has = self.has, 0  # another row, as when a run that was over goes on: from here all are new
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
            self.calls, self.step, self.has = state["calls"], state["step"], None
            self.tail = deque((number, row) for number, row in state["tail"])

    @rank_zero_only
    def close(self, status: int) -> None:
        """End the W&B run, marked failed if `status` is not 0."""
        if self._experiment is not None and not self.timer.over.is_set():
            self._call(partial(self._finish, status))
            self.timer.over.set()

    def _open(self) -> None:
        import wandb

        if self.mode == "disabled":
            self._experiment = wandb.init(mode="disabled")
            return
        self._id = self._wandb_init["id"] = kept_id(self.folder / runs.WANDB_ID)
        drop_empty(self.folder)
        if self.why:
            say(f"offline: {self.why}")
        if self.mode == "online" and unsynced(self.folder):
            self.mode = "offline"
            say(f"offline, like the part of this run that was not uploaded yet ({self.upload})")
        try:
            self._experiment = self._begin()
        except wandb.Error as error:
            if self.mode == "offline":
                raise
            end_service()
            self.mode = "offline"
            say(f"offline, can't begin online: {' '.join(str(error).split())}")
            self._experiment = self._begin()

    def _begin(self) -> Any:
        import wandb

        limits = wandb.Settings(init_timeout=REACH, finish_timeout=REACH, finish_timeout_raises=True)
        run = wandb.init(**self._wandb_init | {"mode": self.mode, "settings": limits})
        self.timer.service = service()
        run.define_metric(AXIS)
        run.define_metric("*", step_metric=AXIS, step_sync=True)
        return run

    def _catch_up(self, run: Any) -> None:
        """Learn what W&B has already of the rows that come now, and send what it lacks of those before."""
        self.has, self.held = 0, {}
        if self.mode == "disabled":
            return
        self.has = run.starting_step if self.mode == "online" else 0
        for number, told in (row for path in files(self.folder) for row in rows(path)):
            self.has = max(self.has, number + 1) if self.mode == "offline" else self.has
            if number >= self.calls:
                self.held[number] = told
        again = [(number, row) for number, row in self.tail if number >= self.has]
        for number, row in again:
            self._send(number, row, run)
        if (gone := self.calls - self.has - len(again)) > 0:
            say(f"lacks {gone} rows of this run; {runs.METRICS} and {runs.GRADIENTS} have them")

    def _send(self, number: int, row: dict[str, Any], run: Any) -> None:
        run.log(row, step=number, commit=True)
        self.sent = number

    def _remember(self, number: int, row: dict[str, Any]) -> None:
        if all(isinstance(value, (int, float)) for value in row.values()):  # pictures are drawn anew anyhow
            self.tail.append((number, row))
        while len(self.tail) > 1 and len(self.tail) * len(self.tail[0][1]) > TAIL:
            self.tail.popleft()

    def _finish(self, status: int, run: Any) -> None:
        try:
            run.finish(exit_code=status)
        except TimeoutError:
            self.lost = f"not all was uploaded within {REACH:.0f} s"
            say(f"{self.lost}; {self.upload} --include-online")
        end_service()
        if self.mode == "offline" and not self.lost and self.sent is not None:
            newest = files(self.folder)[-1]
            if self.sent not in (number for number, _ in rows(newest, 2**20)):
                self.lost = f"the last rows are not in {newest}"  # its service does not tell that the disk is full
                say(f"{self.lost}; {runs.METRICS} and {runs.GRADIENTS} have them")

    def _call(self, act: Callable[[Any], object]) -> None:
        """The way to W&B for all but its start."""
        self._guard(partial(act, self.experiment), PATIENCE)

    def _guard(self, act: Callable[[], object], patience: float) -> None:
        self.timer.until = time.monotonic() + patience
        try:
            act()
        except Exception as error:  # of W&B, its service, the network, the disk: none is worth a run
            self._lose(f"{type(error).__name__}: {error}")
        finally:
            self.timer.until = math.inf

    def _lose(self, reason: str) -> None:
        import wandb

        self.lost = reason
        say(f"off from step {self.step} on ({reason}); {runs.METRICS} and {runs.GRADIENTS} go on")
        if self._experiment is not None:
            with suppress(Exception):  # why it fails was told above
                self._experiment.finish(exit_code=1)
        end_service()
        self._experiment = wandb.init(mode="disabled")

    @property
    def upload(self) -> str:
        return f"to upload: wandb sync {os.path.relpath(self.folder / 'wandb')}"


class Timer(threading.Thread):
    """Ends W&B's service when a call takes too long: the call then fails, instead of waiting for ever."""

    def __init__(self) -> None:
        super().__init__(name="W&B timer", daemon=True)
        self.until, self.over = math.inf, threading.Event()
        self.service: subprocess.Popen[bytes] | None = None  # as soon as it has begun: W&B forgets it before its end

    def run(self) -> None:
        while not self.over.wait(0.5):
            if time.monotonic() > self.until and (hung := self.service or service()) is not None:
                hung.kill()


def service() -> subprocess.Popen[bytes] | None:
    """By W&B's private names, there being no public way; None before the first run, and of a service that is shared."""
    from wandb.sdk import wandb_setup

    connection = wandb_setup.singleton()._connection
    return connection._proc._process if connection is not None and connection._proc is not None else None


def end_service() -> None:
    """Waits until its files are written; the next run of this process starts another."""
    import wandb

    ending = service()
    with suppress(ConnectionError, SystemExit):  # for one that was killed, W&B would end this process too
        wandb.teardown()
    if ending is not None:
        ending.kill()  # where W&B could not tell it to end
        ending.wait()


def kept_id(file: Path) -> str:
    from wandb.sdk.lib.runid import generate_id

    kept = file.read_text().strip() if file.is_file() else ""
    if not kept:
        kept = os.environ.get("WANDB_RUN_ID") or generate_id()
        file.parent.mkdir(exist_ok=True)
        runs.write_text(file, f"{kept}\n")
    return kept


def chosen(mode: str) -> tuple[str, str | None]:
    """`auto` is online when a key is configured, else offline, and why; so that no run ever stops to ask."""
    if mode not in MODES:
        raise UserError(f"logger.mode={mode}: no such mode; {did_you_mean(mode, MODES)}")
    wish = os.environ.get("WANDB_MODE", mode) if mode == "auto" else mode
    if wish not in MODES:
        raise UserError(f"WANDB_MODE={wish}: no such mode; {did_you_mean(wish, MODES)}")
    if wish in ("offline", "disabled"):
        return wish, None
    lacking = no_key()
    if wish == "online" and lacking:
        raise UserError(f"logger.mode=online: {lacking}")
    return ("offline", lacking) if lacking else ("online", None)


def no_key() -> str | None:
    """Why W&B could not log in, by what is configured."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
        found = wbauth.authenticate_session(host=host, source="", prompt=False, update_session=False)
    except wandb.Error as error:
        return str(error)
    return None if found else "no W&B key is configured; run  wandb login  or set WANDB_API_KEY"


def say(words: str) -> None:
    print(f"W&B: {words}", flush=True)
