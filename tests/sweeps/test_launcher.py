"""The processes, devices and threads of a sweep's jobs."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.hydra import Hydra

from gradflow.config import hydra_internals
from gradflow.runs.errors import UserError
from gradflow.runs.overrides import quoted
from gradflow.sweeps import forkserver, launch, local
from gradflow.sweeps.backend import Need
from gradflow.sweeps.forkserver import ForkServer, ServerLost
from gradflow.sweeps.job_plan import is_of_the_sweep
from gradflow.sweeps.job_process import JobProcess
from gradflow.sweeps.local import Local
from gradflow.training.live_line import LiveLine

pytestmark = pytest.mark.xdist_group("processes")  # it starts and stops groups of them: one after the other


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    yield server
    server.end(now=False)
    assert server.process.wait() == 0


@pytest.fixture
def fork(server, tmp_path):
    """Run a script as a job; its exit status and its log."""

    def run(script: str, *words: str, threads: int = 1, **environment: str) -> tuple[int, str]:
        (tmp_path / "script.py").write_text(script)
        path, log = str(tmp_path / "script.py"), tmp_path / "job.log"
        server.start(7, JobProcess([path, *words], environment, log), threads)
        (told,) = server.poll(60)
        assert told.job == 7
        return told.status, log.read_text()

    return run


SEEN = """
import json, os, sys
modules = [name for name in ("torch", "lightning", "gradflow.config.build", "wandb") if name in sys.modules]
import torch
from gradflow.config import trust
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "spec": sys.modules["__main__"].__spec__,
    "here": os.getcwd(), "told": os.environ.get("TOLD"), "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
    "modules": modules, "cuda": torch.cuda.is_initialized(), "threads": torch.get_num_threads(),
    "leads": os.getpgid(0) == os.getpid(), "stdin": sys.stdin.read(),
    "conf read": trust._keys_of_conf.cache_info().currsize,
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_fork_is_what_python_would_start_with_torch_imported_and_nothing_else_done(server, fork, tmp_path):
    status, log = fork(SEEN, "model=mlp", "seed=1", threads=2, TOLD="it")
    assert status == 0
    assert json.loads(log) == {
        "argv": [str(tmp_path / "script.py"), "model=mlp", "seed=1"],
        "path": str(tmp_path),
        "name": "__main__",
        "spec": None,  # Lightning takes the script's name from argv then
        "here": os.getcwd(),
        "told": "it",
        "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
        "modules": ["torch", "lightning", "gradflow.config.build"],
        "cuda": False,
        "threads": 2,
        "leads": True,
        "stdin": "",
        "conf read": 1,  # once for all jobs
    }
    assert len(os.listdir(f"/proc/{server.process.pid}/task")) == 1  # threads would not survive a fork


@pytest.mark.slow
def test_a_job_in_an_allocation_of_slurm_has_ranks_of_its_own(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    (tmp_path / "script.py").write_text("import os; print(sorted(n for n in os.environ if n.startswith('SLURM_')))")
    server.start(8, JobProcess([str(tmp_path / "script.py")], {}, tmp_path / "job.log"), 1)
    assert server.poll(60)[0].status == 0
    assert (tmp_path / "job.log").read_text() == "['SLURM_JOB_ID']\n"


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("print('done')", 0, "done"),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('a text')", 1, "a text"),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("import os; os.abort()", -6, ""),
        ("import atexit; atexit.register(print, 'at the end')", 0, "at the end"),
        ("import threading, time; threading.Timer(0.1, print, ['waited for']).start()", 0, "waited for"),
    ],
)
def test_how_a_job_ends(fork, script, status, words):
    told, log = fork(script)
    assert told == status
    assert words in log


def test_what_a_job_has_started_ends_with_it(fork):
    status, log = fork("import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)")
    assert status == 0
    for _ in range(100):
        if not running(int(log)):
            return
        time.sleep(0.05)
    pytest.fail("is still there")


