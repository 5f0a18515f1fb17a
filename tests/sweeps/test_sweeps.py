"""Sweeps as a user makes them: each is a command of its own, in a folder of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from invalid_input import run as command_line
from wandb.proto.wandb_internal_pb2 import Record
from wandb_records import leveldb_records

from gradflow import runs
from gradflow.runs import claims, locks, sweep_jobs
from gradflow.runs.errors import UserError
from gradflow.sweeps.job_plan import wandb_environment

pytestmark = pytest.mark.xdist_group("processes")  # it starts and stops groups of them: one after the other

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "src" / "train.py"
QUICK = ("data=regression", "report=false", "debug=fast", "logger=none", "callbacks.progress=null", "callbacks=minimal")

# A program with train.py's configuration and no work: what a job is told is kept, and its seed says what it does.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {src!r})
from hydra.core.plugins import Plugins
Plugins.instance()  # it imports the sweeper anew
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from gradflow.config.command import command
from gradflow.sweeps import plugins

@command("train", plugins.register)
def main(cfg):
    told = dict(environment=dict(os.environ), argv=sys.argv, process=os.getpid(), begin=time.time())
    Path(cfg.run_dir, "told.json").write_text(json.dumps(told))
    if cfg.seed >= 1000:
        time.sleep(cfg.seed)
    if cfg.seed == 13:
        raise ValueError("thirteen")
    Path(cfg.run_dir, "end").write_text(str(time.time()))
    return float("nan") if cfg.seed == 5 else cfg.seed / 10

plain = BasicSweeper.sweep

def sweep(self, arguments):  # what a search would get
    returns = plain(self, arguments)
    told = [[job.overrides, job.status.name, job.return_value] for batch in returns for job in batch]
    Path("returns.json").write_text(json.dumps(told))

if __name__ == "__main__":
    BasicSweeper.sweep = sweep
    main()
"""

# train.py, with what a test changes in it.
CHANGED = """
import os, random, signal, sys
sys.path.insert(0, {src!r})
import train
from hydra.core.plugins import Plugins
Plugins.instance()  # it imports the sweeper anew
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf

if __name__ == "__main__":
    from gradflow.config import build
    from gradflow.training import summary
{change}
    train.main()
"""


@pytest.fixture
def command(tmp_path):
    """Start `python program words…`; what it starts can be told by a word in its environment."""
    (tmp_path / "program.py").write_text(PROGRAM.format(src=str(ROOT / "src")))

    def start(program: Path | str, *words: str, **environment: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "CUDA_"))}
        kept |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "STARTED_BY": str(tmp_path)} | environment
        line, pipe = [sys.executable, str(tmp_path / program), *words], subprocess.PIPE
        return subprocess.Popen(line, cwd=tmp_path, env=kept, stdout=pipe, stderr=pipe, text=True)

    yield start
    for process in alive(tmp_path):
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def swept(command, tmp_path):
    """Run a command to its end: exit status, and stderr. Nothing of it may go on."""

    def run(*words: str, program: Path | str = "program.py", **environment: str) -> tuple[int, str]:
        process = command(program, *words, **environment)
        _, screen = process.communicate(timeout=300)
        assert not alive(tmp_path)
        return process.returncode, screen

    return run


@pytest.fixture
def changed(tmp_path):
    def write(change: str) -> Path:
        lines = "\n".join(f"    {line}" for line in change.strip().splitlines())
        (tmp_path / "changed.py").write_text(CHANGED.format(src=str(ROOT / "src"), change=lines))
        return tmp_path / "changed.py"

    return write


def alive(folder: Path) -> list[int]:
    """Processes that a test in this folder has started, at whatever distance."""
    found, mark = [], f"STARTED_BY={folder}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not ended and mark in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def jobs(folder: Path) -> dict[int, dict[str, str]]:
    with (folder / runs.JOBS).open(newline="") as file:
        return {int(row["number"]): row for row in csv.DictReader(file)}


def states(folder: Path) -> list[str]:
    return [row["state"] for row in jobs(folder).values()]


def the_sweep(tmp_path: Path) -> Path:
    (folder,) = tmp_path.glob("multirun/*/*")
    return folder


