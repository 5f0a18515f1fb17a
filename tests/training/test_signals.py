"""A signal ends a run in good order, on any rank, at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from test_resume import ended, launch, quick, stopped  # noqa: F401

from gradflow import runs
from gradflow.sweeps.launch import exit_on
from gradflow.training import agreement, signals
from gradflow.training.agreement import Agreement
from gradflow.training.resume_checkpoint import ResumeCheckpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from crash_test import differences  # noqa: E402

pytestmark = pytest.mark.xdist_group("processes")  # it starts and stops groups of them: one after the other

WORDS = (
    "data=regression",
    "model.width=16",
    "model.dropout=0.3",
    "logger=none",
    "callbacks.progress=null",
    "callbacks.gradient_flow.every_n_steps=100",
    "callbacks.gradient_flow.probes=3",
)
NAMES = {143: "SIGTERM", 130: "SIGINT", 75: "SIGUSR1", 129: "SIGHUP"}
SENT = {143: signal.SIGTERM, 130: signal.SIGINT, 75: signal.SIGUSR1, 129: signal.SIGHUP}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A program of that name that notes its arguments, and what it ends with."""

    def make(status: int = 0) -> Path:
        program, told = tmp_path / "bin" / "scontrol", tmp_path / "told"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho "$@" >> {told}\nexit {status}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return told

    return make


@pytest.mark.parametrize("status", SENT)
def test_outside_of_training_a_signal_ends_at_once(status, capsys):
    signals.listen()
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), SENT[status])
    assert ended.value.code == status
    assert capsys.readouterr().err == f"\nstopped by {NAMES[status]}\n"


