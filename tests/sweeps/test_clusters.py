"""Sweeps on SLURM and Ray, and one run on several nodes. SLURM is a few programs of the test's own on PATH."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from test_sweeps import (  # noqa: F401
    QUICK,
    ROOT,
    TRAIN,
    alive,
    assert_same,
    changed,
    command,
    jobs,
    short,
    states,
    swept,
    the_sweep,
    told,
    wait_for,
    weights,
)

from gradflow import runs
from gradflow.runs import ranks
from gradflow.runs.errors import UserError
from gradflow.sweeps import search
from gradflow.sweeps.backend import Need
from gradflow.sweeps.job_process import JobProcess
from gradflow.sweeps.slurm import Slurm

pytestmark = pytest.mark.xdist_group("processes")  # it starts and stops groups of them: one after the other

ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0")
TRIED_OUT = ("hydra/launcher=slurm", "hydra.launcher.cluster=local")

# sbatch, srun, scontrol, sacct and scancel, as far as submitit and our runs use them. A job is a file in $FAKE_SLURM.
FAKE = """#!{python}
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

program, words, home = Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["FAKE_SLURM"])
nothing = subprocess.DEVNULL  # submitit waits until nobody holds what sbatch writes to

def note(job, **facts):
    file = home / f"{{job}}.json"
    kept = json.loads(file.read_text()) if file.exists() else {{}}
    draft = home / f"{{job}}.{{os.getpid()}}"
    draft.write_text(json.dumps(kept | facts))
    draft.replace(file)
    return kept | facts

def sbatch(script, *words):
    asked = dict(re.findall("^#SBATCH --([a-z-]+)=?(.*)$", Path(script).read_text(), re.M))
    if asked.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = 100 * (1 + len(list(home.glob("*.sbatch"))))
    (home / f"{{number}}.sbatch").write_text(Path(script).read_text())
    size = int(re.match(r"0-(\\d+)", asked["array"])[1]) + 1 if "array" in asked else 0
    tasks = int(asked["nodes"]) * int(asked["ntasks-per-node"])
    for index in range(max(1, size)):
        job = f"{{number}}_{{index}}" if size else str(number)
        own = dict(SLURM_JOB_ID=str(number + index), SLURM_NTASKS=str(tasks), SLURM_NNODES=asked["nodes"])
        own |= dict(SLURM_NTASKS_PER_NODE=asked["ntasks-per-node"], SLURM_NODELIST="127.0.0.1")
        own |= dict(SLURM_JOB_NAME=asked["job-name"], SLURM_SUBMIT_DIR=os.getcwd(), FAKE_JOB=job)
        own |= dict(SLURM_ARRAY_JOB_ID=str(number), SLURM_ARRAY_TASK_ID=str(index)) if size else {{}}
        note(job, state="PENDING", script=[script, *words], own=own)
        subprocess.Popen([str(home / "slurmd"), job], start_new_session=True, stdout=nothing, stderr=nothing)
    print(f"Submitted batch job {{number}}")

def slurmd(job):
    starts = 0
    while True:
        known = note(job, state="RUNNING", again=False, starts=starts)
        own = known["own"] | dict(SLURM_RESTART_COUNT=str(starts))
        process = subprocess.Popen(["bash", *known["script"]], env=os.environ | own)
        status, starts = process.wait(), starts + 1
        known = note(job)
        if known.get("cancelled"):
            return note(job, state="CANCELLED by 0")
        if not known["again"]:
            return note(job, state="FAILED" if status else "COMPLETED")

