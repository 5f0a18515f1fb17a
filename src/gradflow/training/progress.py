"""What is seen while a network trains: one line that fits the terminal, or a plain line an epoch in a file."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from gradflow.runs.errors import UserError, wrapped
from gradflow.training.csv_logger import TableLogger
from gradflow.training.live_line import LiveLine

_BAR, _SHORTEST = 20, 4  # letters
_OFTEN = 0.1  # seconds between two versions of the line
_LINES = 1.0  # seconds, at least, between two lines that stay: an epoch may be a few steps


class Progress(ProgressBar):
    """Epoch 2/10 ━━━━━━━─── 41/70 · loss 1.22 · val 1.16 · acc 0.6 · 1,240 img/s · ETA 00:41

    The loss is the last *logged* one: no step waits for the device. What does not fit the terminal's width is left
    out, the last first. `refresh_rate` is the number of batches between two looks at the clock.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__()
        if refresh_rate < 1:
            raise UserError(f"callbacks.progress.refresh_rate={refresh_rate}: expected 1 or more")
        self.refresh_rate, self.line, self.is_enabled = refresh_rate, LiveLine(), True
        self.drawn, self.left_at, self.done = 0.0, 0.0, 0

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def print(self, *words: Any, **options: Any) -> None:
        """Print to stdout, above the line."""
        self.line.clear()
        print(wrapped(" ".join(map(str, words))), **options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun, self.first = time.monotonic(), trainer.global_step
        self.steps: float = trainer.estimated_stepping_batches
        self.on_train_epoch_start(trainer, pl_module)  # left out where one is resumed in its middle

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since, self.batches = time.monotonic(), 0  # of the epoch in this process; what is validated does not count
        self.done = 0
        if self.line.live and self.is_enabled:
            self._draw(trainer)  # before the first batch, which may take long

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches, self.done = self.batches + 1, batch_idx + 1
        if batch_idx % self.refresh_rate == 0 and self.line.live and self._is_due():
            self._draw(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if hasattr(self, "since"):
            self.since += time.monotonic() - self.paused

    def on_validation_batch_end(self, trainer: Trainer, *happened: Any, **more: Any) -> None:
        self._draw_evaluation("Validation", trainer, happened[3], trainer.num_val_batches)

    def on_test_batch_end(self, trainer: Trainer, *happened: Any, **more: Any) -> None:
        self._draw_evaluation("Test", trainer, happened[3], trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_enabled:
            self.line.clear()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.monotonic()
        over = trainer.should_stop or trainer.global_step >= self.steps
        if not self.is_enabled or (now - self.left_at < _LINES and not over):
            return
        self.left_at = now
        self._draw(trainer)
        self.line.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.line.close()

    def _is_due(self) -> bool:
        now = time.monotonic()
        if due := self.is_enabled and now - self.drawn >= _OFTEN:
            self.drawn = now
        return due

    def _draw_evaluation(self, what: str, trainer: Trainer, batch_idx: int, batches: Any) -> None:
        if self.line.live and not trainer.sanity_checking and self._is_due():
            self.line.progress(f"{what} {_bar(batch_idx + 1, sum(batches))}")

    def _draw(self, trainer: Trainer) -> None:
        epochs = trainer.max_epochs or -1
        epoch = f"Epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")
        metrics, left = self._metrics(trainer), self._time_left(trainer)
        rest = [*metrics, *self._speed(trainer), *left]
        if not self.line.live:
            self.line.progress(" · ".join([epoch, *rest]))
            return
        words = _bar(self.done, trainer.num_training_batches, 0)
        narrower = iter([[*metrics, *left], *(metrics[:count] for count in range(len(metrics), -1, -1))])
        while (room := self.line.width - len(" · ".join([f"{epoch} {words}", *rest]))) < _SHORTEST and rest:
            rest = next(narrower)
        bar = _bar(self.done, trainer.num_training_batches, min(room, _BAR))
        self.line.progress(" · ".join([f"{epoch} {bar}", *rest]))

    def _metrics(self, trainer: Trainer) -> list[str]:
        latest = next((one.latest for one in trainer.loggers if isinstance(one, TableLogger)), {})
        shown = {"loss/train": "loss", "loss/val": "val", "accuracy/val": "acc"}
        shown |= {name: name.removesuffix("/val") for name in latest if name.endswith("/val") and name not in shown}
        return [f"{word} {latest[name]:#.3g}" for name, word in shown.items() if name in latest]

    def _speed(self, trainer: Trainer) -> list[str]:
        data: Any = getattr(trainer, "datamodule", None)
        size, spec = getattr(data, "batch_size", None), getattr(data, "spec", None)
        rate = self.batches * (size or 1) / max(time.monotonic() - self.since, 1e-9)
        unit = "batches" if size is None else "img" if getattr(spec, "kind", "") == "image" else "samples"
        return [f"{rate:,.0f} {unit}/s"] if rate >= 1 else []

    def _time_left(self, trainer: Trainer) -> list[str]:
        done, left = trainer.global_step - self.first, self.steps - trainer.global_step
        if not done or left <= 0 or math.isinf(left):
            return []
        return [f"ETA {tqdm.format_interval((time.monotonic() - self.begun) / done * left)}"]


def _bar(done: int, of: float, letters: int = _BAR) -> str:
    if math.isinf(of) or not of:
        return str(done)
    full = max(0, round(letters * min(done / of, 1)))
    return f"{'━' * full}{'─' * (letters - full)} {done}/{of:.0f}"
