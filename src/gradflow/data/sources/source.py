"""What a data set is: a spec that is known at once, and tensors that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor

from gradflow.spec import Spec

Split = tuple[Tensor, Tensor]  # inputs (uint8 images, int64 symbols or float32 numbers) and targets, a row a sample


@dataclass(frozen=True)
class Source:
    """Either `load` (a finite set) or `generate` (samples without end).

    A file of this folder holds one function from its options to a Source. `load` gives "train" and, where there are
    any, "val" and "test"; a missing "val" is split off "train". `prepare` runs first, once on each machine.
    """

    name: str
    spec: Spec
    load: Callable[[], Mapping[str, Split]] | None = None
    generate: Callable[[int, Generator], Split] | None = None
    prepare: Callable[[], None] = lambda: None
    origin: Callable[[], Mapping[str, Any]] = field(default=dict)  # where the data came from, for summary.json
