"""The checkpoint that a run goes on from, as if it had never stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from gradflow import runs
from gradflow.runs import ranks
from gradflow.runs.errors import UserError
from gradflow.training import lightning_loops, signals
from gradflow.training.agreement import Agreement
from gradflow.training.checkpoints import OURS, ours
from gradflow.training.progress import Progress


class ResumeCheckpoint(Callback):
    """Write `last.ckpt`, and keep the one before it as `previous.ckpt`: at the start of every `every_n_epochs`-th
    epoch, at every `every_n_steps`-th step, every `every_minutes`, at the end, and when a signal asks the run to stop.

    A checkpoint is written at one of two places: before a batch, with everything that came before it done and recorded,
    or before a validation. `lightning_loops` sets Lightning's counters so that it goes on from there; a checkpoint also
    says how many lines the run's own files had, so that what came after can be cut off and written again. It has to be
    the first of the callbacks: what the others do before the batch, they do again.
    """

    def __init__(
        self,
        run_dir: str,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        every_minutes: float | None = 10.0,
    ) -> None:
        intervals = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "every_minutes": every_minutes}
        for name, value in intervals.items():
            if value is not None and value <= 0:
                key = f"callbacks.resume_checkpoint.{name}"
                raise UserError(f"{key}={value}: expected a number above 0, or null for never")
        self.every_n_epochs, self.every_n_steps, self.every_minutes = every_n_epochs, every_n_steps, every_minutes
        self.folder = Path(run_dir)
        self.since = 0.0  # when the training began, or the last checkpoint was written; 0 before
        self.place: str | None = None  # while a checkpoint of ours is made
        self.restored: int | None = None  # steps that were logged, as the checkpoint counted them
        self.saved = -1  # batches that were behind the last checkpoint
        self.step: int | None = None  # of the last checkpoint

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        lightning_loops.ask_no_rank_for_sigterm(trainer)  # they agree by `Agreement`
        self.agreement = Agreement(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()
        self.rotates = Path(trainer.ckpt_path or "") != self.folder / runs.PREVIOUS  # else the last one is damaged

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.watch(True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.restored is not None:
            lightning_loops.set_steps_logged(trainer, self.restored)
            self.restored = None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a sum of gradients is in no checkpoint
        overdue = self.every_minutes is not None and time.monotonic() - self.since >= 60 * self.every_minutes
        signal_number, overdue = self.agreement.tick(signals.received, overdue)
        if signal_number or overdue or self._due(trainer, batch_idx):
            self._save(trainer, "batch")
        if signal_number:
            self.stop(trainer, signal_number)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.agreement.restart()

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        signal_number, _ = self.agreement.tick(signals.received, False)
        if not signal_number or lightning_loops.accumulates(trainer):
            return
        if not trainer.should_stop:  # a run that is stopping will find the reason again
            self._save(trainer, "validation")
        self.stop(trainer, signal_number)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.agreement.restart()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, "end")
        self.agreement.restart()
        if signal_number := self.agreement.tick(signals.received, False)[0]:
            self.stop(trainer, signal_number)
        signals.watch(False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.agreement.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.watch(True)

    def on_test_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if signal_number := self.agreement.tick(signals.received, False)[0]:
            self.stop(trainer, signal_number)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.watch(False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        signals.watch(False)
        kill = getattr(trainer.strategy.launcher, "kill", None)
        if kill and not self.since:
            kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # ranks that wait for this one would wait for long

    def _due(self, trainer: Trainer, batch_idx: int) -> bool:
        step = trainer.global_step if self.every_n_steps or batch_idx == 0 else 0
        if not step or lightning_loops.batches_done(trainer) == self.saved:
            return False
        if self.every_n_epochs and batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0:
            return True
        return bool(self.every_n_steps and step % self.every_n_steps == 0)

    def _save(self, trainer: Trainer, place: str) -> None:
        self.place = place
        try:
            keep_as = self.folder / runs.PREVIOUS if self.rotates else None
            trainer.save_checkpoint(self.folder / runs.LAST, storage_options=keep_as)
        finally:
            self.place = None
        self.rotates, self.step = True, trainer.global_step
        self.since, self.saved = time.monotonic(), lightning_loops.batches_done(trainer)

    def stop(self, trainer: Trainer, number: int) -> None:
        """End this process; ranks that Lightning has started end with status 0, or it would kill the first."""
        if not trainer.is_global_zero:
            raise SystemExit(0 if ranks.apart() == 1 else signals.status(number))
        if isinstance(bar := trainer.progress_bar_callback, Progress):
            bar.line.close()
        saved = "nothing is saved yet" if self.step is None else f"step {self.step} is saved"
        signals.end(number, f"{saved}; python src/train.py resume={os.path.relpath(self.folder)} goes on")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.place:
            return
        loop = checkpoint["loops"]["fit_loop"]
        lightning_loops.settle(loop, self.place, trainer.num_training_batches)
        checkpoint["epoch"] = loop["epoch_progress"]["current"]["processed"]
        if trainer.is_global_zero:
            runs.flush_tables(self.folder)
        loggers = [state() if (state := getattr(one, "state_dict", None)) else {} for one in trainer.loggers]
        lines, sums = runs.count_lines(self.folder), pl_module.metrics.sums(self.agreement.gather)  # type: ignore[union-attr,operator]
        checkpoint[OURS] = {"lines": lines, "sums": sums, "loggers": loggers}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        content = ours(checkpoint)
        if "lines" not in content:
            return
        loop, self.step = checkpoint["loops"]["fit_loop"], checkpoint["global_step"]
        self.saved = loop["epoch_loop.batch_progress"]["total"]["completed"]
        self.restored = lightning_loops.steps_logged(loop)
        pl_module.metrics.restore(content["sums"], trainer.global_rank, trainer.world_size)  # type: ignore[union-attr,operator]
        for logger, state in zip(trainer.loggers, content["loggers"], strict=False):
            if state and hasattr(logger, "load_state_dict"):
                logger.load_state_dict(state)