def srun(*words):
    output = words[words.index("--output") + 1] if "--output" in words else str(home / "%j-%t")
    output = re.sub("%A_%a|%j", os.environ["FAKE_JOB"], output)
    words = words[next(index for index, word in enumerate(words) if Path(word).name.startswith("python")) :]
    tasks = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        own = dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NODEID="0")
        own |= dict(SLURM_STEP_NUM_TASKS=os.environ["SLURM_NTASKS"])
        with open(output.replace("%t", str(rank)), "a") as file:
            tasks.append(subprocess.Popen(words, env=os.environ | own, stdout=file, stderr=file))
    note(os.environ["FAKE_JOB"], tasks=[task.pid for task in tasks])
    while any(task.poll() is None for task in tasks):
        if any(task.poll() for task in tasks):  # --kill-on-bad-exit
            for number in (signal.SIGTERM, signal.SIGKILL):
                for task in tasks:
                    tell(task.pid, number)
                time.sleep(2)
        time.sleep(0.1)
    sys.exit(max(task.returncode % 256 for task in tasks))

def tell(task, number):
    children = Path(f"/proc/{{task}}/task/{{task}}/children")
    for process in (task, *(map(int, children.read_text().split()) if children.exists() else ())):
        try:
            os.kill(process, number)
        except ProcessLookupError:
            pass

def scontrol(_, job):
    note(job, again=True)

def scancel(job):
    for task in note(job, cancelled=True).get("tasks", ()):
        tell(task, signal.SIGTERM)

def sacct(*words):
    print("JobID|State|NodeList")
    for file in home.glob("*.json"):
        print(f"{{file.stem}}|{{json.loads(file.read_text())['state']}}|here")

