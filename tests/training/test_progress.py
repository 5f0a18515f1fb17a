"""The line that is seen while a network trains."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import pytest

from gradflow.training.csv_logger import TableLogger
from gradflow.training.progress import Progress

SMALL = ("data=regression", "data.points=100", "logger=none", "trainer.max_epochs=3", "summary=short")


def test_without_a_terminal_the_run_leaves_plain_lines(trained, capsys):
    """At most one a second, and one for the last epoch; stdout has none of them."""
    trained(*SMALL)
    printed = capsys.readouterr()
    *_, last = lines = printed.err.splitlines()
    assert not set(printed.err) & set("\r\x1b━")
    assert len(lines) <= 3
    assert re.fullmatch(r"Epoch 3/3 · loss \S+ · val \S+ · mse \S+( · \S+ samples/s)?", last)
    assert "Epoch" not in printed.out


@pytest.fixture
def at_work(monkeypatch):
    """A bar in the middle of the second of ten epochs, on a terminal of so many columns."""

    def make(columns: int):
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        bar, table = Progress(), TableLogger("nowhere")
        table.table = SimpleNamespace(latest={"loss/train": 1.2222, "loss/val": 1.1611, "accuracy/val": 0.6})
        data = SimpleNamespace(batch_size=128, spec=SimpleNamespace(kind="image"))
        loaders = SimpleNamespace(estimated_stepping_batches=700, global_step=0, should_stop=False)
        trainer = SimpleNamespace(
            **vars(loaders), datamodule=data, loggers=[table], max_epochs=10, current_epoch=1, num_training_batches=70
        )
        clock = iter([0.0, 0.0, 10.0])
        monkeypatch.setattr("time.monotonic", lambda: next(clock, 100.0))
        bar.on_train_start(trainer, None)
        bar.on_train_epoch_start(trainer, None)
        bar.line.live = True
        trainer.global_step, bar.batches, bar.done = 70 + 41, 41, 41
        return bar, trainer

    return make


def test_the_line_is_there_before_the_first_batch(at_work, capsys):
    bar, trainer = at_work(80)
    bar.on_train_epoch_start(trainer, None)
    assert re.fullmatch(r"\r\x1b\[KEpoch 2/10 ─+ 0/70 · loss 1.22 .*", capsys.readouterr().err)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_it_fits_and_is_never_cut(at_work, capsys, columns):
    bar, trainer = at_work(columns)
    bar._draw(trainer)
    shown = capsys.readouterr().err.removeprefix("\r\x1b[K")
    assert len(shown) < max(columns, 22)
    whole = ["loss 1.22", "val 1.16", "acc 0.600", "58 img/s", "ETA 08:50"]  # 41 · 128 in 90 s; 589 of 100/111 s
    first, *parts = shown.split(" · ")
    metrics = whole[:3]
    assert parts in [whole, [*metrics, whole[-1]], *(metrics[:count] for count in range(4))]  # the speed goes first
    assert re.fullmatch(r"Epoch 2/10 [━─]* ?41/70", first)
    assert columns < 80 or parts == whole
