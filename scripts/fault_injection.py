"""Attack this checkout as a stranger, a full disk or a kill would, and print what held.

    python scripts/fault_injection.py                      # about five minutes on two CPU cores
    python scripts/fault_injection.py --only "full disk"

Each row runs real commands in a folder of its own. Exit status 0 when every row held. Kills at random moments of a
run are scripts/crash_test.py's.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BRIEF = ("logger=none", "callbacks.progress=null", "trainer.max_epochs=2", "trainer=cpu")
SMALL = ("model=mlp", "model.depth=2", "model.width=8", "data=regression", "data.points=200", *BRIEF)
LONG = (*SMALL, "trainer.max_epochs=100000", "callbacks.resume_checkpoint.every_n_steps=5")
ROWS: dict[str, Callable[[Path], Iterator[tuple[str, bool]]]] = {}


def row(attack: Callable[[Path], Iterator[tuple[str, bool]]]) -> Callable[[Path], Iterator[tuple[str, bool]]]:
    """A function that attacks in an empty folder, and yields what should hold and whether it does."""
    ROWS[attack.__name__.replace("_", " ")] = attack
    return attack


def start(folder: Path, program: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src" / f"{program}.py"), *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, program: str, *overrides: str, **environment: str) -> tuple[int, str]:
    """The exit status, and what was said on stderr."""
    process = start(folder, program, *overrides, **environment)
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def set_up(folder: Path, program: str, *overrides: str) -> None:
    """A command that has to succeed before anything can be attacked."""
    status, said = run(folder, program, *overrides)
    if status:
        sys.exit(f"{program} {' '.join(overrides)}: {said}")


def one_line(status: int, ended: tuple[int, str]) -> bool:
    return ended[0] == status and ended[1].count("\n") == 1 and ended[1].startswith("error: ")


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def wait_for(there: Callable[[], object], seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@row
def the_user_s_own_folder(folder: Path) -> Iterator[tuple[str, bool]]:
    (folder / "exp" / "wandb").mkdir(parents=True)
    (folder / "exp" / "wandb" / "data").write_text("old", encoding="utf-8")
    (folder / "empty").mkdir()
    wrong = (*SMALL, "optimizer.lr=abc")
    for program, words in (
        ("train", ("hydra.run.dir=exp",)),
        ("train", ("hydra.run.dir=empty",)),
        ("probe", ("hydra.run.dir=exp",)),
        ("train", ("-m", "seed=0,1", "hydra.sweep.dir=exp")),
    ):
        ended = run(folder, program, *wrong, *words)
        yield f"{program} {words[-1]}: one line", one_line(2, ended)
    untouched = content(folder) == {"exp/wandb/data": b"old"} and (folder / "empty").is_dir()
    yield "every file and folder is as it was", untouched


@row
def a_stranger_s_run_folder(folder: Path) -> Iterator[tuple[str, bool]]:
    set_up(folder, "train", *SMALL, "hydra.run.dir=theirs")
    process = "{_target_: gradflow.sweeps.job_process.JobProcess, words: ['-c', 'touch PWNED'], python: /bin/sh}"
    record = folder / "theirs" / ".hydra" / "overrides.yaml"
    recorded = yaml.safe_load(record.read_text(encoding="utf-8"))
    record.write_text(yaml.safe_dump([*recorded, f"+data.source.prepare={process}"]), encoding="utf-8")
    for program, words in (
        ("eval", ("run=theirs",)),
        ("replay", ("run=theirs", "epoch=0", "batch=0")),
        ("train", ("resume=theirs",)),
    ):
        yield f"{program} {words[0]}: one line", one_line(2, run(folder, program, *words))
    record.write_text(yaml.safe_dump([*recorded, "+x=${oc.env:SECRET}", "+y=${unused_folder:MADE}"]), encoding="utf-8")
    page = folder / "theirs" / "report.html"
    run(folder, "report", "theirs", SECRET="whisper")
    yield "the report tells no secret", page.is_file() and "whisper" not in page.read_text(encoding="utf-8")
    yield "nothing was executed or made", not list(folder.rglob("PWNED")) and not list(folder.rglob("MADE*"))


@row
def two_runs_in_one_folder(folder: Path) -> Iterator[tuple[str, bool]]:
    first = start(folder, "train", *LONG, "hydra.run.dir=one", "seed=1")
    wait_for((folder / "one" / ".lock").exists)  # long before there is a summary
    yield "the second: one line", one_line(2, run(folder, "train", *LONG, "hydra.run.dir=one", "seed=2"))
    wait_for((folder / "one" / "checkpoints" / "last.ckpt").exists)
    first.kill()
    first.communicate()
    record = yaml.safe_load((folder / "one" / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    yield "the record is the first's", "seed=1" in record and "seed=2" not in record


@row
def a_monitor_that_is_to_grow(folder: Path) -> Iterator[tuple[str, bool]]:
    words = ("model=mlp", "data=shapes", "data.size=16", *BRIEF, "trainer.max_epochs=4")
    set_up(folder, "train", *words, "callbacks.best.monitor=accuracy/val", "hydra.run.dir=one")
    with (folder / "one" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        scores = [float(line["accuracy/val"]) for line in csv.DictReader(file) if line["accuracy/val"]]
    kept = yaml.safe_load((folder / "one" / "summary.json").read_text(encoding="utf-8"))["best"]["accuracy/val"]
    yield f"kept {kept:.3f} of {', '.join(f'{score:.3f}' for score in scores)}", abs(kept - max(scores)) < 1e-6


@row
def another_name_of_the_package(folder: Path) -> Iterator[tuple[str, bool]]:
    """A checkpoint of which nobody knows how many rows of the tables are its own."""
    import torch

    set_up(folder, "train", *SMALL, "hydra.run.dir=one")
    for file in (folder / "one" / "checkpoints").glob("*.ckpt"):
        held = torch.load(file, weights_only=True)
        own = [key for key, value in held.items() if isinstance(value, dict) and "lines" in value]
        yield f"{file.name}: no key has the package's name", "gradflow" not in held
        torch.save({key: value for key, value in held.items() if key not in own}, file)
    before = content(folder / "one")
    yield "resuming it: one line", one_line(2, run(folder, "train", "resume=one", "trainer.max_epochs=3"))
    yield "no table was cut", content(folder / "one") == before


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[bool]:
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


@row
def full_disk(folder: Path) -> Iterator[tuple[str, bool]]:
    set_up(folder, "train", "-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
    with small_disk(folder / "disk", 20_000) as mounted:
        if not mounted:
            yield "not tried: only root can mount a small disk", True
            return
        shutil.copytree(folder / "sweep", folder / "disk" / "sweep")
        (folder / "disk" / "sweep" / "report.html").write_text("the page before", encoding="utf-8")
        with suppress(OSError), (folder / "disk" / "filler").open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        ended = run(folder, "report", "disk/sweep")
        yield "report: one line, status 1, with the file's name", one_line(1, ended) and "report." in ended[1]
        yield (
            "the page before is whole",
            (folder / "disk" / "sweep" / "report.html").read_text(encoding="utf-8") == "the page before",
        )
        ended = run(folder, "train", *SMALL, "hydra.run.dir=disk/run")
        yield "a run: one line, status 1", one_line(1, ended)


@row
def a_killed_fork_server(folder: Path) -> Iterator[tuple[str, bool]]:
    sweep = start(folder, "train", "-m", *LONG, "seed=0,1", "hydra.sweep.dir=sweep")
    running = wait_for(lambda: len(list(folder.glob("sweep/*/checkpoints/last.ckpt"))) == 2)
    for pid in processes("forkserver.serve", folder):
        os.kill(pid, signal.SIGKILL)
    _, said = sweep.communicate(timeout=120)
    yield "the sweep ends, status 1, without a traceback", running and sweep.returncode == 1 and "Traceback" not in said
    yield "its jobs end with it", wait_for(lambda: not processes("seed=", folder), 20)
    yield "jobs.csv says interrupted", states(folder) == ["interrupted", "interrupted"]
    words = ("-m", *LONG, "seed=0,1", "continue_sweep=sweep", "trainer.max_epochs=3")
    ended = run(folder, "train", *(word for word in words if "100000" not in word))
    yield "continue_sweep takes them up", ended[0] in (0, 1) and "finished" in states(folder)


def processes(words: str, folder: Path) -> list[int]:
    """Processes of this script's commands in a folder, by a part of their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().replace(b"\0", b" ").decode() and (path.parent / "cwd").readlink() == folder:
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def states(folder: Path) -> list[str]:
    with (folder / "sweep" / "jobs.csv").open(newline="", encoding="utf-8") as file:
        return [line["state"] for line in csv.DictReader(file)]