globals()[program](*words)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "slurm"
    home.mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel", "sacct", "slurmd"):
        (home / name).write_text(FAKE.format(python=sys.executable))
        (home / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    return home


@pytest.fixture
def submitted(command, tmp_path):  # noqa: F811
    """Run a sweep to its end: exit status, and stderr. SLURM may take a moment longer than a job's result."""

    def run(*words: str, program: Path | str = "program.py") -> tuple[int, str]:
        process = command(program, *words)
        _, screen = process.communicate(timeout=200)
        wait_for(lambda: not alive(tmp_path), 20)
        return process.returncode, screen

    return run


def known(slurm: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in slurm.glob("*.json")}


@pytest.mark.slow
def test_a_sweep_on_slurm_is_an_array(submitted, slurm, tmp_path):
    words = ("-m", "seed=1,13,3", "hydra.launcher.partition=short", "hydra.launcher.setup=['export MINE=it']")
    words += ("hydra.launcher.additional_parameters={mail-user: me}", *ON_SLURM)
    status, screen = submitted(*words)
    assert status == 1
    folder = the_sweep(tmp_path)
    assert screen.splitlines()[0] == "job 0/3 · 3 submitted"
    rows = [(row["state"], row["objective"], row["error"]) for row in jobs(folder).values()]
    assert rows == [("finished", "0.1", ""), ("failed", "null", "ValueError: thirteen"), ("finished", "0.3", "")]
    asked = (slurm / "100.sbatch").read_text().splitlines()
    for flag in (
        "array=0-2%3",
        "partition=short",
        "ntasks-per-node=1",
        "nodes=1",
        "time=60",
        "signal=USR2@120",
        "mail-user=me",
    ):
        assert f"#SBATCH --{flag}" in asked
    assert "#SBATCH --requeue" in asked
    assert not [line for line in asked if "gpus" in line]
    seen = told(folder / "2")
    assert seen["argv"][1:3] == ["seed=3", "resume=auto"]
    assert f"hydra.run.dir='{folder}/2'" in seen["argv"]
    assert seen["environment"]["MINE"] == "it"
    assert seen["environment"]["SLURM_JOB_ID"] == "102"
    assert seen["environment"]["WANDB_TAGS"] == "seed=3"
    assert seen["environment"]["WANDB_RUN_GROUP"] == "-".join(folder.parts[-2:])
    assert submitted(*words, "continue_sweep=newest")[0] == 1
    assert states(folder) == ["finished", "failed", "finished", "failed"]
    assert set(known(slurm)) == {"100_0", "100_1", "100_2", "200"}


PREEMPTED = """
from lightning.pytorch.callbacks import ModelCheckpoint
plain = ModelCheckpoint.on_train_epoch_start

def on_train_epoch_start(self, trainer, *_):
    if trainer.current_epoch == 2 and not os.path.exists("warned") and "seed=1" in sys.argv:
        open("warned", "w").close()
        os.kill(os.getpid(), signal.SIGUSR2)  # SLURM may tell all processes of a job
        os.kill(os.getppid(), signal.SIGUSR2)
        import time
        time.sleep(1)

ModelCheckpoint.on_train_epoch_start = on_train_epoch_start
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ON_SLURM, TRIED_OUT])
def test_a_job_whose_time_is_up_goes_on(submitted, swept, changed, slurm, tmp_path, launcher):  # noqa: F811
    words = (*QUICK, "trainer.max_epochs=4", "test=false")
    status, screen = submitted("-m", "seed=0,1", *words, *launcher, program=changed(PREEMPTED))
    assert status == 0, screen
    folder = the_sweep(tmp_path)
    assert (tmp_path / "warned").exists()
    assert states(folder) == ["finished", "finished"]
    assert [runs.read_json(folder / name / runs.SUMMARY).get("resumed") for name in "01"] == [None, 1]
    if launcher == ON_SLURM:
        assert [job["starts"] for job in known(slurm).values()] in ([0, 1], [1, 0])
    assert swept("seed=1", *words, "hydra.run.dir=alone", program=TRAIN)[0] == 0
    assert_same(weights(folder / "1"), weights(tmp_path / "alone"))


@pytest.mark.slow
def test_the_script_for_one_run(slurm, tmp_path, monkeypatch):
    """Two tasks, of which each is told that time is nearly up."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    (tmp_path / "src").symlink_to(ROOT / "src")
    script = (ROOT / "scripts" / "slurm.sh").read_text()
    for old, new in (("--ntasks-per-node=1\n", "--ntasks-per-node=2\n"), ("trainer=ddp", "trainer=ddp_cpu")):
        assert script.count(old) == 1
        script = script.replace(old, new)
    (tmp_path / "slurm.sh").write_text(script)
    monkeypatch.chdir(tmp_path)
    words = ("data=regression", "logger=none", "callbacks.progress=null", "model.width=8", "trainer.max_epochs=60")
    subprocess.run(["sbatch", "slurm.sh", *words], check=True)
    run = tmp_path / "runs" / "slurm" / "100"
    wait_for(lambda: (run / runs.LAST).exists())
    for task in known(slurm)["100"]["tasks"]:
        os.kill(task, signal.SIGUSR1)
    wait_for(lambda: known(slurm)["100"]["state"] == "COMPLETED", 120)
    summary = runs.read_json(run / runs.SUMMARY)
    assert (summary["status"], summary["resumed"], summary["steps"]) == ("finished", 1, 60 * 18)
    assert known(slurm)["100"]["starts"] == 1
    assert [path.name for path in (tmp_path / "runs").rglob(runs.SUMMARY)] == [runs.SUMMARY]


ONE_RANK_FAILS = """
plain = build.reseed_rank

def reseed_rank(cfg, trainer):
    if cfg.seed == 2 and trainer.global_rank == 1:
        raise ValueError("one rank fails")
    plain(cfg, trainer)

build.reseed_rank = reseed_rank
"""


@pytest.mark.slow
def test_a_job_of_two_ranks_has_two_tasks(submitted, swept, changed, slurm, tmp_path):  # noqa: F811
    words = (*QUICK, "trainer=ddp_cpu")
    assert submitted("-m", "seed=1,2", *words, *ON_SLURM, program=changed(ONE_RANK_FAILS))[0] == 1
    folder = the_sweep(tmp_path)
    assert "#SBATCH --ntasks-per-node=2" in (slurm / "100.sbatch").read_text()
    assert states(folder) == ["finished", "failed"]
    assert jobs(folder)[1]["error"] == "ValueError: one rank fails"
    assert runs.read_json(folder / "0" / runs.SUMMARY)["devices"] == 2
    assert swept("seed=1", *words, "hydra.run.dir=alone", program=TRAIN)[0] == 0
    assert_same(weights(folder / "0"), weights(tmp_path / "alone"))


@pytest.mark.slow
def test_ctrl_c_cancels(command, slurm, tmp_path):  # noqa: F811
    running = command("program.py", "-m", "seed=1000,1001", *ON_SLURM)
    wait_for(lambda: len(list(tmp_path.glob("multirun/*/*/*/told.json"))) == 2)
    running.send_signal(signal.SIGINT)
    _, screen = running.communicate(timeout=40)
    assert running.returncode == 130, screen
    assert states(the_sweep(tmp_path)) == ["interrupted", "interrupted"]
    assert {job["state"] for job in known(slurm).values()} == {"CANCELLED by 0"}
    wait_for(lambda: not alive(tmp_path), 10)


WAITING = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {src!r})
from gradflow.config.command import command
from gradflow.sweeps import plugins

