"""Gradient descent on f(x, y) = x² + y², drawn: the path over contour lines, a panel an optimizer and learning rate.

    python scripts/descent.py                                   # descent.png: plain gradient descent at four rates
    python scripts/descent.py sgd momentum adam --lr 0.05 0.3   # options of conf/optimizer, each at each rate
    python scripts/descent.py --start 2 -1 --steps 50 --stretch 10 --out ravine.png

Plain descent has the closed form x_t = (1 − 2η)^t x_0: it shrinks without a turn below η = 1/2, lands at once at 1/2,
jumps from side to side above, and diverges beyond 1. `--stretch s` makes it x² + s y², whose largest rate is 1/s.
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


def descend(option: str, lr: float, start: Sequence[float], steps: int, stretch: float = 1.0) -> np.ndarray:
    """Return the points (x_0, y_0) … (x_steps, y_steps) as [steps + 1, 2]."""
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    node = OmegaConf.load(ROOT / "conf" / "optimizer" / f"{option}.yaml")
    settings = {"lr": lr, "fused": False} if "fused" in node else {"lr": lr}
    optimizer = instantiate(OmegaConf.merge(node, settings), _convert_="all")([point])
    path = [point.tolist()]
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = point
        (x**2 + stretch * y**2).backward()
        optimizer.step()
        path.append(point.tolist())
    return np.array(path)


def draw(paths: dict[str, np.ndarray], stretch: float) -> Figure:
    """Draw a panel for each path, over the same contour lines."""
    columns = min(len(paths), 4)
    rows = -(-len(paths) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    side = 1.5 * max(np.abs(path[0]).max() for path in paths.values())
    grid = np.linspace(-side, side, 101)
    height = grid[None, :] ** 2 + stretch * grid[:, None] ** 2
    for place, (title, path) in enumerate(paths.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.contour(grid, grid, height, levels=12, colors=INK, linewidths=0.5, alpha=0.4)
        seen = np.clip(path, -1e6, 1e6)  # a path that diverges leaves the panel
        axes.plot(seen[:, 0], seen[:, 1], "o-", color=SERIES[0], lw=1.2, ms=3)
        axes.plot(0, 0, "+", color=SERIES[1], ms=9)
        axes.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
        x, y = path[-1]
        axes.set_title(f"{title}\nf = {x**2 + stretch * y**2:.2g} after {len(path) - 1} steps", loc="left")
    return figure


def main() -> int:
    """Draw what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizers", nargs="*", default=["sgd"], help=f"of conf/optimizer: {', '.join(OPTIONS)}")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.1, 0.4, 0.9, 1.05])
    parser.add_argument("--start", type=float, nargs=2, default=[2.0, 1.0], metavar=("X", "Y"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--stretch", type=float, default=1.0, help="of x² + stretch y²")
    parser.add_argument("--out", type=Path, default=Path("descent.png"))
    args = parser.parse_args()
    if strange := sorted(set(args.optimizers) - set(OPTIONS)):
        parser.error(f"{strange[0]}: no such optimizer; known: {', '.join(OPTIONS)}")
    if min(args.lr) <= 0 or args.steps < 1 or args.stretch <= 0 or not any(args.start):
        parser.error("expected learning rates and a stretch above 0, 1 step or more, and a start other than 0 0")
    if not all(map(math.isfinite, (*args.lr, *args.start, args.stretch))):
        parser.error("expected finite learning rates, stretch and start")
    paths = {}
    for option in args.optimizers:
        for lr in args.lr:
            try:
                paths[f"{option}, η = {lr:g}"] = descend(option, lr, args.start, args.steps, args.stretch)
            except (TypeError, ValueError) as error:
                parser.error(f"{option}: does not suit a single point: {error}")
    try:
        save(partial(draw, paths, args.stretch), args.out)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
