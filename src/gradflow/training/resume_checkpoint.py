"""The checkpoint that a run goes on from, as if it had never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gradflow import runs
from gradflow.runs import ranks
from gradflow.runs.errors import UserError
from gradflow.training import signals
from gradflow.training.agreement import Agreement
from gradflow.training.checkpoints import OURS, ours
from gradflow.training.progress import Progress


class ResumeCheckpoint(Callback):
    """Writes `last.ckpt`, and keeps the one before it as `previous.ckpt`: at the start of every `every_n_epochs`-th
    epoch, at every `every_n_steps`-th step, every `every_minutes`, at the end, and when a signal asks the run to stop.

    A checkpoint is of one of two places: before a batch, with everything that came before it done and recorded, or
    before a validation. Lightning's counters are put so that it goes on from there by itself; a checkpoint says also
    how many lines the run's own files had, so that what came after can be cut off and written again. It has to be the
    first of the callbacks: what the others do before the batch, they do again.
    """

    def __init__(
        self,
        run_dir: str,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
    ) -> None:
        given = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "every_minutes": every_minutes}
        for name, value in given.items():
            if value is not None and value <= 0:
                raise UserError(
                    f"callbacks.resume_checkpoint.{name}={value}: expected a number above 0, or null for never"
                )
        self.folder, self.given = Path(run_dir), given
        self.place: str | None = None  # while a checkpoint of ours is made
        self.restored: int | None = None  # steps that were logged, as the checkpoint counted them
        self.saved = -1  # batches that were behind the last checkpoint
        self.step: int | None = None  # of the last checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning would ask all ranks at each step whether one was told to stop, and wait for the device
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.agreement = Agreement(trainer)
        self.since = time.monotonic()
        self.rotates = Path(trainer.ckpt_path or "") != self.folder / runs.PREVIOUS  # else the last one is damaged

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        listen(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        loop = trainer.fit_loop.epoch_loop
        if self.restored is not None:  # Lightning counts one too many after a restart at the start of an epoch
            loop._batches_that_stepped, self.restored = self.restored, None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a sum of gradients is not kept
        heard, timed = self.agreement.tick(signals.received, self.overdue())
        if heard or timed or self.due(trainer, batch_idx):
            self.save(trainer, "batch")
        if heard:
            self.stop(trainer, heard)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.agreement.restart()

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        heard, _ = self.agreement.tick(signals.received, False)
        if not heard or trainer.fit_loop._should_accumulate():
            return
        if not trainer.should_stop:  # a run that is stopping will find the reason again
            self.save(trainer, "validation")
        self.stop(trainer, heard)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer, "end")
        self.agreement.restart()
        if heard := self.agreement.tick(signals.received, False)[0]:
            self.stop(trainer, heard)
        signals.watch(False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if hasattr(self, "agreement"):
            self.agreement.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.agreement = Agreement(trainer)
        listen(trainer)

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if heard := self.agreement.tick(signals.received, False)[0]:
            self.stop(trainer, heard)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.watch(False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        signals.watch(False)
        kill = getattr(trainer.strategy.launcher, "kill", None)
        if kill and not hasattr(self, "agreement"):
            kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # ranks that wait for this one would wait for long

    def overdue(self) -> bool:
        minutes = self.given["every_minutes"]
        return minutes is not None and time.monotonic() - self.since >= 60 * minutes

    def due(self, trainer: Trainer, batch_idx: int) -> bool:
        epochs, steps, step = self.given["every_n_epochs"], self.given["every_n_steps"], trainer.global_step
        if not step or trainer.fit_loop.epoch_loop.batch_progress.total.completed == self.saved:
            return False
        return bool(
            (epochs and batch_idx == 0 and trainer.current_epoch % epochs == 0) or (steps and step % steps == 0)
        )

    def save(self, trainer: Trainer, place: str) -> None:
        self.place = place
        try:
            with kept_as(self.folder / runs.PREVIOUS, self.folder / runs.LAST, self.rotates and trainer.is_global_zero):
                trainer.save_checkpoint(self.folder / runs.LAST)
        finally:
            self.place = None
        self.rotates, self.step = True, trainer.global_step
        self.since, self.saved = time.monotonic(), trainer.fit_loop.epoch_loop.batch_progress.total.completed

    def stop(self, trainer: Trainer, number: int) -> None:
        """Ranks that Lightning has started end with status 0: it would kill the first for any other."""
        if not trainer.is_global_zero:
            raise SystemExit(0 if ranks.apart() == 1 else signals.status(number))
        if isinstance(bar := trainer.progress_bar_callback, Progress):
            bar.close()
        kept = "nothing is saved yet" if self.step is None else f"step {self.step} is saved"
        signals.end(number, f"{kept}; python src/train.py resume={os.path.relpath(self.folder)} goes on")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.place:
            return
        loop = checkpoint["loops"]["fit_loop"]
        settle(loop, self.place, trainer.num_training_batches)
        checkpoint["epoch"] = loop["epoch_progress"]["current"]["processed"]
        if trainer.is_global_zero:
            runs.flush_tables(self.folder)
        loggers = [state() if (state := getattr(one, "state_dict", None)) else {} for one in trainer.loggers]
        lines, sums = runs.count_lines(self.folder), self.sums(pl_module)
        checkpoint[OURS] = {"lines": lines, "sums": sums, "loggers": loggers}

    def sums(self, module: LightningModule) -> dict[str, Tensor]:
        """What each rank has added up of the epoch for its means: [ranks, 2], by name."""
        means = {name: mean for name, mean in getattr(module, "means", {}).items() if name.endswith("/train")}
        return {
            name: self.agreement.gather(torch.stack([m.total.cpu(), m.count.cpu()]).double())
            for name, m in means.items()
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        held = ours(checkpoint)
        if "lines" not in held:
            return
        loop, self.step = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
        self.saved = loop["epoch_loop.batch_progress"]["total"]["completed"]
        to_validate = loop["epoch_loop.val_loop.batch_progress"]["total"]["started"]  # before the step is counted
        self.restored = loop["epoch_loop.state_dict"]["_batches_that_stepped"] + to_validate
        give_back(trainer, pl_module, held["sums"])
        for logger, state in zip(trainer.loggers, held["loggers"], strict=False):
            if state and hasattr(logger, "load_state_dict"):
                logger.load_state_dict(state)


@contextmanager
def kept_as(previous: Path, last: Path, wanted: bool) -> Iterator[None]:
    """Once another has taken its place, and not before: there is always a good one under one of the two names."""
    if not wanted or not last.is_file():
        yield
        return
    link = previous.with_name(f".{previous.name}")
    link.unlink(missing_ok=True)
    try:
        os.link(last, link)
    except OSError:  # of a file system without links
        shutil.copyfile(last, link)
    try:
        yield
        link.replace(previous)
    finally:
        link.unlink(missing_ok=True)


def listen(trainer: Trainer) -> None:
    """Lightning has put its own handlers before ours, which would talk to the other ranks from within a signal."""
    before = signals.received
    signals.listen()
    signals.received = before
    signals.watch(True)


TRACKED = ("ready", "started", "processed", "completed")


def settle(loop: dict[str, Any], place: str, batches: float) -> None:
    """Put Lightning's counters to where the run is, so that it goes on there and nowhere else.

    Before batch b of epoch e: e epochs are processed, another is begun, and b of its batches are completed. Before a
    validation the last batch is completed, and the validation is begun and has got nowhere.
    """
    batch, epoch = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    done, over = batch["current"]["completed"], epoch["current"]["processed"]
    closed = epoch["current"]["started"] == over  # as Lightning does also where a run ends within an epoch
    if closed and done < batches:
        over -= 1
    elif closed:
        done = 0
    for which in ("current", "total"):
        epoch[which] = {"ready": over + 1, "started": over + 1, "processed": over, "completed": over}
    batch["current"] = dict.fromkeys(TRACKED, done)
    batch["total"] = dict.fromkeys(TRACKED, batch["total"]["completed"])
    batch["is_last_batch"] = place == "validation" and batch["is_last_batch"]
    begun = int(place == "validation")
    none = dict.fromkeys(TRACKED, 0)
    total = none | {"ready": begun, "started": begun}
    loop["epoch_loop.val_loop.batch_progress"] = {"current": none, "total": total, "is_last_batch": False}


def give_back(trainer: Trainer, module: LightningModule, kept: dict[str, Tensor]) -> None:
    """To each rank its own, or all to the first where there are more or fewer of them now."""
    for name, each in kept.items():
        mine = each[trainer.global_rank] if len(each) == trainer.world_size else each.sum(0) * trainer.is_global_zero
        if mine[1]:
            module.means[name].update(mine[0].float(), mine[1].long())  # type: ignore[union-attr,index]