def running(process: int) -> bool:
    """A zombie does not run."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def pool(monkeypatch):
    def make(gpus: int = 0, cores: int = 8, threads: str = "", jobs: int | None = None, per_device: int = 1) -> Local:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(f"GPU-{index}" for index in range(gpus)))
        monkeypatch.setattr(local, "cores", lambda: cores)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        return Local(jobs, per_device)

    return make


def fill(pool: Local, need: Need, left: int) -> list[tuple[list[str], int]]:
    """What jobs get until there is no more room."""
    given = []
    while left and pool.has_room(need):
        left -= 1
        given.append(pool.assign(len(given), need, left))
    return given


AUTO = {"accelerator": "auto", "devices": 1}


def test_each_job_has_gpus_of_its_own(pool):
    eight = pool(gpus=8, cores=32)
    need = eight.need(AUTO | {"devices": 2})
    assert need == Need(gpu=True, devices=2)
    given = fill(eight, need, left=100)
    assert [gpus for gpus, _ in given] == [[f"GPU-{2 * job}", f"GPU-{2 * job + 1}"] for job in range(4)]
    assert [threads for _, threads in given] == [4] * 4  # 32 cores, 4 jobs of 2 processes
    del eight.running[2]
    assert eight.assign(9, need, 0)[0] == ["GPU-4", "GPU-5"]


def test_small_jobs_share_a_gpu(pool):
    two = pool(gpus=2, per_device=3)
    given = [gpus for gpus, _ in fill(two, two.need(AUTO), left=100)]
    assert given == [["GPU-0"], ["GPU-1"]] * 3


def test_jobs_as_many_as_were_asked_for(pool):
    assert len(fill(pool(gpus=2, jobs=5), Need(True, 1), left=100)) == 5
    assert len(fill(pool(cores=2, jobs=5), Need(False, 1), left=100)) == 5
    assert len(fill(pool(gpus=4, jobs=1), Need(True, 1), left=100)) == 1


@pytest.mark.parametrize(
    ("cores", "set_by_user", "devices", "left", "expected"),
    [
        (8, "", 1, 100, [1] * 8),
        (8, "", 1, 2, [4, 4]),  # few jobs have more threads each
        (8, "", 1, 3, [2, 2, 2]),
        (8, "4", 1, 100, [4, 4]),
        (8, "", 2, 100, [1] * 4),
        (2, "", 4, 100, [1]),  # at least one job, however large
    ],
)
def test_threads_are_divided(pool, cores, set_by_user, devices, left, expected):
    given = fill(pool(cores=cores, threads=set_by_user), Need(False, devices), left)
    assert given == [([], threads) for threads in expected]


def test_what_a_job_needs(pool):
    none, two = pool(), pool(gpus=2)
    assert none.need(AUTO) == none.need({}) == Need(False, 1)
    assert two.need({"accelerator": "cpu", "devices": 2}) == Need(False, 2)
    assert two.need({"accelerator": "gpu", "devices": "auto"}) == Need(True, 2)
    with pytest.raises(UserError, match=r"trainer.devices=3: 2 GPUs are free, 0 in use"):
        two.need(AUTO | {"devices": 3})
    with pytest.raises(UserError, match=r"trainer.devices=\[0, 1\]: in a sweep give a number"):
        two.need(AUTO | {"devices": [0, 1]})


SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) printf 'GPU-a\\nGPU-b\\nGPU-c\\n' ;;
  *) printf 'GPU-b\\nGPU-b\\n' ;;
esac
"""


