"""Kill runs at random moments, resume them, and count how many end as the run that was never killed did.

    python scripts/crash_test.py                          # 20 kills for each row: about half an hour on two CPU cores
    python scripts/crash_test.py --times 5 --only mlp,lstm
    python scripts/crash_test.py -- trainer=gpu trainer.deterministic=true

A trial starts a run, sends SIGKILL at a random moment (of three, two are drawn from its logged steps and one from its
whole time, the pictures and scores at its end included), repeats the command with resume=auto, and in every third
trial kills that too. Identical means, to the bit: weights, optimizer, schedule, Lightning's counters, best weights,
metrics.csv, gradients.csv, flow.jsonl and the scores of summary.json. Shuffling, augmentation, dropout and a
schedule are on. The last row is a control: without the callback `per_batch_seed` dropout differs after a resume, and
the comparison has to see it. Exit status 0 when every row is N of N, and the control is not.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402

from gradflow import runs  # noqa: E402
from gradflow.runs.locks import LOCK  # noqa: E402
from gradflow.sweeps.backend import Ended  # noqa: E402
from gradflow.sweeps.forkserver import ForkServer  # noqa: E402
from gradflow.sweeps.job_process import JobProcess  # noqa: E402

WORDS = """logger=none scheduler=cosine scheduler.warmup=5
trainer.max_epochs=3 trainer.limit_train_batches=10 trainer.log_every_n_steps=2
callbacks.progress=null callbacks.resume_checkpoint.every_n_steps=4
callbacks.gradient_flow.every_n_steps=3 callbacks.gradient_flow.probes=6"""
IMAGES = "data=shapes data.size=16 data.crop=2 data.flip=true data.cutout=4 data.mixup=0.2"
SEQUENCES = "data=adding data.length=20 data.samples=1000 data.val=500 data.test=200"
SMALL = f"{IMAGES} model.channels=[4,8] model.dense=16 model.dropout=0.3"
ROWS = {
    "mlp": f"{IMAGES} model=mlp model.width=32 model.dropout=0.3",
    "cnn": f"{SMALL} model=cnn",
    "bn_cnn": f"{SMALL} model=bn_cnn",
    "resnet": f"{IMAGES} model=resnet model.depth=8 model.width=4",
    "fast": f"{IMAGES} model=resnet model.depth=8 model.width=4 trainer=fast",
    "densenet": f"{IMAGES} model=densenet model.depth=10 model.growth=4",
    "rnn": f"{SEQUENCES} model=rnn model.hidden=16",
    "lstm": f"{SEQUENCES} model=lstm model.hidden=16 model.layers=2 model.dropout=0.3",
    "gru": f"{SEQUENCES} model=gru model.hidden=16 data.fresh=false",
    "muon": f"{SMALL} model=cnn optimizer=muon",
    "accumulated": f"{SMALL} model=bn_cnn trainer.accumulate_grad_batches=3",
    "2 processes": f"{SMALL} model=bn_cnn trainer=ddp_cpu",
}
CONTROL = "control"
SCORES = ("final", "best", "test", "verdict", "alarms", "steps", "epochs")


class Moment(NamedTuple):
    rows: int  # of gradients.csv
    seconds: float  # after they are there


class Trial(NamedTuple):
    differences: list[str]
    kills: int
    resumed_at: list[int]  # steps


class Commands:
    """Runs `src/train.py words…` in fresh processes that are nearly free, one at a time."""

    def __init__(self, words: Sequence[str]) -> None:
        self.server, self.words, self.number = ForkServer(), words, 0

    def run(self, folder: Path, *words: str, moment: Moment | None = None) -> int:
        """At that moment it is killed, unless it has ended."""
        self.number += 1
        folder.mkdir(parents=True, exist_ok=True)
        command = [str(ROOT / "src" / "train.py"), *self.words, *words]
        log = folder / f"log{self.number}"
        self.server.start(self.number, JobProcess(command, {"OMP_NUM_THREADS": "1"}, log, str(folder)), threads=1)
        (ended,) = self.kill(folder, moment) if moment else self.server.poll(None)
        return ended.status

    def kill(self, folder: Path, moment: Moment) -> list[Ended]:
        while not (pid := held(folder)) or logged(folder) < moment.rows:
            if ended := self.server.poll(0.002):
                return ended
        if ended := self.server.poll(moment.seconds):
            return ended
        os.kill(pid, signal.SIGKILL)
        return self.server.poll(None)


def held(folder: Path) -> int | None:
    """The process that is at the folder's run, once it has begun."""
    for lock in folder.glob(f"runs/*/*/{LOCK}"):
        pid = lock.read_text(encoding="utf-8").partition(" ")[0]
        status = runs.read_json(lock.parent / runs.SUMMARY).get("status")
        if pid and status == "running" and Path(f"/proc/{pid}").exists():
            return int(pid)
    return None


