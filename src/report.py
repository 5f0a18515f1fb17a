"""Finished runs as one page of tables and pictures; of two runs also what differs between them.

python src/report.py multirun/2026-01-31/12-00-00
python src/report.py runs/2026-01-31 multirun/2026-01-31 --out report
python src/report.py runs/2026-01-31/12-00-00-mlp-shapes
python src/report.py multirun/2026-01-31/12-00-00 --watch
python src/report.py runs/2026-01-31/12-00-00-mlp-shapes runs/2026-01-31/12-05-00-resnet-shapes
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path
from typing import NoReturn

from gradflow.config import standard_streams
from gradflow.config.command import report_disk, report_error
from gradflow.report.collect import collect
from gradflow.runs import claims
from gradflow.runs.errors import UserError, printable

_WATCH = """make the page anew while runs go on or a sweep has jobs to come; an open page follows. A run goes on while
its process has the lock of its folder; where that can't be asked, as of one on another machine, while it has written
something within 10 minutes. Ctrl-C ends it"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see  python src/report.py --help")


def main() -> None:
    standard_streams.outlast_reader()
    try:
        _report(sys.argv[1:])
    except UserError as error:
        report_error(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        report_disk(error, "report")
        raise


def _report(arguments: list[str]) -> None:
    """Read, draw, write; pictures are imported once it is known that there is something to draw."""
    parser = _Parser("report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="runs, sweeps, or folders that hold some at any depth")
    parser.add_argument("--out", type=Path, help="a folder for report.html; by default that of the runs, if it is one")
    parser.add_argument("--watch", action="store_true", help=_WATCH)
    chosen = parser.parse_args(arguments)
    if chosen.out and chosen.out.suffix == ".html":
        raise UserError(f"--out {chosen.out}: expected a folder, in which the page is report.html")
    single = chosen.folders[0] if len(chosen.folders) == 1 else None
    if chosen.watch:
        _watch(chosen.folders, chosen.out or single)
        return
    collection = collect(chosen.folders)
    for name, reason in collection.ignored.items():
        print(f"ignored {printable(name)}: {printable(reason)}", file=sys.stderr)
    from gradflow.report.page import write_page

    page = write_page(collection, chosen.out or single or claims.new_folder(f"report-{date.today()}"))
    print(f"report {os.path.relpath(page)}")


def _watch(folders: list[Path], out: Path | None) -> None:
    if out is None:
        raise UserError("--watch: several folders need --out, where their page goes")
    from gradflow.report.watch import watch

    print(f"watching {os.path.relpath(out / 'report.html')} (Ctrl-C ends it)", file=sys.stderr)
    print(f"report {os.path.relpath(watch(folders, out))}")


if __name__ == "__main__":
    main()
