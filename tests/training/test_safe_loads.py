"""Nothing that is read runs code: each of these files does, when somebody careless reads it."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from invalid_input import QUIET, ROOT, run
from torchvision.datasets import CIFAR10

from gradflow import report
from gradflow.config import previous_runs, resume
from gradflow.data import cache
from gradflow.data.sources import auto, cifar10
from gradflow.runs import claims, overrides
from gradflow.runs.errors import UserError
from gradflow.training.checkpoints import Best

MARK = "made"  # the folder that appears when code has run


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    status, said = run(f"{QUIET} hydra.run.dir=run", folder)
    assert status == 0, said
    return folder / "run"


@pytest.fixture
def stopped(trained_once: Path, tmp_path: Path) -> Path:
    """A copy that asks to be resumed."""
    shutil.copytree(trained_once, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "summary.json").read_text())
    (tmp_path / "run" / "summary.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    return tmp_path / "run"


def test_the_files_are_what_they_claim(tmp_path):
    """The pickles of these tests do run code."""
    pickle.loads(pickle.dumps(Evil(tmp_path / MARK)))
    assert (tmp_path / MARK).is_dir()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("eval run=run checkpoint={}", "best"),
        ("eval run=run checkpoint={}", "last"),
        ("resume=run/checkpoints/{}.ckpt", "best"),
        ("resume=run/checkpoints/{}.ckpt", "last"),
        ("resume=run", "last"),
        ("resume=run", "previous"),
    ],
)
def test_checkpoints(stopped, tmp_path, name, line):
    checkpoints = stopped / "checkpoints"
    for old in checkpoints.iterdir():  # `resume=<folder>` looks at the one before it, too
        if line == "resume=run" or old.stem == name:
            old.unlink()
    torch.save({"state_dict": {"a": Evil(tmp_path / MARK)}}, checkpoints / f"{name}.ckpt")
    program = "" if line.startswith("eval") else f"{QUIET} "
    status, said = run(program + line.format(name), tmp_path)
    assert not (tmp_path / MARK).exists()
    assert status == 2
    assert "not a checkpoint of ours, or damaged" in said


@pytest.mark.parametrize("name", ["x.npy", "y.npy"])
def test_a_cache_of_objects(tmp_path, name):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 4), np.uint8))
    np.save(tmp_path / "y.npy", np.zeros(2, np.int64))
    np.save(tmp_path / name, np.array([Evil(tmp_path / MARK)], object), allow_pickle=True)
    with pytest.raises(UserError, match="this cache is damaged"):
        cache.read(tmp_path)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
def test_cifar10_that_is_not_the_one(tmp_path, monkeypatch, name):
    """Its batches are pickles by nature: only those with the right checksum are opened."""
    monkeypatch.setattr(cifar10, "fetch", lambda folder: "no network")
    batches = tmp_path / CIFAR10.base_folder
    batches.mkdir()
    (batches / name).write_bytes(pickle.dumps(Evil(tmp_path / MARK)))
    with pytest.raises(UserError, match="is not in"):
        cifar10.cifar10(str(tmp_path)).prepare()
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as archive:
        archive.add(batches, CIFAR10.base_folder)
    with pytest.raises(UserError, match="truncated or altered"):
        cifar10.cifar10(str(tmp_path)).prepare()
    assert not (tmp_path / MARK).exists()


TAG = f"!!python/object/apply:os.mkdir [{MARK}]"


@pytest.mark.slow
@pytest.mark.parametrize("line", ["eval run=run", "resume=run", "report run"])
@pytest.mark.parametrize("name", ["overrides", "config", "hydra"])
def test_yaml_tags(stopped, tmp_path, line, name):
    (stopped / ".hydra" / f"{name}.yaml").write_text(f"- {TAG}\n" if name == "overrides" else f"seed: {TAG}\n")
    status, said = run(line, tmp_path)
    assert not (tmp_path / MARK).exists()
    assert "Traceback" not in said
    if name == "overrides" and line != "report run":
        assert status == 2
        assert "overrides.yaml: can't be read" in said


def test_the_sweep_that_is_gone_on_with(tmp_path):
    (tmp_path / "multirun.yaml").write_text(f"hydra: {TAG}\n")
    (tmp_path / "jobs.csv").write_text("number,overrides,state,objective,seconds,folder,error\n")
    status, _ = run("-m data=regression seed=x continue_sweep=.", tmp_path)
    assert status == 2
    assert not (tmp_path / MARK).exists()


OVERRIDES = [
    f"+callbacks.x={{_target_:os.mkdir,path:{MARK}}}",
    f"+callbacks.x={{_target_:gradflow.config.checks.os.mkdir,path:{MARK}}}",
    f"+data.x={{_target_:gradflow.config.checks.os.mkdir,path:{MARK}}}",
    "model._target_=gradflow.config.checks.os.getcwd",
    f"+hydra.callbacks.x={{_target_:gradflow.config.checks.os.mkdir,path:{MARK}}}",
    "hydra.searchpath=[file://EVIL]",
    "--config-dir=EVIL",
    f"hydra.run.dir={MARK}",
    f"hydra.sweep.dir={MARK}",
    f"run_dir={MARK}",
]


@pytest.mark.slow
@pytest.mark.parametrize("word", OVERRIDES)
@pytest.mark.parametrize("line", ["eval run=run", "resume=run"])
def test_recorded_overrides(stopped, tmp_path, line, word):
    """Those of a run from elsewhere are words of a command, but not of any command."""
    evil = tmp_path / "evil" / "data"
    evil.mkdir(parents=True)
    (evil / "regression.yaml").write_text(f"_target_: os.mkdir\npath: {MARK}\n")
    file = stopped / ".hydra" / "overrides.yaml"
    file.write_text(f"{file.read_text()}- '{word.replace('EVIL', str(evil.parent))}'\n")
    before = set(tmp_path.iterdir())
    status, said = run(line, tmp_path)
    assert status in (0, 2), said
    assert "Traceback" not in said
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("line", ["eval run=run", "resume=run"])
@pytest.mark.parametrize("word", ["hydra.searchpath=[file://EVIL]", "--config-dir=EVIL"])
def test_configurations_are_those_of_this_checkout(stopped, tmp_path, line, word):
    """A run's record can't bring options of its own."""
    evil = tmp_path / "evil" / "data"
    evil.mkdir(parents=True)
    (evil / "mine.yaml").write_text("_target_: gradflow.data.datamodule.DataModule\n")
    (stopped / ".hydra" / "overrides.yaml").write_text(f"- '{word.replace('EVIL', str(evil.parent))}'\n- data=mine\n")
    status, said = run(line, tmp_path)
    assert status == 2
    refused = "--config-dir=evil: not of the form key=value" if line.startswith("eval") and word[0] == "-" else ""
    assert said.startswith(f"error: {refused or 'data=mine: no such option; known: adding'}"), said


TASK = (
    "{_target_:gradflow.sweeps.job_process.JobProcess,"
    f"arguments:[-c,'mkdir {MARK}'],environment:{{}},folder:.,log:x,python:/bin/sh}}"
)
SOURCE = [
    "data.source._target_=gradflow.data.sources.source.Source",
    "~data.points",
    "~data.features",
    "~data.noise",
    "+data.name=x",
    "+data.spec={_target_:gradflow.spec.Spec,kind:vector,shape:[2],task:regression,outputs:1}",
    f"+data.source.prepare={TASK}",
]
LINES = ["eval run=run", "replay run=run epoch=0 batch=0", "resume=run"]


def add(run_folder: Path, *words: str) -> None:
    file = run_folder / ".hydra" / "overrides.yaml"
    file.write_text(file.read_text() + "".join(f"- {json.dumps(word)}\n" for word in words))


@pytest.mark.parametrize("line", LINES)
def test_a_record_that_starts_a_process(stopped, tmp_path, line):
    add(stopped, *SOURCE)
    before = (stopped / "summary.json").read_bytes()
    status, said = run(line, tmp_path)
    assert not (tmp_path / MARK).exists()
    assert status == 2
    assert said == (
        f"error: {SOURCE[0]}: the run's folder asks for it, but conf/data/ has no such _target_; "
        "if you trust it, give it on the command line, beside resume=…\n"
    )
    assert (stopped / "summary.json").read_bytes() == before


def test_a_word_of_the_record_that_is_given_anew_is_the_users(stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stop = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:loss/val}"
    add(stopped, stop)
    with pytest.raises(UserError, match="conf/callbacks/ has no such _target_"):
        resume.arguments_of_resumed_run(["resume=run"])
    try:
        assert resume.arguments_of_resumed_run(["resume=run", stop]).count(stop) == 1
    finally:
        claims.release()


def test_where_a_run_began_is_no_word_to_resolve(stopped, monkeypatch, tmp_path):
    """Of one's own it stays in the record; the file that it leads to is not opened."""
    monkeypatch.setenv("SECRET", str(tmp_path / "run" / "checkpoints" / "last.ckpt"))
    add(stopped, "resume='${oc.env:SECRET}'")
    assert overrides.initial_resume(stopped) == ["resume='${oc.env:SECRET}'"]
    with pytest.raises(UserError, match=r"only \$\{key\} may refer to something else"):
        previous_runs.initial_checkpoint(stopped)


