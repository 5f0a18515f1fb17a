"""What all benches share: a comparison of contenders measured in turn, steps in alternating blocks, and commands."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
        base, rows = next(iter(self.values.values())), {}
        for name, values in self.values.items():
            ratios = [value / other for value, other in zip(values, base, strict=True)]
            numbers = {"median": median(values), "ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
            rows[name] = {key: _rounded(number) for key, number in numbers.items()}
            rows[name]["values"] = [_rounded(value) for value in values]
        return {"title": self.title, "unit": self.unit, "rounds": len(base), "rows": rows}


Comparisons = dict[str, Comparison]


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


class Clock:
    """Take the seconds of each step of a process, which after every block of steps waits for its next turn."""

    def __init__(self, turn: Connection, steps: int, block: int) -> None:
        self.turn, self.steps, self.block = turn, steps, block
        self.seconds: list[float] = []

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
    busy: float  # share of its turns in which the GPU computed


Contender = Callable[[Clock], None]


def side_by_side(contenders: Mapping[str, tuple[Contender, int]], block: int, threads: int) -> dict[str, Steps]:
    """Run contenders for so many steps each, in a process each, by turns of `block` steps: what disturbs the machine
    disturbs all. Processes are forks of this one, which has computed nothing, and start one after the other."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    found: dict[str, Steps] = {}
    with tempfile.TemporaryDirectory() as folder:
        processes = {}
        try:
            for name, (contender, steps) in contenders.items():
                turn, theirs = context.Pipe()
                log = Path(folder) / f"{len(processes)}"
                log.mkdir()
                arguments = (contender, Clock(theirs, steps, block), threads, log)
                process = context.Process(target=_contend, args=arguments)  # type: ignore[attr-defined]
                process.start()
                theirs.close()
                processes[name] = process, turn, log
                _answer(turn, log)
            watch = _Busy()
            while len(found) < len(processes):
                for name, (_, turn, log) in processes.items():
                    if name not in found:
                        begin = time.perf_counter()
                        turn.send(None)
                        answer = _answer(turn, log)
                        watch.turns.setdefault(name, []).append((begin, time.perf_counter()))
                        time.sleep(0.2 if "DataLoader" in name else 0)  # in which its workers fill their queues
                        if answer is not None:
                            found[name] = Steps(*answer, busy=0.0)
            watch.close()
            for name, steps in found.items():
                steps.busy = watch.share(name)
        finally:
            for process, _, _ in processes.values():
                if process.is_alive():
                    os.killpg(process.pid, signal.SIGKILL)  # with the workers that it started
                process.join()
    return {name: found[name] for name in contenders}


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


def _answer(turn: Connection, log: Path) -> Any:
    try:
        return turn.recv()
    except EOFError:
        raise RuntimeError((log / "log").read_text()[-3000:]) from None


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


class _Busy:
    """Ask nvidia-smi, where there is one, ten times a second whether the GPU computes."""

    def __init__(self) -> None:
        self.turns: dict[str, list[tuple[float, float]]] = {}
        self.samples: list[tuple[float, float]] = []
        self.process: subprocess.Popen[str] | None = None
        if shutil.which("nvidia-smi"):
            line = [
                "nvidia-smi",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
                "-lms",
                "100",
                "-i",
                "0",
            ]
            self.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.samples.append((time.perf_counter(), int(line) / 100))

    def share(self, name: str) -> float:
        """Return the mean of the samples within a contender's turns, but for their first seconds' halves."""
        mine = [busy for at, busy in self.samples if any(begin + 0.5 < at < end for begin, end in self.turns[name])]
        return mean(mine) if mine else float("nan")

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


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
    environment = (
        os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}) | {"PYTHONPATH": str(ROOT / "src")}
    )
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
    from importlib.metadata import version

    def ask(*line: str) -> str:
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    gpu = ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if shutil.which("nvidia-smi") else ""
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next(
        (line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.processor()
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": name,
        "cores": cores,
        "gpu": gpu.splitlines()[0] if gpu else None,
        **{package: version(package) for package in ("torch", "lightning")},
        "python": platform.python_version(),
        "commit": ask("git", "rev-parse", "--short", "HEAD") + ("+" if ask("git", "status", "--porcelain") else ""),
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0],
    }
