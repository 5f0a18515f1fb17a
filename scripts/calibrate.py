"""Does the log₁₀ gradient ratio predict which networks learn? Probe each of a grid of small MLPs, then train it.

    python scripts/calibrate.py            # about ten minutes on two CPU cores; writes docs/calibration.{csv,png}

The grid below was fixed before it was first run: 5 activations × 4 inits × 4 depths = 80 networks, each trained by
two optimizers. The ratio is a mean over 3 seeds; the accuracy is on held-out images of `shapes`
(16×16, grey, chance 0.1) after 300 steps. "Learns" means an accuracy above 0.2, twice chance.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gradflow.data.datamodule import DataModule
from gradflow.data.sources.shapes import shapes
from gradflow.diagnostics.probe import probe
from gradflow.diagnostics.verdict import log_ratio
from gradflow.models.mlp import MLP
from gradflow.plots.limits import CAUTION, FAIL

ACTIVATIONS = ("sigmoid", "tanh", "relu", "gelu", "softplus")
INITS: tuple[str | dict[str, Any], ...] = (
    "torch",
    "glorot",
    {"name": "mean_field", "sigma_w": 1.0},
    {"name": "mean_field", "sigma_w": 2.0, "sigma_b": 0.1},
)
DEPTHS = (3, 6, 12, 24)
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.02, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-3),
}
COLUMNS = ("activation", "init", "depth", "optimizer", "log10_gradient_ratio", "accuracy")
WIDTH, STEPS, SEEDS, CHANCE = 128, 300, 3, 0.1
DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the table and the picture go")
    parser.add_argument("--limit", type=int, help="only so many networks, to try it out")
    args = parser.parse_args()
    data = DataModule(shapes, 128, val=0.2, size=16, channels=1)
    data.prepare_data()
    data.setup()
    rows = []
    grid = list(itertools.product(ACTIVATIONS, INITS, DEPTHS))[: args.limit]
    for index, (activation, init, depth) in enumerate(grid):
        ratio = np.mean([log_ratio_of(make(data, activation, init, depth, seed), data) for seed in range(SEEDS)])
        for name in OPTIMIZERS:
            reached = trained(make(data, activation, init, depth, 0), data, name)
            rows.append([activation, label(init), depth, name, round(float(ratio), 3), round(reached, 4)])
        print(f"{index + 1}/{len(grid)} {activation} {label(init)} {depth}: {ratio:+.1f}", rows[-2][-1], rows[-1][-1])
    args.folder.mkdir(parents=True, exist_ok=True)
    with (args.folder / "calibration.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    summary(rows)
    draw_picture(rows, args.folder / "calibration.png")


def label(init: str | dict) -> str:
    return init if isinstance(init, str) else f"{init['name']} {init['sigma_w']:g} {init.get('sigma_b', 0):g}"


def make(data: DataModule, activation: str, init: str | dict, depth: int, seed: int) -> MLP:
    torch.manual_seed(seed)
    return MLP(data.spec, depth=depth, width=WIDTH, activation=activation, init=init)


def log_ratio_of(model: MLP, data: DataModule) -> float:
    """Return the log₁₀ gradient ratio, first over last block, cut to ±60."""
    x, y = data.sample(64)
    trunk = [f"net.{name}" for name in model.trunk]
    profile = probe(model, x, lambda model, x: cross_entropy(model(x), y), trunk)
    return float(np.clip(log_ratio(profile.gradient), -60, 60))


def trained(model: MLP, data: DataModule, name: str) -> float:
    """Return the accuracy on what is held out after STEPS steps; chance where the loss is no longer finite."""
    optimizer, loader = OPTIMIZERS[name](model.parameters()), data.loader("train", training=True)
    for step in range(STEPS):
        x, y = loader.batch(*divmod(step, len(loader)))
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in data.val_dataloader()]
    return float(torch.cat(right).mean())


def summary(rows: Sequence[Sequence]) -> None:
    """Print AUC and rank correlation with bootstrap intervals, and the mean accuracy by the size of the ratio."""
    for name in OPTIMIZERS:
        chosen = [row for row in rows if row[3] == name]
        size, reached = (np.array([row[column] for row in chosen]) for column in (4, 5))
        size, learns, random = abs(size), reached > 2 * CHANCE, np.random.default_rng(0)
        picks = [random.integers(0, len(size), len(size)) for _ in range(2000)]
        areas = [auc(size[pick], learns[pick]) for pick in picks if 0 < learns[pick].sum() < len(pick)]
        ranks = [spearman(size[pick], reached[pick]) for pick in picks]
        print(f"{name}: {len(size)} networks, {learns.sum()} learn")
        print(f"  AUC {auc(size, learns):.3f} {interval(areas)}", end=", ")
        print(f"rank correlation {spearman(size, reached):.3f} {interval(ranks)}")
        for low, high in itertools.pairwise((0, 0.5, 1, CAUTION, 2, FAIL, 6, 61)):
            within = (size >= low) & (size < high)
            if within.any():
                print(f"  {low:4.1f} – {high:4.1f}: {within.sum():3d} networks, accuracy {reached[within].mean():.2f}")


def interval(found: Sequence[float]) -> str:
    """Return the range of 95 % of the bootstrap as text."""
    return f"[{np.quantile(found, 0.025):.3f}, {np.quantile(found, 0.975):.3f}]"


def auc(size: np.ndarray, learns: np.ndarray) -> float:
    """Return the chance that one that learns has a smaller ratio than one that does not; ties count half."""
    yes, no = size[learns][:, None], size[~learns][None]
    return float(((yes < no) + 0.5 * (yes == no)).mean())


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation."""
    return float(np.corrcoef(rank(one), rank(other))[0, 1])


def rank(values: np.ndarray) -> np.ndarray:
    """Return each value's rank; equal values share the mean of theirs."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def draw_picture(rows: Sequence[Sequence], path: Path) -> None:
    """Draw accuracy against the size of the ratio, a point a network and optimizer."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.axvspan(CAUTION, FAIL, color="#F0E442", alpha=0.25, lw=0, label="CAUTION")
    axes.axvspan(FAIL, 70, color="#CC79A7", alpha=0.15, lw=0, label="FAIL")
    for name, colour, mark in (("SGD", "#0072B2", "o"), ("Adam", "#D55E00", "^")):
        chosen = [row for row in rows if row[3] == name]
        x = [max(abs(row[4]), 0.05) for row in chosen]
        axes.scatter(x, [row[5] for row in chosen], s=18, color=colour, marker=mark, label=name, alpha=0.8, zorder=3)
    axes.axhline(CHANCE, color="0.4", lw=0.8, ls=":", label="chance")
    axes.set_xscale("log")
    axes.set_xlim(0.04, 70)
    axes.set_xlabel("|log₁₀ gradient ratio| before training, first over last block")
    axes.set_ylabel(f"accuracy after {STEPS} steps")
    axes.set_title("Does the gradient ratio before training predict the accuracy after it?", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=300)


if __name__ == "__main__":
    main()