@pytest.mark.parametrize(
    ("line", "name"),
    [(LINES[0], ".hydra/config.yaml"), *((line, "metrics.csv") for line in (LINES[1], LINES[2], "report run"))],
)
def test_a_pipe_is_not_waited_for(stopped, tmp_path, line, name):
    (stopped / name).unlink()
    os.mkfifo(stopped / name)
    status, said = run(line, tmp_path)
    assert f"{name}: is neither a file nor a folder; remove it" in said
    assert str(tmp_path) not in said
    assert (status, said.count("\n")) == (0 if line == "report run" else 2, 1)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (LINES[0], "scores.json"),
        (LINES[0], ".hydra"),
        (LINES[1], "metrics.csv"),
        (LINES[2], ".lock"),
        (LINES[2], "checkpoints/x"),
        ("resume=auto hydra.run.dir=run", ".lock"),
        ("resume=auto", ".lock"),
        ("report run", "report.html"),
    ],
)
def test_nothing_is_written_through_a_link(stopped, tmp_path, line, name):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "overrides.yaml").write_text((stopped / ".hydra" / "overrides.yaml").read_text())
    shutil.rmtree(stopped / ".hydra") if name == ".hydra" else (stopped / name).unlink(missing_ok=True)
    (stopped / name).symlink_to(precious if name == ".hydra" else precious / "overrides.yaml")
    before = (precious / "overrides.yaml").read_bytes()
    (tmp_path / "runs" / "day").mkdir(parents=True)
    (tmp_path / "runs" / "day" / "1").symlink_to(stopped)  # where `resume=auto` finds it
    status, said = run(f"{QUIET} {line}" if "auto" in line else line, tmp_path)
    assert f"{name}: is a link that leads out of" in said or "report.html: is not a plain file" in said
    assert status == 2 or (status == 0 and line == "report run")
    assert list(precious.iterdir()) == [precious / "overrides.yaml"]
    assert (precious / "overrides.yaml").read_bytes() == before


