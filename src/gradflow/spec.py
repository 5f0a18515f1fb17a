"""What models and data agree on: the kind of input, its shape, and what is asked of the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["image", "sequence", "vector"]


@dataclass(frozen=True)
class Spec:
    """Known before any data is loaded. Shapes are of one sample.

    kind        shape
    image       (channels, height, width)
    sequence    (time, features), or (time,) when the inputs are symbols
    vector      (features,)
    """

    kind: Kind
    shape: tuple[int, ...]
    task: str  # what is asked of the output: the name of a file of tasks/
    outputs: int  # classes, or numbers to predict
    tokens: int = 0  # size of the alphabet when the inputs are symbols; 0 when they are numbers
    per_step: bool = False  # an output at each time step
    blank: int | None = None  # a class that the accuracy leaves out, because predicting it is no feat
    ignored: int | None = None  # a label of padding, which counts neither in the loss nor in a metric

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # a configuration has lists only
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ValueError(f"Spec(kind={self.kind!r}): expected {known}; symbols are a sequence with tokens=…")
