"""What Windows and macOS lack, hidden from a process on this system: it stands in for them, but is not one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
CODE = """
import importlib, os, pkgutil, signal, sys
import torch, torchvision, hydra, matplotlib, lightning.pytorch  # which know their own way on every system
from lightning.pytorch.trainer.connectors import signal_connector

signal_connector._IS_WINDOWS = True
caught = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
signal.valid_signals = lambda: caught

torch.set_num_threads(1)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGCHLD", "SIGQUIT", "set_wakeup_fd", "pthread_kill"):
    delattr(signal, name)
for name in ("fork", "killpg", "sched_getaffinity", "getuid", "setsid", "mkfifo"):
    delattr(os, name)
opened = os.open

def open_no_folder(path, *arguments, **options):
    if os.path.isdir(path) and "dir_fd" not in options:  # with it, shutil.rmtree as it works on this system only
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **options)

os.open = open_no_folder

import gradflow

for module in pkgutil.walk_packages(gradflow.__path__, "gradflow."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert error.name in ("ray", "submitit", "optuna", "wandb", "cloudpickle"), error

sys.argv[1:] = ["data=regression", "data.points=100", "trainer=cpu", "trainer.max_steps=2", "logger=none"]
sys.argv += ["test=false", "callbacks.progress=null"]
import train

train.main()
"""


@pytest.mark.slow
def test_it_imports_and_trains_without_what_other_systems_lack(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert " 2 steps," in done.stdout
    assert list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt"))
