"""Gradient descent on f(x, y) = x² + y², drawn: the path over contour lines, a panel an optimizer and learning rate.

    python scripts/descent.py                                   # descent.png: plain gradient descent at four rates
    python scripts/descent.py sgd momentum adam --lr 0.05 0.3   # options of conf/optimizer, each at each rate
    python scripts/descent.py rmsprop --steps 50 --out rmsprop.png

Plain descent has the closed form x_t = (1 − 2η)^t x_0: it shrinks without a turn below η = 1/2, lands at once at 1/2,
jumps from side to side above, and diverges beyond 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from gradflow.plots.theme import INK, SERIES, save  # noqa: E402

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "optimizer").glob("*.yaml"))


def descend(option: str, lr: float, steps: int, start: Sequence[float] = (2.0, 1.0)) -> np.ndarray:
    """Return the points (x_0, y_0) … (x_steps, y_steps) as [steps + 1, 2]."""
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    node = OmegaConf.load(ROOT / "conf" / "optimizer" / f"{option}.yaml")
    settings = {"lr": lr, "fused": False} if "fused" in node else {"lr": lr}
    optimizer = instantiate(OmegaConf.merge(node, settings), _convert_="all")([point])
    path = [point.tolist()]
    for _ in range(steps):
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
        path.append(point.tolist())
    return np.array(path)


def draw(paths: dict[str, np.ndarray]) -> Figure:
    """Draw a panel for each path, over the same contour lines."""
    columns = min(len(paths), 4)
    rows = -(-len(paths) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    side = 1.5 * max(np.abs(path[0]).max() for path in paths.values())
    grid = np.linspace(-side, side, 101)
    height = grid[None, :] ** 2 + grid[:, None] ** 2
    for place, (title, path) in enumerate(paths.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.contour(grid, grid, height, levels=12, colors=INK, linewidths=0.5, alpha=0.4)
        seen = np.clip(path, -1e6, 1e6)  # a path that diverges leaves the panel
        axes.plot(seen[:, 0], seen[:, 1], "o-", color=SERIES[0], lw=1.2, ms=3)
        axes.plot(0, 0, "+", color=SERIES[1], ms=9)
        axes.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
        axes.set_title(f"{title}\nf = {(path[-1] ** 2).sum():.2g} after {len(path) - 1} steps", loc="left")
    return figure


def main() -> int:
    """Draw what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizers", nargs="*", default=["sgd"], help=f"of conf/optimizer: {', '.join(OPTIONS)}")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.1, 0.4, 0.9, 1.05])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("descent.png"))
    args = parser.parse_args()
    if strange := sorted(set(args.optimizers) - set(OPTIONS)):
        parser.error(f"{strange[0]}: no such optimizer; known: {', '.join(OPTIONS)}")
    if not all(0 < lr < math.inf for lr in args.lr) or args.steps < 1:
        parser.error("expected finite learning rates above 0, and 1 step or more")
    paths = {}
    for option in args.optimizers:
        for lr in args.lr:
            try:
                paths[f"{option}, η = {lr:g}"] = descend(option, lr, args.steps)
            except (TypeError, ValueError) as error:
                parser.error(f"{option}: does not suit a single point: {error}")
    try:
        save(partial(draw, paths), args.out)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
