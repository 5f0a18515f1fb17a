"""Compare figures with those that are committed: python scripts/bench/check.py build/bench/bench.json

Ratios are compared, not seconds: those of our own contenders to what each was measured beside. The exit status is 1
where one is worse by more than the margin, and 2 where nothing can be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).parents[2] / "docs/performance.json"
MARGIN = 0.25  # what ratios on a machine with neighbours differ by from one day to the next
OURS = "gradflow"


def more_is_better(unit: str) -> bool:
    """Return whether a figure of this unit is a rate or a share."""
    return "/" in unit or unit.startswith("%")


def worse(new: Mapping[str, Any], old: Mapping[str, Any], margin: float) -> list[str]:
    """Return a line for each of our ratios that is worse by more than the margin; raise ValueError where there is
    nothing to compare."""
    if bool(new["machine"]["gpu"]) != bool(old["machine"]["gpu"]):
        raise ValueError("figures with a GPU can't be compared with figures without one")
    lines, compared = [], 0
    for name, comparison in new["comparisons"].items():
        before = old["comparisons"].get(name, {}).get("rows", {})
        for who, row in comparison["rows"].items():
            if not who.startswith(OURS) or who not in before:
                continue
            compared += 1
            now, then = row["ratio"], before[who]["ratio"]
            change = then / now if more_is_better(comparison["unit"]) else now / then
            if not change <= 1 + margin:
                lines.append(f"{name}, {who}: {now:g} × {next(iter(comparison['rows']))}, was {then:g} ×")
    if not compared:
        raise ValueError("the two files have no figure in common")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path)
    parser.add_argument("--against", type=Path, default=COMMITTED)
    parser.add_argument("--margin", type=float, default=MARGIN, help=f"a fraction; {MARGIN} without it")
    args = parser.parse_args()
    try:
        new, old = (json.loads(path.read_text(encoding="utf-8")) for path in (args.new, args.against))
        lines = worse(new, old, args.margin)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines) or f"no ratio is worse by more than {args.margin:.0%}")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