@command("train", plugins.register)
def main(cfg):
    print("attempt", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.1)
    return cfg.seed / 10

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_a_sweep_that_was_left_alone_is_watched_again(command, slurm, tmp_path):  # noqa: F811
    """Its process is gone, as after a logout; the jobs are SLURM's, and go on."""
    (tmp_path / "waiting.py").write_text(WAITING.format(src=str(ROOT / "src")))
    words = ("-m", "seed=1,2", *ON_SLURM)
    left = command("waiting.py", *words)
    wait_for(lambda: len(list(tmp_path.glob("multirun/*/*/*/job.log"))) == 2)
    folder = the_sweep(tmp_path)
    wait_for(lambda: all((folder / name / runs.LOG).read_text() for name in "01"))
    left.kill()
    left.communicate()
    assert states(folder) == ["running", "running"]
    again = command("waiting.py", *words, "continue_sweep=newest")
    assert again.stderr is not None
    assert again.stderr.readline() == "job 0/2 · 2 submitted\n"
    (tmp_path / "go").touch()
    _, screen = again.communicate(timeout=60)
    assert again.returncode == 0, screen
    assert [(row["state"], row["objective"]) for row in jobs(folder).values()] == [
        ("finished", "0.1"),
        ("finished", "0.2"),
    ]
    assert [(folder / name / runs.LOG).read_text() for name in "01"] == ["attempt\n"] * 2
    assert set(known(slurm)) == {"100_0", "100_1"}


@pytest.mark.slow
def test_what_sbatch_refuses(submitted, slurm, tmp_path):
    status, screen = submitted("-m", "seed=1,2", "hydra.launcher.partition=nowhere", *ON_SLURM)
    assert status == 2
    assert screen.splitlines()[-1] == (
        "error: hydra/launcher=slurm: sbatch: error: invalid partition specified: nowhere"
    )
    assert states(the_sweep(tmp_path)) == ["interrupted", "interrupted"]


@pytest.mark.slow
def test_slurm_tried_out_here(command, submitted, tmp_path):  # noqa: F811
    status, screen = submitted("-m", "seed=1,13", *TRIED_OUT)
    assert (status, states(the_sweep(tmp_path))) == (1, ["finished", "failed"]), screen
    running = command("program.py", "-m", "seed=1000", "hydra.sweep.dir=other", *TRIED_OUT)
    wait_for(lambda: (tmp_path / "other" / "0" / "told.json").exists())
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=40)
    assert (running.returncode, states(tmp_path / "other")) == (130, ["interrupted"])
    wait_for(lambda: not alive(tmp_path), 10)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install -e .[ray]")
