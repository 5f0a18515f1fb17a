"""What a run folder has recorded chooses among what conf/ offers, and builds, reads and writes nothing else."""

from __future__ import annotations

import csv
import importlib
import itertools
import os
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from conftest import OPTIONS

import gradflow
from gradflow import runs
from gradflow.config import trust
from gradflow.config.options import CONF
from gradflow.report.run import read_run
from gradflow.report.tables import Cell, Table
from gradflow.runs import files, sweep_jobs, tables
from gradflow.runs.errors import UserError

NOT_OURS = re.compile(r"ray|submitit|optuna")  # packages that need not be there


def things() -> Iterator[tuple[str, Any]]:
    """Every class and function of the package, by its dotted name."""
    for package in (gradflow,):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                names = vars(importlib.import_module(module.name))
            except ImportError as error:
                if not NOT_OURS.search(str(error)):
                    raise
                continue
            for name, thing in names.items():
                if callable(thing) and getattr(thing, "__module__", None) == module.name:
                    yield f"{module.name}.{name}", thing


THINGS = dict(things())
LIBRARIES = ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "torch.nn.Linear", "lightning.Trainer"]
GROUPS = sorted(OPTIONS)
SPELLINGS = (
    "{group}._target_={target}",
    "++{group}.x.y._target_={target}",
    "+{group}.x={{_target_:{target},_partial_:true}}",
    "+{group}.x={{a:[1,{{b:{{_target_:{target}}}}}]}}",
    "+{group}.x=[[{{_target_: {target}}}]]",
    "+{group}={{_target_:{target}}}",
)


def test_what_starts_processes_writes_or_deletes_is_among_the_things():
    """The walk finds what it is for."""
    assert {
        "gradflow.sweeps.job_process.JobProcess",
        "gradflow.runs.claims.discard_unstarted",
        "gradflow.data.cache.cached",
    } <= {*THINGS}
    assert {"gradflow.sweeps.forkserver.ForkServer", "gradflow.training.checkpoints.copy_checkpoint"} <= {*THINGS}
    assert len(THINGS) > 400


def test_a_record_builds_nothing_that_conf_does_not_name_in_that_group():
    """Everything in the package, in every group."""
    for group, target in itertools.product(GROUPS, [*THINGS, *LIBRARIES]):
        why = trust._why_value_rejected(f"{group}.x._target_", target, set())
        assert (why is None) == (target in trust.targets(group))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spellings_of_a_target(spelling):
    for group, target in itertools.product(GROUPS, ("gradflow.sweeps.job_process.JobProcess", "os.system")):
        with pytest.raises(UserError, match="the run's folder asks for it"):
            trust.check_recorded([spelling.format(group=group, target=target)])


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_each_thing_is_refused_as_a_word(group):
    for target, spelling in zip([*THINGS, *LIBRARIES], itertools.cycle(SPELLINGS)):
        if target not in trust.targets(group):
            with pytest.raises(UserError, match="the run's folder asks for it"):
                trust.check_recorded([spelling.format(group=group, target=target)])


def test_what_conf_names_is_named_in_its_own_group_only():
    assert "gradflow.models.recurrent.RNN" in trust.targets("model")  # of a file that is @package _global_
    assert "gradflow.training.checkpoints.Best" in trust.targets("callbacks")
    assert trust.targets("experiment") == set()
    assert trust.targets("data").isdisjoint(trust.targets("callbacks") | trust.targets("hydra"))


def test_trusted_configurations_build_what_conf_names_and_classes_of_the_libraries():
    for group in GROUPS:
        for target in trust.targets(group) if group != "hydra" else ():
            trust.check_target(group, target)
    trust.check_target("callbacks.stop", "lightning.pytorch.callbacks.EarlyStopping")
    for group, target in itertools.product(("data", "callbacks.x", "model"), THINGS):
        if target not in trust.targets(trust.top_key(group)):
            with pytest.raises(UserError, match="is neither named in conf/"):
                trust.check_target(group, target)


@pytest.mark.parametrize("target", ["torch.nn.modules.module.torch.load", "torch.nn.init.torch.load"])
def test_a_library_lends_nothing_that_it_has_only_imported(target):
    with pytest.raises(UserError, match="is neither named in conf/"):
        trust.check_target("callbacks.x", target)


