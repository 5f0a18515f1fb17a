"""What docs/extending-optimizer.md adds trains and goes on in a copy of the project, with no file of it changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples import blocks, copied, files

from gradflow import runs

PAGE = "docs/extending-optimizer.md"
FILES = files(PAGE)
(COMMAND,) = (block.split() for block in blocks(PAGE) if block.startswith("python "))
SHORT = ("data.size=16", "logger=none", "callbacks.progress=null", "callbacks.gradient_flow=null", "test=false")


@pytest.fixture(scope="module")
def fork(tmp_path_factory) -> Path:
    return copied(tmp_path_factory.mktemp("fork"), FILES)


def train(fork: Path, *words: str) -> tuple[int, str]:
    command = [sys.executable, *COMMAND[1:], *SHORT, *words]
    done = subprocess.run(command, cwd=fork, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_class_of_ones_own_trains_in_groups_beside_one_of_pytorch(fork):
    assert train(fork, "trainer.max_steps=4", "trainer.log_every_n_steps=1", "hydra.run.dir=signum") == (0, "")
    names, rows = runs.read_table(fork / "signum" / runs.METRICS)
    logged = [row for row in rows if row[names.index("lr/rest")] == row[names.index("lr/rest")]]
    assert {name for name in names if name.startswith("lr")} == {"lr/rest", "lr/vectors", "lr/output"}
    assert len(logged) == 4
    for row in logged:
        rest, vectors, output = (row[names.index(f"lr/{name}")] for name in ("rest", "vectors", "output"))
        assert (vectors, output) == pytest.approx((rest, rest / 3e-4 * 1e-3))
    state = torch.load(fork / "signum" / runs.LAST, weights_only=True)["optimizer_states"][0]
    kept = [sorted(state["state"][group["params"][0]]) for group in state["param_groups"]]
    assert kept == [["momentum"], ["momentum"], ["exp_avg", "exp_avg_sq", "step"]]


@pytest.mark.slow
def test_a_value_that_it_rejects_names_its_key(fork):
    assert train(fork, "optimizer.lr=-1") == (2, "error: optimizer.lr=-1: Invalid lr: -1\n")


@pytest.mark.slow
@pytest.mark.parametrize("option", [name[5:-5] for name in FILES if name.startswith("conf/")])
def test_each_yaml_of_the_page_trains(fork, option):
    group, name = option.split("/")
    status, said = train(fork, "trainer.max_steps=2", f"{group}={name}", f"hydra.run.dir={name}2")
    assert (status, said) == (0, "")