def test_a_sweep_on_ray(command, tmp_path):  # noqa: F811
    words = ("hydra/launcher=ray", "hydra.launcher.init={num_cpus: 2}")
    running = command("program.py", "-m", "seed=1,13,3", *words)
    _, screen = running.communicate(timeout=120)
    assert running.returncode == 1, screen
    folder = the_sweep(tmp_path)
    rows = [(row["state"], row["objective"], row["error"]) for row in jobs(folder).values()]
    assert rows == [("finished", "0.1", ""), ("failed", "null", "ValueError: thirteen"), ("finished", "0.3", "")]
    assert told(folder / "2")["environment"]["WANDB_TAGS"] == "seed=3"
    assert len({told(folder / name)["process"] for name in "012"}) == 3
    wait_for(lambda: not alive(tmp_path), 20)

    running = command("program.py", "-m", "seed=1000,1001", "hydra.sweep.dir=other", *words)
    wait_for(lambda: len(list((tmp_path / "other").glob("*/told.json"))) == 2)
    running.send_signal(signal.SIGINT)
    _, screen = running.communicate(timeout=60)
    assert (running.returncode, states(tmp_path / "other")) == (130, ["interrupted"] * 2), screen
    wait_for(lambda: not alive(tmp_path), 20)


NODES = (
    "data=regression",
    "model.width=16",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=6",
    "callbacks.progress=null",
)
PORT = 20_000 + os.getpid() % 10_000  # SLURM's job number decides on one, too; other tests may run beside these
TWO_NODES = ("trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2")


def torchrun(node: int) -> tuple[list[str], dict[str, str]]:
    where = ["--master-addr", "127.0.0.1", "--master-port", str(PORT), "--nnodes", "2", "--node-rank", str(node)]
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", "1"], {}


def srun(node: int) -> tuple[list[str], dict[str, str]]:
    told = {"SLURM_JOB_ID": str(PORT), "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "2"}
    told |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}
    return [sys.executable], told | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}


def two(start, folder: Path, *words: str) -> list[tuple[int, str]]:
    """Exit status and stderr of the ranks of one run, one on each of two nodes."""
    started = []
    for node in (1, 0):
        program, environment = start(node)
        line, pipe = [*program, str(TRAIN), *words], subprocess.PIPE
        environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | environment
        started.append(subprocess.Popen(line, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True))
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    return [(status, screen) for screen, status in ended[::-1]]


@pytest.mark.slow
@pytest.mark.parametrize("start", [torchrun, srun])
def test_two_nodes_are_one_run(swept, tmp_path, start):  # noqa: F811
    for status, screen in two(start, tmp_path, *NODES, *TWO_NODES, "resume=auto"):
        assert status == 0, screen
    (run,) = tmp_path.glob("runs/*/*")
    assert len(list(run.glob("wandb/offline-run-*"))) == 1
    assert runs.read_json(run / runs.SUMMARY)["devices"] == 2
    assert swept(*NODES, "trainer=cpu", "logger=none", "hydra.run.dir=alone", program=TRAIN)[0] == 0
    together, alone = weights(run), weights(tmp_path / "alone")
    assert all(torch.allclose(together[name], alone[name], rtol=1e-5, atol=1e-7) for name in alone)


@pytest.mark.slow
def test_two_nodes_go_on_in_one_folder(tmp_path):
    """The first rank finds the run; the other, which sees that it is locked, takes the first one's word."""
    words = (*NODES, *TWO_NODES, "logger=none")
    assert [status for status, _ in two(srun, tmp_path, *words, "trainer.max_epochs=1")] == [0, 0]
    (run,) = tmp_path.glob("runs/*/*")
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    facts = runs.read_json(run / runs.SUMMARY)
    runs.write_json(run / runs.SUMMARY, facts | {"status": "interrupted"})
    for status, screen in two(srun, tmp_path, *words, "resume=auto"):
        assert status == 0, screen
    assert list(tmp_path.glob("runs/*/*")) == [run]
    assert runs.read_json(run / runs.SUMMARY)["steps"] == 12


