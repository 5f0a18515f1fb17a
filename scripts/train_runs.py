"""Runs of src/train.py for the tables of docs/: options of a group of conf/, each with some seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Run = tuple[Path, dict[str, Any]]  # a run's folder and its summary


def runs_of(
    group: str, description: str | None, least: str, header: str, overrides: Callable[[str], list[str]]
) -> Iterator[tuple[str, list[Run | None]]]:
    """Print the header of a table; yield each option that the command line chooses, and its runs, None if one failed.

    `least` says as argparse does how many names are to be given; `overrides` are those of an option.
    """
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs=least, default=["*"], help=f"names or patterns of conf/{group}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / group, help="where the runs go")
    parser.add_argument("overrides", nargs="*", help="after --: for every run")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    known = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    names = [name for name in known if any(fnmatch(name, pattern) for pattern in args.names)]
    if not names:
        parser.error(f"no such {group}; known: {', '.join(known)}")
    if min(args.seeds, args.jobs) < 1:
        parser.error(f"--seeds {args.seeds} --jobs {args.jobs}: expected 1 or more of both")

    def run(name: str, seed: int) -> Run | None:
        folder = args.folder / f"{name}-{seed}-{os.getpid()}"
        return train(folder, f"{group}={name}", *overrides(name), *words[cut + 1 :], f"seed={seed}")

    print(header, flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        started = {name: [pool.submit(run, name, seed) for seed in range(args.seeds)] for name in names}
        yield from ((name, [one.result() for one in runs]) for name, runs in started.items())


def train(folder: Path, *overrides: str) -> Run | None:
    command = [sys.executable, str(ROOT / "src/train.py"), *overrides, "callbacks.progress=null", "logger=none"]
    result = subprocess.run([*command, f"hydra.run.dir={folder}"], capture_output=True, text=True)
    if result.returncode:
        print(f"failed: {' '.join(command)}\n{result.stderr.strip()[-2000:]}", file=sys.stderr)
        return None
    return folder, json.loads((folder / "summary.json").read_text(encoding="utf-8"))
