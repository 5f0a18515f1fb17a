"""What a fresh process for each job costs: a sweep of tiny jobs through `local`, beside the same in one process.

    python scripts/bench_launcher.py            # three rounds of three contenders, several minutes

`basic` is Hydra's own launcher: all jobs one after the other in one process. `jobs=1` compares like with like, `jobs=2`
is what two cores give. Seconds from the command to its end, imports included, and seconds of CPU of all its processes,
which neighbours on the machine disturb less. One thread a job.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).parents[1] / "src" / "train.py"
TINY = ("data=regression", "logger=none", "callbacks.progress=null")
CONTENDERS = {
    "basic": ("hydra/launcher=basic",),
    "local, jobs=1": ("hydra.launcher.jobs=1",),
    "local, jobs=2": ("hydra.launcher.jobs=2",),
}


def sweep(jobs: int, *words: str) -> tuple[float, float]:
    """Wall time and CPU time of a sweep with everything that it starts."""
    seeds = ",".join(map(str, range(jobs)))
    command = [sys.executable, str(TRAIN), "-m", *TINY, f"seed={seeds}", *words]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        environment, nowhere = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=nowhere, stderr=nowhere)
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        assert status == 0
        assert len(list(Path(folder).glob("multirun/*/*/*/summary.json"))) == jobs
        return took, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("words", nargs="*", default=["debug=fast"], help="what each job is, beside data=regression")
    given = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(given.rounds):
        for name, words in CONTENDERS.items():
            taken[name].append(sweep(given.jobs, *words, *given.words))
    for kind, which in enumerate(("wall", "CPU")):
        for name, seconds in taken.items():
            median = statistics.median(one[kind] for one in seconds)
            ratio = statistics.median(one[kind] / base[kind] for one, base in zip(seconds, taken["basic"], strict=True))
            rounds = " ".join(f"{one[kind]:.1f}" for one in seconds)
            print(f"{which:<5}{name:<14} {median:6.1f} s   {ratio:.2f} × basic   ({rounds})")


if __name__ == "__main__":
    main()