def told(folder: Path) -> dict:
    return json.loads((folder / "told.json").read_text())


def test_a_sweep_and_how_it_goes_on(swept, tmp_path):
    status, screen = swept("-m", "seed=1,13,3", "activation=relu", "+hydra.job.env_set.MINE=it")
    folder = the_sweep(tmp_path)
    lines = screen.splitlines()
    assert status == 1
    assert lines[0] == "job 0/3 · 2 running"
    assert "job 3/3 · 1 failed" in lines
    log = os.path.relpath(folder / "1" / runs.LOG, tmp_path)
    report = ["  job 1 failed: seed=13", "      ValueError: thirteen", f"      {log}"]
    first = lines.index(report[0])
    assert lines[first : first + 3] == report  # at once
    assert lines[-4:] == ["1 failed:", *(f"  {line}" if line == report[0] else line for line in report)]

    rows = jobs(folder)
    assert [(row["state"], row["objective"], row["folder"]) for row in rows.values()] == [
        ("finished", "0.1", "0"),
        ("failed", "null", "1"),
        ("finished", "0.3", "2"),
    ]
    assert rows[1]["error"] == "ValueError: thirteen"
    given = json.loads((tmp_path / "returns.json").read_text())
    assert given == [
        [["seed=1", "activation=relu"], "COMPLETED", 0.1],
        [["seed=13", "activation=relu"], "FAILED", None],
        [["seed=3", "activation=relu"], "COMPLETED", 0.3],
    ]
    seen = {number: told(folder / str(number)) for number in rows}
    assert seen[2]["argv"] == [
        str(tmp_path / "program.py"),
        "seed=3",
        "activation=relu",
        "+hydra.job.env_set.MINE=it",
        f"hydra.run.dir='{folder}/2'",
        f"hydra.sweep.dir='{folder}'",
        "hydra.job.num=2",
        "hydra.job.id='2'",
    ]
    assert len({one["process"] for one in seen.values()}) == 3
    environment = seen[2]["environment"]
    assert environment["MINE"] == "it"
    assert environment["WANDB_RUN_GROUP"] == "-".join(folder.parts[-2:])
    assert environment["WANDB_NAME"] == environment["WANDB_TAGS"] == "seed=3"
    assert (folder / "multirun.yaml").is_file()
    assert (folder / "0" / ".hydra" / "config.yaml").is_file()

    before = {path: path.read_bytes() for path in folder.glob("[0-9]*/**/*") if path.is_file()}
    status, screen = swept("-m", "seed=1,13,3,5", "activation=relu", "continue_sweep=newest", WANDB_NAME="mine")
    assert status == 1
    assert "job 4/4 · 1 failed · 2 done before" in screen.splitlines()
    assert states(folder) == ["finished", "failed", "finished", "failed", "finished"]
    assert jobs(folder)[4]["overrides"] == "seed=5 activation=relu"
    assert {path: path.read_bytes() for path in before} == before
    one, thirteen, three, five = json.loads((tmp_path / "returns.json").read_text())
    assert (one[2], three[2], thirteen[1]) == (0.1, 0.3, "FAILED")
    assert five[2] != five[2]  # nan comes back as it was
    assert told(folder / "4")["environment"]["WANDB_NAME"] == "mine"


def test_ctrl_c_leaves_no_process(command, tmp_path):
    running = command("program.py", "-m", "seed=1000,1001,1002")
    wait_for(lambda: len(list(tmp_path.glob("multirun/*/*/*/told.json"))) == 2)
    running.send_signal(signal.SIGINT)
    _, screen = running.communicate(timeout=10)
    assert running.returncode == 130
    assert not alive(tmp_path)
    folder = the_sweep(tmp_path)
    assert screen.splitlines()[-1] == f"stopped; to go on, repeat the command with continue_sweep={short(folder)}"
    assert "Traceback" not in screen
    assert states(folder) == ["interrupted", "interrupted"]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]


def short(folder: Path) -> str:
    return str(Path(*folder.parts[-3:]))


