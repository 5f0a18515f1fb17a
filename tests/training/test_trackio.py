"""Trackio as a logger: on this machine alone, the same Trackio run however often it is resumed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
from lightning.pytorch.utilities import rank_zero_only

from gradflow import runs
from gradflow.runs.errors import UserError
from gradflow.training import trackio_logger
from gradflow.training.trackio_logger import TrackioLogger

SPACE = {"TRACKIO_SPACE_ID": "somebody/space", "TRACKIO_SERVER_URL": "http://elsewhere?write_token=x"}
OFFLINE = """
import os, socket, sys

def connect(*_):
    print("network", file=sys.stderr)
    raise OSError

socket.socket.connect = socket.getaddrinfo = connect
from gradflow.training.trackio_logger import TrackioLogger

folder, first, last = sys.argv[1:]
logger = TrackioLogger(folder, "p")
logger.log_hyperparams({"model": {"depth": 3}})
for step in range(int(first), int(last)):
    logger.log_metrics({"loss/train": 1 / (step + 1), "lr": float("nan")}, step)
logger.finalize("success")
logger.log_metrics({"loss/test": 0.5}, int(last))
logger.finalize("success")
"""


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in that keeps what it is given."""
    module, hub = ModuleType("trackio"), ModuleType("huggingface_hub")
    module.rows, module.finished = [], 0
    hub.whoami = lambda: {"name": "somebody"}

    def init(project, **options):
        with pytest.raises(OSError, match=r"^$"):
            hub.whoami()
        print("* Trackio project initialized")
        module.options, module.environment = {"project": project} | options, dict(os.environ)
        return SimpleNamespace(log=lambda row, step: module.rows.append((step, row)))

    def finish():
        if module.finished:
            raise RuntimeError("Call trackio.init() before trackio.finish().")
        print("* Run finished.")
        module.finished += 1

    module.init, module.finish, module.Image = init, finish, lambda path: f"image of {path}"
    for one in (module, hub):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    monkeypatch.setattr(trackio_logger, "find_spec", lambda name: name)
    return module


def test_without_the_package_one_line_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(trackio_logger, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^logger=trackio: needs trackio; pip install -e \.\[trackio\]$"):
        TrackioLogger(str(tmp_path), "p")


def test_a_run_stays_on_this_machine_and_says_where_it_is_seen(trackio, monkeypatch, tmp_path, capsys):
    for name, value in SPACE.items():
        monkeypatch.setenv(name, value)
    logger = TrackioLogger(str(tmp_path / "2026-01-31" / "12-00-00-mlp"), "p")
    logger.log_hyperparams({"seed": 1})
    logger.log_metrics({"loss/train": 2.5}, 3)
    logger.log_image("depth", ["depth.png"])
    options = {"project": "p", "name": "2026-01-31-12-00-00-mlp", "group": None, "config": {"seed": 1}}
    assert trackio.options == options | {"resume": "never", "embed": False}
    assert not set(SPACE) & set(trackio.environment)
    assert set(SPACE) <= set(os.environ)
    assert trackio.rows == [(3, {"loss/train": 2.5}), (3, {"depth": "image of depth.png"})]
    logger.finalize("success")
    logger.finalize("success")
    assert capsys.readouterr().out == "Trackio: on this machine; to see it: trackio show --project p\n"


def test_a_resumed_run_is_the_same_trackio_run(trackio, tmp_path):
    (tmp_path / runs.SUMMARY).write_text("{}")
    TrackioLogger(str(tmp_path), "p").log_metrics({"loss/train": 0.25}, 4)
    assert trackio.options["resume"] == "allow"
    assert trackio.rows == [(4, {"loss/train": 0.25})]


def test_a_job_of_a_sweep_has_the_sweep_as_its_group(trackio, tmp_path):
    sweep = tmp_path / "2026-01-31" / "12-00-00"
    (sweep / "3").mkdir(parents=True)
    (sweep / "multirun.yaml").touch()
    TrackioLogger(str(sweep / "3"), "p").log_metrics({}, 0)
    names = trackio.options["name"], trackio.options["group"]
    assert names == ("2026-01-31-12-00-00-3", "2026-01-31-12-00-00")


def test_only_the_first_rank_logs(trackio, monkeypatch, tmp_path):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = TrackioLogger(str(tmp_path), "p")
    logger.log_metrics({"loss/train": 1.0}, 0)
    logger.log_image("depth", ["depth.png"])
    logger.finalize("success")
    assert (trackio.rows, trackio.finished, logger._run) == ([], 0, None)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio: pip install -e .[trackio]")
def test_the_real_one_needs_no_network_and_goes_on_with_a_run(tmp_path):
    run = tmp_path / "a" / "run"
    run.mkdir(parents=True)
    environment = os.environ | SPACE | {"TRACKIO_DIR": f"{tmp_path}/db", "HF_TOKEN": "hf_none"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    for first, last in ((0, 5), (3, 8)):
        command = [sys.executable, "-c", OFFLINE, str(run), str(first), str(last)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert (done.stdout.count("\n"), done.stderr) == (1, "")
        (run / runs.SUMMARY).write_text("{}")
    with sqlite3.connect(tmp_path / "db" / "p.db") as database:
        rows = [(step, json.loads(row)) for step, row in database.execute("select step, metrics from metrics")]
        (config,) = database.execute("select config from configs where run_name = 'a-run'").fetchone()
    losses = sorted((step, row["loss/train"]) for step, row in rows if "loss/train" in row)
    assert losses == sorted((step, 1 / (step + 1)) for step in (*range(5), *range(3, 8)))  # 3 and 4 were repeated
    assert sorted(step for step, row in rows if "loss/test" in row) == [5, 8]
    assert json.loads(config)["model"] == {"depth": 3}