@pytest.mark.slow
def test_a_mistake_of_two_nodes(tmp_path):
    for status, screen in two(srun, tmp_path, *NODES, *TWO_NODES, "model.depth=-1"):
        assert (status, screen) == (2, "error: model.depth=-1: expected 0 or more hidden layers\n")
    assert not list(tmp_path.glob("runs/*/*"))


class Store:
    """What the ranks of one process tell each other here."""

    def __init__(self) -> None:
        self.told: dict[str, bytes] = {}

    def set(self, name: str, value: str) -> None:
        self.told[name] = value.encode()

    def get(self, name: str) -> bytes:
        return self.told[name]

    def wait(self, names: list[str]) -> None: ...


@pytest.mark.parametrize("ending", ["a folder", UserError("no room"), OSError("read-only"), SystemExit(0)])
def test_what_the_first_rank_decides_all_do(monkeypatch, ending):
    monkeypatch.setattr(ranks, "apart", lambda: 2)
    store = Store()

    def decide() -> str:
        if isinstance(ending, str):
            return ending
        raise ending

    def never() -> str:
        raise AssertionError("the others decide nothing")

    heard = []
    for rank, ask in ((0, decide), (1, never)):
        monkeypatch.setattr(ranks, "_asked", iter([5]))
        monkeypatch.setattr(ranks, "_rendezvous", lambda rank=rank: (store, rank))
        try:
            heard.append(ranks.agreed(ask))
        except (UserError, SystemExit) as error:
            heard.append(repr(error))
    expected = {str: "a folder", OSError: "UserError('read-only')"}.get(type(ending), repr(ending))
    assert heard == [expected, expected]


def test_ranks_that_were_started_apart():
    assert ranks.apart({}) == 1
    assert ranks.apart({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4"}) == 4
    assert ranks.apart({"SLURM_NTASKS": "8"}) == 1  # a job's script, not srun
    assert ranks.apart({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}) == 8


def test_ranks_that_nobody_told_of_each_other(monkeypatch):
    assert ranks.agreed(lambda: "alone") == "alone"
    for name, value in (("OMPI_COMM_WORLD_SIZE", "4"), ("NODE_RANK", "1")):
        with monkeypatch.context() as changed_environment:
            changed_environment.setenv(name, value)
            with pytest.raises(UserError, match=r"hydra\.run\.dir: give all ranks the same folder, or start them with"):
                ranks.agreed(lambda: "a folder of its own")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("slurm", "hydra/launcher=slurm: there is no srun here"),
        ("slurm hydra.launcher.cluster=pbs", "hydra.launcher.cluster=pbs: expected slurm, or local"),
        ("slurm hydra.launcher.timeout_min=0", "hydra.launcher.timeout_min=0: expected a whole number, 1 or more"),
        ("slurm hydra.launcher.jobs=some", "hydra.launcher.jobs=some: expected a whole number, 1 or more"),
        ("slurm hydra.launcher.partitoin=x", "hydra.launcher.partitoin"),
        ("ray hydra.launcher.cpus=many", "hydra.launcher.cpus=many: expected a number"),
    ],
)
def test_mistakes(trained, monkeypatch, capsys, words, line):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stopped:
        trained("-m", "data=regression", "seed=1,2", *f"hydra/launcher={words}".split())
    assert stopped.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"error: {line}")


@pytest.mark.parametrize(("package", "launcher"), [("submitit", "slurm"), ("ray", "ray")])
def test_a_package_that_is_missing(trained, monkeypatch, capsys, package, launcher):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        trained("-m", "data=regression", "seed=1,2", f"hydra/launcher={launcher}")
    assert stopped.value.code == 2
    needs = f"error: hydra/launcher={launcher}: needs {package}; pip install -e .[{launcher}]\n"
    assert capsys.readouterr().err == needs