def wait_for(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_however_a_sweep_ends_its_jobs_end(command, swept, tmp_path, number, status):
    running = command("program.py", "-m", "seed=1000,1001,1")
    wait_for(lambda: len(list(tmp_path.glob("multirun/*/*/*/told.json"))) == 2)
    folder = the_sweep(tmp_path)
    refused = swept_while_running(command, folder)
    assert refused == (2, f"error: {short(folder)}: its sweep is still running\n")
    running.send_signal(number)
    running.communicate(timeout=20)
    assert running.returncode == status
    wait_for(lambda: not alive(tmp_path), 20)
    assert states(folder) == ["interrupted" if number == signal.SIGTERM else "running"] * 2
    before = [told(folder / name)["process"] for name in "01"]
    again = command("program.py", "-m", "seed=1000,1001,1", f"continue_sweep={folder}")
    wait_for(lambda: all(told(folder / name)["process"] != old for name, old in zip("01", before, strict=True)))
    assert states(folder) == ["running", "running"]
    assert told(folder / "1")["argv"][2] == "resume=auto"
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "job"])
def test_what_the_system_kills_is_gone_on_with(command, tmp_path, victim):
    """As when memory is short: the server of the jobs, with which they end, or one of them."""
    running = command("program.py", "-m", "seed=1000,1001")
    wait_for(lambda: len(list(tmp_path.glob("multirun/*/*/*/told.json"))) == 2)
    folder = the_sweep(tmp_path)
    before = [told(folder / name)["process"] for name in "01"]
    (server,) = (process for process in alive(tmp_path) if process not in (running.pid, *before))
    os.kill(server if victim == "server" else before[0], signal.SIGKILL)
    if victim == "job":
        wait_for(lambda: states(folder)[0] == "interrupted")
        running.send_signal(signal.SIGTERM)
    _, screen = running.communicate(timeout=20)
    assert not alive(tmp_path)
    assert running.returncode == (1 if victim == "server" else 143)
    assert "Traceback" not in screen
    assert f"continue_sweep={short(folder)}" in screen
    assert states(folder) == ["interrupted", "interrupted"]
    if victim == "server":
        assert "error: the fork server of the sweep has ended (status -9), and its jobs with it" in screen.splitlines()
    again = command("program.py", "-m", "seed=1000,1001", f"continue_sweep={folder}")
    wait_for(lambda: all(told(folder / name)["process"] != old for name, old in zip("01", before, strict=True)))
    assert told(folder / "0")["argv"][2] == "resume=auto"
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=20)


def swept_while_running(command, folder: Path) -> tuple[int, str]:
    other = command("program.py", "-m", "seed=1000,1001,1", f"continue_sweep={short(folder)}")
    _, screen = other.communicate(timeout=60)
    return other.returncode, screen


@pytest.mark.slow
def test_fail_fast(swept, tmp_path):
    status, screen = swept("-m", "seed=1000,13,1,2", "hydra.launcher.fail_fast=true")
    assert status == 1
    assert states(the_sweep(tmp_path)) == ["interrupted", "failed"]
    assert screen.splitlines()[-4] == "1 failed:"


@pytest.mark.slow
def test_gpus_are_handed_out(swept, tmp_path):
    """Jobs that ran at the same time had none in common."""
    seeds = ",".join(map(str, range(1, 9)))
    status, _ = swept("-m", f"seed={seeds}", "trainer.devices=2", CUDA_VISIBLE_DEVICES="4,5,6,7,9")
    assert status == 0
    folder = the_sweep(tmp_path)
    seen = []
    for number in range(8):
        one, end = told(folder / str(number)), float((folder / str(number) / "end").read_text())
        seen.append((one["begin"], end, set(one["environment"]["CUDA_VISIBLE_DEVICES"].split(","))))
    assert {len(gpus) for _, _, gpus in seen} == {2}
    for index, (begin, end, gpus) in enumerate(seen):
        for other_begin, other_end, others in seen[index + 1 :]:
            assert begin > other_end or other_begin > end or not gpus & others


