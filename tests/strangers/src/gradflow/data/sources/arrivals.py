"""Poisson counts whose rate is a function of two numbers."""

import torch

from gradflow.data.sources.source import Source, Split
from gradflow.spec import Spec


def arrivals(points: int) -> Source:
    def load() -> dict[str, Split]:
        random = torch.Generator().manual_seed(0)
        x = torch.randn(points, 2, generator=random)
        return {"train": (x, torch.poisson((x[:, :1] - x[:, 1:]).exp().clamp(max=20), random))}

    return Source("arrivals", Spec("vector", (2,), "counts", outputs=1), load=load)