def test_a_sweep_is_not_for_each_rank(trained, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        trained("-m", "data=regression", "seed=1,2")
    assert capsys.readouterr().err.startswith("error: --multirun: each rank of torchrun or srun would run all of it")


@pytest.fixture
def asks(monkeypatch):
    """What a job asks SLURM for."""
    pytest.importorskip("submitit")

    def make(trainer: dict, cluster: str = "slurm", **options) -> dict:
        monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda: 2)
        slurm = Slurm(cluster, 3, None, **options)
        return slurm.parameters(slurm.need(trainer))

    return make


def test_what_a_job_asks_for(asks):
    made = asks({"accelerator": "gpu", "devices": 4, "num_nodes": 2})
    assert (made["nodes"], made["tasks_per_node"], made["gpus_per_node"]) == (2, 4, 4)
    made = asks({"accelerator": "cpu", "devices": 1}, partition="short", mem_gb=3.5, account=None)
    assert (made["nodes"], made["tasks_per_node"], made["gpus_per_node"]) == (1, 1, None)
    assert (made["slurm_partition"], made["mem_gb"]) == ("short", 3.5)
    assert "slurm_account" not in made
    assert made["slurm_srun_args"] == ["--kill-on-bad-exit=1"]
    assert asks({}, cpus_per_task=8)["slurm_srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=8"]
    assert asks({}, tasks_per_node=1, gpus_per_node=8)["gpus_per_node"] == 8
    assert asks({}, additional_parameters={"requeue": False})["slurm_additional_parameters"] == {"requeue": False}
    assert "tasks_per_node" not in asks({"devices": 2}, cluster="local")  # Lightning starts the ranks
    with pytest.raises(UserError, match=r"trainer\.devices=auto: with hydra/launcher=slurm give a number"):
        asks({"devices": "auto"})


def test_a_search_has_to_know_how_many_run_at_once(monkeypatch):
    pytest.importorskip("submitit")
    assert Slurm("local", 3, 4).jobs_at_once(Need(False, 1)) == 4
    with pytest.raises(UserError, match=r"hydra\.sweeper\.n_jobs=null: with hydra/launcher=slurm say"):
        Slurm("local", 3, None).jobs_at_once(Need(False, 1))


def test_how_a_task_ends(tmp_path, monkeypatch):
    def task(code: str) -> JobProcess:
        return JobProcess(["-c", code], {"TOLD": "it"}, tmp_path / "log", str(tmp_path))

    status, seconds = task("import os; print(os.environ['TOLD'], os.getcwd()); raise SystemExit(3)")()
    assert status == 3
    assert seconds > 0
    assert (tmp_path / "log").read_text() == f"it {tmp_path}\n"
    with pytest.raises(SystemExit):  # no result: whoever sent the signal may start it again
        task("import os, signal; os.kill(os.getppid(), signal.SIGTERM); import time; time.sleep(60)")()
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit):
        task("raise SystemExit(3)")()
    assert (tmp_path / "log.1").exists()


def without_asserts(module: ModuleType) -> dict[str, Any]:
    """What `python -O` makes of a module."""
    source = Path(module.__file__)
    names: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(source.read_text(), str(source), "exec", optimize=1), names)
    return names


def test_ranks_of_slurm_meet_without_asserts(monkeypatch):
    told = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "127.0.0.1", "JOB_ID": "4711"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert without_asserts(ranks)["_rendezvous"]()[1] == 0
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "19711")


def test_the_failure_of_a_job_is_found_without_asserts():
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = ValueError("no")
    assert without_asserts(search)["_failure"](failed) == "ValueError: no"


def test_asserts_do_nothing_but_look():
    """`python -O` leaves them out."""
    harmless = {"isinstance", "callable", "len", "all", "any", "set", "is_initialized"}
    for file in Path(ranks.__file__).parents[2].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assert):
                called = {ast.unparse(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)}
                assert called <= harmless, f"{file}:{node.lineno}"