@pytest.mark.parametrize("line", LINES[1:])
def test_the_sweep_around_a_run_is_looked_at_too(stopped, tmp_path, line):
    """There `data=auto` has its lock, which a process would open, and empty, through a link."""
    (tmp_path / "sweep").mkdir()
    stopped.rename(tmp_path / "sweep" / "0")
    (tmp_path / "sweep" / "multirun.yaml").touch()
    (tmp_path / "sweep" / ".dataset.json.lock").symlink_to("../precious")
    status, said = run(line.replace("run=run", "run=sweep/0").replace("resume=run", "resume=sweep/0"), tmp_path)
    assert (status, "sweep/.dataset.json.lock: is a link that leads out of" in said) == (2, True)


def test_a_sweep_whose_log_is_a_pipe(tmp_path):
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    os.mkfifo(tmp_path / "sweep" / "0" / "job.log")
    row = "0,data=regression seed=0,running,null,0.0,0,"
    (tmp_path / "sweep" / "jobs.csv").write_text(f"number,overrides,state,objective,seconds,folder,error\n{row}\n")
    status, said = run("-m data=regression seed=0,1 continue_sweep=sweep", tmp_path)
    assert (status, said) == (2, "error: sweep/0/job.log: is neither a file nor a folder; remove it\n")


