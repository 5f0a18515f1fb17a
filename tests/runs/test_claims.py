"""The folder of a run or a sweep: never shared, and removed again only by the process that created it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradflow import runs
from gradflow.runs import claims, locks, overrides
from gradflow.runs.errors import UserError

SRC = Path(claims.__file__).parents[2]
WRONG = ("model=mlp", "data=regression", "optimizer.lr=abc")
SHORT = ("model=mlp", "data=regression", "data.points=100", "trainer.max_epochs=1", "logger=none", "callbacks=none")


@pytest.fixture(autouse=True)
def released():
    yield
    claims.release()


def test_new_folders_are_numbered(tmp_path):
    wanted = str(tmp_path / "very" / "deep" / "run")
    assert [claims.new_folder(wanted).name for _ in range(4)] == ["run", "run-2", "run-3", "run-4"]
    assert sorted(path.name for path in (tmp_path / "very" / "deep").iterdir()) == ["run", "run-2", "run-3", "run-4"]


def test_new_folders_at_once_are_never_shared(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claims.new_folder(str(tmp_path / "run")), range(64)))
    assert {path.name for path in claimed} == {"run", *(f"run-{number}" for number in range(2, 65))}


def content(folder: Path) -> dict[str, str | None]:
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else None for path in found}


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def fill(folder: Path, *files: str) -> None:
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"old {name}")


FOREIGN = [
    ("wandb/data",),
    ("tensorboard/events",),
    (".hydra/config.yaml", "summary.json"),
    ("multirun.yaml",),
    ("dataset.json", ".dataset.json.lock"),
    ("notes.txt",),
]


@pytest.mark.parametrize("files", FOREIGN)
@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_folder_with_something_in_it_is_left_alone(tmp_path, files, key):
    fill(tmp_path / "exp", *files)
    before = content(tmp_path)
    with pytest.raises(UserError, match=rf"exp: holds .*{key}"):
        claims.claim(tmp_path / "exp", key)
    claims.discard_unstarted()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("train", ("hydra.run.dir=exp",)),
        ("train", ("hydra.run.dir=link", "resume=auto")),
        ("probe", ("hydra.run.dir=exp",)),
        ("train", ("-m", "seed=0,1", "hydra.sweep.dir=exp")),
    ],
)
@pytest.mark.parametrize("files", [("wandb/data",), ()])
def test_what_was_there_before_a_rejected_command_stays(trained, tmp_path, capsys, program, words, files):
    fill(tmp_path / "exp", *files)
    (tmp_path / "link").symlink_to("exp")
    before = content(tmp_path)
    with pytest.raises(SystemExit) as ended:
        trained(*WRONG, *words, program=program)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert content(tmp_path) == before


def test_a_file_in_a_folder_of_a_logger_stays(tmp_path):
    claims.claim(tmp_path / "new", "hydra.run.dir")
    (tmp_path / "new" / "wandb").mkdir()
    (tmp_path / "new" / "wandb" / "mine").write_text("mine")
    claims.discard_unstarted()
    assert (tmp_path / "new" / "wandb" / "mine").read_text() == "mine"


def test_a_path_that_goes_up_is_one_folder(trained, tmp_path):
    trained(*SHORT, "hydra.run.dir=nowhere/../one")
    assert (tmp_path / "one" / runs.SUMMARY).is_file()
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(SystemExit):
        trained(*WRONG, "hydra.run.dir=nowhere/../two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_what_a_rejected_command_created_goes_with_it(trained, tmp_path, key):
    (tmp_path / "mine").mkdir()
    words = ("-m", "seed=0,1") if key == "hydra.sweep.dir" else ()
    with pytest.raises(SystemExit):
        trained(*WRONG, *words, f"{key}=mine/new/deep")
    assert content(tmp_path) == {"mine": None}


def test_a_file_that_came_meanwhile_stays(tmp_path):
    claims.claim(tmp_path / "new", "hydra.run.dir")
    (tmp_path / "new" / "notes.txt").write_text("mine")
    claims.discard_unstarted()
    assert content(tmp_path) == {
        "new": None,
        "new/.lock": f"{os.getpid()} {platform.node()}\n",
        "new/notes.txt": "mine",
    }


def test_a_run_that_began_stays(tmp_path):
    claims.claim(tmp_path / "new", "hydra.run.dir")
    (tmp_path / "new" / runs.METRICS).write_text("step\n")
    claims.discard_unstarted()
    assert (tmp_path / "new" / runs.METRICS).is_file()


def test_an_empty_folder_is_taken_and_given_back_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    claims.claim(tmp_path / "empty", "hydra.run.dir")
    runs.write_json(tmp_path / "empty" / runs.SUMMARY, {})
    (tmp_path / "empty" / ".hydra").mkdir()
    (tmp_path / "empty" / runs.OVERRIDES).write_text("[]")
    claims.discard_unstarted()
    assert content(tmp_path) == {"empty": None}


def test_a_rejected_run_leaves_the_record_of_the_one_at_work(trained, tmp_path, capsys):
    """From the first moment on, when there is no summary yet."""
    run = tmp_path / "one"
    code = "import sys; sys.path.insert(0, sys.argv[1]); from gradflow.runs import claims; from pathlib import Path\n"
    code += "claims.claim(Path(sys.argv[2]), 'hydra.run.dir'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(SRC), str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"\n"
        for words in (SHORT, (*SHORT, "resume=auto")):
            with pytest.raises(SystemExit) as ended:
                trained(*words, "hydra.run.dir=one", "seed=2")
            assert ended.value.code == 2
            assert "one: another process is at work in it" in capsys.readouterr().err
        assert list(content(run)) == [".lock"]
        other.stdin.close()
    trained(*SHORT, "hydra.run.dir=one", "seed=2")  # its lock has ended with it
    assert "seed=2" in read(run / runs.OVERRIDES)


def test_a_second_run_in_a_folder_is_rejected(trained, tmp_path, capsys):
    trained(*SHORT, "hydra.run.dir=one", "seed=1")
    before = content(tmp_path / "one" / ".hydra")
    with pytest.raises(SystemExit) as ended:
        trained(*SHORT, "hydra.run.dir=one", "seed=2")
    assert ended.value.code == 2
    assert "one: holds a run already" in capsys.readouterr().err
    assert content(tmp_path / "one" / ".hydra") == before


def test_the_record_is_the_one_that_hydra_writes(trained, tmp_path):
    trained(*SHORT, "hydra.run.dir=one")
    record = {
        name: yaml.safe_load((tmp_path / "one/.hydra" / f"{name}.yaml").read_text()) for name in ("config", "hydra")
    }
    assert yaml.safe_load((tmp_path / "one" / runs.OVERRIDES).read_text()) == list(SHORT)
    assert record["config"]["data"]["points"] == 100
    assert "hydra" not in record["config"]
    assert record["hydra"]["hydra"]["runtime"]["output_dir"] == str(tmp_path / "one")


def test_a_run_killed_before_its_summary_goes_on(trained, tmp_path, capsys):
    trained(*SHORT, "hydra.run.dir=one")
    for path in (tmp_path / "one").iterdir():
        if path.name not in (".hydra", locks.LOCK):
            path.unlink()
    trained("resume=one")
    assert "resume: one goes on from the start: it has no checkpoint yet" in capsys.readouterr().out
    assert json.loads((tmp_path / "one" / runs.SUMMARY).read_text())["status"] == "finished"


def test_a_finished_run_without_checkpoints_is_not_trained_over(trained, tmp_path, capsys):
    """Somebody has made room; what was measured stays."""
    trained(*SHORT, "hydra.run.dir=one")
    shutil.rmtree(tmp_path / "one" / "checkpoints", ignore_errors=True)
    before = {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.suffix and path.is_file()}
    with pytest.raises(SystemExit, match="2"):
        trained("resume=one", "trainer.max_epochs=3")
    assert "one: its training is over, and no checkpoint of it is here" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_that_can_not_be_made(trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("missing")
    for name in ("file", "file/below", "nowhere"):
        with pytest.raises(SystemExit) as ended:
            trained(*SHORT, f"hydra.run.dir={name}")
        assert ended.value.code == 2
        assert f"error: {name}: can't be made the run's folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == ""


def test_a_job_finds_its_folder_prepared(tmp_path):
    (tmp_path / runs.LOG).touch()
    claims.claim(tmp_path, "hydra.run.dir", prepared=True)
    assert claims.claimed(tmp_path)
    claims.discard_unstarted()
    assert (tmp_path / runs.LOG).is_file()
    runs.write_json(tmp_path / runs.SUMMARY, {})
    with pytest.raises(UserError, match="holds a run already"):
        claims.claim(tmp_path, "hydra.run.dir", prepared=True)


@pytest.mark.parametrize("name", [runs.JOBS, runs.STUDY])
def test_a_sweep_of_an_earlier_command_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"holds a sweep already; add continue_sweep={tmp_path}"):
        claims.claim(tmp_path, "hydra.sweep.dir")


def test_going_on_is_never_discarded(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / runs.OVERRIDES).write_text("- seed=1\n")
    assert claims.go_on(tmp_path)
    assert overrides.same_run(tmp_path, ["seed=1"])
    claims.discard_unstarted()
    assert (tmp_path / runs.OVERRIDES).is_file()


def test_a_run_without_a_step_keeps_its_folder_when_it_was_no_mistake(trained):
    words = ("model.depth=20", "model.width=8", "activation=sigmoid", "init=torch", "data=regression")
    run = trained(*words, "logger=none", "callbacks.progress=null", "probe=true", "on_alarm=prune")
    assert runs.read_json(run / runs.SUMMARY)["status"] == "pruned"
