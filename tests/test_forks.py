"""What docs/forking.md promises: a package beside gradflow, a new name, and the files of a stranger."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from examples import ROOT, add, files

from gradflow import runs
from gradflow.config import options, trust
from gradflow.runs import packages
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

STRANGERS = ROOT / "tests" / "strangers"
SHORT = ["trainer=cpu", "trainer.max_epochs=1", "logger=none", "callbacks.progress=null"]


def project(folder: Path, *names: str) -> Path:
    """Copy the project, or these parts of it."""
    left_out = (".git", ".venv", "runs", "multirun", "data", "outputs", "shared")
    folder.mkdir(exist_ok=True)
    for name in names or [path.name for path in ROOT.iterdir() if path.name not in left_out]:
        copy, path = folder / name, ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
        shutil.copytree(path, copy, ignore=ignore) if path.is_dir() else shutil.copy(path, copy)
    return folder


def package(folder: Path, name: str = "outside") -> Path:
    """Write a package of the strangers' model, source and task, each with its own name."""
    for path in (path for path in STRANGERS.rglob("*.*") if path.stem in ("maxout", "arrivals", "counts")):
        inside = path.relative_to(STRANGERS)
        copy = folder / name / Path(*(part for part in inside.parts if part not in ("src", "gradflow")))
        text = path.read_text().replace('"counts"', '"my_counts"')
        for ours in ("models.maxout", "data.sources.arrivals"):
            room, _, stem = ours.rpartition(".")
            text = text.replace(f"gradflow.{ours}", f"{name}.{room}.my_{stem}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.with_stem(f"my_{path.stem}").write_text(text)
    return folder / name


def python(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line, known = [sys.executable, *words], {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    return subprocess.run(line, cwd=folder, env=known | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_package_that_is_installed_elsewhere_trains_and_goes_on(tmp_path):
    """Its model, source and task; no file of the project knows it."""
    package(tmp_path / "elsewhere")
    known = {"PYTHONPATH": str(tmp_path / "elsewhere"), packages.NAMED_BY: "outside"}
    words = [str(ROOT / "src" / "train.py"), "model=my_maxout", "data=my_arrivals", *SHORT, "hydra.run.dir=run"]
    done = python(*words, folder=tmp_path, **known)
    assert done.returncode == 0, done.stderr
    summary = runs.read_json(tmp_path / "run" / runs.SUMMARY)
    assert summary["status"] == "finished"
    done = python(words[0], "resume=run", "trainer.max_epochs=2", folder=tmp_path, **known)  # trusts its own _target_s
    assert done.returncode == 0, done.stderr
    assert runs.read_json(tmp_path / "run" / runs.SUMMARY)["steps"] == 2 * summary["steps"]
    done = python(*words[:2], folder=tmp_path)
    assert (done.returncode, done.stderr.partition(";")[0]) == (2, "error: model=my_maxout: no such option")


@pytest.mark.slow
def test_a_package_beside_ours_is_found(tmp_path):
    package(project(tmp_path, "src", "conf") / "src")
    done = python("src/train.py", "--help", folder=tmp_path)
    assert "my_arrivals" in done.stdout
    done = python("src/train.py", "model=my_maxout", "data=my_arrivals", *SHORT, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    done = python("src/train.py", "model=cnn", "data=my_arrivals", *SHORT, folder=tmp_path)
    wrong, offered = done.stderr.split("; for these data choose model=")
    assert wrong == "error: CNN takes image, not vector"
    assert {"mlp", "my_maxout"} <= set(offered.strip().split(" or "))


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """The environment names packages; what was read of conf/ is read again."""
    package(tmp_path)

    def name(names: str) -> None:
        for known in (packages.folders, trust.targets, trust._keys_of_conf):
            known.cache_clear()
        monkeypatch.setenv(packages.NAMED_BY, names)

    monkeypatch.syspath_prepend(tmp_path)
    yield name
    name("")


def test_the_options_and_targets_of_a_package_are_known(named, tmp_path):
    before, targets = options.of_group("model"), trust.targets("model")
    (tmp_path / "outside" / "conf" / "model" / "mlp.yaml").write_text("_target_: outside.models.my_mlp.MLP")
    named("outside")
    assert {*options.of_group("model")} - {*before} == {"my_maxout"}
    assert trust.targets("model") - targets == {"outside.models.my_maxout.Maxout", "outside.models.my_mlp.MLP"}
    assert options.of_group("model")["mlp"] == tmp_path / "outside" / "conf" / "model" / "mlp.yaml"  # the package's own
    assert type(task_of(Spec("vector", (2,), "my_counts", outputs=1))).__module__ == "outside.tasks.my_counts"
    assert "outside" in packages.folders()


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("outsider", "outsider: no such package is installed, or on PYTHONPATH"),
        ("outside, a/b", "a/b: no such package is installed, or on PYTHONPATH"),
        ("json", "json: it has no folder conf/"),
    ],
)
def test_a_package_that_is_not_there_is_one_line(named, names, why):
    named(names)
    with pytest.raises(UserError, match=f"^GRADFLOW_PACKAGES={names}: {why}$"):
        options.folders()


def test_among_installed_packages_only_those_that_are_named_bring_options(named, tmp_path, monkeypatch):
    """Django has a conf/, too."""
    (tmp_path / "lib" / "django" / "conf").mkdir(parents=True)
    monkeypatch.setattr(packages, "_OURS", tmp_path / "lib" / "gradflow")
    named("")
    assert [*packages.folders()] == ["gradflow"]
    (tmp_path / "conf").mkdir()  # a checkout
    named("")
    assert [*packages.folders()] == ["django", "gradflow"]


@pytest.mark.slow
def test_a_fork_of_another_name_is_green_and_goes_on_with_its_runs(tmp_path):
    fork = repository(project(tmp_path / "fork"))
    target = f"model._target_={options.__name__.partition('.')[0]}.models.mlp.MLP"
    done = python("src/train.py", "data=regression", target, *SHORT, "hydra.run.dir=runs/a/b", folder=fork)
    assert done.returncode == 0, done.stderr
    assert python("scripts/fork.py", "theirlab", folder=fork).returncode == 0
    steps = runs.read_json(fork / "runs" / "a" / "b" / runs.SUMMARY)["steps"]
    done = python("src/train.py", "resume=runs/a/b", "trainer.max_epochs=2", folder=fork)
    assert done.returncode == 0, done.stderr
    assert runs.read_json(fork / "runs" / "a" / "b" / runs.SUMMARY)["steps"] == 2 * steps
    quick = ["tests/test_imports.py", "tests/test_project_files.py", "tests/tasks", "tests/config/test_trust.py"]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *quick, folder=fork)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "give the new name"),
        ("Their-Lab", "expected small letters"),
        ("class", "expected small letters"),
        ("torch", r"is taken, by \S+"),
        ("submitit", "is taken, by "),
        ("train", r"is taken, by \S+"),
        (options.__name__.partition(".")[0], "is its name already"),
        ("theirlab", r"the working tree has 1 changed or new files|is no git repository"),
    ],
)
def test_a_name_that_can_not_be_is_one_line(copy, name, why):
    done = python("scripts/fork.py", name, folder=copy)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: .*({why}).*\n", done.stderr), done.stderr
    assert git("status", "--porcelain", folder=copy) == "?? new\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a change."""
    names = ("src", "conf", "scripts", "pyproject.toml", ".gitignore")
    folder = repository(project(tmp_path_factory.mktemp("copy"), *names))
    (folder / "new").touch()
    return folder


