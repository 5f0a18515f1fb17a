"""What docs/forking.md promises: a package beside gradflow, a new name, and the files of a stranger."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradflow import runs
from gradflow.config import options, trust
from gradflow.runs import packages
from gradflow.runs.errors import UserError
from gradflow.spec import Spec
from gradflow.tasks.task import task_of

ROOT = Path(__file__).parents[1]
STRANGERS = ROOT / "tests" / "strangers"
SHORT = ["trainer=cpu", "trainer.max_epochs=1", "logger=none", "callbacks.progress=null"]


def project(folder: Path, *names: str) -> Path:
    """Copy the project, or these parts of it."""
    for name in names or [path.name for path in ROOT.iterdir() if not path.name.startswith((".git", ".venv"))]:
        copy, path = folder / name, ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(path, copy, ignore=ignore) if path.is_dir() else shutil.copy(path, copy)
    return folder


def package(folder: Path, name: str = "mylab") -> Path:
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


def test_a_package_that_is_installed_elsewhere_trains_and_goes_on(tmp_path):
    """Its model, source and task; no file of the project knows it."""
    package(tmp_path / "elsewhere")
    known = {"PYTHONPATH": str(tmp_path / "elsewhere"), packages.NAMED_BY: "mylab"}
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
    assert done.stderr == "error: CNN takes image, not vector; for these data choose model=mlp or my_maxout\n"


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """The environment names packages; what was read of conf/ is read again."""
    package(tmp_path)

    def name(names: str) -> None:
        for known in (packages.folders, trust.targets, trust._keys_of_conf):
            known.cache_clear()
        monkeypatch.setenv(packages.NAMED_BY, names)

    monkeypatch.syspath_prepend(tmp_path)
    yield name
    name("")


def test_the_options_and_targets_of_a_package_are_known(mylab, tmp_path):
    before, targets = options.of_group("model"), trust.targets("model")
    (tmp_path / "mylab" / "conf" / "model" / "mlp.yaml").write_text("_target_: mylab.models.my_mlp.MLP")
    mylab("mylab")
    assert {*options.of_group("model")} - {*before} == {"my_maxout"}
    assert trust.targets("model") - targets == {"mylab.models.my_maxout.Maxout", "mylab.models.my_mlp.MLP"}
    assert options.of_group("model")["mlp"] == tmp_path / "mylab" / "conf" / "model" / "mlp.yaml"  # the package's own
    assert type(task_of(Spec("vector", (2,), "my_counts", outputs=1))).__module__ == "mylab.tasks.my_counts"
    assert "mylab" in packages.folders()


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ("mylob", "mylob: no such package is installed, or on PYTHONPATH"),
        ("mylab, a/b", "a/b: no such package is installed, or on PYTHONPATH"),
        ("json", "json: it has no folder conf/"),
    ],
)
def test_a_package_that_is_not_there_is_one_line(mylab, names, why):
    mylab(names)
    with pytest.raises(UserError, match=f"^GRADFLOW_PACKAGES={names}: {why}$"):
        options.folders()
