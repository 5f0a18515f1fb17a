"""What stands around the code says what is true of it: CI, the hooks of a commit, the texts for contributors."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from gradflow import runs
from gradflow.runs.folder import RENAMED_KEYS
from gradflow.training import end_screen

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_ci_runs_every_python_from_the_lowest_that_is_supported():
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    (lowest,) = re.findall(r">=([\d.]+)", PROJECT["project"]["requires-python"])
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons[0] == lowest
    assert [python.partition(".")[2] for python in pythons] == [str(11 + index) for index in range(len(pythons))]
    rows = workflow["jobs"]["elsewhere"]["strategy"]["matrix"]["include"]
    assert [row["python"] for row in rows if "lowest-direct" in row["install"]] == [lowest]
    assert {row["os"].partition("-")[0] for row in rows} == {"ubuntu", "macos", "windows"}


@pytest.mark.parametrize(
    "name", [".github/workflows/ci.yml", ".pre-commit-config.yaml", ".devcontainer/devcontainer.json"]
)
def test_no_host_is_named_and_every_file_that_is_run_is_there(name):
    assert "://" not in text(name)
    for file in re.findall(r"[\w.]+/[\w/]+\.lock|\.ci/\w+|[\w]+\.lock", text(name)):
        assert (ROOT / file).exists(), file


def test_hooks_run_the_tools_of_the_lock():
    (repo,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    tools = {hook["id"]: hook["entry"].split()[0] for hook in repo["hooks"] if hook["language"] == "system"}
    assert set(tools.values()) == {".venv/bin/ruff", ".venv/bin/mypy"}
    locked = set(re.findall(r"^([\w.-]+)==", text("requirements.lock"), re.MULTILINE))
    assert {Path(tool).name for tool in tools.values()} <= locked


def test_the_container_sets_up_as_everybody_does():
    container = json.loads(text(".devcontainer/devcontainer.json"))
    assert container["postCreateCommand"] == "make setup"
    assert container["hostRequirements"]["gpu"] == "optional"
    python = tuple(map(int, container["image"].partition(":")[2].split(".")))
    assert python >= tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])


def test_the_changelog_names_what_was_renamed():
    row = "| `{}` | `{}` |".format
    assert all(row(old, new) in text("CHANGELOG.md") for old, new in RENAMED_KEYS.items())


def test_the_last_line_of_a_run_has_the_keys_that_agents_are_told(tmp_path):
    (quoted,) = re.findall(r"```json\n(.*)\n```", text("AGENTS.md"))
    keys = [*json.loads(end_screen._json_line({"status": "running"}, tmp_path))]
    assert [key for key in re.findall(r'"(\w+)":', quoted) if key in keys] == keys
    (statuses,) = re.findall(r"`status` is (.*), and", text("AGENTS.md"))
    assert set(runs.OVER) < set(re.findall(r"`(\w+)`", statuses))


def test_the_experiment_of_agents_composes(composed):
    (command,) = re.findall(r"^python src/train.py (.*summary=json)$", text("AGENTS.md"), re.MULTILINE)
    config = composed(*command.split())
    assert OmegaConf.select(config, "trainer.max_time") == "00:00:05:00"