@pytest.mark.parametrize("elsewhere", ["../../precious", "/precious"])
def test_a_checkpoint_that_names_weights_elsewhere(tmp_path, elsewhere):
    """Lightning would remove them as soon as better ones are there."""
    best = Best(dirpath=str(tmp_path / "run" / "checkpoints"), monitor="loss/val", filename="best")
    named = f"{best.dirpath}/{elsewhere}" if elsewhere.startswith("..") else f"{tmp_path}{elsewhere}"
    Path(named).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "precious").write_text("mine")
    score = torch.tensor(1.0)
    state = {"best_model_path": named, "kth_best_model_path": named, "last_model_path": "", "kth_value": score}
    state |= {"best_model_score": score, "current_score": score, "best_k_models": {named: score}}
    best.load_state_dict(state | {"dirpath": best.dirpath, "monitor": "loss/val"})
    assert not best.best_k_models
    assert best.kth_best_model_path == ""
    assert not list((tmp_path / "run").rglob("*.ckpt"))  # nor is it copied to where it might be sent from


def test_a_job_elsewhere(tmp_path):
    """A table can't send a sweep into other people's folders."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "summary.json").write_text('{"status": "running"}')
    (tmp_path / "sweep").mkdir()
    for place in ("../victim", str(victim)):
        row = f"0,data=regression seed=0,running,null,0.0,{place},"
        (tmp_path / "sweep" / "jobs.csv").write_text(f"number,overrides,state,objective,seconds,folder,error\n{row}\n")
        status, said = run("-m data=regression seed=0,1 continue_sweep=sweep", tmp_path)
        assert status == 2
        assert "is not in the sweep's folder" in said
        assert (victim / "summary.json").read_text() == '{"status": "running"}'


def test_a_data_set_of_another_name(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": "../evil", "reason": ""}')
    with pytest.raises(UserError, match=r"dataset\.json: is damaged \(its name is \.\./evil\)"):
        auto.auto(str(tmp_path), str(tmp_path)).prepare()


HTML = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


class Found(HTMLParser):
    """The elements and the handlers of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts, self.handlers, self.sources = 0, 0, []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.scripts += tag == "script"
        self.handlers += sum(name.startswith("on") for name, _ in attributes)
        self.sources += [value for name, value in attributes if name in ("src", "href")]


@pytest.mark.slow
def test_a_page_on_runs_with_names_of_markup(trained_once, tmp_path):
    shutil.copytree(trained_once, tmp_path / "clean" / "run")
    clean = Found(report.write(tmp_path / "clean").read_text())
    run_folder = tmp_path / "evil" / f"run{HTML.replace('/', '')}"
    shutil.copytree(trained_once, run_folder)
    evil = re.sub(r'": "[^"]*"', lambda found: f'": {json.dumps(HTML)}', (run_folder / "summary.json").read_text())
    facts = json.loads(evil) | {"status": "finished", "overrides": [f"{HTML}={HTML}", f"seed={HTML}"]}
    facts |= {"alarms": {HTML: HTML}, "choices": {HTML: HTML, "model": HTML}}
    (run_folder / "summary.json").write_text(json.dumps(facts))
    for name in ("flow.jsonl", "metrics.csv", "gradients.csv"):
        text = (run_folder / name).read_text().replace("block", HTML.replace('"', "").replace(",", ""))
        (run_folder / name).write_text(text)
    text = report.write(tmp_path / "evil").read_text()
    page = Found(text)
    assert "alert(1)" in text  # it is told, and does nothing
    assert (page.scripts, page.handlers) == (clean.scripts, clean.handlers)
    assert not [source for source in page.sources if source == "x" or source.startswith("javascript:")]


CAREFUL = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
CARELESS = re.compile(r"(?<![.\w])((pickle|marshal|joblib)\.loads?|yaml\.\w*load|eval|exec)\(")


def test_every_load_is_a_careful_one():
    for path in (ROOT / "src").rglob("*.py"):
        source = path.read_text()
        assert not CARELESS.search(source), path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and (wanted := CAREFUL.get(ast.unparse(node.func))):
                assert wanted in ast.unparse(node), f"{path.name}:{node.lineno}"
