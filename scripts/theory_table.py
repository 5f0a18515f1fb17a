"""Measured gradient factors beside what theory says: the tables of docs/theory.md.

    python scripts/theory_table.py             # networks of the literature, then every activation; some minutes
    python scripts/theory_table.py listed      # or one of the two: listed, activations

A factor is that of ‖dL/dh‖ from a block to the one before it, the geometric mean over the depth and over
initialisations. Inputs are N(0, 1), batches of 128, the loss is cross-entropy on random labels; everything in float64
but for convolutions. Theory reads the initial weights and starts from the real input (src/gradflow/theory).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gradflow.diagnostics.probe import probe
from gradflow.models.activation import MODULES, make
from gradflow.models.base import Module
from gradflow.models.cnn import CNN
from gradflow.models.mlp import MLP
from gradflow.models.recurrent import GRU, LSTM, RNN
from gradflow.theory.mean_field import critical
from gradflow.theory.prediction import lines

VECTOR = {"kind": "vector", "shape": (256,), "task": "classification", "outputs": 10}
IMAGE = {"kind": "image", "shape": (3, 16, 16), "task": "classification", "outputs": 10}
SEQUENCE = {"kind": "sequence", "shape": (200, 8), "task": "classification", "outputs": 10}
BATCH = 128


def field(sigma_w: float, sigma_b: float = 0.0) -> dict[str, Any]:
    return {"name": "mean_field", "sigma_w": sigma_w, "sigma_b": sigma_b}


Options = dict[str, Any]
Network = tuple[Callable[..., Module], Options, Options]  # a model, its spec and its options


def mlp(**options: Any) -> Network:
    return MLP, VECTOR, {"depth": 30, "width": 256} | options


LISTED: dict[str, Network] = {
    "sigmoid, PyTorch's init": mlp(activation="sigmoid", init="torch"),
    "tanh, σ_w = 0.9": mlp(activation="tanh", init=field(0.9)),
    "tanh, σ_w = 1": mlp(activation="tanh", init=field(1.0)),
    "tanh, σ_w = 1.5": mlp(activation="tanh", init=field(1.5)),
    "ReLU, He": mlp(activation="relu", init="he"),
    "ReLU, PyTorch's init": mlp(activation="relu", init="torch"),
    "GELU, He": mlp(activation="gelu", init="he"),
    "ReLU, dropout 0.2, He": mlp(activation="relu", init="he", dropout=0.2),
    "batch norm, ReLU": mlp(activation="relu", init="he", norm="batch"),
    "layer norm, ReLU": mlp(activation="relu", init="he", norm="layer"),
    "residual, ReLU, He, no norm": mlp(activation="relu", init="he", residual=True),
    "residual, ReLU, branches 1/√L": mlp(activation="relu", init="he", residual=True, branch_scale="depth"),
    "residual, batch norm, ReLU": mlp(activation="relu", init="he", residual=True, norm="batch"),
    "CNN, 20 layers of 32, ReLU, PyTorch's init": (
        CNN,
        IMAGE,
        {"channels": (32,), "convs": 20, "dense": 32, "activation": "relu", "init": "torch"},
    ),
    "RNN, PyTorch's init": (RNN, SEQUENCE, {"init": "torch"}),
    "RNN, orthogonal": (RNN, SEQUENCE, {"init": "orthogonal"}),
    "LSTM, PyTorch's init": (LSTM, SEQUENCE, {"init": "torch", "forget_bias": None}),
    "LSTM, forget bias 1": (LSTM, SEQUENCE, {"init": "torch", "forget_bias": 1.0}),
    "LSTM, chrono": (LSTM, SEQUENCE, {"init": "torch", "forget_bias": "chrono"}),
    "GRU, PyTorch's init": (GRU, SEQUENCE, {"init": "torch"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="listed, activations; both without a name")
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__}, {args.seeds} seeds")
    if "listed" in args.tables or not args.tables:
        print("\n| network | measured | theory | off by |\n|---|---|---|---|")
        for name, network in LISTED.items():
            print(row(name, network, args.seeds), flush=True)
    if "activations" in args.tables or not args.tables:
        print("\n| activation | σ_w | σ_b | measured | theory | off by |\n|---|---|---|---|---|---|")
        for name, sigma_w, sigma_b in grid():
            cells = f"{name} | {sigma_w:.2f} | {sigma_b:g}"
            print(row(cells, mlp(activation=name, init=field(sigma_w, sigma_b)), args.seeds), flush=True)


def grid() -> Iterator[tuple[str, float, float]]:
    """Yield every activation with σ_w around the one at which χ = 1, or √2 where there is none, and σ_b."""
    for name in MODULES:
        for sigma_b in (0.0, 0.2):
            found = critical(make(name), sigma_b)
            centre = found[0] if found else math.sqrt(2)
            yield from ((name, factor * centre, sigma_b) for factor in (0.9, 1.0, 1.1))


def row(name: str, network: Network, seeds: int) -> str:
    """Return a row of a table in Markdown: measured, by theory, and how far they are apart."""
    logs = np.array([logs_of(*network, seed) for seed in range(seeds)])
    measured, theory = np.exp(logs.mean(0))
    return f"| {name} | {measured:.4f} | {theory:.4f} | {measured / theory - 1:+.1%} |"


def logs_of(kind: Callable[..., Module], spec: Options, options: Options, seed: int) -> tuple[float, float]:
    """Return ln of the factor, measured and by theory."""
    torch.manual_seed(seed)
    model = kind(spec, **options)
    x, y = torch.randn(BATCH, *spec["shape"]), torch.randint(10, (BATCH,))
    seen = probe(model, x, lambda model, x: cross_entropy(model(x), y), [f"net.{name}" for name in model.trunk])
    axis = "time" if spec["kind"] == "sequence" else "gradient"
    measured, predicted = getattr(seen, axis), lines(model, model.net, model.trunk, x)[axis]
    last = 19 if kind is CNN else len(measured) - 1  # the CNN's last block is dense
    ends = (20, 180) if axis == "time" else (0, last)
    return slope(measured, *ends), slope(predicted, *ends)


def slope(norms: list[float], first: int, last: int) -> float:
    """Return the mean change of ln of the norm from one place to the one before it."""
    return (math.log(norms[first]) - math.log(norms[last])) / (last - first)


if __name__ == "__main__":
    main()
