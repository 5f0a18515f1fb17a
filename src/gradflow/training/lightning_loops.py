"""The counters of Lightning's training loop, as of lightning 2.6: private names, needed to go on exactly.

Lightning goes on from a checkpoint by the counters in its `loops`. Ours are written before a batch or a validation,
where those counters do not say so yet; `settle` writes into the checkpoint where the run is, for which Lightning has no
public way. Should a name go or mean something else, tests/training/test_resume.py and test_train.py fail: they compare
a resumed run with one that was never interrupted.
"""

from __future__ import annotations

from typing import Any

from lightning import Trainer

_TRACKED = ("ready", "started", "processed", "completed")


def settle(loop: dict[str, Any], place: str, batches: float) -> None:
    """Set the counters of a checkpoint to where the run is, so that it goes on there and nowhere else.

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
    batch["current"] = dict.fromkeys(_TRACKED, done)
    batch["total"] = dict.fromkeys(_TRACKED, batch["total"]["completed"])
    batch["is_last_batch"] = place == "validation" and batch["is_last_batch"]
    begun = int(place == "validation")
    none = dict.fromkeys(_TRACKED, 0)
    total = none | {"ready": begun, "started": begun}
    loop["epoch_loop.val_loop.batch_progress"] = {"current": none, "total": total, "is_last_batch": False}


def steps_logged(loop: dict[str, Any]) -> int:
    """Return how many batches had stepped when a checkpoint was written; before a validation one is not counted yet."""
    to_validate: int = loop["epoch_loop.val_loop.batch_progress"]["total"]["started"]
    return loop["epoch_loop.state_dict"]["_batches_that_stepped"] + to_validate


def set_steps_logged(trainer: Trainer, count: int) -> None:
    """Put right what Lightning counts one too many after a restart at the start of an epoch."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = count


def batches_done(trainer: Trainer) -> int:
    """Return the number of batches that are behind a run, over all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.completed


def accumulates(trainer: Trainer) -> bool:
    """Return whether the last batch has only added to a gradient that a later one steps with."""
    return trainer.fit_loop._should_accumulate()


def ask_no_rank_for_sigterm(trainer: Trainer) -> None:
    """Keep Lightning from asking all ranks at each step whether one got a SIGTERM, which waits for the device."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