@pytest.mark.slow
def test_the_basic_launcher_still_works(swept, tmp_path):
    status, screen = swept("-m", "seed=1,2", "hydra/launcher=basic")
    assert status == 0, screen
    folder = the_sweep(tmp_path)
    assert told(folder / "0")["process"] == told(folder / "1")["process"]
    assert not (folder / runs.JOBS).exists()
    assert json.loads((tmp_path / "returns.json").read_text())[1] == [["seed=2"], "COMPLETED", 0.2]
    status, screen = swept("-m", "seed=1,2", "trainer=ddp_cpu", *QUICK, "hydra/launcher=basic", program=TRAIN)
    assert status == 2
    assert "use hydra/launcher=local" in screen


@pytest.mark.slow
def test_where_folders_go(swept, tmp_path):
    """Hydra's own keys of a sweep mean what they mean elsewhere; nothing is written over."""
    words = ("-m", "seed=1,2", "hydra.sweep.dir=here", "hydra.sweep.subdir=${seed}-of-${hydra:job.num}")
    assert swept(*words)[0] == 0
    assert {path.name for path in (tmp_path / "here").iterdir() if path.is_dir()} == {"1-of-0", "2-of-1"}
    assert swept(*words) == (2, "error: here: holds a sweep already; add continue_sweep=here, or give another folder\n")
    (tmp_path / "here" / "4-of-2").mkdir()
    status, _ = swept("-m", "seed=1,2,4", *words[2:], "continue_sweep=here")
    assert status == 0
    assert [row["folder"] for row in jobs(tmp_path / "here").values()] == ["1-of-0", "2-of-1", "4-of-2-2"]


RANDOM = """
draw = BasicSweeper.get_job_batch
BasicSweeper.get_job_batch = lambda self: [
    [*words, f"optimizer.lr={random.uniform(1e-4, 1e-2)}"] for words in draw(self)
]
plain = build.reseed_rank

def reseed_rank(cfg, trainer):
    with open(f"{cfg.run_dir}/config-{trainer.global_rank}.yaml", "w") as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True))
    if cfg.seed == 2 and trainer.global_rank == 1:
        raise ValueError("one rank fails")
    plain(cfg, trainer)

build.reseed_rank = reseed_rank
"""


