"""Sweeps on systems that lack fork, prctl, file locks of their own, and most signals: Windows, and in part macOS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradflow.sweeps.backend import Need
from gradflow.sweeps.job_process import JobProcess
from gradflow.sweeps.local import Local
from gradflow.sweeps.processes import Processes

SRC = Path(__file__).parents[2] / "src"
# Of one process: what sweeps import without Optuna, submitit or Ray, on a system that has none of these.
ELSEWHERE = """
import os, signal, subprocess, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGCHLD"):
    delattr(signal, name)
for name in ("fork", "waitid", "setpgid", "killpg", "sched_getaffinity"):
    delattr(os, name)
sys.platform = "windows"
from gradflow.runs import sweep_jobs
from gradflow.sweeps import job_process, forkserver, launch, local, plugins, processes, ray_cluster, slurm
here = local.Local(None, 1)
here.open(None)
assert type(here.processes) is processes.Processes
print("imported")
"""


def test_sweeps_are_imported_where_fork_locks_and_signals_lack():
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("imported\n", "")


def test_plain_processes_end_like_forks(tmp_path):
    server = Processes()
    for job, code in enumerate(("print('said')", "raise SystemExit(3)")):
        server.start(job, JobProcess(["-c", code], {}, tmp_path / str(job)), 1)
    ended = []
    while len(ended) < 2:
        ended += server.poll(1)
    assert sorted((one.job, one.status) for one in ended) == [(0, 0), (1, 3)]
    assert (tmp_path / "0").read_text() == "said\n"


@pytest.mark.skipif(sys.platform == "win32", reason="ends by a signal's number")
def test_plain_processes_are_stopped(tmp_path):
    here = Local(1, 1)
    here.processes = Processes()
    code = "import time; print('up', flush=True); time.sleep(60)"
    here.start(7, Need(False, 1), JobProcess(["-c", code], {}, tmp_path / "log"), 0)
    assert [(one.job, one.status) for one in here.stop()] == [(7, -15)]