REFUSED = [
    "data.source._args_=[1]",
    "+data.source={_args_:[1]}",
    "data.source._partial_=false",
    "+data.x={_recursive_:false}",
    "+data.x={_convert_:all}",
    "~data._target_",
    "data._target_=${model._target_}",
    "+data.x={_target_:${callbacks.best._target_}}",
    "+data.x=${callbacks.best}",
    "+data.x=${callbacks}",
    "+data.x=${data.source}",
    "+data.x=${hydra.launcher}",
    "+data.x=${hydra.run.dir}",
    "+data.x=${hydra:runtime.cwd}",
    "+data.x=${.source}",
    "+data.x=${oc.env:HOME}",
    "data.root='${oc.env:HOME}/x'",
    "data.root='${oc.env:${seed}}'",
    "data.root=${unused_folder:made}",
    "data.root=${now:%Y}",
    "+data.x={a:[${oc.decode:1}]}",
    "+data.x=str(${oc.env:HOME})",
    "data=../../x",
    "data='../../x'",
    "data=/x",
    "data=${seed}",
    "callbacks=[default,../x]",
    "+data/x=../y",
    "model@data.source=mlp",
    "+model@hydra.launcher=mlp",
    "hydra.searchpath=[file:///x]",
    "+hydra={callbacks:{}}",
    "hydra/launcher=slurm",
    "seed=1,2",
    "callbacks.best.dirpath=x",
    "+callbacks.best={dirpath:x}",
    "logger.save_dir=x",
    "data.run_dir=x",
    "callbacks.best.filename=../../x",
    "+logger.version=/x",
    "+trainer.profiler=s3://x",
]


@pytest.mark.parametrize("word", REFUSED)
def test_recorded_words_are_values_and_options(word):
    with pytest.raises(UserError, match="the run's folder asks for it, but"):
        trust.check_recorded(["seed=1", word])


def test_nothing_new_is_built_elsewhere_by_a_reference():
    best = "gradflow.training.checkpoints.Best"
    trust.check_recorded([f"+callbacks.x={{_target_:{best}}}"])
    for reference in ("callbacks.x", "callbacks", "callbacks.x._target_"):
        with pytest.raises(UserError, match="only a value may be referred to"):
            trust.check_recorded([f"+callbacks.x={{_target_:{best}}}", f"+data.y=${{{reference}}}"])


def test_a_run_of_ones_own_keeps_its_words():
    words = [f"{group}={option}" for group in OPTIONS if group != "hydra" for option in OPTIONS[group]]
    words += ["callbacks=[default]", "experiment=null", "++seed=-1", "~model.norm", "trainer.max_epochs=20"]
    words += ["model.width=${data.batch_size}", "data.seed=${seed}", "data.root=/data/images", "data.cache=../x"]
    words += [
        "callbacks.best.monitor=accuracy/val",
        "model._target_=gradflow.models.cnn.CNN",
        "optimizer.betas=[.9,.99]",
    ]
    words += [
        "data.source._target_=gradflow.data.sources.shapes.shapes",
        "callbacks.resume_checkpoint=null",
        "++model.x={a:[1,b/c]}",
    ]
    assert trust.check_recorded(words) == words


# --- plain data ----------------------------------------------------------------------------------------------------


