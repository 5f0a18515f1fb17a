"""What passes while torch is loaded: a word on the terminal, and no import of what a run does not use."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradflow.training.live_line import LiveLine

# torchmetrics (1.9), which Lightning imports, imports both for metrics of images and for its own plots: 0.5 s.
# While it is imported it hears that they are not there. Metrics that need them (LPIPS, boxes) have to be imported
# outside `loading`; should `RequirementCache` go, drop `_unless_needed`, and a start takes that much longer.
_NOT_NEEDED = ("torchvision", "matplotlib")


@contextmanager
def loading() -> Iterator[None]:
    """Import within this block what a run needs. No garbage is collected meanwhile, which takes 0.3 to 0.6 s of
    the 2.8 s of imports, nor is it looked for later in what was imported."""
    gc.disable()
    try:
        with LiveLine().working("loading torch"), _unless_needed():
            yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else triton reports at the end what was never collected
        gc.enable()


def read_data(data: Any, trainer: Any = None) -> None:
    """Fetch, decode and place what a DataModule serves, on the devices of the trainer, if there is one."""
    if trainer:
        data.attach(trainer)
    with LiveLine().working("reading the data"):
        data.prepare_data()
        data.setup()


@contextmanager
def _unless_needed() -> Iterator[None]:
    from lightning_utilities.core.imports import RequirementCache

    known: Any = RequirementCache
    ask = known.__bool__
    known.__bool__ = lambda cache: cache.requirement not in _NOT_NEEDED and ask(cache)
    try:
        yield
    finally:
        known.__bool__ = ask
