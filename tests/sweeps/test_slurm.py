"""A sweep and `scripts/slurm.sh` on SLURM itself, started here by the test: `apt install slurm-wlm munge`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sweeps import (  # noqa: F401
    QUICK,
    ROOT,
    alive,
    command,
    jobs,
    states,
    the_sweep,
    told,
    wait_for,
)

from gradflow import runs

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"SLURM is not installed: no {', '.join(MISSING)}"),
    pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="starts SLURM's daemons as root"),
]
ON_SLURM = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=0")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={home}/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskPluginParam=Cores
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    """One node with two cores: this machine. Its daemons end with the tests."""
    home, host = Path(tempfile.mkdtemp(prefix="slurm")), socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (home / name).mkdir()
    (home / "key").write_bytes(os.urandom(128))
    (home / "key").chmod(0o600)
    configuration = home / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(home=home, host=host, ports=free_ports(2)))
    files = {"key-file": "key", "socket": "munge", "pid-file": "pid", "log-file": "munged.log", "seed-file": "seed"}
    munged = ["munged", "--foreground", "--force", *(f"--{option}={home / name}" for option, name in files.items())]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for line in (munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            with (home / f"{line[0]}.out").open("wb") as log:
                environment = os.environ | {"SLURM_CONF": str(configuration)}
                daemons.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True))
        os.environ["SLURM_CONF"] = str(configuration)
        wait_for(lambda: asked("sinfo", "--noheader", "--format=%t") == "idle", 30)
        yield
    finally:
        os.environ.pop("SLURM_CONF", None)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    yield
    asked("scancel", "--user", "root")


def asked(*line: str) -> str:
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def hurry() -> None:
    """Start what waits: SLURM lets a job that was requeued wait for two minutes."""
    for job in asked("squeue", "--noheader", "--states=PENDING", "--format=%A").split():
        asked("scontrol", "update", f"JobId={job}", "StartTime=now")


def state(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    return dict(field.split("=", 1) for field in asked("scontrol", "show", "job", job).split() if "=" in field)


def test_a_sweep(command, tmp_path):  # noqa: F811
    process = command("program.py", "-m", "seed=1,13", *ON_SLURM)
    _, screen = process.communicate(timeout=240)
    assert process.returncode == 1, screen
    folder = the_sweep(tmp_path)
    rows = [(row["state"], row["objective"], row["error"]) for row in jobs(folder).values()]
    assert rows == [("finished", "0.1", ""), ("failed", "null", "ValueError: thirteen")]
    arrays = {told(folder / name)["environment"]["SLURM_ARRAY_JOB_ID"] for name in "01"}
    assert len(arrays) == 1
    assert [told(folder / name)["environment"]["SLURM_ARRAY_TASK_ID"] for name in "01"] == ["0", "1"]
    wait_for(lambda: not alive(tmp_path), 30)


def test_a_job_of_a_sweep_whose_time_is_up_goes_on(command, tmp_path):  # noqa: F811
    """Four minutes: SLURM counts time limits in minutes, and signals up to one of them earlier than it was asked to."""
    limit = ("hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=60")
    length = ("trainer.max_epochs=1000000", "+trainer.max_time=00:00:02:40")  # longer than the limit less the signal
    process = command(ROOT / "src" / "train.py", "-m", "seed=1", *QUICK[:2], *QUICK[3:], *length, *limit, *ON_SLURM)
    started = time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - started < 900
        hurry()
        time.sleep(1)
    _, screen = process.communicate()
    assert process.returncode == 0, screen
    folder = the_sweep(tmp_path)
    assert states(folder) == ["finished"]
    assert runs.read_json(folder / "0" / runs.SUMMARY)["resumed"] >= 1
    assert "stopped by SIGTERM: step" in (folder / "0" / runs.LOG).read_text()


def test_ctrl_c_cancels(command, tmp_path):  # noqa: F811
    running = command("program.py", "-m", "seed=1000,1001,1002", *ON_SLURM)  # of which one waits for a core
    wait_for(lambda: len(list(tmp_path.glob("multirun/*/*/*/told.json"))) == 2, 120)
    running.send_signal(signal.SIGINT)
    _, screen = running.communicate(timeout=60)
    assert running.returncode == 130, screen
    assert states(the_sweep(tmp_path)) == ["interrupted"] * 3
    wait_for(lambda: asked("squeue", "--noheader") == "", 60)
    assert not alive(tmp_path)


def submit_script(folder: Path, changes: dict[str, str], *overrides: str) -> tuple[str, Path]:
    """Submit `scripts/slurm.sh` from a folder, with these changes and without a GPU; return its number and its log."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    script = (ROOT / "scripts" / "slurm.sh").read_text()
    for old, new in ({"#SBATCH --gpus-per-node=1\n": ""} | changes).items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (folder / "slurm.sh").write_text(script)
    sbatch = ["sbatch", "--parsable", "slurm.sh", *overrides]
    job = subprocess.run(sbatch, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    return job, folder / f"slurm-{job}.log"


def test_a_task_of_the_script_has_all_its_cores(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("import os\nprint(len(os.sched_getaffinity(0)), 'cores')\n")
    job, log = submit_script(tmp_path, {"--cpus-per-task=8\n": "--cpus-per-task=2\n"})
    wait_for(lambda: state(job)["JobState"] == "COMPLETED", 60)
    assert log.read_text() == "2 cores\n"


def test_the_script_for_one_run_saves_is_requeued_and_finishes(tmp_path):
    """Two tasks on the two cores. The signal is the one that SLURM sends before the time is up."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    changes = {"--ntasks-per-node=1\n": "--ntasks-per-node=2\n", "--cpus-per-task=8\n": "--cpus-per-task=1\n"}
    overrides = ("data=regression", "logger=none", "callbacks.progress=null", "model.width=8", "trainer.max_epochs=60")
    job, log = submit_script(tmp_path, changes | {"trainer=ddp": "trainer=ddp_cpu"}, *overrides)
    run = tmp_path / "runs" / "slurm" / job
    wait_for(lambda: (run / runs.LAST).exists() or state(job).get("JobState") not in ("PENDING", "RUNNING"), 120)
    assert (run / runs.LAST).exists(), log.read_text()
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    wait_for(lambda: state(job).get("Restarts") == "1" and state(job)["JobState"] == "PENDING", 60)
    assert runs.read_json(run / runs.SUMMARY)["status"] == "interrupted", log.read_text()
    started = time.monotonic()
    while state(job)["JobState"] != "COMPLETED":
        assert state(job)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), log.read_text()
        assert time.monotonic() - started < 400, log.read_text()
        hurry()
        time.sleep(1)
    summary = runs.read_json(run / runs.SUMMARY)
    assert (summary["status"], summary["resumed"], summary["steps"]) == ("finished", 1, 60 * 18)
    assert summary["devices"] == 2
    assert [path.name for path in (tmp_path / "runs").rglob(runs.SUMMARY)] == [runs.SUMMARY]