@row
def a_file_system_without_locks(folder: Path) -> Iterator[tuple[str, bool]]:
    (folder / "patch").mkdir()
    (folder / "patch" / "sitecustomize.py").write_text(
        "import errno, fcntl\n"
        "def flock(*_): raise OSError(errno.EOPNOTSUPP, 'Operation not supported')\n"
        "fcntl.flock = flock\n",
        encoding="utf-8",
    )
    ended = run(folder, "train", *SMALL, "hydra.run.dir=one", PYTHONPATH=str(folder / "patch"))
    yield "the run ends well, and says so once", ended[0] == 0 and ended[1].count("has no locks") == 1


@row
def downloads_without_a_hash(folder: Path) -> Iterator[tuple[str, bool]]:
    lines = re.findall(
        r"pip install.*", (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    )
    safe = [line for line in lines if "--require-hashes" in line or {"--no-deps", "--offline"} <= set(line.split())]
    yield f"{len(lines)} installations, each with --require-hashes or offline", bool(lines) and safe == lines


@row
def a_flipped_byte_in_the_data_cache(folder: Path) -> Iterator[tuple[str, bool]]:
    from PIL import Image

    for index in range(40):
        path = folder / "data" / "train" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index * 6, 40 * (index % 2), 90)).save(path)
    words = ("model=mlp", "data=image_folder", "data.root=data", "data.size=8", "data.batch_size=4", *BRIEF)
    set_up(folder, "train", *words, "hydra.run.dir=one")
    cache = next(path for path in (folder / "data").rglob("x.npy") if "train" in str(path.relative_to(folder / "data")))
    flipped = bytearray(cache.read_bytes())
    flipped[-7] ^= 8
    cache.write_bytes(flipped)
    ended = run(folder, "train", *words, "hydra.run.dir=two")
    yield "the next one says that it decodes them again", ended[0] == 0 and "decoded again" in ended[1]
    scores = [
        yaml.safe_load((folder / name / "summary.json").read_text(encoding="utf-8"))["final"] for name in ("one", "two")
    ]
    yield "and ends with the same numbers", scores[0] == scores[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="rows whose names contain this")
    only = parser.parse_args().only or ""
    held = []
    for name, attack in ROWS.items():
        if only not in name:
            continue
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for what, holds in attack(Path(folder).resolve()):
                print(f"  {'held  ' if holds else 'FAILED'}  {what}", flush=True)
                held.append(holds)
    print(f"\n{sum(held)} of {len(held)} held")
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
