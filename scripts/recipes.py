"""Run recipes over several seeds and print a table of what they reach.

python scripts/recipes.py deep_sigmoid_mlp 'deep_sigmoid_mlp_*' --seeds 3
python scripts/recipes.py small_cnn --seeds 3 --jobs 2 -- data=image_folder data.root=images
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_runs import runs_of


def main() -> int:
    """Run each recipe with each seed and print the table; return 1 where a run failed."""
    failed = False
    header = f"| recipe | n | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}"
    for name, found in runs_of("experiment", __doc__, "+", header, lambda name: []):
        mine = [measured(*one) for one in found if one]
        failed |= None in found
        print(f"| `{name}` | {len(mine)} | {' | '.join(cell([one[c] for one in mine]) for c in COLUMNS)} |", flush=True)
    return int(failed)


# Of weights: log₁₀ of ‖∂L/∂W‖ at the first layer over that at the last. The other ratio is that of the verdict:
# ‖∂L/∂h‖ at the first block over the last, or ‖∂L/∂x_t‖ at the first time step over the last.
WEIGHTS, RATIO = "log₁₀ gradient ratio of weights", "log₁₀ gradient ratio"
STAGES = ("at step 0", "at the end")
COLUMNS = ("train", "test", *(f"{ratio} {stage}" for ratio in (WEIGHTS, RATIO) for stage in STAGES), "seconds")


def measured(folder: Path, facts: Mapping[str, Any]) -> dict[str, float]:
    """Return accuracy (or mean squared error) and log₁₀ gradient ratios of a run."""
    with (folder / "gradients.csv").open(newline="", encoding="utf-8") as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    score = "accuracy" if "accuracy/train" in facts["final"] else "mse"
    verdicts = [facts.get("verdict", {}).get(stage, {}) for stage in ("start", "end")]
    values = [facts["final"].get(f"{score}/train"), facts.get("test", {}).get(f"{score}/test")]
    values += [*map(log_ratio, (rows[0], rows[-1])), *(verdict.get("decades") for verdict in verdicts)]
    numbers = (math.nan if value is None else value for value in (*values, facts["wall_seconds"]))  # JSON has no nan
    return dict(zip(COLUMNS, numbers, strict=True))


def log_ratio(row: Sequence[float]) -> float:
    """Return log₁₀ of the first layer's norm over the last one's, of a row of gradients.csv; nan where one is 0."""
    first, last = row[1], row[-1]
    return math.log10(first / last) if first > 0 and last > 0 else math.nan


def cell(values: Sequence[float]) -> str:
    """Return mean ± standard deviation."""
    if not values:
        return "failed"
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 and all(map(math.isfinite, values)) else ""
    return f"{statistics.fmean(values):.3g}{spread}"


if __name__ == "__main__":
    sys.exit(main())
