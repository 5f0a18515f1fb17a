"""Train every architecture of conf/model on bundled data, and print the table of docs/models.md.

    python scripts/models_table.py                    # all of them, three seeds each; half an hour on two CPU cores
    python scripts/models_table.py 'r*' --seeds 1     # some
    python scripts/models_table.py gru -- data=adding trainer.max_epochs=3

Each is trained for three epochs with Adam and a cosine schedule, on `shapes` where it takes images, else on
`temporal_order`, `markov` or `shape_masks`. The verdict is that of before training, of all seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gradflow.config.hydra_internals import locate
from gradflow.runs import FLOW, SUMMARY, read_json

ROOT = Path(__file__).parents[1]
DATA = {"image": "shapes", "sequence": "temporal_order", "tokens": "markov", "vector": "regression"}
RUN = ("optimizer=adam", "scheduler=cosine", "trainer=cpu", "trainer.max_epochs=3", "logger=none")


def main() -> int:
    """Print a row for each architecture; return 1 where a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["*"], help="names or patterns of conf/model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/models", help="where the runs go")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    known = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
    chosen = [name for name in known if any(fnmatch(name, pattern) for pattern in args.models)]
    if not chosen:
        parser.error(f"no such model; known: {', '.join(known)}")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: expected 1 or more")
    print("| model | data | blocks | parameters | theory | verdict at the start | test | trivial answer |")
    print("|---|---|---|---|---|---|---|---|")
    failed = False
    for name in chosen:
        overrides = [f"data={data_for(name)}", *RUN, *words[cut + 1 :]]
        facts = [run(args.folder, name, [*overrides, f"seed={seed}"]) for seed in range(args.seeds)]
        failed |= None in facts
        print(row(name, [one for one in facts if one]), flush=True)
    return int(failed)


def data_for(model: str) -> str:
    """Return the bundled data on which an architecture is compared: of the first kind of input that it takes."""
    option = yaml.safe_load((ROOT / f"conf/model/{model}.yaml").read_text())
    architecture = locate((option.get("model") or option)["_target_"])  # under `model:` where other groups are set, too
    return "shape_masks" if architecture.answers == ("pixel",) else DATA[architecture.kinds[0]]


def run(folder: Path, model: str, overrides: list[str]) -> dict[str, Any] | None:
    """Return the summary of a run, and under `flow` the first line of its flow.jsonl; None where it failed."""
    number = sum(1 for _ in folder.glob(f"{model}-*"))
    place = folder / f"{model}-{number}"
    command = [sys.executable, str(ROOT / "src/train.py"), f"model={model}", *overrides, f"hydra.run.dir={place}"]
    result = subprocess.run([*command, "callbacks.progress=null"], capture_output=True, text=True)
    if result.returncode:
        print(f"failed: {' '.join(command)}\n{result.stderr.strip()[-2000:]}", file=sys.stderr)
        return None
    facts = dict(read_json(place / SUMMARY))
    if "test" not in facts or not (place / FLOW).is_file():
        print(f"failed: {' '.join(command)}\na row needs the test and callbacks=default", file=sys.stderr)
        return None
    with (place / FLOW).open() as lines:
        return facts | {"flow": json.loads(next(lines))}


def row(model: str, facts: list[dict[str, Any]]) -> str:
    """Return the Markdown of one architecture."""
    if not facts:
        return f"| `{model}` | | | | | | failed | |"
    first, name = facts[0], next(iter(key for key in facts[0]["test"] if not key.startswith("loss/")))
    reached = [one["test"][name] for one in facts]
    spread = f" ± {statistics.stdev(reached):.3f}" if len(reached) > 1 else ""
    verdicts = ", ".join(sorted({one["verdict"]["start"]["word"] for one in facts}))
    trivial = first["data"]["trivial"].get(name)
    cells = [f"`{model}`", f"`{first['data']['name']}`", len(first["flow"]["trunk"]), f"{first['parameters']:,}"]
    cells += [theory(first["flow"].get("theory", {})), verdicts]
    cells += [f"{name.removesuffix('/test')} {statistics.fmean(reached):.3f}{spread}"]
    return f"| {' | '.join(map(str, cells))} | {'' if trivial is None else f'{trivial:.3f}'} |"


def theory(found: dict[str, Any]) -> str:
    """Say whether theory predicts the gradient at each block or time step, and why not."""
    line = found.get("time") or found.get("gradient") or []
    share = "yes" if line and None not in line else "partly" if any(one is not None for one in line[:-1]) else "no"
    why = found.get("no_prediction") or ""
    return f"{share}: {why}" if why and share != "yes" else share


if __name__ == "__main__":
    sys.exit(main())
