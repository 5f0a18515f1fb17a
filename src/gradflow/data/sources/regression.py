"""Random points to fit: the smallest set on which a network can be watched."""

from __future__ import annotations

import torch
from torch import Generator

from gradflow.data.memory import check_room
from gradflow.data.sources.source import Source
from gradflow.runs.errors import UserError
from gradflow.spec import Spec

_HIDDEN = 16


def regression(points: int, features: int, noise: float, targets: str = "tanh") -> Source:
    """Inputs from N(0, 1); targets from a fixed random tanh network, scaled to variance 1, plus Gaussian noise. With
    `targets="random"` they are numbers from N(0, 1) instead, which can be learnt by heart and tell nothing of others.

    The best constant guess has a mean squared error near 1 + noise². "test" holds as many points as "train".
    """
    if points < 1 or features < 1 or noise < 0:
        keys = f"data.points={points}, data.features={features}, data.noise={noise}"
        raise UserError(f"{keys}: expected 1 or more, 1 or more, and 0 or more")
    if targets not in ("tanh", "random"):
        raise UserError(f"data.targets={targets}: expected one of tanh, random")
    size = 2 * points * (features + _HIDDEN + 1) * torch.get_default_dtype().itemsize
    check_room(f"data.points={points}, data.features={features}", "generating them", size)

    def load() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        generator = Generator().manual_seed(0)  # the set is the same for every seed of a run
        inner = torch.randn(features, _HIDDEN, generator=generator)
        outer = torch.randn(_HIDDEN, 1, generator=generator)
        x = torch.randn(2 * points, features, generator=generator)
        y = torch.tanh(x @ inner) @ outer
        if targets == "random":
            y = torch.randn(y.shape, generator=generator)
        y = (y - y[:points].mean()) / y[:points].std().clamp(min=1e-6) if points > 1 else y
        y += noise * torch.randn(y.shape, generator=generator)
        return {"train": (x[:points], y[:points]), "test": (x[points:], y[points:])}

    return Source("regression", Spec("vector", (features,), "regression", outputs=1), load=load)