@pytest.mark.slow
def test_random_search_on_several_devices_of_which_one_fails(swept, changed, tmp_path):
    program = changed(RANDOM)
    words = ("trainer=ddp_cpu", *QUICK, "logger=wandb")
    status, _ = swept("-m", "seed=0,1,2,3", *words, program=program)
    assert status == 1
    folder = the_sweep(tmp_path)  # one, not one a rank
    rows = jobs(folder)
    assert states(folder) == ["finished", "finished", "failed", "finished"]
    assert rows[2]["error"] == "ValueError: one rank fails"
    assert runs.read_json(folder / "2" / runs.SUMMARY)["status"] == "failed"
    rates = set()
    for number in (0, 1, 3):
        first, second = ((folder / str(number) / f"config-{rank}.yaml").read_bytes() for rank in range(2))
        assert first == second
        assert runs.read_json(folder / str(number) / runs.SUMMARY)["devices"] == 2
        assert len(list((folder / str(number)).glob("wandb/offline-run-*"))) == 1
        rates.add(
            next(word for word in runs.recorded_overrides(folder / str(number)) if word.startswith("optimizer.lr="))
        )
    assert len(rates) == 3
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"0", "1", "2", "3"}
    assert not (tmp_path / "runs").exists()

    alone = runs.recorded_overrides(folder / "3")
    assert swept(*alone, "hydra.run.dir=alone", program=program)[0] == 0
    assert_same(weights(folder / "3"), weights(tmp_path / "alone"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / runs.LAST, weights_only=True)["state_dict"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


PREEMPTED = """
from lightning.pytorch.callbacks import ModelCheckpoint
plain = ModelCheckpoint.on_train_epoch_start

def on_train_epoch_start(self, trainer, *_):
    first = not any(word.startswith("resume=") for word in sys.argv)
    if first and trainer.current_epoch == 2 and "seed=1" in sys.argv:
        os.kill(os.getpid(), signal.SIGTERM)

ModelCheckpoint.on_train_epoch_start = on_train_epoch_start
"""


@pytest.mark.slow
def test_an_interrupted_job_goes_on_where_it_was(swept, changed, tmp_path):
    program = changed(PREEMPTED)
    words = (*QUICK, "trainer.max_epochs=4", "test=false")
    assert swept("-m", "seed=0,1", *words, program=program)[0] == 1
    folder = the_sweep(tmp_path)
    assert states(folder) == ["finished", "interrupted"]
    assert swept("-m", "seed=0,1", *words, "continue_sweep=newest", program=program)[0] == 0
    assert states(folder) == ["finished", "finished"]  # in its own folder
    assert runs.read_json(folder / "1" / runs.SUMMARY)["resumed"] == 1
    assert not (folder / "2").exists()
    assert swept("seed=1", *words, "hydra.run.dir=alone", program=TRAIN)[0] == 0
    assert_same(weights(folder / "1"), weights(tmp_path / "alone"))
    status, screen = swept("-m", "seed=0,1", *words, "continue_sweep=newest", program=program)
    assert (status, states(folder)[-1]) == (0, "finished")
    assert "job 2/2 · 2 done before" in screen


FAILING = """
plain = summary.after

def after(trainer):
    if "seed=1" in sys.argv:
        raise ValueError("no")
    return plain(trainer)

summary.after = after
"""


@pytest.mark.slow
def test_a_sweep_is_one_group_of_wandb(swept, changed, tmp_path):
    words = ("optimizer.betas=[0.9,0.99],[0.8,0.9]", *QUICK, "logger=wandb")
    assert swept("-m", "seed=0,1", *words, program=changed(FAILING))[0] == 1
    folder = the_sweep(tmp_path)
    files = sorted(folder.glob("*/wandb/offline-run-*/run-*.wandb"))
    found = {file.relative_to(folder).parts[0]: read_run(file) for file in files}
    group = "-".join(folder.parts[-2:])
    expected = {}
    for number, (seed, betas) in enumerate((s, b) for s in (0, 1) for b in ("0.9,0.99", "0.8,0.9")):
        tags = {f"seed={seed}", f"optimizer.betas=[{betas.replace(',', ' ')}]"}
        expected[str(number)] = (group, f"seed={seed} optimizer.betas=[{betas}]", tags, seed)
    assert found == expected  # the seed is the exit status that W&B was told


def read_run(file: Path) -> tuple[str, str, set[str], int]:
    told: tuple[str, str, set[str]] | None = None
    for data in leveldb_records(file.read_bytes()[7:]):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            told = record.run.run_group, record.run.display_name, set(record.run.tags)
        if record.HasField("exit"):
            status = record.exit.exit_code
    assert told
    return *told, status


@pytest.mark.gpu
def test_jobs_share_a_gpu(swept, tmp_path):
    """CUDA starts in each job: the process that they are forked from has not touched it."""
    status, screen = swept("-m", "seed=0,1,2,3", *QUICK, "hydra.launcher.jobs_per_device=2", program=TRAIN)
    assert status == 0, screen
    folder = the_sweep(tmp_path)
    assert {runs.read_json(folder / str(number) / runs.SUMMARY)["device"] for number in range(4)} != {"cpu"}


@pytest.mark.slow
def test_a_sweep_of_probes_ends_in_one_picture(swept, tmp_path):
    words = ("model.depth=2,4", "activation=relu,tanh", "data=regression", "advice=false")
    assert swept("-m", *words, program=ROOT / "src" / "probe.py")[0] == 0
    folder = the_sweep(tmp_path)
    assert (folder / runs.PHASE).is_file()
    assert set(states(folder)) == {"finished"}
    assert swept("-m", *words, "continue_sweep=newest", program=ROOT / "src" / "probe.py")[0] == 0
    assert len(jobs(folder)) == 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-m seed=1,2 continue_sweep=nowhere", "continue_sweep=nowhere: not a sweep's folder"),
        ("-m seed=1,2 continue_sweep=newest", "continue_sweep=newest: no sweep of these overrides in multirun/"),
        ("seed=1 continue_sweep=newest", "continue_sweep=newest: goes with -m, a sweep"),
        ("-m seed=1,2 hydra.launcher.jobs=0", "hydra.launcher.jobs=0: expected a whole number, 1 or more"),
        ("-m seed=1,2 hydra.launcher.fail_fast=2", "hydra.launcher.fail_fast=2: expected true or false"),
        ("-m seed=1,2 hydra.launcher.job=1", "hydra.launcher.job: no such key; did you mean hydra.launcher.jobs?"),
        ("-m seed=1,2 model=foo", "model=foo: no such option"),
    ],
)
def test_mistakes(trained, tmp_path, capsys, monkeypatch, words, expected):
    import gradflow.sweeps.job_plan

    monkeypatch.setattr(gradflow.sweeps.job_plan, "_script", lambda config: None)
    with pytest.raises(SystemExit) as stopped:
        trained(*words.split())
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")