def test_yaml_is_read_as_text_without_tags_and_aliases(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    file = tmp_path / "x.yaml"
    file.write_text("a: ${oc.env:SECRET}\nb: ${unused_folder:made}\n")
    assert files.read_yaml(file) == {"a": "${oc.env:SECRET}", "b": "${unused_folder:made}"}
    for text in ("a: !!python/object/apply:os.getcwd []", "a: &a [1]\nb: *a", "a: [", "[" * 500, "\x00"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"x\.yaml: can't be read"):
            files.read_yaml(file)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no such file"):
        files.read_yaml(tmp_path / "pipe")


def test_the_report_resolves_nothing_of_a_foreign_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    text = (
        "seed: ${data.seed}\ndata: {seed: 3, a: '${oc.env:SECRET}', b: '${unused_folder:made}', "
        "c: '${data.c}', d: [1, 2]}\n"
    )
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text(text)
    runs.write_json(tmp_path / "run" / runs.SUMMARY, {"status": "finished"})
    run = read_run(tmp_path / "run", "run")
    assert run.value("seed") == "3"
    assert run.value("data.a") == "${oc.env:SECRET}"
    assert run.value("data.b") == "${unused_folder:made}"
    assert run.value("data.c") == "${data.c}"
    assert run.value("data.d") == "[1,2]"
    assert run.value("data.x.y") == run.value("data") == ""
    assert run.settings["data.a"] == "${oc.env:SECRET}"
    assert not (tmp_path / "made").exists()


def test_links_that_lead_out_pipes_and_devices(tmp_path):
    (tmp_path / "out").mkdir()
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "in").symlink_to("checkpoints")
    (run / "checkpoints" / "same").symlink_to(run / "in")
    files.check_files(run)
    (run / "debug-core.log").symlink_to("/var/cache/core.log")  # as W&B's service leaves in the folder of every run
    files.check_files(run)
    (tmp_path / "link").symlink_to(run)
    files.check_files(tmp_path / "link")  # where it lies is the user's own choice
    for place in (run, run / "checkpoints"):
        for to in ("../../out", str(tmp_path / "out"), "/dev/zero", str(tmp_path / "not there")):
            (place / "x").symlink_to(to)
            with pytest.raises(UserError, match="is a link that leads out of"):
                files.check_files(run)
            (place / "x").unlink()
        os.mkfifo(place / "x")
        with pytest.raises(UserError, match="x: is neither a file nor a folder"):
            files.check_files(run)
        (place / "x").unlink()


# --- cells of tables -----------------------------------------------------------------------------------------------

TEXTS = [
    "=1+1",
    "+a",
    "-a",
    "@a",
    "\ta",
    "\r=a",
    "'=a",
    "''=a",
    "'-1",
    "'",
    "",
    "a",
    "a=b",
    "'a'",
    "-",
    "=",
    "--1",
    "a'",
]
NUMBERS = ["-0.5", "+1", "-1e-05", "-inf", "0", "nan"]


@pytest.mark.parametrize("text", TEXTS + NUMBERS)
def test_a_cell_is_text_to_a_spreadsheet_and_the_same_text_again(text):
    cell = tables.to_cell(text)
    assert cell in NUMBERS or not cell.startswith(tables.FORMULA)
    assert tables.from_cell(cell) == text
    assert (cell == text) == (text in NUMBERS or not text.lstrip("'").startswith(tables.FORMULA))


def test_the_table_of_a_report(tmp_path):
    Table([{"=x": Cell("=1", more={"@y": -0.5}), "z": Cell(-2.0)}]).write_csv(tmp_path / "t")
    with open(tmp_path / "t", newline="") as file:
        assert list(csv.reader(file)) == [["'=x", "'@y", "z"], ["'=1", "-0.5", "-2"]]


def test_the_table_of_jobs(tmp_path):
    words = [("+a=1", "seed=0"), ("+a={x: 1}",), ("-x",), ("a=1",), ("~a", "b=' '"), ("@a='", "c")]
    jobs = [
        sweep_jobs.Job(place, told, "failed", -0.5, 1.0, tmp_path / folder, error)
        for place, (told, folder, error) in enumerate(
            zip(words, ("0", "=1", "-2", "3", "@4", "'=5"), TEXTS, strict=False)
        )
    ]
    with open(tmp_path / runs.JOBS, "w", newline="") as file:
        csv.writer(file).writerows([sweep_jobs.COLUMNS, *(job.row(tmp_path) for job in jobs)])
    with open(tmp_path / runs.JOBS, newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(tables.FORMULA) and cell not in ("-0.5", "-2")]
    assert sweep_jobs.read(tmp_path / runs.JOBS) == jobs
    assert [field.name for field in fields(sweep_jobs.Job)] == sweep_jobs.COLUMNS


def test_an_older_table_of_jobs_is_read_as_it_was_written(tmp_path):
    rows = ["'+a={x: 1}' seed=0,finished,-0.5,1.0,0,", "+a=1 seed=0,finished,-0.5,1.0,1,"]
    lines = [f"{place},{row}" for place, row in enumerate(rows)]
    (tmp_path / runs.JOBS).write_text("\n".join([",".join(sweep_jobs.COLUMNS), *lines]) + "\n")
    assert [job.overrides for job in sweep_jobs.read(tmp_path / runs.JOBS)] == [
        ("+a={x: 1}", "seed=0"),
        ("+a=1", "seed=0"),
    ]


assert CONF.is_dir()
