"""What all benches share: a comparison of contenders measured in turn, steps in alternating blocks, and commands."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = "gradflow"  # how the names of our own contenders begin


@dataclass(frozen=True)
class Size:
    """How much is measured: `quick` shows that a bench works, and its figures mean nothing."""

    quick: bool = False
    device: str = "cpu"  # cpu | gpu, as in trainer=…

    def __call__(self, full: int, quick: int = 1) -> int:
        return quick if self.quick else full


@dataclass
class Comparison:
    """Contenders measured in turn: `values` holds a number a round of each, and ratios are over the first of them."""

    title: str
    unit: str  # more is better of a rate, with a slash, and of a share, with %
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, value: float) -> None:
        self.values.setdefault(contender, []).append(value)

    def facts(self) -> dict[str, Any]:
        """Return medians over the rounds of the values and of their ratios, with the least and the largest ratio."""
        base = next(iter(self.values.values()))
        rows: dict[str, dict[str, Any]] = {}
        for name, values in self.values.items():
            ratios = [value / other for value, other in zip(values, base, strict=True)]
            numbers = {"median": median(values), "ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
            rows[name] = {key: _rounded(number) for key, number in numbers.items()}
            rows[name]["values"] = list(map(_rounded, values))
        return {"title": self.title, "unit": self.unit, "rounds": len(base), "rows": rows}


Comparisons = dict[str, Comparison]


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


class Clock:
    """Take the seconds of each step of a process, which after every block of steps waits for its next turn."""

    def __init__(self, turn: Connection, steps: int, block: int) -> None:
        self.turn, self.steps, self.block = turn, steps, block
        self.seconds: list[float] = []
        self.mark = 0.0

    def start(self) -> None:
        """Begin, when all is set up."""
        self._wait()

    def tick(self) -> None:
        """Note the end of a step; the process ends with its last one."""
        number = len(self.seconds) + 1
        gpu: Any = getattr(sys.modules.get("torch"), "cuda", None)
        gpu = gpu if gpu and gpu.is_initialized() else None
        if number % self.block == 0 and gpu:
            gpu.synchronize()
        self.seconds.append(time.perf_counter() - self.mark)
        if number == self.steps:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
            memory = gpu.max_memory_allocated() / 2**20 if gpu else memory
            self.turn.send((self.seconds, memory))
            self.turn.recv()  # and be ended
        elif number % self.block == 0:
            self._wait()
        else:
            self.mark = time.perf_counter()

    def skip(self) -> None:
        """Leave out what lies between two epochs: validation, checkpoints."""
        self.mark = time.perf_counter()

    def _wait(self) -> None:
        self.turn.send(None)
        self.turn.recv()
        self.mark = time.perf_counter()


@dataclass
class Steps:
    """What the steps of one contender took."""

    seconds: list[float]
    memory: float  # MiB, at most: of the GPU where there is one, else of the process
    busy: float = math.nan  # share of its turns in which the GPU computed


Contender = Callable[[Clock], None]


class _Process:
    """A contender in a process of its own, which is ready when this is made, and waits for its turns."""

    def __init__(self, contender: Contender, steps: int, block: int, threads: int, folder: Path) -> None:
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.turn, theirs = context.Pipe()
        self.folder, self.turns = folder, list[tuple[float, float]]()
        self.process = context.Process(target=_contend, args=(contender, Clock(theirs, steps, block), threads, folder))
        self.process.start()
        theirs.close()
        self.answer()

    def answer(self) -> Any:
        """Wait for the end of a turn; return what the last turn of all says."""
        try:
            return self.turn.recv()
        except EOFError:
            raise RuntimeError((self.folder / "log").read_text(encoding="utf-8")[-3000:]) from None

    def take_turn(self) -> Any:
        begin = time.time()
        self.turn.send(None)
        answer = self.answer()
        self.turns.append((begin, time.time()))
        return answer

    def end(self) -> None:
        if self.process.is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)  # with the workers that it started
        self.process.join()


def side_by_side(contenders: Mapping[str, tuple[Contender, int]], block: int, threads: int) -> dict[str, Steps]:
    """Run contenders for so many steps each, in a process each, by turns of `block` steps: what disturbs the machine
    disturbs all. Processes are forks of this one, which has computed nothing, and start one after the other."""
    found: dict[str, Steps] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        processes: dict[str, _Process] = {}
        for who, (contender, steps) in contenders.items():
            (folder := Path(name) / str(len(processes))).mkdir()
            processes[who] = _Process(contender, steps, block, threads, folder)
            stack.callback(processes[who].end)
        with _gpu_log(Path(name) / "gpu") as log:
            while waiting := [who for who in processes if who not in found]:
                for who in waiting:
                    if answer := processes[who].take_turn():
                        found[who] = Steps(*answer)
                    time.sleep(0.2 if "DataLoader" in who else 0)  # in which its workers fill their queues
        for who, steps_of in found.items():
            steps_of.busy = _share(log, processes[who].turns)
    return {who: found[who] for who in contenders}


Tables = Mapping[str, tuple[str, str, Callable[[Steps], float | None]]]


def measure(
    contenders: Mapping[str, tuple[Contender, int]], block: int, threads: int, rounds: int, tables: Tables
) -> Comparisons:
    """Run contenders side by side for some rounds, and fill tables: a title, a unit, and what is taken of the steps."""
    found = {name: Comparison(title, unit) for name, (title, unit, _) in tables.items()}
    for _ in range(rounds):
        for who, steps in side_by_side(contenders, block, threads).items():
            for name, (_, _, take) in tables.items():
                if (value := take(steps)) is not None:
                    found[name].add(who, value)
    return found


def mean_ms(steps: Steps) -> float:
    return mean(steps.seconds) * 1e3


def _contend(contender: Contender, clock: Clock, threads: int, folder: Path) -> None:
    """Become a contender, in a process group and a folder of its own."""
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    contender(clock)
    raise RuntimeError(f"ended after {len(clock.seconds)} of {clock.steps} steps")


@contextmanager
def _gpu_log(log: Path) -> Iterator[Path]:
    """Let nvidia-smi, where there is one, write ten times a second when it is and how much of the GPU computes."""
    if not shutil.which("nvidia-smi"):
        yield log
        return
    what = ("--id=0", "--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100")
    with subprocess.Popen(["nvidia-smi", *what, f"--filename={log}"]) as process:
        try:
            yield log
        finally:
            process.terminate()


def _share(log: Path, turns: Sequence[tuple[float, float]]) -> float:
    """Return the mean share of the GPU that computed in some turns, but for the first half second of each."""
    lines = [line.split(", ") for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    samples = [(datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").timestamp(), share) for when, share in lines]
    inside = [int(share) / 100 for at, share in samples if any(begin + 0.5 < at < end for begin, end in turns)]
    return mean(inside) if inside else math.nan


@dataclass
class Command:
    """What a command took."""

    seconds: float
    cpu: float  # seconds of all its processes
    memory: float  # MiB, at most, of the largest process
    first_word: float
    first_step: float
    output: str


def command(words: Sequence[str], folder: Path, watch: str | None = None, threads: int | None = None) -> Command:
    """Run `python words…` in a folder. With `watch`, a table there whose first row means that a step is done, it runs
    on a terminal, to which words come when they are said."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    line, output, word, step = [sys.executable, *words], b"", 0.0, 0.0
    reading, writing = os.openpty() if watch else os.pipe()
    start = time.perf_counter()
    process = subprocess.Popen(
        line, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
    )
    os.close(writing)
    while True:
        if select.select([reading], [], [], 0.01)[0]:
            try:
                chunk = os.read(reading, 2**16)
            except OSError:  # as a terminal ends
                chunk = b""
            if not chunk:
                break
            word, output = word or time.perf_counter() - start, output + chunk
        if watch and not step and (folder / watch).is_file() and (folder / watch).read_bytes().count(b"\n") > 1:
            step = time.perf_counter() - start
    os.close(reading)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - start
    if process.returncode or (watch and not step):
        raise RuntimeError(f"{' '.join(line)}\n{output.decode()[-3000:]}")
    return Command(took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, word, step, output.decode())


def machine() -> dict[str, Any]:
    """Return what figures depend on."""
    from gradflow.runs import provenance

    with tempfile.TemporaryDirectory() as folder:
        facts = provenance.record(Path(folder))
    git, gpu = facts.get("git", {}), ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(gpu, capture_output=True, text=True).stdout.splitlines() if shutil.which(gpu[0]) else []
    return {
        "cpu": facts["processor"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": next(iter(names), None),
        **{package: facts["versions"][package] for package in ("torch", "lightning", "python")},
        "commit": git.get("commit", "")[:7] + ("+" if git.get("dirty") or git.get("untracked") else ""),
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0],
    }
