"""Run recipes over several seeds and print a table of what they reach.

python scripts/recipes.py deep_sigmoid_mlp 'deep_sigmoid_mlp_*' --seeds 3
python scripts/recipes.py small_cnn --seeds 3 --jobs 2 -- data=image_folder data.root=images
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names or patterns of conf/experiment")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--folder", default="runs/recipes", help="where the runs go")
    parser.add_argument("overrides", nargs="*", help="after --: for every run")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    known = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
    chosen = [name for name in known if any(fnmatch(name, pattern) for pattern in args.recipes)]
    if not chosen:
        parser.error(f"no such recipe; known: {', '.join(known)}")
    jobs = [(name, seed) for name in chosen for seed in range(args.seeds)]

    def run(job: tuple[str, int]) -> dict[str, float] | None:
        name, seed = job
        folder = Path(args.folder) / f"{name}-{seed}-{os.getpid()}"
        return measure(folder, [f"experiment={name}", f"seed={seed}", *words[cut + 1 :]])

    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(run, jobs))
    print(f"| recipe | n | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    for name in chosen:
        mine = [found for (other, _), found in zip(jobs, results, strict=True) if other == name and found]
        print(f"| `{name}` | {len(mine)} | {' | '.join(cell([found[c] for found in mine]) for c in COLUMNS)} |")
    return 0 if all(results) else 1


# decades: log10 of the weights' gradient, first layer over last; R: the verdict's, of ‖dL/dh‖ or ‖dL/dx_t‖
COLUMNS = ("train", "test", "decades at step 0", "decades at the end", "R at step 0", "R at the end", "seconds")


def measure(folder: Path, overrides: Sequence[str]) -> dict[str, float] | None:
    """Accuracy (or mean squared error), and how many decades the first layer's gradient norm is above the last's."""
    command = [sys.executable, str(ROOT / "src" / "train.py"), *overrides, f"hydra.run.dir={folder}"]
    result = subprocess.run([*command, "callbacks.progress=null", "logger=none"], capture_output=True, text=True)
    if result.returncode:
        print(f"failed: {' '.join(command)}\n{result.stderr.strip()[-2000:]}", file=sys.stderr)
        return None
    facts = json.loads((folder / "summary.json").read_text())
    with (folder / "gradients.csv").open(newline="") as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    score = "accuracy" if "accuracy/train" in facts["final"] else "mse"
    start, end = (facts.get("verdict", {}).get(moment, {}).get("decades") for moment in ("start", "end"))
    return {
        "train": number(facts["final"].get(f"{score}/train")),
        "test": number(facts.get("test", {}).get(f"{score}/test")),
        "decades at step 0": decades(rows[0]),
        "decades at the end": decades(rows[-1]),
        "R at step 0": number(start),
        "R at the end": number(end),
        "seconds": facts["wall_seconds"],
    }


def number(value: float | None) -> float:
    """JSON has no nan, and holds null for it."""
    return math.nan if value is None else value


def decades(row: Sequence[float]) -> float:
    first, last = row[1], row[-1]
    return math.log10(first / last) if first > 0 and last > 0 else math.nan


def cell(values: Sequence[float]) -> str:
    if not values:
        return "failed"
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 and all(map(math.isfinite, values)) else ""
    return f"{statistics.fmean(values):.3g}{spread}"


if __name__ == "__main__":
    sys.exit(main())
