"""Measure what the project costs and spares, each thing beside another that does the same.

    python scripts/bench                          # everything: eight to twelve minutes on two idle cores
    python scripts/bench --only sweep whole_run
    python scripts/bench --quick                  # does it work? Its figures mean nothing
    python scripts/bench --write                  # and put the figures into docs/performance.json and the pages

With a GPU the same command measures on it, and the share of time in which it computes; send the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "src")]
sys.path.append(str(ROOT / "scripts"))
# No library may start threads, or CUDA, in the process that is forked for each contender.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "WANDB_SILENT": "true"}


def main() -> None:
    device = "gpu" if shutil.which("nvidia-smi") else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="some benches; without a name none, as for --write alone")
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    parser.add_argument("--device", choices=("cpu", "gpu"), default=device)
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench", help="the folder of bench.json and bench.png")
    parser.add_argument("--write", action="store_true", help="update docs/performance.json and the pages")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import batches
    import commands
    import page
    import steps
    from timing import Size, machine

    from gradflow.plots import theme

    parts = [steps.small_steps, steps.resnet_steps, steps.diagnostics, batches.batches]
    parts += [commands.start, commands.whole_run, commands.sweep, *([steps.gpu_busy] if args.device == "gpu" else [])]
    benches = {part.__name__: part for part in parts}
    if unknown := set(args.only or ()) - set(benches):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(benches)}")
    if args.quick and args.write:
        parser.error("--quick measures nothing that could be written")
    facts: dict[str, Any] = {"format": 1, "machine": machine(), "comparisons": {}}
    print(page.machine(facts), flush=True)
    for name in benches if args.only is None else args.only:
        begin = time.perf_counter()
        found = {key: one.facts() for key, one in benches[name](Size(args.quick, args.device)).items()}
        facts["comparisons"] |= found
        print(*(page.comparison(facts, key) for key in found), sep="\n")
        print(f"{name}: {time.perf_counter() - begin:.0f} s\n", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "bench.json", facts)
    theme.save(lambda: page.picture(facts), args.out / "bench.png")
    if args.write:
        publish(facts)


def publish(facts: dict[str, Any]) -> None:
    """Put what was measured into docs/performance.json, beside what was not, and all of it into picture and pages."""
    import page
    from docs_pictures import store

    from gradflow.plots import theme

    committed = ROOT / "docs/performance.json"
    before = json.loads(committed.read_text(encoding="utf-8")) if committed.is_file() else {"comparisons": {}}
    newest = facts["machine"] if facts["comparisons"] else before.get("machine", facts["machine"])
    facts |= {"machine": newest, "comparisons": before["comparisons"] | facts["comparisons"]}
    write(committed, facts)
    theme.DPI *= 2
    theme.save(lambda: page.picture(facts), picture := committed.with_suffix(".png"))
    store(picture, picture)
    for path in page.pages():
        path.write_text(page.filled(path.read_text(encoding="utf-8"), facts), encoding="utf-8")


def write(path: Path, facts: object) -> None:
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
