"""Finished runs as one page of tables and pictures.

python src/report.py multirun/2026-01-31/12-00-00
python src/report.py runs/2026-01-31 multirun/2026-01-31 --out report
python src/report.py runs/2026-01-31/12-00-00-mlp-shapes
python src/report.py --compare runs/2026-01-31/12-00-00-mlp-shapes runs/2026-01-31/12-05-00-resnet-shapes
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path
from typing import NoReturn

from gradflow.config import standard_streams
from gradflow.report import read
from gradflow.runs import claims
from gradflow.runs.errors import UserError, disk_error


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see  python src/report.py --help")


def main() -> None:
    standard_streams.outlast_reader()
    try:
        report(parsed(sys.argv[1:]))
    except (UserError, OSError) as error:
        line = disk_error(error) if isinstance(error, OSError) else str(error)
        traceback = os.environ.get("GRADFLOW_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
        if line is None or traceback not in ("", "0"):
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1 if isinstance(error, OSError) else 2)


def parsed(words: list[str]) -> argparse.Namespace:
    parser = Parser("report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="runs, sweeps, or folders that hold some at any depth")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs beside each other")
    parser.add_argument("--out", type=Path, help="where report.html goes; by default into the folder, if it is one")
    chosen = parser.parse_args(words)
    if bool(chosen.folders) == bool(chosen.compare):
        parser.error("give either folders or --compare A B")
    return chosen


def report(chosen: argparse.Namespace) -> None:
    """The flow: read, draw, write; pictures are imported once it is known that there is something to draw."""
    if chosen.compare:
        one, other = read.pair(*chosen.compare)
        from gradflow.report.page import compare

        tell(compare(one, other, chosen.out or unused()))
        return
    found = read.collect(chosen.folders)
    for name, why in found.broken.items():
        print(f"ignored {name}: {why}", file=sys.stderr)
    from gradflow.report.page import make

    tell(make(found, chosen.out or (chosen.folders[0] if len(chosen.folders) == 1 else unused())))


def unused() -> Path:
    return claims.new_folder(f"report-{date.today()}")


def tell(page: Path) -> None:
    print(f"report {os.path.relpath(page)}")


if __name__ == "__main__":
    main()