def test_under_nohup_the_end_of_the_terminal_is_none_of_the_run(monkeypatch):
    monkeypatch.setattr(signals, "received", 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        with exit_on("SIGHUP"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    with pytest.raises(SystemExit) as ended, exit_on("SIGHUP"):
        os.kill(os.getpid(), signal.SIGHUP)
    assert ended.value.code == 129


def test_while_somebody_looks_a_signal_is_noted(monkeypatch):
    signals.listen()
    signals.watch(True)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received == signal.SIGTERM  # the first counts
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    os.kill(os.getpid(), signal.SIGINT)
    assert ended == [130]


def test_other_ranks_end_with_the_first(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    signals.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received == signal.SIGTERM


RANK = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from gradflow.training import signals
signals._tie_to_first()
if "LOCAL_RANK" not in os.environ:
    subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {"LOCAL_RANK": "1"})
else:
    print("tied", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not end with its parent")
def test_a_rank_that_lightning_started_ends_when_the_first_is_killed(tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    command = [sys.executable, str(program), str(ROOT / "src")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "tied\n"
        first.kill()
        assert first.communicate(timeout=10) == ("", None)  # the pipe is closed: nobody is left who could write to it


@pytest.mark.parametrize(
    ("started", "status"), [({}, 0), ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1"}, 143)]
)
def test_a_rank_that_lightning_started_ends_with_0(monkeypatch, started, status):
    """It would kill the first, which still has things to write, for any other status."""
    for name, value in (started | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        ResumeCheckpoint(".").stop(SimpleNamespace(is_global_zero=False), signal.SIGTERM)
    assert end.value.code == status


@pytest.mark.parametrize(
    ("job", "requeued"),
    [
        ({"SLURM_JOB_ID": "17"}, "requeue 17\n"),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, "requeue 17_2\n"),
    ],
)
def test_before_its_time_limit_a_slurm_job_is_put_back(scontrol, monkeypatch, job, requeued):
    told = scontrol()
    assert signals.status(signal.SIGUSR1) == 75  # no job of SLURM's
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert signals.status(signal.SIGUSR1) == 0
    assert told.read_text() == requeued
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert signals.status(signal.SIGUSR1) == 0
    assert told.read_text() == requeued  # the first rank's to do
    assert signals.status(signal.SIGTERM) == 143


def test_a_job_that_slurm_does_not_put_back(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", "/nowhere")
    assert signals.status(signal.SIGUSR1) == 75
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    scontrol(status=1)
    assert signals.status(signal.SIGUSR1) == 75


class Clock:
    """Two ranks, of which this is the first, that need `pace` seconds for a batch."""

    def __init__(self, monkeypatch, pace: float) -> None:
        self.now, self.pace, self.rounds, self.other = 0.0, pace, [], 0
        monkeypatch.setattr(agreement.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(dist, "new_group", lambda **_: "group")
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)
        self.agreement = Agreement(SimpleNamespace(world_size=2, is_global_zero=True))

    def all_reduce(self, told, **_) -> None:
        self.rounds.append(self.now)
        told[0] = max(int(told[0]), self.other)

    def batches(self, number: int) -> list[int]:
        heard = []
        for _ in range(number):
            self.now += self.pace
            heard.append(self.agreement.tick(0, False)[0])
        return heard


@pytest.mark.parametrize("pace", [0.001, 0.01, 0.1, 3.0])
def test_batches_that_are_quick_need_no_talk(monkeypatch, pace):
    clock = Clock(monkeypatch, pace)
    clock.batches(1000)
    wanted = 10 + 1000 * pace / (agreement.PERIOD - pace) if pace < agreement.PERIOD else 1000
    assert len(clock.rounds) <= wanted
    between = [b - a for a, b in zip(clock.rounds, clock.rounds[1:], strict=False)]
    assert max(between) == pytest.approx(max(agreement.PERIOD, pace), abs=0.01)


def test_what_one_rank_hears_all_know_within_a_period(monkeypatch):
    clock = Clock(monkeypatch, 0.01)
    clock.batches(500)
    clock.other = signal.SIGTERM
    heard = clock.batches(45)
    assert heard.index(signal.SIGTERM) <= 41
    clock.other, clock.pace = 0, 0.1  # slower: the rounds come to lie as far apart in time
    clock.batches(200)
    assert clock.rounds[-1] - clock.rounds[-2] <= agreement.PERIOD + 0.1


def test_one_process_talks_to_nobody(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: pytest.fail("a collective"))
    alone = Agreement(SimpleNamespace(world_size=1, is_global_zero=True))
    assert [alone.tick(heard, due) for heard, due in ((0, False), (15, True))] == [(0, False), (15, True)]


# In earnest


def begun(process: subprocess.Popen, folder: Path, rows: int) -> None:
    while sum(runs.count_lines(run).get(runs.METRICS, 0) for run in folder.glob("runs/*/*/")) < rows:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def the_run(folder: Path) -> Path:
    (run,) = folder.glob("runs/*/*/")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("status", SENT)
def test_the_status_says_which(trained, stopped, status, scontrol, monkeypatch):  # noqa: F811
    words = (*WORDS, "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    whole = trained(*words)
    run = stopped("training_step", 5, *words, sent=SENT[status], status=status)
    assert trained(*words, "resume=auto") == run
    assert list(differences(whole, run)) == []
    if status == 75:
        told = scontrol()
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        stopped("training_step", 5, *words, "seed=1", sent=SENT[status], status=0)
        assert told.read_text() == "requeue 17\n"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    slow = "import time, train; from gradflow.models.base import Module as M; was = M.training_step\n"
    slow += "M.training_step = lambda *a: (print('step', flush=True), time.sleep(30), was(*a))[-1]; train.main()"
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{slow}", *WORDS]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any(line == "step\n" for line in process.stdout)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):  # the step is in the way
            process.wait(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(2) == 130


@pytest.mark.slow
@pytest.mark.parametrize("where", ["prepare_data", "setup"])
def test_while_data_are_prepared(tmp_path, where):
    slow = "import time, train; from gradflow.data.datamodule import DataModule as D\n"
    slow += f"D.{where} = lambda *a: (print('here', flush=True), time.sleep(30)); train.main()"
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{slow}", *WORDS]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any(line == "here\n" for line in process.stdout)
        since = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
        assert process.stderr.read() == "\nstopped by SIGTERM\n"
        assert time.monotonic() - since < 8  # most of it is Python's own end, on a busy machine


@pytest.mark.slow
def test_the_wandb_run_is_closed(tmp_path):
    from test_wandb import exit_code

    from gradflow.training.wandb_files import files

    words = (*(word for word in WORDS if word != "logger=none"), "logger.mode=offline", "trainer.max_epochs=1000")
    process = launch(tmp_path, *words)
    begun(process, tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    (file,) = files(the_run(tmp_path))
    assert exit_code(file) is not None


def ranks(process: subprocess.Popen) -> list[int]:
    """Processes of its group that run train.py, the first rank first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(told[2]) == process.pid and told[0] != "Z" and b"train" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended
            pass
    return sorted(found, key=lambda pid: (pid != process.pid, pid))


TWO = (*WORDS, "trainer=ddp_cpu", "trainer.max_epochs=8", "callbacks.resume_checkpoint.every_n_epochs=3")


def two(folder: Path, *words: str, program: Path = ROOT / "src" / "train.py") -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command, pipe = [sys.executable, str(program), *TWO, *words], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes leave whom nobody stops."""
    folder = tmp_path_factory.mktemp("together")
    assert ended(two(folder))[0] == 0
    return the_run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("status", SENT)
def test_one_rank_of_two_is_told(tmp_path, together, rank, status):
    process = two(tmp_path)
    begun(process, tmp_path, 12)
    os.kill(ranks(process)[rank], SENT[status])
    got, said = ended(process)
    assert got == status, said
    assert said.count("stopped by") == 1
    assert "Traceback" not in said
    assert not ranks(process)
    run = the_run(tmp_path)
    assert runs.read_json(run / runs.SUMMARY)["status"] == "interrupted"
    assert ended(two(tmp_path, "resume=auto"))[0] == 0
    assert list(differences(together, run)) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_two_is_killed(tmp_path, together, rank):
    process = two(tmp_path)
    begun(process, tmp_path, 12)
    os.kill(ranks(process)[rank], signal.SIGKILL)
    process.communicate(timeout=20)
    deadline = time.monotonic() + 8
    while ranks(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks(process)
    assert ended(two(tmp_path, "resume=auto"))[0] == 0
    assert list(differences(together, the_run(tmp_path))) == []


COUNTING = """
import atexit, json, os, sys, time
sys.path.insert(0, {src!r})
import torch.distributed as dist
from collections import Counter
count = Counter()
def counted(name, was):
    def call(*arguments, **more):
        count[name] += 1
        return was(*arguments, **more)
    return call
for name in ("all_reduce", "broadcast"):
    setattr(dist, name, counted(name, getattr(dist, name)))
from gradflow.training.resume_checkpoint import ResumeCheckpoint
{patch}
class Timed(ResumeCheckpoint):
    pass
start = ResumeCheckpoint.on_train_start
def on_train_start(self, *arguments):
    start(self, *arguments)
    count.clear()
    self.began = time.monotonic()
end = ResumeCheckpoint.on_fit_end
def on_fit_end(self, trainer, module):
    if trainer.is_global_zero:
        told = dict(count) | {{"steps": trainer.global_step, "seconds": time.monotonic() - self.began}}
        print("COUNTED " + json.dumps(told), flush=True)
    end(self, trainer, module)
ResumeCheckpoint.on_train_start, ResumeCheckpoint.on_fit_end = on_train_start, on_fit_end
import train
train.main()
"""


def counted(folder: Path, patch: str, *words: str) -> dict[str, float]:
    import json

    folder.mkdir(exist_ok=True)
    program = folder / "train_counting.py"
    program.write_text(COUNTING.format(src=str(ROOT / "src"), patch=patch))
    process = two(folder, *words, program=program)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return next(json.loads(line[8:]) for line in out.splitlines() if line.startswith("COUNTED "))


@pytest.mark.slow
def test_steps_of_two_ranks_need_no_talk(tmp_path):
    words = ("data.points=20000", "data.val=0", "trainer.max_epochs=3", "trainer.log_every_n_steps=1000")
    told = counted(tmp_path, "", *words)
    assert told["steps"] == 1200
    assert told.get("broadcast", 0) <= 10  # Lightning's own way is one a step
    assert told["all_reduce"] <= 40 + 2 * told["seconds"] / agreement.PERIOD
