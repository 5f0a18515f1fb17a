"""Train every architecture of conf/model on bundled data, and print the table of docs/models.md.

    python scripts/models_table.py                    # all of them, three seeds each; half an hour on two CPU cores
    python scripts/models_table.py 'r*' --seeds 1     # some
    python scripts/models_table.py gru -- data=adding trainer.max_epochs=3

Each is trained for three epochs with Adam and a cosine schedule, on `shapes` where it takes images, else on
`temporal_order`, `markov` or `shape_masks`. The verdict is that of before training, of all seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml
from train_runs import ROOT, runs_of

sys.path.insert(0, str(ROOT / "src"))

from gradflow.config.hydra_internals import locate

HEADER = """| model | data | blocks | parameters | theory | verdict at the start | test | trivial answer |
|---|---|---|---|---|---|---|---|"""
DATA = {"image": "shapes", "sequence": "temporal_order", "tokens": "markov", "vector": "regression"}
RUN = ("optimizer=adam", "scheduler=cosine", "trainer=cpu", "trainer.max_epochs=3")


def main() -> int:
    """Print a row for each architecture; return 1 where a run failed."""
    failed = False
    for name, runs in runs_of("model", __doc__, "*", HEADER, lambda name: [f"data={data_for(name)}", *RUN]):
        facts = [with_flow(*one) for one in runs if one]
        failed |= None in (*runs, *facts)
        print(row(name, [one for one in facts if one]), flush=True)
    return int(failed)


def data_for(model: str) -> str:
    """Return the bundled data on which an architecture is compared: of the first kind of input that it takes."""
    option = yaml.safe_load((ROOT / f"conf/model/{model}.yaml").read_text(encoding="utf-8"))
    architecture = locate((option.get("model") or option)["_target_"])  # under `model:` where other groups are set, too
    return "shape_masks" if architecture.answers == ("pixel",) else DATA[architecture.kinds[0]]


def with_flow(folder: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return a run's summary, with the first line of its flow.jsonl; None where it was not tested or not probed."""
    flow = folder / "flow.jsonl"
    if "test" not in facts or not flow.is_file():
        print(f"{folder}: a row needs the test and callbacks=default", file=sys.stderr)
        return None
    return facts | {"flow": json.loads(flow.read_text(encoding="utf-8").splitlines()[0])}


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