def made(folder: Path, program: str, *words: str) -> Path:
    folder.mkdir(parents=True)
    told = {"hydra": {"job": {"name": program}, "overrides": {"task": list(words)}}}
    (folder / "multirun.yaml").write_text(json.dumps(told))
    (folder / runs.JOBS).write_text(",".join(sweep_jobs.COLUMNS) + "\n")
    return folder


def test_newest_is_the_newest_of_the_same_space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    day = Path("multirun/2026-01-31")
    old = made(day / "1", "train", "model=mlp", "seed=0,1")
    new = made(day / "2", "train", "model=mlp", "seed=0,1", "continue_sweep=newest")
    made(day / "3", "train", "model=resnet", "seed=0,1")
    made(day / "4", "train", "model=mlp", "seed=0,1", "optimizer.lr=1")
    made(day / "5", "probe", "model=mlp", "seed=0,1")
    for age, folder in enumerate((new, old)):
        os.utime(folder / runs.JOBS, (2e9 - age, 2e9 - age))
    for words in (["model=mlp", "seed=0,1"], ["seed=0,1,2", "model=mlp"], ["model=mlp", "seed=0"]):
        assert sweep_jobs.to_continue("newest", "train", words) == new
    assert sweep_jobs.to_continue("newest", "train", ["model=mlp,resnet", "seed=range(5)"]).name in "123"
    with pytest.raises(UserError, match="no sweep of these overrides"):
        sweep_jobs.to_continue("newest", "train", ["model=mlp", "seed=0,1", "data=shapes"])
    with pytest.raises(UserError, match=r"is a sweep of src/probe.py, not of src/train.py"):
        sweep_jobs.to_continue(str(day / "5"), "train", ["model=mlp"])


def attempt(folder: Path, number: int, state: str, *words: str) -> sweep_jobs.Job:
    run = folder / str(number)
    run.mkdir()
    return sweep_jobs.Job(number, words, state, number / 2, 1.0, run, "said: 'no', twice" if state == "failed" else "")


def test_what_is_done_again(tmp_path, monkeypatch):
    one = sweep_jobs.Sweep(tmp_path, going_on=False)
    for job in (
        attempt(tmp_path, 0, "finished", "seed=0"),
        attempt(tmp_path, 1, "pruned", "seed=1", "model.channels=[4, 4]"),
        attempt(tmp_path, 2, "failed", "seed=2"),
        attempt(tmp_path, 3, "interrupted", "seed=3"),
        attempt(tmp_path, 4, "interrupted", "seed=3"),  # asked for twice
        attempt(tmp_path, 7, "running", "seed=4"),
        attempt(tmp_path, 8, "running", "seed=5"),
    ):
        one.begin(job)
    with monkeypatch.context() as patch:
        patch.setattr(claims, "_claims", {})
        patch.setattr(locks, "acquire", lambda folder: None)
        with pytest.raises(UserError, match="its sweep is still running"):
            sweep_jobs.Sweep(tmp_path, going_on=True)
    runs.write_json(tmp_path / "7" / runs.SUMMARY, {"status": "running"})
    runs.write_json(tmp_path / "8" / runs.SUMMARY, {"status": "finished"})
    runs.write_objective(tmp_path / "8", 0.25)

    again = sweep_jobs.Sweep(tmp_path, going_on=True)
    assert Counter(job.state for job in again.jobs) == Counter(finished=2, pruned=1, failed=1, interrupted=3)
    assert runs.read_json(tmp_path / "7" / runs.SUMMARY)["status"] == "interrupted"
    assert again.jobs[2].error == "said: 'no', twice"
    found = again.earlier_job(["model.channels=[4, 4]", "seed=1"])
    assert found is not None
    assert found.objective == 0.5
    assert again.earlier_job(["model.channels=[4, 4]", "seed=1"]) is None  # asked for twice, done once
    for words, expected in (
        (["seed=0"], (0, "finished")),
        (["seed=2"], None),  # failed: from the start
        (["seed=3"], (4, "interrupted")),
        (["seed=3"], (3, "interrupted")),
        (["seed=3"], None),
        (["seed=4"], (7, "interrupted")),
        (["seed=5"], (8, "finished")),
        (["seed=6"], None),
    ):
        job = again.earlier_job(words)
        assert (job and (job.number, job.state)) == expected
    assert again.next_number() == 9
    (tmp_path / "12").mkdir()
    assert again.next_number() == 13