def repository(folder: Path) -> Path:
    git("init", folder=folder)
    git("add", "--all", folder=folder)
    git("-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "--message", "all", folder=folder)
    return folder


def git(*words: str, folder: Path) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_what_strangers_add_breaks_no_test(tmp_path):
    """The examples of the README and of docs/extending*.md, among them a metric, an optimizer and a diagnostic, and the
    files of tests/strangers/, each an addition: none replaces what is there."""
    fork = project(tmp_path / "fork")
    pages = ["README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("extending*.md"))]
    added = {name: text for page in pages for name, text in files(page).items()}
    for path in (path for path in STRANGERS.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        added[str(path.relative_to(STRANGERS))] = path.read_text(encoding="utf-8")
    groups = ("model", "data", "optimizer", "metrics", "diagnostics")
    assert {*groups} <= {name.split("/")[1] for name in added if name.startswith("conf/")}
    assert not [name for name in added if (fork / name).exists()]
    add(fork, added)
    done = python("src/train.py", "model=maxout", "data=arrivals", *SHORT, folder=fork)
    assert done.returncode == 0, done.stderr
    parallel = ["-n", "2", "--dist", "loadgroup"] if find_spec("xdist") else []
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *parallel, folder=fork)
    assert done.returncode == 0, done.stdout[-10_000:]
