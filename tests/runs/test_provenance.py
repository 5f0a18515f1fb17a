"""What a summary says of the code, the packages and the machine of its run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gradflow import runs
from gradflow.runs import provenance

MISSING = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")


def git(folder: Path, *words: str) -> str:
    person = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-c", "init.defaultBranch=main", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | person, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project of one file, with a link that leads out of it, all of it committed."""
    folder = tmp_path / "checkout"
    (folder / "conf").mkdir(parents=True)
    (tmp_path / "secret").write_text("a password")
    (folder / "code.py").write_text("a = 1\n")
    (folder / "requirements.lock").write_text("torch==2.15.0\n")
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2", "nowhere>=1", "numpy"]\n')
    (folder / "link").symlink_to("code.py")
    monkeypatch.setattr(provenance, "_ROOT", folder)
    if shutil.which("git"):
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
            git(folder, *words)
    return folder


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@MISSING
def test_of_a_clean_checkout_the_commit_is_all(checkout, run):
    os.utime(checkout / "code.py", (1, 1))  # git would note that it has looked at it
    index = (checkout / ".git" / "index").read_bytes()
    facts = provenance.record(run)
    assert (checkout / ".git" / "index").read_bytes() == index  # which another git may be writing
    assert facts["git"] == {"commit": git(checkout, "rev-parse", "HEAD").strip(), "dirty": False}
    assert facts["lock"] == hashlib.sha256(b"torch==2.15.0\n").hexdigest()
    assert list(facts["versions"]) == ["python", "torch", "numpy"]
    assert facts["processor"]
    (checkout / "new.py").write_text("b = 1\n")
    assert provenance.record(run)["git"] == facts["git"] | {"untracked": ["new.py"]}
    assert not list(run.iterdir())


@MISSING
def test_uncommitted_changes_of_tracked_files_are_kept_and_apply(checkout, run, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "elsewhere")  # as in a hook of another repository
    (checkout / "code.py").write_bytes(b"a = 2\n\0")
    (checkout / "link").unlink()
    (checkout / "link").symlink_to(tmp_path / "secret")
    (checkout / "new.py").write_text("a key")
    git(checkout, "--git-dir=.git", "add", "code.py")
    facts = provenance.record(run)["git"]
    assert (facts["dirty"], facts["untracked"]) == (True, ["new.py"])
    kept = (run / runs.CHANGES).read_bytes()
    assert facts["changes"] == hashlib.sha256(kept).hexdigest()
    assert b"password" not in kept
    assert b"key" not in kept
    monkeypatch.delenv("GIT_DIR")
    git(tmp_path, "clone", "-q", str(checkout), "clone")
    git(tmp_path / "clone", "apply", str(run / runs.CHANGES))
    assert (tmp_path / "clone" / "code.py").read_bytes() == b"a = 2\n\0"


@MISSING
def test_large_changes_are_not_kept(checkout, run, monkeypatch):
    (checkout / "code.py").write_text("a = 2\n" * 200)
    monkeypatch.setattr(provenance, "_MOST", 1000)
    assert provenance.record(run)["git"]["changes"] == "too large"
    assert not list(run.iterdir())


@MISSING
def test_what_git_cannot_tell_is_left_out(checkout, run, monkeypatch, tmp_path):
    (tmp_path / "git").write_text("#!/bin/sh\nsleep 1; echo '# branch.oid 1'\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "_PATIENCE", 0.05)
    for path in (f"{tmp_path}:{os.environ['PATH']}", str(run)):  # one that hangs, and none
        monkeypatch.setenv("PATH", path)
        assert "git" not in provenance.record(run)


@MISSING
def test_the_repository_around_a_package_that_was_installed_is_not_asked(checkout, run):
    shutil.rmtree(checkout / "conf")
    assert "git" not in provenance.record(run)


@MISSING
def test_without_a_commit_there_is_none(checkout, run):
    shutil.rmtree(checkout / ".git")
    assert "git" not in provenance.record(run)
    git(checkout, "init", "-q")
    assert "git" not in provenance.record(run)


@MISSING
def test_what_differs_from_then(checkout, run):
    facts = provenance.record(run)
    runs.write_json(run / runs.SUMMARY, facts)
    assert provenance.differences(run) == []
    commit = facts["git"]["commit"][:10]
    (checkout / "code.py").write_text("a = 3\n")
    (changed,) = provenance.differences(run)
    assert changed.startswith("uncommitted changes none then, ")
    git(checkout, "commit", "-qam", "two")
    (moved,) = provenance.differences(run)
    assert moved == f"commit {commit} then, {git(checkout, 'rev-parse', 'HEAD')[:10]} now"
    code = {"changed_when_resumed": [moved]}
    for _ in range(2):  # a run that is resumed, and once more with the same code
        resumed = provenance.record(run)
        assert {key: resumed[key] for key in resumed if key not in facts} == code
        runs.write_json(run / runs.SUMMARY, resumed)
    runs.write_json(run / runs.SUMMARY, resumed | {"versions": {"torch": "1.0", "gone": "3"}})
    assert provenance.differences(run) == [f"torch 1.0 then, {facts['versions']['torch'][:10]} now"]


@MISSING
@pytest.mark.parametrize("found", [{}, {"git": 3, "versions": [1], "lock": None}, {"git": {"commit": "\x1b[2J\n"}}])
def test_a_stranger_s_summary_says_nothing_to_the_terminal(checkout, run, found):
    (run / runs.SUMMARY).write_text(json.dumps(found))
    said = "".join(provenance.differences(run))
    assert said.isprintable()
    assert "commit" in said


@pytest.mark.parametrize("content", ['[tool.poetry]\nname = "fork"\n', "[project]\nname = 'fork'\n", "<<<<<<< HEAD\n"])
def test_a_project_file_of_another_kind_ends_no_run(checkout, run, content):
    (checkout / "pyproject.toml").write_text(content)
    assert provenance.record(run)["versions"]["python"]
