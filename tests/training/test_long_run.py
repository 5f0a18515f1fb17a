"""Nothing grows with the length of a run but its tables."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lightning import Callback

from gradflow import runs
from gradflow.config import build

STEPS = 20_000


class Meter(Callback):
    """What this process holds, at a few steps."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, int]] = {}

    def on_train_batch_end(self, trainer, *_arguments) -> None:
        if trainer.global_step % (STEPS // 10) == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.seen[trainer.global_step] = resident, len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and handles are read from /proc")
def test_twenty_thousand_steps(trained, monkeypatch):
    meter, callbacks = Meter(), build.callbacks
    monkeypatch.setattr(build, "callbacks", lambda *made_of: [*callbacks(*made_of), meter])
    run = trained(
        *("model=mlp", "model.width=8", "data=regression", "data.batch_size=8"),
        *("trainer.max_epochs=-1", f"trainer.max_steps={STEPS}", "callbacks.resume_checkpoint.every_n_steps=1000"),
    )
    assert list(meter.seen) == list(range(STEPS // 10, STEPS + 1, STEPS // 10))
    (memory, handles), (more, open_ones) = meter.seen[STEPS // 10], meter.seen[STEPS]
    assert more < 1.05 * memory, meter.seen
    assert open_ones <= handles, meter.seen
    logged = STEPS // 50 + 6  # every 50th step, and the first ones
    assert len(runs.read_table(run / runs.GRADIENTS)[1]) == pytest.approx(logged, abs=2)
    assert len(runs.read_lines(run / runs.FLOW)) < 25
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    print(meter.seen, f"{size / 2**20:.1f} MiB in {sum(1 for _ in run.rglob('*'))} files")
    assert size < 5 * 2**20