@pytest.mark.parametrize(
    ("status", "log", "state"),
    [
        (-9, "", "interrupted"),  # as the system does when memory is short
        (137, "", "interrupted"),
        (-9, "ValueError: of another rank, for which Lightning kills the first\n", "failed"),
        (74, "error: metrics.csv: No space left on device\n", "interrupted"),
        (143, "stopped by SIGTERM\n", "interrupted"),
        (-15, "", "interrupted"),
        (129, "", "interrupted"),
        (-11, "", "failed"),
        (-6, "", "failed"),
        (1, "ValueError: no\n", "failed"),
    ],
)
def test_what_was_killed_can_go_on(tmp_path, status, log, state):
    job = attempt(tmp_path, 0, "running", "seed=0")
    earlier = "KeyError: of an earlier process in the same folder\n"
    (job.folder / runs.LOG).write_text(earlier + log)
    runs.write_json(job.folder / runs.SUMMARY, {"status": "running"})
    sweep_jobs.end(job, status, stopping=False, logged=len(earlier))
    assert (job.state, runs.read_json(job.folder / runs.SUMMARY)["status"]) == (state, state)
    assert job.error == (log.strip() if "rror" in log else sweep_jobs.ended_by(status))


def test_a_rejected_continuation_leaves_the_record_of_the_sweep(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / runs.JOBS).write_text(",".join(sweep_jobs.COLUMNS) + "\n")
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}\n")
    status, said = command_line("-m data=regression optimizer.lr=abc seed=0,1 continue_sweep=sweep", tmp_path)
    assert status == 2
    assert "optimizer.lr=abc" in said
    assert (tmp_path / "sweep" / "multirun.yaml").read_text() == "{}\n"


def test_the_error_of_a_log(tmp_path):
    log = tmp_path / runs.LOG
    for text, status, expected in (
        (
            "Traceback\n  File\nKeyError: 'a'\n\nDuring\n\ntorch.cuda.OutOfMemoryError: big\nwandb: bye\n",
            1,
            "torch.cuda",
        ),
        ("error: seed=x: expected\n", 2, "error: seed=x: expected"),
        ("all is well\n", -9, "ended by SIGKILL"),
        ("", 3, "exit status 3"),
    ):
        log.write_text(text)
        assert sweep_jobs.last_error(log, status).startswith(expected)


def test_what_wandb_is_told(monkeypatch):
    monkeypatch.delenv("WANDB_NAME", raising=False)
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    told = wandb_environment(Path("/somewhere/study"), ["model.channels=[4,4]", "seed=1"])
    assert told == {"WANDB_NAME": "model.channels=[4,4] seed=1", "WANDB_TAGS": "model.channels=[4 4],seed=1"}
    monkeypatch.delenv("WANDB_RUN_GROUP")
    assert wandb_environment(Path("/somewhere/study"), []) == {"WANDB_RUN_GROUP": "study"}
    assert wandb_environment(Path("/a/multirun/day/time"), []) == {"WANDB_RUN_GROUP": "day-time"}