def logged(folder: Path) -> int:
    return sum(runs.count_lines(run).get(runs.GRADIENTS, 0) for run in folder.glob("runs/*/*/"))


def drawn(chance: random.Random, number: int, reference: Path) -> Moment:
    if number % 3 == 2:
        return Moment(0, chance.uniform(0, runs.read_json(reference / runs.SUMMARY)["wall_seconds"]))
    return Moment(chance.randint(1, runs.count_lines(reference)[runs.GRADIENTS]), chance.uniform(0, 0.05))


def the_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*/*/")
    return run


def trial(commands: Commands, folder: Path, reference: Path, words: Sequence[str], number: int) -> Trial:
    chance = random.Random(f"{words} {number}")
    kills, resumed_at = 0, []
    status = commands.run(folder, *words, moment=drawn(chance, number, reference))
    while status == -signal.SIGKILL:
        kills += 1
        if runs.read_json(the_run(folder) / runs.SUMMARY)["status"] == "finished":  # killed when all was done
            status = 0
            break
        moment = drawn(chance, number, reference) if number % 3 == 0 and kills == 1 else None
        status = commands.run(folder, *words, "resume=auto", moment=moment)
        resumed_at += steps_told(folder / f"log{commands.number}")
    found = differences(reference, the_run(folder)) if status == 0 else [f"ended with status {status}"]
    return Trial(list(found), kills, resumed_at)


def steps_told(log: Path) -> list[int]:
    told = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("resume: ")]
    return [int(line.split(" step ")[1].split(",")[0]) if " step " in line else 0 for line in told]


def differences(one: Path, two: Path) -> Iterator[str]:
    for name in sorted({runs.FLOW, *(table.name for run in (one, two) for table in run.glob("*.csv"))}):
        contents = [(run / name).read_bytes() if (run / name).is_file() else None for run in (one, two)]
        if contents[0] != contents[1]:
            yield name
    for name in (runs.LAST, runs.BEST):
        held = [dict(flat(torch.load(run / name, weights_only=True))) for run in (one, two)]
        for key in sorted(held[0].keys() | held[1].keys()):
            if not alike(held[0].get(key), held[1].get(key)):
                yield f"{name}: {key}"
    told = [runs.read_json(run / runs.SUMMARY) for run in (one, two)]
    yield from (f"{runs.SUMMARY}: {key}" for key in SCORES if told[0].get(key) != told[1].get(key))


def alike(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return bool(one == two) or (one != one and two != two)


def flat(held: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by name; the folder's own path and the words that differ are left out."""
    if isinstance(held, dict):
        for key, value in held.items():
            if "path" not in str(key) and key not in ("best_k_models", "config"):
                yield from flat(value, f"{name}/{key}")
    elif isinstance(held, (list, tuple)):
        for index, value in enumerate(held):
            yield from flat(value, f"{name}/{index}")
    elif not (isinstance(held, str) and "/" in held):
        yield name, held


def row(commands: Commands, name: str, words: Sequence[str], times: int, folder: Path) -> int:
    """Print a line of the table; how many ended identical."""
    folder = folder / name.replace(" ", "-")
    first = commands.run(folder / "reference", *words)
    assert first == 0, (folder / "reference" / f"log{commands.number}").read_text(encoding="utf-8")
    reference = the_run(folder / "reference")
    trials = [trial(commands, folder / str(n), reference, words, n) for n in range(times)]
    same = sum(not one.differences for one in trials)
    resumed = sorted(step for one in trials for step in one.resumed_at)
    spread = f"{resumed[0]} – {resumed[-1]}, {len(set(resumed))} different" if resumed else "none"
    print(f"| {name} | {same} of {times} | {sum(one.kills for one in trials)} | {spread} |", flush=True)
    if name != CONTROL:
        for number, one in enumerate(trials):
            if one.differences:
                print(f"  {folder / str(number)}: {', '.join(one.differences[:6])}", file=sys.stderr)
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="trials a row")
    parser.add_argument("--only", help=f"rows, of {', '.join(ROWS)}")
    parser.add_argument("--folder", type=Path, help="where the runs go, and stay")
    parser.add_argument("words", nargs="*", help="after --: for every run")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"--only: no such row as {', '.join(unknown)}; known: {', '.join(ROWS)}")
    commands = Commands([*WORDS.split(), *given.words])
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        print("| run | identical | kills | resumed at step |\n|---|---|---|---|")
        control = {CONTROL: f"{ROWS['mlp']} callbacks.per_batch_seed=null"}
        table = {name: ROWS[name] for name in chosen} | control
        same = {name: row(commands, name, words.split(), given.times, folder) for name, words in table.items()}
        *whole, blind = [number == given.times for number in same.values()]
    if blind:
        print("the control found no difference: the comparison does not see", file=sys.stderr)
    return int(not all(whole) or blind)


if __name__ == "__main__":
    sys.exit(main())