def test_gpus_on_which_others_compute_are_left_alone(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local.gpus() == (["GPU-a", "GPU-c"], 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert local.gpus() == (["3", "5"], 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.gpus() == ([], 0)


def test_a_container_may_have_fewer_cores_than_its_local(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert local.cores() == 64
    for text, expected in (("max 100000", 64), ("250000 100000", 3), ("9900000 100000", 64)):
        (tmp_path / "cpu.max").write_text(text)
        assert local.cores() == expected


def test_progress_of_a_search_is_that_of_all_its_trials(capsys, monkeypatch):
    """40 of 60 have ended before this call, one in it, one has just begun; others took 15 s on average."""
    backend = SimpleNamespace(underway="running", requeues=False)
    sweep = SimpleNamespace(earlier_job=lambda overrides: None)
    call = launch._Launch(
        SimpleNamespace(sweep=sweep, backend=backend, trials=(40, 60), durations=[10.0, 20.0]), [["a=1"], ["a=2"]]
    )
    monkeypatch.setattr(launch, "failed_jobs", [])
    call.ended, call.running = 1, {1: SimpleNamespace(since=time.monotonic() + 0.5)}
    call._show_progress()
    assert capsys.readouterr().err == "trial 41/60 · 1 running · ETA 04:45\n"


def test_progress_on_a_terminal_stays_in_its_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    screen = LiveLine()
    screen.progress("1 done")
    screen.say("job 2 failed")
    screen.progress("1 done, 1 failed")
    screen.close()
    clear = "\r\x1b[K"
    assert capsys.readouterr().err == f"{clear}1 done{clear}job 2 failed\n{clear}1 done, 1 failed\n"


def test_progress_in_a_file_is_a_line_a_change(capsys):
    screen = LiveLine()
    for words in ("1 done", "1 done", "2 done"):
        screen.progress(words)
    screen.close()
    assert capsys.readouterr().err == "1 done\n2 done\n"


def test_words():
    of_sweep = ["hydra.mode=MULTIRUN", "hydra/launcher=local", "+hydra.launcher.jobs=2", "hydra.sweep.dir=x"]
    of_sweep += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.run.dir=y"]
    assert all(is_of_the_sweep(word) for word in of_sweep)
    assert not any(
        is_of_the_sweep(word) for word in ("hydra.job.chdir=true", "hydra/job_logging=none", "hydra.verbose=1")
    )
    assert quoted(Path("/a b/it's, ${x}")) == r"'/a b/it\'s, \${x}'"


WAITS = """
import signal, sys, time
def told(*_):
    print("told", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, told if sys.argv[1] == "ends" else lambda *_: print("deaf", flush=True))
print("here", flush=True)
while True:
    time.sleep(0.05)
"""


LIGHT = """
import sys, types
sys.path.insert(0, {src!r})
from gradflow.sweeps import forkserver
forkserver._preload = lambda: sys.modules.update(torch=types.SimpleNamespace(set_num_threads=lambda number: None))
forkserver.GRACE = 0.5
forkserver.serve()
"""


@pytest.mark.parametrize("job", ["ends", "is deaf"])
def test_jobs_end_with_a_server_that_is_killed(tmp_path, job):
    (tmp_path / "script.py").write_text(WAITS)
    log = tmp_path / "job.log"
    server = ForkServer(LIGHT.format(src=str(Path(forkserver.__file__).parents[2])))
    server.start(0, JobProcess([str(tmp_path / "script.py"), job], {}, log), 1)
    while "here" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.02)
    began = time.monotonic()
    server.process.kill()
    with pytest.raises(
        ServerLost, match=r"has ended \(status -9\), and its jobs with it"
    ):  # when they have, not before
        server.poll(60)
    assert log.read_text().split() == ["here", "told" if job == "ends" else "deaf"]
    assert job == "ends" or time.monotonic() - began > 0.5
    server.end(now=False)


@pytest.mark.slow
def test_a_server_that_got_no_job_does_not_keep_its_command():
    """A sweep that is rejected ends at once, whatever the server still imports."""
    server = ForkServer("import time; time.sleep(5)")
    process = server.process
    del server
    assert process.poll() == -signal.SIGKILL


def test_a_job_composes_its_configuration_once(trained, monkeypatch):
    composed, plain = [], Hydra.compose_config
    monkeypatch.setattr(Hydra, "compose_config", lambda *given, **known: composed.append(1) or plain(*given, **known))
    monkeypatch.setattr(Hydra, "get_mode", Hydra.get_mode)
    hydra_internals.expect_single_run()
    trained("data=regression", "debug=fast", "logger=none", "callbacks=none")
    assert len(composed) == 1
